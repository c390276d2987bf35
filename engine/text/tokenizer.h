/*
 * tokenizer: text to tokens and back, from a model file's vocabulary.
 *
 * "gpt2" is byte-level BPE (bpe.c) behind a PCRE2 pre-tokeniser (split.c, a row per
 * tokenizer.ggml.pre); "llama" is SentencePiece-style BPE by score (spm.c).
 * Special tokens (control and user-defined) are matched in the text first, longest first,
 * when asked for; user-defined ones always. Form C is made of what lies between them; those
 * that are looked for in that form come after it.
 *
 * Thread: frozen after new; encode and decode may run on any thread.
 */
#ifndef ENGINE_TEXT_TOKENIZER_H
#define ENGINE_TEXT_TOKENIZER_H

#include "proto/base/memory.h"
#include "proto/model/model_file.h"

typedef int32_t token_id;

struct tokenizer;

struct token_list { /* grows; the caller closes it with token_list_close */
    token_id *ids;
    int32_t count;
    int32_t capacity;
};
void token_list_add(struct token_list *list, token_id id);
void token_list_close(struct token_list *list);

/* Copies what it needs: `vocabulary` may go away. ERR_UNSUPPORTED names an unknown model or
 * pre-tokeniser, ERR_CORRUPT a vocabulary that does not hold together. */
MUST_USE enum status tokenizer_new(const struct vocabulary *vocabulary, struct tokenizer **out);
void tokenizer_free(struct tokenizer *tokenizer); /* NULL is fine */
DEFINE_AUTO_FREE(tokenizer)

/* Appends the tokens of `text`. ERR_INVALID: it is not UTF-8 (says at which byte) or too long.
 * parse_special: control tokens in the text are recognised. add_special: BOS (EOS) is added
 * where the model asks for it. Time is O(n log n) in the length of the text, at most 256 MiB.
 * On failure `out` is as it was. */
MUST_USE enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text,
                                      size_t size, bool parse_special, bool add_special,
                                      struct token_list *out);

/* Appends the bytes of one token as they stand in the text; control tokens only if asked for.
 * The bytes of one token alone need not be UTF-8. An id out of range appends nothing. */
void tokenizer_piece(const struct tokenizer *tokenizer, token_id id, bool show_special,
                     struct bytes *out);

/* Appends the text of ids; bytes that are no UTF-8 become U+FFFD. Where the model puts a space
 * before every text (add_space_prefix), it is taken away again. */
void tokenizer_decode(const struct tokenizer *tokenizer, const token_id *ids, int32_t count,
                      bool show_special, struct bytes *out);

int32_t tokenizer_vocab_size(const struct tokenizer *tokenizer);
bool tokenizer_is_special(const struct tokenizer *tokenizer, token_id id);
token_id tokenizer_bos(const struct tokenizer *tokenizer); /* -1: none */
token_id tokenizer_eos(const struct tokenizer *tokenizer); /* -1: none */
/* The stored bytes of a token ("<|im_start|>"), valid as long as the tokenizer; NULL out of range. */
const char *tokenizer_token_text(const struct tokenizer *tokenizer, token_id id, size_t *size_out);
/* Every id that ends a generation: EOS, and EOT where the model has one. */
const token_id *tokenizer_stop_ids(const struct tokenizer *tokenizer, int32_t *count_out);

#endif
