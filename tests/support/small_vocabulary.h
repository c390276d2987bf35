/*
 * small_vocabulary: vocabularies for tests, small enough to be read.
 */
#ifndef TESTS_SUPPORT_SMALL_VOCABULARY_H
#define TESTS_SUPPORT_SMALL_VOCABULARY_H

#include "proto/model/model_file.h"

/*
 * Byte-level BPE: tokens 0..255 are the bytes, then merges "h e" "l l" "he ll" "hell o" and
 * "Ġ hello" with what they make (256..260), then the specials below.
 */
enum {
    SMALL_HELLO = 259,
    SMALL_SPACE_HELLO = 260,
    SMALL_BOS = 261,      /* control "<s>" */
    SMALL_EOS = 262,      /* control "</s>" */
    SMALL_TOOL = 263,     /* user-defined "<tool>" */
    SMALL_TOOL_SET = 264, /* user-defined "<tool><set>" */
    SMALL_NUM_TOKENS = 265
};
/* Valid until the next call: statically kept. `pre` is "gpt-2". */
struct vocabulary small_bpe_vocabulary(void);

/*
 * SentencePiece style: 0 "<unk>", 1 "<s>" and 2 "</s>" control, 3..258 the bytes, then the words
 * of small_vocabulary.c by falling score, then user-defined "▁▁", "▁▁▁▁".
 */
struct vocabulary small_spm_vocabulary(void);

#endif
