#include "engine/core/pacing.h"

#include "proto/base/memory.h"

/* What is known of nothing yet: so many tokens double a step. */
enum { FIRST_TOKENS = 8 };
/* Steps without decoding rows tell the price of a token only when they have more of them. */
enum { MANY_TOKENS = 64 };
/* Between two steps that are kept free of prompts because other rows decode than were measured: one that
 * is in flight is seen by then. */
enum { SHORTEST_PERIOD = 4 };
/* A step that is too long takes so much off the aim, and one that is not brings back a hundredth of that: so they
 * balance where one in a hundred is. On a machine that is often held up by others no aim would do. */
static const double first_aim = 0.8, least_aim = 0.6, most_aim = 0.95, aim_step = 0.04;

void pacing_init(struct pacing *pacing, double slowdown)
{
    *pacing = (struct pacing){.slowdown = slowdown, .aim = first_aim, .limit = -1};
}

/* Does the estimate hold for so many rows? */
static bool is_measured(const struct pacing *pacing, int32_t num_decoding)
{
    int32_t more = num_decoding - pacing->num_decoding;

    return pacing->decode_ns > 0 && MAX(more, -more) * 4 <= pacing->num_decoding;
}

/* Is this step to show what decoding takes? */
static bool wants_measure(struct pacing *pacing, int32_t num_decoding)
{
    int32_t period = is_measured(pacing, num_decoding) ? PACING_PERIOD : SHORTEST_PERIOD;

    if (pacing->decode_ns > 0 && pacing->num_limited < period)
        return false;
    pacing->num_limited = 0;
    return true;
}

/* Of a token, in ns; not 0 where time stands still. */
static double price(const struct pacing *pacing)
{
    double token_ns = pacing->token_ns > 0 ? pacing->token_ns : pacing->decode_ns / FIRST_TOKENS;

    return MAX(token_ns, 1e-6);
}

static int32_t tokens_within(const struct pacing *pacing)
{
    double tokens = pacing->aim * pacing->share * pacing->decode_ns / price(pacing);

    return tokens < 1 ? 1 : tokens < INT32_MAX ? (int32_t)tokens : INT32_MAX;
}

int32_t pacing_limit(struct pacing *pacing, int32_t num_decoding, int32_t num_waiting)
{
    if (pacing->slowdown == 0 || num_decoding == 0) {
        pacing->limit = -1;
        return INT32_MAX;
    }
    pacing->num_limited++;
    if (wants_measure(pacing, num_decoding))
        return 0;
    pacing->share = MAX(pacing->slowdown - 1, (double)num_waiting / num_decoding);
    pacing->limit = tokens_within(pacing);
    return pacing->limit;
}

/* One step may have been held up by something else: it moves the estimate by a bounded part. */
static double follow(double estimate, double seen, double weight)
{
    if (estimate == 0)
        return seen;
    return estimate + weight * (MIN(MAX(seen, estimate / 2), estimate * 2) - estimate);
}

static void observe_decoding(struct pacing *pacing, int32_t num_decoding, double took_ns)
{
    if (!is_measured(pacing, num_decoding))
        pacing->decode_ns = 0;
    pacing->decode_ns = follow(pacing->decode_ns, took_ns, 0.25);
    pacing->num_decoding = num_decoding;
}

/* Of steps that had about as many tokens as they might. */
static void observe_length(struct pacing *pacing, int32_t num_tokens, double ns)
{
    if (num_tokens < pacing->limit / 2)
        return;
    pacing->aim += ns > (1 + pacing->share) * pacing->decode_ns ? -aim_step : aim_step / 99;
    pacing->aim = MIN(MAX(pacing->aim, least_aim), most_aim);
}

/* The fewer tokens a step has, the less it tells of what one of them costs. */
static void observe_mixed(struct pacing *pacing, int32_t num_tokens, double ns)
{
    int32_t enough = MAX(1, MIN(pacing->limit, MANY_TOKENS));
    double weight = 0.5 * MIN(1, (double)num_tokens / enough);

    pacing->token_ns = follow(price(pacing), ns / num_tokens, weight);
}

void pacing_observe(struct pacing *pacing, int32_t num_decoding, int32_t num_prompt_tokens,
                    int64_t took_ns)
{
    double ns = (double)MAX(took_ns, 1);

    if (num_prompt_tokens == 0) {
        observe_decoding(pacing, num_decoding, ns);
        pacing->num_limited = 0;
    } else if (num_decoding == 0) {
        /* In bulk a token costs less than in the small chunks to come. */
        if (num_prompt_tokens >= MANY_TOKENS)
            pacing->token_ns = follow(pacing->token_ns, 2 * ns / num_prompt_tokens, 0.5);
    } else if (is_measured(pacing, num_decoding)) {
        observe_mixed(pacing, num_prompt_tokens, ns - pacing->decode_ns);
        observe_length(pacing, num_prompt_tokens, ns);
    }
}
