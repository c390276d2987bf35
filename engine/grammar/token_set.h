/*
 * token_set: what a vocabulary's own rules say of a mask, whatever a library thinks of it.
 *
 * A library decides about tokens that are text. No grammar produces a control token; the tokens
 * that stop are allowed where the output is complete and nowhere else, which is kept here, alike
 * for all libraries.
 *
 * Thread: frozen once it is made.
 */
#ifndef ENGINE_GRAMMAR_TOKEN_SET_H
#define ENGINE_GRAMMAR_TOKEN_SET_H

#include "engine/grammar/backend.h"

struct token_set {
    int32_t num_tokens, num_words;
    uint32_t *text; /* [num_words], bit by bit: it is text and does not stop */
    uint32_t *stop; /* [num_words] */
};

/* ERR_INVALID: no tokens, no stop token, or one outside of the vocabulary. */
MUST_USE enum status token_set_init(const struct grammar_vocabulary *vocabulary,
                                    struct token_set *out);
void token_set_close(struct token_set *set);

/* Out of the vocabulary: neither. */
bool token_set_is_text(const struct token_set *set, token_id token);
bool token_set_is_stop(const struct token_set *set, token_id token);
/* Makes a library's mask ours. */
void token_set_apply(const struct token_set *set, uint32_t *words, bool is_complete);

#endif
