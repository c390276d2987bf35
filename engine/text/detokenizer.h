/*
 * detokenizer: a stream of tokens to a stream of text, with stop strings.
 *
 * Text comes out as soon as it is certain: never half a UTF-8 character (an incomplete tail is
 * held until it is complete or known to be invalid, then U+FFFD), and never a byte that may yet
 * turn out to belong to a stop string.
 *
 * Thread: the one that made it.
 */
#ifndef ENGINE_TEXT_DETOKENIZER_H
#define ENGINE_TEXT_DETOKENIZER_H

#include "engine/text/tokenizer.h"

struct detokenizer;

struct detokenizer_options {
    const char *const *stop;      /* [num_stop] non-empty UTF-8 strings, copied */
    int32_t num_stop;
    bool include_stop;            /* the matched string is part of the text */
    bool show_special;            /* control tokens are shown */
    int32_t min_tokens;           /* stop strings that this many tokens complete are passed over */
};

struct detokenizer *detokenizer_new(const struct tokenizer *tokenizer,
                                    const struct detokenizer_options *options);
void detokenizer_free(struct detokenizer *detokenizer); /* NULL is fine */
DEFINE_AUTO_FREE(detokenizer)

/* Appends the text that became certain with this token. Returns the index of the stop string
 * that was completed, or -1. After a stop nothing more comes out. */
int32_t detokenizer_push(struct detokenizer *detokenizer, token_id id, struct bytes *out);

/* The generation ended without a stop string: what was held back comes out. */
void detokenizer_finish(struct detokenizer *detokenizer, struct bytes *out);

#endif
