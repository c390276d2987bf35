/*
 * grammar: which tokens may come next in the output of one request.
 *
 * An automaton that moves on with each token that was sampled, and writes the bitmask of a step: 1
 * bits are tokens that are allowed. It may live elsewhere (remote.h): then a mask is filled beside the
 * caller, from begin_mask on, and may come too late for a step. A kind of automaton is a struct
 * grammar_ops; its object embeds a struct grammar.
 *
 * Once the output is a whole one, stop tokens are allowed, and when nothing else may follow they
 * alone are. A state without any allowed token is a fault: the sampler ends such a request.
 *
 * Thread: core, from submission on.
 */
#ifndef ENGINE_GRAMMAR_GRAMMAR_H
#define ENGINE_GRAMMAR_GRAMMAR_H

#include "engine/engine.h"
#include "proto/base/rounding.h"

struct grammar_ops {
    const char *name;
    /* Moves on by a token. false: it is not allowed here, and the state is as it was. The mask of the state
     * before must have been filled. */
    bool (*accept)(struct grammar *grammar, token_id token);
    /* The mask of this state will be asked for; may be said again. NULL: nothing can be done before. */
    void (*begin_mask)(struct grammar *grammar);
    /* Does fill_bitmask return at once, with the mask or with a failure? If not, what core waits for
     * beside its orders (core_options.grammar_fd) becomes readable when it does. NULL: always. */
    bool (*is_ready)(struct grammar *grammar);
    /* Writes all bits of words[num_words]; token t is bit t % 32 of word t / 32. Only when ready. A failure
     * is the request's, with its sentence. */
    enum status (*fill_bitmask)(struct grammar *grammar, uint32_t *words, int32_t num_words);
    /* Others should not wait for its masks: the last one took long. NULL: never. */
    bool (*is_slow)(const struct grammar *grammar);
    /* When the mask that was filled last was begun, and ended, elsewhere; CLOCK_MONOTONIC. NULL: here. */
    void (*fill_times)(const struct grammar *grammar, int64_t *begin_ns_out, int64_t *end_ns_out);
    /* true: a stop token was accepted, and nothing may follow. */
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

static inline void grammar_begin_mask(struct grammar *grammar)
{
    if (grammar->ops->begin_mask)
        grammar->ops->begin_mask(grammar);
}

static inline bool grammar_is_ready(struct grammar *grammar)
{
    return !grammar->ops->is_ready || grammar->ops->is_ready(grammar);
}

MUST_USE static inline enum status grammar_fill_bitmask(struct grammar *grammar, uint32_t *words,
                                                        int32_t num_words)
{
    return grammar->ops->fill_bitmask(grammar, words, num_words);
}

static inline bool grammar_is_slow(const struct grammar *grammar)
{
    return grammar->ops->is_slow && grammar->ops->is_slow(grammar);
}

/* false: it was filled here. */
static inline bool grammar_fill_times(const struct grammar *grammar, int64_t *begin_ns_out,
                                      int64_t *end_ns_out)
{
    if (grammar->ops->fill_times)
        grammar->ops->fill_times(grammar, begin_ns_out, end_ns_out);
    return grammar->ops->fill_times != NULL;
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
    return divide_up(vocab_size, 32);
}

#endif
