#include "tests/support/expect.h"
#include "tests/support/sampler_ranks.h"

#include "worker/philox.h"
#include "worker/sampler.h"
#include "worker/slice.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { NUM_CASES = 89, VOCAB = 1000, DRAWS_AT_ONCE = 1000 };

/* How a vocabulary of VOCAB is dealt out: not even, and not where words or blocks begin. */
static const struct deal {
    int32_t world;
    int32_t cuts[6];
} deals[] = {
    {1, {0, VOCAB}},
    {2, {0, 417, VOCAB}},
    {3, {0, 64, 65, VOCAB}},
    {5, {0, 1, 131, 640, 998, VOCAB}},
};

static void run_alone(const float *logits, int32_t vocab_size, const struct sampler_row *row,
                      struct sampler_result *out)
{
    int32_t cuts[] = {0, vocab_size};
    AUTO_FREE(sampler_ranks) struct sampler_ranks *ranks = sampler_ranks_new(1, cuts, 1, 0);

    sampler_ranks_run(ranks, logits, row, 1, out, NULL);
    out->top_tokens = NULL; /* they went with the sampler */
    out->top_logprobs = NULL;
}

/* ---- reference cases ------------------------------------------------------------------------ */

struct reference {
    json_t *json;
    struct sampling_params params;
    struct sampler_row row;
    const float *logits;
    double probs[VOCAB]; /* of the reference; greedy: all 0 */
};

static struct {
    struct arena arena;
    float logits[NUM_CASES * VOCAB];
    struct reference cases[NUM_CASES];
} references;

static int32_t *ids_of(const json_t *list, int32_t *num_out)
{
    int32_t n = (int32_t)json_array_size(list);
    int32_t *ids = arena_alloc(&references.arena, sizeof *ids * (size_t)n);

    for (int32_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    *num_out = n;
    return ids;
}

static float number(const json_t *params, const char *key, float otherwise)
{
    const json_t *value = json_object_get(params, key);

    return value && !json_is_null(value) ? (float)json_number_value(value) : otherwise;
}

static void read_bias(const json_t *bias, struct sampling_params *p)
{
    size_t size = json_object_size(bias) * sizeof(int32_t);
    int32_t *ids = arena_alloc(&references.arena, size);
    float *values = arena_alloc(&references.arena, size);
    const json_t *value;
    const char *key;

    json_object_foreach ((json_t *)bias, key, value) {
        ids[p->num_logit_bias] = atoi(key);
        values[p->num_logit_bias++] = (float)json_number_value(value);
    }
    p->logit_bias_ids = ids;
    p->logit_bias_values = values;
}

static void read_bad_words(const json_t *lists, struct sampling_params *p)
{
    int32_t *ids = arena_alloc(&references.arena, MAX_BAD_WORDS_TOKENS);
    int32_t *counts = arena_alloc(&references.arena, MAX_BAD_WORDS * sizeof *counts);
    const json_t *list;
    size_t i;

    json_array_foreach (lists, i, list) {
        int32_t n, *list_ids = ids_of(list, &n);

        memcpy(ids + p->num_bad_words_token_ids, list_ids, sizeof *ids * (size_t)n);
        p->num_bad_words_token_ids += n;
        counts[p->num_bad_words_counts++] = n;
    }
    p->bad_words_token_ids = ids;
    p->bad_words_counts = counts;
}

static void read_params(const json_t *params, struct sampling_params *p)
{
    sampling_params_init(p);
    p->temperature = number(params, "temperature", 1);
    p->top_p = number(params, "top_p", 1);
    p->top_k = (int32_t)number(params, "top_k", 0);
    p->min_p = number(params, "min_p", 0);
    p->min_tokens = (int32_t)number(params, "min_tokens", 0);
    p->repetition_penalty = number(params, "repetition_penalty", 1);
    p->frequency_penalty = number(params, "frequency_penalty", 0);
    p->presence_penalty = number(params, "presence_penalty", 0);
    p->all_stop_token_ids =
        ids_of(json_object_get(params, "stop_token_ids"), &p->num_all_stop_token_ids);
    p->allowed_token_ids =
        ids_of(json_object_get(params, "allowed_token_ids"), &p->num_allowed_token_ids);
    read_bias(json_object_get(params, "logit_bias"), p);
    read_bad_words(json_object_get(params, "bad_words_token_ids"), p);
}

static void read_case(struct reference *reference, json_t *json)
{
    const json_t *params = json_object_get(json, "params");
    const json_t *kept_ids = json_object_get(json, "kept_ids");
    const json_t *kept_probs = json_object_get(json, "kept_probs");
    const json_t *probs = json_object_get(json, "probs");
    struct sampler_row *row = &reference->row;

    reference->json = json;
    read_params(params, &reference->params);
    row->params = &reference->params;
    row->prompt = ids_of(json_object_get(params, "prompt_ids"), &row->num_prompt);
    row->output = ids_of(json_object_get(params, "output_ids"), &row->num_output);
    row->position = row->num_prompt + row->num_output;
    reference->logits =
        references.logits + json_integer_value(json_object_get(json, "logits_row")) * VOCAB;
    for (size_t i = 0; i < json_array_size(kept_ids); i++)
        reference->probs[json_integer_value(json_array_get(kept_ids, i))] =
            json_number_value(json_array_get(kept_probs, i));
    for (size_t i = 0; i < json_array_size(probs); i++)
        reference->probs[i] = json_number_value(json_array_get(probs, i));
}

static int read_references(void **state)
{
    (void)state;
    AUTO_MEM char *logits_path = mem_printf("%s/sampling/logits.f32", getenv("TANDEM_TEST_DATA"));
    AUTO_MEM char *cases_path = mem_printf("%s/sampling/cases.jsonl", getenv("TANDEM_TEST_DATA"));
    AUTO_MEM char *line = NULL;
    size_t line_size = 0;
    int num_cases = 0;
    FILE *f = fopen(logits_path, "rb");

    assert_non_null(f);
    assert_int_equal(fread(references.logits, sizeof(float), NUM_CASES * VOCAB, f),
                     NUM_CASES * VOCAB);
    fclose(f);
    f = fopen(cases_path, "r");
    assert_non_null(f);
    while (getline(&line, &line_size, f) > 0) {
        assert_true(num_cases < NUM_CASES);
        read_case(&references.cases[num_cases++], json_loads(line, 0, NULL));
    }
    fclose(f);
    assert_int_equal(num_cases, NUM_CASES);
    return 0;
}

static int drop_references(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_CASES; i++)
        json_decref(references.cases[i].json);
    arena_close(&references.arena);
    return 0;
}

/* The softmax of what was kept. */
static void probabilities(const float *kept, double *probs)
{
    double max = -INFINITY, sum = 0;

    for (int t = 0; t < VOCAB; t++)
        max = fmax(max, kept[t]);
    for (int t = 0; t < VOCAB; t++)
        sum += probs[t] = exp(kept[t] - max);
    for (int t = 0; t < VOCAB; t++)
        probs[t] /= sum;
}

static void check_distribution(const struct reference *reference, const float *kept)
{
    const char *id = json_string_value(json_object_get(reference->json, "id"));
    double probs[VOCAB], distance = 0;

    probabilities(kept, probs);
    for (int t = 0; t < VOCAB; t++) {
        distance += fabs(probs[t] - reference->probs[t]) / 2;
        /* What a double can hardly hold is kept in exact arithmetic, and never comes. */
        if ((probs[t] > 0) != (reference->probs[t] > 0) &&
            fmax(probs[t], reference->probs[t]) > 1e-300)
            fail_msg("%s: token %d has probability %g, the reference's is %g", id, t, probs[t],
                     reference->probs[t]);
    }
    if (!(distance < 1e-5))
        fail_msg("%s: total variation %g", id, distance);
}

static void check_case(const struct reference *reference, const struct sampler_result *result,
                       const float *kept)
{
    if (json_object_get(reference->json, "n_kept"))
        check_distribution(reference, kept);
    else if (json_number_value(json_object_get(reference->json, "greedy_margin")) > 0)
        assert_int_equal(result->token,
                         json_integer_value(json_object_get(reference->json, "greedy_id")));
}

/* All cases are the rows of one step. */
static void run_cases(const struct deal *deal, int32_t max_candidates,
                      struct sampler_result *results, float *kept)
{
    AUTO_FREE(sampler_ranks)
    struct sampler_ranks *ranks =
        sampler_ranks_new(deal->world, deal->cuts, NUM_CASES, max_candidates);
    AUTO_MEM float *logits = mem_new_array(float, NUM_CASES *VOCAB);
    struct sampler_row rows[NUM_CASES];

    for (int i = 0; i < NUM_CASES; i++) {
        rows[i] = references.cases[i].row;
        memcpy(logits + i * VOCAB, references.cases[i].logits, VOCAB * sizeof *logits);
    }
    sampler_ranks_run(ranks, logits, rows, NUM_CASES, results, kept);
}

static void every_distribution_is_the_references_on_any_ranks(void **state)
{
    (void)state;
    static const int32_t max_candidates[] = {0, 1, 30};
    AUTO_MEM float *kept = mem_new_array(float, NUM_CASES *VOCAB);
    AUTO_MEM float *first_kept = mem_new_array(float, NUM_CASES *VOCAB);
    struct sampler_result results[NUM_CASES], first_results[NUM_CASES];

    run_cases(&deals[0], 0, first_results, first_kept);
    for (int i = 0; i < NUM_CASES; i++)
        check_case(&references.cases[i], &first_results[i], first_kept + i * VOCAB);
    for (size_t d = 0; d < COUNT_OF(deals); d++)
        for (size_t m = 0; m < COUNT_OF(max_candidates); m++) {
            run_cases(&deals[d], max_candidates[m], results, kept);
            assert_memory_equal(kept, first_kept, sizeof *kept * NUM_CASES * VOCAB);
            for (int i = 0; i < NUM_CASES; i++)
                assert_int_equal(results[i].token, first_results[i].token);
        }
}

/* ---- draws of reference cases ---------------------------------------------------------------- */

static void draw_many(const struct reference *reference, const struct deal *deal, int32_t num_draws,
                      int32_t *counts)
{
    AUTO_FREE(sampler_ranks)
    struct sampler_ranks *ranks = sampler_ranks_new(deal->world, deal->cuts, DRAWS_AT_ONCE, 0);
    AUTO_MEM float *logits = mem_new_array(float, DRAWS_AT_ONCE *VOCAB);
    AUTO_MEM struct sampling_params *params = mem_new_array(struct sampling_params, DRAWS_AT_ONCE);
    AUTO_MEM struct sampler_row *rows = mem_new_array(struct sampler_row, DRAWS_AT_ONCE);
    AUTO_MEM struct sampler_result *results = mem_new_array(struct sampler_result, DRAWS_AT_ONCE);

    for (int i = 0; i < DRAWS_AT_ONCE; i++) {
        rows[i] = reference->row;
        params[i] = reference->params;
        rows[i].params = &params[i];
        memcpy(logits + i * VOCAB, reference->logits, VOCAB * sizeof *logits);
    }
    for (int32_t drawn = 0; drawn < num_draws; drawn += DRAWS_AT_ONCE) {
        for (int i = 0; i < DRAWS_AT_ONCE; i++) { /* as many requests as positions */
            params[i].seed = 1000 + (drawn + i) % 250;
            rows[i].position = (drawn + i) / 250;
        }
        sampler_ranks_run(ranks, logits, rows, DRAWS_AT_ONCE, results, NULL);
        for (int i = 0; i < DRAWS_AT_ONCE; i++) {
            assert_in_range(results[i].token, 0, VOCAB - 1);
            counts[results[i].token]++;
        }
    }
}

/* What chi-square exceeds with probability 1e-6 (Wilson and Hilferty's approximation). */
static double chi_square_limit(int degrees)
{
    double x = 2.0 / (9 * degrees);

    return degrees * pow(1 - x + 4.7534 * sqrt(x), 3);
}

/* Rare tokens count as one. */
static void check_draws(const struct reference *reference, const int32_t *counts, int32_t num_draws)
{
    const char *id = json_string_value(json_object_get(reference->json, "id"));
    double chi_square = 0, rare_expected = 0, rare_counted = 0;
    int num_classes = 0;

    for (int t = 0; t < VOCAB; t++) {
        double expected = num_draws * reference->probs[t];

        if (reference->probs[t] == 0 && counts[t] > 0)
            fail_msg("%s: token %d came, which is not kept", id, t);
        if (expected < 10) {
            rare_expected += expected;
            rare_counted += counts[t];
            continue;
        }
        chi_square += (counts[t] - expected) * (counts[t] - expected) / expected;
        num_classes++;
    }
    if (rare_expected >= 10) {
        chi_square +=
            (rare_counted - rare_expected) * (rare_counted - rare_expected) / rare_expected;
        num_classes++;
    }
    if (num_classes > 1 && chi_square > chi_square_limit(num_classes - 1))
        fail_msg("%s: chi-square %g over %d classes", id, chi_square, num_classes);
}

/* One of each stage, and of several together; TANDEM_TEST_SLOW=1: all there are. */
static bool is_drawn_from(const struct reference *reference)
{
    static const char *const ids[] = {
        "samp-002", "samp-007", "samp-011", "samp-016", "samp-021", "samp-025", "samp-028",
        "samp-033", "samp-052", "samp-057", "samp-063", "samp-073", "samp-086", "samp-105",
    };
    const char *id = json_string_value(json_object_get(reference->json, "id"));

    if (!json_object_get(reference->json, "n_kept"))
        return false;
    if (getenv("TANDEM_TEST_SLOW"))
        return true;
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        if (strcmp(ids[i], id) == 0)
            return true;
    return false;
}

static void draws_follow_the_references_distributions(void **state)
{
    (void)state;
    /* Sanitizers look for other faults than a distribution's. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    enum { ON_RANKS = 1000, ALONE = 5000 };
#else
    enum { ON_RANKS = 2000, ALONE = 100000 };
#endif
    int num_cases = 0;

    for (int i = 0; i < NUM_CASES; i++) {
        const struct reference *reference = &references.cases[i];
        int32_t counts[COUNT_OF(deals)][VOCAB] = {0};

        if (!is_drawn_from(reference))
            continue;
        num_cases++;
        draw_many(reference, &deals[0], ALONE, counts[0]);
        check_draws(reference, counts[0], ALONE);
        /* On ranks they are the same draws, so some will do. */
        memset(counts[0], 0, sizeof counts[0]);
        for (size_t d = 0; d < 3; d++) {
            draw_many(reference, &deals[d], ON_RANKS, counts[d]);
            assert_memory_equal(counts[d], counts[0], sizeof counts[0]);
        }
    }
    assert_in_range(num_cases, 14, 70);
}

/* ---- any rows, on any ranks ------------------------------------------------------------------ */

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static float uniform(uint64_t *state)
{
    return (float)next_random(state) * 0x1p-31f;
}

/* Of every kind: a few values, so that many are equal; all one; smooth; with holes. */
static void make_logits(uint64_t *random, float *logits)
{
    uint32_t kind = next_random(random) % 6;
    float scale = (float)(1 + next_random(random) % 12);

    for (int t = 0; t < VOCAB; t++) {
        float x = uniform(random) + uniform(random) + uniform(random) - 1.5f;

        logits[t] = kind == 0 ? 3 : kind == 1 ? roundf(x * scale) : x * scale;
        if (kind == 2 && next_random(random) % 3 == 0)
            logits[t] = next_random(random) % 2 ? NAN : -INFINITY;
        if (kind == 3 && next_random(random) % 300 == 0)
            logits[t] = -0.0f;
    }
}

static void make_params(uint64_t *random, struct sampling_params *params)
{
    static const float temperatures[] = {0, 0.3f, 1, 1, 1.7f};
    static const int32_t top_ks[] = {0, 1, 2, 20, 300, 999, 1000, 5000};

    sampling_params_init(params);
    params->temperature = temperatures[next_random(random) % COUNT_OF(temperatures)];
    params->seed = next_random(random);
    if (next_random(random) % 2)
        params->top_k = top_ks[next_random(random) % COUNT_OF(top_ks)];
    if (next_random(random) % 2)
        params->top_p = 1 - uniform(random) * uniform(random) * 0.9999f;
    if (next_random(random) % 3 == 0)
        params->min_p = uniform(random) * 0.3f;
    if (next_random(random) % 3 == 0)
        params->logprobs =
            next_random(random) % 8 == 0 ? LOGPROBS_ALL : (int32_t)(next_random(random) % 25);
}

/* What the order of stages says, as plainly as can be. */
static void keep_plainly(const float *logits, const struct sampling_params *params, float *kept)
{
    struct candidate sorted[VOCAB];
    float temperature = fmaxf(params->temperature, LEAST_TEMPERATURE);
    int32_t n = 0, bits = grid_bits_for(VOCAB);

    for (int t = 0; t < VOCAB; t++) {
        kept[t] = -INFINITY;
        if (logits[t] > -INFINITY)
            sorted[n++] = (struct candidate){logits[t] / temperature, t};
    }
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && candidate_comes_before(sorted[j], sorted[j - 1]); j--) {
            struct candidate held = sorted[j];

            sorted[j] = sorted[j - 1];
            sorted[j - 1] = held;
        }
    if (params->min_p > 0)
        while (n > 0 && sorted[n - 1].logit < sorted[0].logit + log(params->min_p))
            n--;
    if (params->top_k > 0 && params->top_k < VOCAB)
        while (n > params->top_k && sorted[n - 1].logit < sorted[params->top_k - 1].logit)
            n--;
    uint64_t all = 0, larger = 0;

    for (int i = 0; i < n; i++)
        all += weight_of(sorted[i].logit, sorted[0].logit, bits);
    for (int i = 0; i < n; i++) {
        if (i > 0 && params->top_p < 1 && (double)larger >= (double)params->top_p * (double)all)
            break;
        kept[sorted[i].token] = sorted[i].logit;
        larger += weight_of(sorted[i].logit, sorted[0].logit, bits);
    }
}

static void check_kept(const float *logits, const struct sampling_params *params, const float *kept)
{
    float plainly[VOCAB];

    if (sampling_params_is_greedy(params))
        return;
    keep_plainly(logits, params, plainly);
    for (int t = 0; t < VOCAB; t++)
        if (plainly[t] != kept[t])
            fail_msg("token %d is %g, should be %g (temperature %g top_k %d top_p %.9g min_p %g)",
                     t, kept[t], plainly[t], params->temperature, params->top_k, params->top_p,
                     params->min_p);
}

static void assert_same_result(const struct sampler_result *a, const struct sampler_result *b)
{
    assert_int_equal(a->token, b->token);
    assert_memory_equal(&a->logprob, &b->logprob, sizeof a->logprob);
    assert_int_equal(a->rank, b->rank);
    assert_int_equal(a->num_top, b->num_top);
    if (a->num_top > 0) {
        assert_memory_equal(a->top_tokens, b->top_tokens, sizeof(int32_t) * (size_t)a->num_top);
        assert_memory_equal(a->top_logprobs, b->top_logprobs, sizeof(float) * (size_t)a->num_top);
    }
}

/* The same rows alone and together, on every deal of the vocabulary, with candidates and by rounds.
 */
static void the_bits_are_the_same_for_any_ranks_and_any_batch(void **state)
{
    (void)state;
    enum { ROWS = 40, ROUNDS = 6 };
    AUTO_MEM float *logits = mem_new_array(float, ROWS *VOCAB);
    AUTO_MEM float *kept = mem_new_array(float, ROWS *VOCAB);
    AUTO_FREE(sampler_ranks)
    struct sampler_ranks *alone = sampler_ranks_new(1, deals[0].cuts, ROWS, 0);
    struct sampling_params params[ROWS];
    struct sampler_row rows[ROWS];
    struct sampler_result results[ROWS], single;
    uint64_t random = 7;

    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < ROWS; i++) {
            make_logits(&random, logits + i * VOCAB);
            make_params(&random, &params[i]);
            rows[i] = (struct sampler_row){.params = &params[i], .position = next_random(&random)};
        }
        for (size_t d = 0; d < COUNT_OF(deals); d++)
            for (int limit = 0; limit < 3; limit++) {
                AUTO_FREE(sampler_ranks)
                struct sampler_ranks *ranks = sampler_ranks_new(deals[d].world, deals[d].cuts, ROWS,
                                                                limit == 0   ? 0
                                                                : limit == 1 ? 1
                                                                             : 23);

                sampler_ranks_run(ranks, logits, rows, ROWS, results, kept);
                for (int i = 0; i < ROWS; i++) {
                    sampler_ranks_run(alone, logits + i * VOCAB, &rows[i], 1, &single, NULL);
                    assert_same_result(&results[i], &single);
                    if (single.token >= 0)
                        check_kept(logits + i * VOCAB, &params[i], kept + i * VOCAB);
                }
            }
    }
}

/* ---- draws ---------------------------------------------------------------------------------- */

static void philox_gives_the_papers_numbers(void **state)
{
    (void)state;
    uint32_t out[4], row[64];

    /* Known answers of Random123's kat_vectors: philox4x32 10. */
    philox4x32(0, 0, 0, out);
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c);
    assert_int_equal(out[3], 0x9b00dbd8);
    philox4x32(UINT64_MAX, UINT64_MAX, UINT64_MAX, out);
    assert_int_equal(out[0], 0x408f276d);
    assert_int_equal(out[3], 0x6d5451fd);

    philox4x32_row(42, 77, UINT32_MAX - 3, row);
    for (uint64_t i = 0; i < 16; i++) {
        philox4x32(42, 77, UINT32_MAX - 3 + i, out);
        assert_memory_equal(row + 4 * i, out, sizeof out);
    }
}

static void a_draw_depends_on_seed_and_position_alone(void **state)
{
    (void)state;
    struct sampling_params params;
    int32_t first = -1, num_different = 0;
    static const float flat[VOCAB];

    sampling_params_init(&params);
    for (int position = 0; position < 50; position++) {
        struct sampler_row row = {.params = &params, .position = position};
        struct sampler_result a, b;

        params.seed = 42;
        run_alone(flat, VOCAB, &row, &a);
        run_alone(flat, VOCAB, &row, &b);
        assert_int_equal(a.token, b.token);
        params.seed = 7;
        run_alone(flat, VOCAB, &row, &b);
        num_different += (first != a.token) + (b.token != a.token);
        first = a.token;
    }
    assert_true(num_different > 90);
}

static void a_row_without_a_possible_token_says_so(void **state)
{
    (void)state;
    static const float temperatures[] = {0, 1};
    uint32_t nothing[2] = {0};
    struct sampling_params params;
    struct sampler_result result;

    sampling_params_init(&params);
    for (int kind = 0; kind < 10; kind++) {
        float logits[64] = {0};

        params.temperature = temperatures[kind % 2];
        params.top_k = kind / 2 == 1 || kind / 2 == 4 ? 5 : 0;
        params.top_p = kind / 2 == 2 || kind / 2 == 4 ? 0.5f : 1;
        params.min_p = kind / 2 == 3 ? 0.1f : 0;
        run_alone(logits, 64, &(struct sampler_row){.params = &params, .bitmask = nothing},
                  &result);
        assert_int_equal(result.token, -1);
        for (int i = 0; i < 64; i++)
            logits[i] = NAN;
        run_alone(logits, 64, &(struct sampler_row){.params = &params}, &result);
        assert_int_equal(result.token, -1);
    }
}

/* ---- edits ---------------------------------------------------------------------------------- */

static void masks_reach_every_slice(void **state)
{
    (void)state;
    static const int32_t allowed[] = {0, 63, 64, 65, 130, 131, 640, 997, 998, 999};
    static const float flat[VOCAB];
    struct sampling_params params;

    sampling_params_init(&params);
    params.temperature = 0;
    for (size_t d = 0; d < COUNT_OF(deals); d++) {
        AUTO_FREE(sampler_ranks)
        struct sampler_ranks *ranks = sampler_ranks_new(deals[d].world, deals[d].cuts, 1, 0);

        for (size_t i = 0; i < COUNT_OF(allowed); i++) {
            uint32_t mask[(VOCAB + 31) / 32] = {0};
            struct sampler_result result;

            mask[allowed[i] / 32] = 1u << (allowed[i] % 32);
            sampler_ranks_run(ranks, flat,
                              &(struct sampler_row){.params = &params, .bitmask = mask}, 1, &result,
                              NULL);
            assert_int_equal(result.token, allowed[i]);
        }
    }
}

/* A grammar at its end allows nothing but a stop token: its mask has been told of min_tokens. */
static void min_tokens_is_the_masks_where_there_is_one(void **state)
{
    (void)state;
    const int32_t stop = 5;
    const float logits[8] = {0, 1, 0, 0, 0, 3, 0, 0};
    uint32_t only_stop = 1u << 5, all = UINT32_MAX;
    struct sampling_params params;
    struct sampler_result result;

    sampling_params_init(&params);
    params.temperature = 0;
    params.min_tokens = 1;
    params.all_stop_token_ids = &stop;
    params.num_all_stop_token_ids = 1;
    run_alone(logits, 8, &(struct sampler_row){.params = &params}, &result);
    assert_int_equal(result.token, 1);
    run_alone(logits, 8, &(struct sampler_row){.params = &params, .bitmask = &only_stop}, &result);
    assert_int_equal(result.token, 5);
    run_alone(logits, 8, &(struct sampler_row){.params = &params, .bitmask = &all}, &result);
    assert_int_equal(result.token, 5);
}

/* ---- logprobs ------------------------------------------------------------------------------- */

static void logprobs_are_those_of_the_logits_before_any_edit(void **state)
{
    (void)state;
    const float logits[4] = {0, logf(2), logf(4), logf(1)}; /* 1/8 2/8 4/8 1/8 */
    const int32_t cuts[] = {0, 1, 3, 4};
    AUTO_FREE(sampler_ranks) struct sampler_ranks *ranks = sampler_ranks_new(3, cuts, 1, 0);
    struct sampling_params params;
    struct sampler_result result;
    uint32_t mask = 1 << 1;

    sampling_params_init(&params);
    params.temperature = 0;
    params.logprobs = 3;
    sampler_ranks_run(ranks, logits, &(struct sampler_row){.params = &params, .bitmask = &mask}, 1,
                      &result, NULL);
    assert_int_equal(result.token, 1);
    assert_int_equal(result.rank, 2);
    assert_float_equal(result.logprob, log(0.25), 1e-6);
    assert_int_equal(result.num_top, 3);
    assert_int_equal(result.top_tokens[0], 2);
    assert_int_equal(result.top_tokens[2], 0); /* the lower id of two equals */
    assert_float_equal(result.top_logprobs[0], log(0.5), 1e-6);

    params.logprobs = LOGPROBS_ALL;
    sampler_ranks_run(ranks, logits, &(struct sampler_row){.params = &params}, 1, &result, NULL);
    assert_int_equal(result.token, 2);
    assert_int_equal(result.num_top, 4);
    assert_int_equal(result.top_tokens[3], 3);
}

/* Of any token, drawn or not: what sampling would have told of it. */
static void logprobs_of_tokens_that_were_not_drawn_are_the_same(void **state)
{
    (void)state;
    enum { ROWS = 12 };
    AUTO_MEM float *logits = mem_new_array(float, ROWS *VOCAB);
    struct logprob_query queries[ROWS];
    struct sampler_result alone[ROWS], results[ROWS];
    uint64_t random = 5;

    for (int32_t i = 0; i < ROWS * VOCAB; i++)
        logits[i] = uniform(&random) * 20 - 10;
    for (int32_t i = 0; i < ROWS; i++)
        queries[i] = (struct logprob_query){(int32_t)(next_random(&random) % VOCAB),
                                            i == 3 ? LOGPROBS_ALL : i % 5};
    for (size_t d = 0; d < COUNT_OF(deals); d++) {
        AUTO_FREE(sampler_ranks)
        struct sampler_ranks *ranks = sampler_ranks_new(deals[d].world, deals[d].cuts, ROWS, 0);

        sampler_ranks_logprobs(ranks, logits, queries, ROWS, d == 0 ? alone : results);
        for (int32_t i = 0; i < ROWS; i++) {
            const float *row = logits + (int64_t)i * VOCAB;
            const struct sampler_result *result = d == 0 ? &alone[i] : &results[i];
            int32_t token = queries[i].token, rank = 1;
            double sum = 0;

            for (int32_t t = 0; t < VOCAB; t++) {
                sum += exp((double)row[t]);
                rank += row[t] > row[token];
            }
            assert_int_equal(result->token, token);
            assert_int_equal(result->rank, rank);
            assert_float_equal(result->logprob, row[token] - log(sum), 1e-5);
            assert_int_equal(result->num_top, MIN(queries[i].num_top, VOCAB));
            for (int32_t k = 0; k < result->num_top; k++)
                assert_float_equal(result->top_logprobs[k],
                                   row[result->top_tokens[k]] - log(sum), 1e-5);
            if (rank <= result->num_top)
                assert_int_equal(result->top_tokens[rank - 1], token);
            if (d == 0) /* their arrays go with the ranks */
                alone[i].top_tokens = NULL, alone[i].top_logprobs = NULL, alone[i].num_top = 0;
            else
                assert_memory_equal(&result->logprob, &alone[i].logprob, sizeof result->logprob);
        }
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_distribution_is_the_references_on_any_ranks),
    cmocka_unit_test(draws_follow_the_references_distributions),
    cmocka_unit_test(the_bits_are_the_same_for_any_ranks_and_any_batch),
    cmocka_unit_test(philox_gives_the_papers_numbers),
    cmocka_unit_test(a_draw_depends_on_seed_and_position_alone),
    cmocka_unit_test(a_row_without_a_possible_token_says_so),
    cmocka_unit_test(masks_reach_every_slice),
    cmocka_unit_test(min_tokens_is_the_masks_where_there_is_one),
    cmocka_unit_test(logprobs_are_those_of_the_logits_before_any_edit),
    cmocka_unit_test(logprobs_of_tokens_that_were_not_drawn_are_the_same),
};

int main(void)
{
    return cmocka_run_group_tests(tests, read_references, drop_references);
}
