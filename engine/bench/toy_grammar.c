#include "engine/bench/toy_grammar.h"

#include "engine/simulation/random.h"

#include <string.h>

struct toy_grammar {
    struct grammar grammar;
    struct toy_grammar_options options;
    uint64_t state;
    int32_t num_accepted;
};

static const struct toy_grammar *of(const struct grammar *grammar)
{
    return CONTAINER_OF(grammar, const struct toy_grammar, grammar);
}

static bool is_terminated(const struct grammar *grammar)
{
    return of(grammar)->num_accepted >= of(grammar)->options.num_tokens;
}

static uint32_t bit_of(token_id token)
{
    return (uint32_t)1 << (token % 32);
}

/* Some token is always allowed, and the stop token not before its time. */
static uint32_t word_at(const struct toy_grammar *toy, int32_t at)
{
    token_id always = (token_id)(toy->state % (uint64_t)toy->options.vocab_size);
    token_id stop = toy->options.stop_token;
    uint32_t word = (uint32_t)mix(toy->state + (uint64_t)at);

    if (always == stop)
        always = stop == 0 ? 1 : stop - 1;
    if (at == always / 32)
        word |= bit_of(always);
    if (at == stop / 32)
        word &= ~bit_of(stop);
    return word;
}

static bool is_allowed(const struct grammar *grammar, token_id token)
{
    const struct toy_grammar *toy = of(grammar);

    if (is_terminated(grammar))
        return token == toy->options.stop_token;
    return token >= 0 && token < toy->options.vocab_size &&
           word_at(toy, token / 32) & bit_of(token);
}

static bool accept(struct grammar *grammar, token_id token)
{
    struct toy_grammar *toy = CONTAINER_OF(grammar, struct toy_grammar, grammar);

    if (!is_allowed(grammar, token))
        return false;
    if (!is_terminated(grammar)) {
        toy->num_accepted++;
        toy->state = mix(toy->state ^ (uint64_t)token * 0x9e3779b97f4a7c15);
    }
    return true;
}

static void fill_bitmask(const struct grammar *grammar, uint32_t *words, int32_t num_words)
{
    const struct toy_grammar *toy = of(grammar);

    if (is_terminated(grammar)) {
        memset(words, 0, (size_t)num_words * sizeof *words);
        words[toy->options.stop_token / 32] = bit_of(toy->options.stop_token);
        return;
    }
    for (int32_t i = 0; i < num_words; i++)
        words[i] = word_at(toy, i);
}

static void free_grammar(struct grammar *grammar)
{
    mem_free(CONTAINER_OF(grammar, struct toy_grammar, grammar));
}

static const struct grammar_ops ops = {
    .name = "toy",
    .accept = accept,
    .fill_bitmask = fill_bitmask,
    .is_terminated = is_terminated,
    .free = free_grammar,
};

struct grammar *toy_grammar_new(const struct toy_grammar_options *options)
{
    struct toy_grammar *toy = mem_new(struct toy_grammar);

    ASSERT(options->vocab_size > 1 && options->stop_token < options->vocab_size);
    toy->grammar.ops = &ops;
    toy->options = *options;
    toy->state = mix(options->seed);
    return &toy->grammar;
}
