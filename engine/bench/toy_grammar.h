/*
 * toy_grammar: an automaton without a language, for benches and simulations.
 *
 * Its state is a number that each token changes, and which decides at random what may follow: about
 * half of the vocabulary. After so many tokens only the stop token is left. Two of one seed agree
 * forever; so whoever computes the tokens of a request anew, knows what its grammar allowed.
 *
 * Filling costs what real backends take for a row: each word is computed, none is looked up. Some masks
 * may come late, as those that another process fills.
 */
#ifndef ENGINE_BENCH_TOY_GRAMMAR_H
#define ENGINE_BENCH_TOY_GRAMMAR_H

#include "engine/grammar/grammar.h"

struct toy_grammar_options {
    uint64_t seed;
    int32_t vocab_size;
    int32_t num_tokens;  /* before it is complete; the stop token may come no sooner */
    token_id stop_token; /* in the vocabulary */

    int32_t late_percent; /* of the masks are ready only ... */
    int64_t late_ns;      /* ... so long after the token before; 0: none is */
    /* A mask was asked for too soon: at ready_ns core is to be woken. */
    void (*on_late)(void *user, int64_t ready_ns);
    void *user;
};

struct grammar *toy_grammar_new(const struct toy_grammar_options *options);

#endif
