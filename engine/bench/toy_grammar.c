#include "engine/bench/toy_grammar.h"

#include "engine/simulation/random.h"
#include "proto/base/clock.h"

#include <string.h>

struct toy_grammar {
    struct grammar grammar;
    struct toy_grammar_options options;
    uint64_t state;
    int32_t num_accepted;
    bool is_terminated;
    int64_t ready_ns; /* of the present mask; 0: it was not begun */
};

static const struct toy_grammar *of(const struct grammar *grammar)
{
    return CONTAINER_OF(grammar, const struct toy_grammar, grammar);
}

/* Nothing but the stop token may follow. */
static bool is_complete(const struct toy_grammar *toy)
{
    return toy->num_accepted >= toy->options.num_tokens;
}

static bool is_terminated(const struct grammar *grammar)
{
    return of(grammar)->is_terminated;
}

static uint32_t bit_of(token_id token)
{
    return (uint32_t)1 << (token % 32);
}

/* Some token is always allowed, and the stop token not before its time; no bit is set that is no token. */
static uint32_t word_at(const struct toy_grammar *toy, int32_t at)
{
    int32_t num_bits = toy->options.vocab_size - at * 32;
    token_id always = (token_id)(toy->state % (uint64_t)toy->options.vocab_size);
    token_id stop = toy->options.stop_token;
    uint32_t word = (uint32_t)mix(toy->state + (uint64_t)at);

    if (always == stop)
        always = stop == 0 ? 1 : stop - 1;
    if (at == always / 32)
        word |= bit_of(always);
    if (at == stop / 32)
        word &= ~bit_of(stop);
    return num_bits < 32 ? word & (((uint32_t)1 << num_bits) - 1) : word;
}

static bool is_allowed(const struct grammar *grammar, token_id token)
{
    const struct toy_grammar *toy = of(grammar);

    if (is_complete(toy))
        return token == toy->options.stop_token && !toy->is_terminated;
    return token >= 0 && token < toy->options.vocab_size &&
           word_at(toy, token / 32) & bit_of(token);
}

static bool is_late(const struct toy_grammar *toy)
{
    return (int32_t)(mix(toy->state ^ 0x1a7e) % 100) < toy->options.late_percent;
}

static void begin_mask(struct grammar *grammar)
{
    struct toy_grammar *toy = CONTAINER_OF(grammar, struct toy_grammar, grammar);

    if (toy->options.late_percent > 0 && toy->ready_ns == 0)
        toy->ready_ns = clock_now_ns() + (is_late(toy) ? toy->options.late_ns : 0);
}

static bool is_ready(struct grammar *grammar)
{
    struct toy_grammar *toy = CONTAINER_OF(grammar, struct toy_grammar, grammar);

    begin_mask(grammar);
    if (clock_now_ns() >= toy->ready_ns)
        return true;
    toy->options.on_late(toy->options.user, toy->ready_ns);
    return false;
}

/* Some of those that were late are known to be. */
static bool is_slow(const struct grammar *grammar)
{
    return is_late(of(grammar)) && of(grammar)->num_accepted % 2 == 0;
}

static bool accept(struct grammar *grammar, token_id token)
{
    struct toy_grammar *toy = CONTAINER_OF(grammar, struct toy_grammar, grammar);

    if (!is_allowed(grammar, token))
        return false;
    if (is_complete(toy)) {
        toy->is_terminated = true;
    } else {
        toy->num_accepted++;
        toy->state = mix(toy->state ^ (uint64_t)token * 0x9e3779b97f4a7c15);
    }
    toy->ready_ns = 0;
    begin_mask(grammar);
    return true;
}

static enum status fill_bitmask(struct grammar *grammar, uint32_t *words, int32_t num_words)
{
    const struct toy_grammar *toy = of(grammar);

    ASSERT(!toy->is_terminated && clock_now_ns() >= toy->ready_ns);
    if (is_complete(toy)) {
        memset(words, 0, (size_t)num_words * sizeof *words);
        words[toy->options.stop_token / 32] = bit_of(toy->options.stop_token);
        return OK;
    }
    for (int32_t i = 0; i < num_words; i++)
        words[i] = word_at(toy, i);
    return OK;
}

static void free_grammar(struct grammar *grammar)
{
    mem_free(CONTAINER_OF(grammar, struct toy_grammar, grammar));
}

static const struct grammar_ops ops = {
    .name = "toy",
    .accept = accept,
    .begin_mask = begin_mask,
    .is_ready = is_ready,
    .fill_bitmask = fill_bitmask,
    .is_slow = is_slow,
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
