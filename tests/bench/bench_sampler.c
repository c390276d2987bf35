/*
 * bench_sampler: what a row costs to sample, a JSON line for each kind of request and vocabulary.
 *
 *   bench_sampler
 *
 * One rank alone, on one thread: its CPU time, the best of several runs. Logits are normal with a
 * spread of 3 and a few likely tokens above, as a language model's are; "flat" ones are all alike.
 */
#include "proto/base/clock.h"
#include "proto/base/memory.h"
#include "worker/sampler.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { ROWS = 16, RUNS = 12 };

static const struct kind {
    const char *name;
    float temperature, top_p, min_p;
    int32_t top_k, logprobs;
    bool is_masked, is_flat;
} kinds[] = {
    {"greedy", 0, 1, 0, 0, -1, false, false},
    {"greedy, masked", 0, 1, 0, 0, -1, true, false},
    {"temperature 1", 1, 1, 0, 0, -1, false, false},
    {"temperature 0.7", 0.7f, 1, 0, 0, -1, false, false},
    {"top_k 50, top_p 0.9", 1, 0.9f, 0, 50, -1, false, false},
    {"top_p 0.9", 1, 0.9f, 0, 0, -1, false, false},
    {"min_p 0.05", 1, 1, 0.05f, 0, -1, false, false},
    {"greedy, logprobs 5", 0, 1, 0, 0, 5, false, false},
    {"flat, temperature 1", 1, 1, 0, 0, -1, false, true},
    {"flat, top_p 0.9", 1, 0.9f, 0, 0, -1, false, true},
};

static uint64_t random_state = 1;

static float uniform(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return ((float)(random_state >> 40) + 0.5f) * 0x1p-24f;
}

static void fill(float *logits, int32_t vocab_size, bool is_flat)
{
    for (int32_t t = 0; t < vocab_size; t++)
        logits[t] =
            (is_flat ? 0.01f : 3) * sqrtf(-2 * logf(uniform())) * cosf(6.2831853f * uniform());
    for (int i = 0; !is_flat && i < 20; i++)
        logits[(int32_t)(uniform() * (float)vocab_size)] += 12;
}

static int64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

static double us_a_row(const struct kind *kind, struct sampler *sampler, int32_t vocab_size,
                       float *logits, const uint32_t *mask)
{
    struct sampling_params params;
    struct sampler_row rows[ROWS];
    struct sampler_result results[ROWS];
    int64_t best = INT64_MAX;

    sampling_params_init(&params);
    params.temperature = kind->temperature;
    params.top_p = kind->top_p;
    params.top_k = kind->top_k;
    params.min_p = kind->min_p;
    params.logprobs = kind->logprobs;
    params.seed = 1;
    for (int i = 0; i < ROWS; i++)
        fill(logits + (int64_t)i * vocab_size, vocab_size, kind->is_flat);
    for (int run = 0; run < RUNS; run++) {
        for (int i = 0; i < ROWS; i++)
            rows[i] = (struct sampler_row){.params = &params,
                                           .position = run * ROWS + i,
                                           .bitmask = kind->is_masked ? mask : NULL};
        int64_t before = cpu_ns();

        ASSERT(sampler_run(sampler, logits, rows, ROWS, results) == OK);
        best = MIN(best, cpu_ns() - before);
    }
    return (double)best / ROWS / 1e3;
}

int main(void)
{
    static const int32_t vocab_sizes[] = {49152, 262144};

    for (size_t v = 0; v < COUNT_OF(vocab_sizes); v++) {
        int32_t n = vocab_sizes[v];
        AUTO_FREE(sampler)
        struct sampler *sampler = sampler_new(&(struct sampler_options){
            .vocab_size = n, .num_tokens = n, .max_rows = ROWS, .world = 1});
        AUTO_MEM float *logits = mem_new_array(float, (size_t)ROWS *(size_t)n);
        AUTO_MEM uint32_t *mask = mem_new_array(uint32_t, (size_t)n / 32);

        for (int32_t i = 0; i < n / 32; i++)
            mask[i] = i % 3 ? 0 : UINT32_MAX << i % 32;
        for (size_t i = 0; i < COUNT_OF(kinds); i++)
            printf("{\"vocabulary\": %d, \"kind\": \"%s\", \"us_a_row\": %.1f}\n", n, kinds[i].name,
                   us_a_row(&kinds[i], sampler, n, logits, mask));
    }
    return 0;
}
