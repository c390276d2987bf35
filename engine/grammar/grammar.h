/*
 * grammar: which tokens may come next in the output of one request.
 *
 * An automaton that moves on with each token that was sampled, and writes the bitmask of a step: 1
 * bits are tokens that are allowed. A backend is a struct grammar_ops; it embeds a struct grammar.
 *
 * Once the grammar is complete and nothing may follow, only the request's stop tokens are allowed.
 * A state without any allowed token is a fault of the backend: the sampler ends such a request.
 *
 * Thread: core, from submission on.
 */
#ifndef ENGINE_GRAMMAR_GRAMMAR_H
#define ENGINE_GRAMMAR_GRAMMAR_H

#include "engine/engine.h"

struct grammar_ops {
    const char *name;
    /* Moves on by a token. false: it is not allowed here, and the state is as it was. */
    bool (*accept)(struct grammar *grammar, token_id token);
    /* Writes all bits of words[num_words]; token t is bit t % 32 of word t / 32. */
    void (*fill_bitmask)(const struct grammar *grammar, uint32_t *words, int32_t num_words);
    /* true: complete, and nothing but a stop token may follow. */
    bool (*is_terminated)(const struct grammar *grammar);
    void (*free)(struct grammar *grammar);
};

struct grammar {
    const struct grammar_ops *ops;
};

MUST_USE static inline bool grammar_accept(struct grammar *grammar, token_id token)
{
    return grammar->ops->accept(grammar, token);
}

static inline void grammar_fill_bitmask(const struct grammar *grammar, uint32_t *words,
                                        int32_t num_words)
{
    grammar->ops->fill_bitmask(grammar, words, num_words);
}

static inline bool grammar_is_terminated(const struct grammar *grammar)
{
    return grammar->ops->is_terminated(grammar);
}

/* NULL is fine. */
static inline void grammar_free(struct grammar *grammar)
{
    if (grammar)
        grammar->ops->free(grammar);
}
DEFINE_AUTO_FREE(grammar)

/* Words of a row of the bitmask. */
static inline int32_t grammar_num_words(int32_t vocab_size)
{
    return (vocab_size + 31) / 32;
}

#endif
