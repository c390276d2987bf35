#include "worker/sampler.h"

#include "worker/philox.h"

#include <math.h>
#include <string.h>

/* The largest value gumbel() can return: -log(-log(1 - 2^-33)). */
static const double MAX_GUMBEL = 22.9;

struct sampler {
    int32_t vocab_size;
    struct candidate *candidates; /* [vocab_size] */
    int32_t *counts;              /* [vocab_size] zero between runs: occurrences in the output */
    uint8_t *seen;                /* [vocab_size] zero between runs: occurs in prompt or output */
    int32_t *top_tokens;          /* [vocab_size] */
    float *top_logprobs;
    float *raw; /* [vocab_size] logits as the model gave them */
};

struct sampler *sampler_new(int32_t vocab_size)
{
    struct sampler *sampler = mem_new(struct sampler);
    size_t n = (size_t)vocab_size;

    ASSERT(vocab_size > 0);
    sampler->vocab_size = vocab_size;
    sampler->candidates = mem_new_array(struct candidate, n);
    sampler->counts = mem_new_array(int32_t, n);
    sampler->seen = mem_new_array(uint8_t, n);
    sampler->top_tokens = mem_new_array(int32_t, n);
    sampler->top_logprobs = mem_new_array(float, n);
    sampler->raw = mem_new_array(float, n);
    return sampler;
}

void sampler_free(struct sampler *sampler)
{
    if (!sampler)
        return;
    mem_free(sampler->candidates);
    mem_free(sampler->counts);
    mem_free(sampler->seen);
    mem_free(sampler->top_tokens);
    mem_free(sampler->top_logprobs);
    mem_free(sampler->raw);
    mem_free(sampler);
}

/* ---- logit edits ---------------------------------------------------------------------------- */

static void apply_bitmask(float *logits, int32_t n, const uint32_t *bitmask)
{
    for (int32_t t = 0; t < n; t++)
        if (!(bitmask[t / 32] >> (t % 32) & 1))
            logits[t] = -INFINITY;
}

static bool has_penalties(const struct sampling_params *params)
{
    return params->repetition_penalty != 1 || params->frequency_penalty != 0 ||
           params->presence_penalty != 0;
}

static void apply_penalties(struct sampler *sampler, float *logits, const struct sampler_row *row)
{
    const struct sampling_params *params = row->params;

    for (int32_t i = 0; i < row->num_prompt; i++)
        sampler->seen[row->prompt[i]] = 1;
    for (int32_t i = 0; i < row->num_output; i++) {
        sampler->seen[row->output[i]] = 1;
        sampler->counts[row->output[i]]++;
    }
    for (int32_t t = 0; t < sampler->vocab_size; t++) {
        if (!sampler->seen[t])
            continue;
        logits[t] = logits[t] > 0 ? logits[t] / params->repetition_penalty
                                  : logits[t] * params->repetition_penalty;
        logits[t] -= params->frequency_penalty * (float)sampler->counts[t];
        if (sampler->counts[t] > 0)
            logits[t] -= params->presence_penalty;
        sampler->seen[t] = 0;
        sampler->counts[t] = 0;
    }
}

void sampler_edit_logits(struct sampler *sampler, float *logits, const struct sampler_row *row)
{
    const struct sampling_params *params = row->params;

    if (row->bitmask)
        apply_bitmask(logits, sampler->vocab_size, row->bitmask);
    if (row->num_output < params->min_tokens)
        for (int32_t i = 0; i < params->num_all_stop_token_ids; i++)
            logits[params->all_stop_token_ids[i]] = -INFINITY;
    for (int32_t i = 0; i < params->num_logit_bias; i++)
        logits[params->logit_bias_ids[i]] += params->logit_bias_values[i];
    if (has_penalties(params))
        apply_penalties(sampler, logits, row);
}

/* ---- what is left --------------------------------------------------------------------------- */

int32_t sampler_argmax(const float *logits, int32_t n)
{
    int32_t best = -1;
    float best_logit = -INFINITY;

    for (int32_t t = 0; t < n; t++)
        if (logits[t] > best_logit) {
            best_logit = logits[t];
            best = t;
        }
    return best;
}

/* Likelier first; equal logits in order of ids. */
static bool comes_before(struct candidate a, struct candidate b)
{
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

static void sift_down(struct candidate *heap, int32_t n, int32_t at)
{
    struct candidate moving = heap[at];

    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && comes_before(heap[child + 1], heap[child]))
            child++;
        if (!comes_before(heap[child], moving))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

static void make_heap(struct candidate *heap, int32_t n)
{
    for (int32_t at = n / 2 - 1; at >= 0; at--)
        sift_down(heap, n, at);
}

/*
 * Moves the first of a heap of n behind it, to heap[n - 1]: popping again and again sorts the
 * array from its end, likeliest last.
 */
static struct candidate pop(struct candidate *heap, int32_t n)
{
    struct candidate first = heap[0];

    heap[0] = heap[n - 1];
    heap[n - 1] = first;
    sift_down(heap, n - 1, 0);
    return first;
}

/* Keeps what is at least min_p times as likely as the likeliest. */
static int32_t keep_min_p(struct candidate *candidates, int32_t n, float max_logit, double min_p)
{
    double least = max_logit + log(min_p);
    int32_t kept = 0;

    for (int32_t i = 0; i < n; i++)
        if (candidates[i].logit >= least)
            candidates[kept++] = candidates[i];
    return kept;
}

/*
 * Sorts the likeliest tokens to the end of the array until top_k (ties with the k-th stay) or
 * top_p (of what top_k leaves; the likeliest always stays) is reached. Returns how many those are.
 */
static int32_t keep_top(struct candidate *candidates, int32_t n, float max_logit,
                        const struct sampling_params *params)
{
    bool has_top_k = params->top_k > 0 && params->top_k < n;
    int32_t kept = 0;

    make_heap(candidates, n);
    if (has_top_k) {
        float kth_logit = 0;

        while (kept < n && (kept < params->top_k || candidates[0].logit == kth_logit)) {
            kth_logit = pop(candidates, n - kept).logit;
            kept++;
        }
    }
    if (params->top_p >= 1)
        return kept;

    double sum = 0, larger = 0;
    int32_t limit = has_top_k ? kept : n;

    /* The sum in order of ids where the order is still that of the heap: any fixed order will do. */
    for (int32_t i = n - limit; i < n; i++)
        sum += exp((double)candidates[i].logit - max_logit);
    for (int32_t i = 0; i < limit; i++) {
        if (i > 0 && larger >= params->top_p * sum)
            return i;
        struct candidate next = has_top_k ? candidates[n - 1 - i] : pop(candidates, n - i);
        larger += exp((double)next.logit - max_logit);
    }
    return limit;
}

const struct candidate *sampler_keep(struct sampler *sampler, const float *logits,
                                     const struct sampling_params *params, int32_t *num_out)
{
    struct candidate *candidates = sampler->candidates;
    float temperature = fmaxf(params->temperature, LEAST_TEMPERATURE), max_logit = -INFINITY;
    int32_t n = 0;

    for (int32_t t = 0; t < sampler->vocab_size; t++) {
        float logit = logits[t] / temperature;

        if (logit > -INFINITY) { /* false for NaN too */
            candidates[n++] = (struct candidate){t, logit};
            max_logit = fmaxf(max_logit, logit);
        }
    }
    if (params->min_p > 0)
        n = keep_min_p(candidates, n, max_logit, params->min_p);

    bool cut = (params->top_k > 0 && params->top_k < n) || params->top_p < 1;

    if (cut && n > 0) {
        int32_t kept = keep_top(candidates, n, max_logit, params);

        candidates += n - kept;
        n = kept;
    }
    *num_out = n;
    return candidates;
}

/* ---- the draw ------------------------------------------------------------------------------- */

/* -log(-log(u)), u in (0, 1) from 32 random bits. */
static double gumbel(uint32_t bits)
{
    return -log(-log(((double)bits + 0.5) * 0x1p-32));
}

static int32_t draw(const struct candidate *candidates, int32_t n, uint64_t seed, int64_t position)
{
    uint32_t noise[4] = {0};
    int32_t best = -1, noise_of = -1;
    double best_value = -INFINITY;

    for (int32_t i = 0; i < n; i++) {
        struct candidate c = candidates[i];

        if (c.logit + MAX_GUMBEL < best_value)
            continue; /* no noise can lift it above what we have */
        if (c.token / 4 != noise_of) {
            noise_of = c.token / 4;
            philox4x32(seed, (uint64_t)position, (uint64_t)noise_of, noise);
        }
        double value = c.logit + gumbel(noise[c.token % 4]);

        if (value > best_value || (value == best_value && c.token < best)) {
            best_value = value;
            best = c.token;
        }
    }
    return best;
}

/* ---- logprobs ------------------------------------------------------------------------------- */

static double log_sum_exp(const float *logits, int32_t n)
{
    int32_t best = sampler_argmax(logits, n);
    double sum = 0;

    if (best < 0)
        return NAN;
    for (int32_t t = 0; t < n; t++)
        sum += exp((double)logits[t] - logits[best]);
    return logits[best] + log(sum);
}

static void find_top(struct sampler *sampler, const float *logits, double total, int32_t k,
                     struct sampler_result *out)
{
    struct candidate *candidates = sampler->candidates;
    int32_t n = 0;

    for (int32_t t = 0; t < sampler->vocab_size; t++)
        if (!isnan(logits[t]))
            candidates[n++] = (struct candidate){t, logits[t]};
    make_heap(candidates, n);
    out->num_top = k < n ? k : n;
    for (int32_t i = 0; i < out->num_top; i++) {
        struct candidate c = pop(candidates, n - i);

        sampler->top_tokens[i] = c.token;
        sampler->top_logprobs[i] = (float)(c.logit - total);
    }
    out->top_tokens = sampler->top_tokens;
    out->top_logprobs = sampler->top_logprobs;
}

void sampler_run(struct sampler *sampler, float *logits, const struct sampler_row *row,
                 struct sampler_result *out)
{
    const struct sampling_params *params = row->params;
    bool wants_logprobs = params->logprobs >= 0;
    double total = 0;

    *out = (struct sampler_result){.token = -1};
    if (wants_logprobs) {
        total = log_sum_exp(logits, sampler->vocab_size);
        find_top(sampler, logits, total, params->logprobs, out);
        memcpy(sampler->raw, logits, sizeof *logits * (size_t)sampler->vocab_size);
    }

    sampler_edit_logits(sampler, logits, row);
    if (sampling_params_is_greedy(params)) {
        out->token = sampler_argmax(logits, sampler->vocab_size);
    } else {
        int32_t n;
        const struct candidate *candidates = sampler_keep(sampler, logits, params, &n);

        out->token = draw(candidates, n, (uint64_t)params->seed, row->position);
    }

    if (wants_logprobs && out->token >= 0) {
        float chosen = sampler->raw[out->token];

        out->logprob = (float)(chosen - total);
        out->rank = 1;
        for (int32_t t = 0; t < sampler->vocab_size; t++)
            out->rank += sampler->raw[t] > chosen;
    }
}
