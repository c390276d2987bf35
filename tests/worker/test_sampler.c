#include "tests/support/expect.h"

#include "worker/philox.h"
#include "worker/sampler.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { VOCAB = 1000 };

/* ---- reference cases ------------------------------------------------------------------------ */

struct reference {
    struct arena arena;
    struct sampling_params params;
    struct sampler_row row;
    float logits[VOCAB];
};

static int32_t *ids_of(struct arena *arena, const json_t *list, int32_t *num_out)
{
    int32_t n = (int32_t)json_array_size(list);
    int32_t *ids = arena_alloc(arena, sizeof *ids * (size_t)n);

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

/* allowed_token_ids and bad_words exclude tokens before anything else: here that is a bitmask. */
static const uint32_t *bitmask_of(struct reference *reference, const json_t *params)
{
    uint32_t *mask = arena_alloc(&reference->arena, (VOCAB + 31) / 32 * sizeof *mask);
    const json_t *allowed = json_object_get(params, "allowed_token_ids");
    const json_t *bad_words = json_object_get(params, "bad_words_token_ids"), *words;
    size_t w;

    memset(mask, json_is_array(allowed) ? 0 : 0xff, (VOCAB + 31) / 32 * sizeof *mask);
    for (size_t i = 0; i < json_array_size(allowed); i++) {
        int32_t t = (int32_t)json_integer_value(json_array_get(allowed, i));

        mask[t / 32] |= 1u << (t % 32);
    }
    json_array_foreach (bad_words, w, words) {
        int32_t n, *ids = ids_of(&reference->arena, words, &n);

        if (n - 1 <= reference->row.num_output &&
            memcmp(ids, reference->row.output + reference->row.num_output - (n - 1),
                   sizeof *ids * (size_t)(n - 1)) == 0)
            mask[ids[n - 1] / 32] &= ~(1u << (ids[n - 1] % 32));
    }
    return mask;
}

static void load_reference(struct reference *reference, const json_t *json, const float *all_logits)
{
    const json_t *params = json_object_get(json, "params"), *value;
    struct sampling_params *p = &reference->params;
    struct sampler_row *row = &reference->row;
    const char *key;
    int32_t n = 0;

    *reference = (struct reference){0};
    sampling_params_init(p);
    p->temperature = number(params, "temperature", 1);
    p->top_p = number(params, "top_p", 1);
    p->top_k = (int32_t)number(params, "top_k", 0);
    p->min_p = number(params, "min_p", 0);
    p->min_tokens = (int32_t)number(params, "min_tokens", 0);
    p->repetition_penalty = number(params, "repetition_penalty", 1);
    p->frequency_penalty = number(params, "frequency_penalty", 0);
    p->presence_penalty = number(params, "presence_penalty", 0);
    p->all_stop_token_ids = ids_of(&reference->arena, json_object_get(params, "stop_token_ids"),
                                   &p->num_all_stop_token_ids);

    const json_t *bias = json_object_get(params, "logit_bias");
    int32_t *bias_ids = arena_alloc(&reference->arena, sizeof(int32_t) * json_object_size(bias));
    float *bias_values = arena_alloc(&reference->arena, sizeof(float) * json_object_size(bias));

    json_object_foreach ((json_t *)bias, key, value) {
        bias_ids[n] = atoi(key);
        bias_values[n++] = (float)json_number_value(value);
    }
    p->logit_bias_ids = bias_ids;
    p->logit_bias_values = bias_values;
    p->num_logit_bias = n;

    row->params = p;
    row->prompt = ids_of(&reference->arena, json_object_get(params, "prompt_ids"), &row->num_prompt);
    row->output = ids_of(&reference->arena, json_object_get(params, "output_ids"), &row->num_output);
    row->bitmask = bitmask_of(reference, params);
    memcpy(reference->logits,
           all_logits + json_integer_value(json_object_get(json, "logits_row")) * VOCAB,
           sizeof reference->logits);
}

static void check_kept(const json_t *json, struct sampler *sampler, struct reference *reference)
{
    const json_t *kept_ids = json_object_get(json, "kept_ids");
    const json_t *kept_probs = json_object_get(json, "kept_probs");
    const json_t *every_10th = json_object_get(json, "probs_every_10th");
    double probs[VOCAB] = {0}, sum = 0;
    int32_t n;
    const struct candidate *kept =
        sampler_keep(sampler, reference->logits, &reference->params, &n);

    for (int32_t i = 0; i < n; i++)
        sum += probs[kept[i].token] = exp(kept[i].logit - kept[0].logit);

    /* A probability below the least float is kept in exact arithmetic, and makes no difference. */
    int32_t num_least = 0;

    for (size_t i = 0; i < json_array_size(kept_ids); i++) {
        int32_t id = (int32_t)json_integer_value(json_array_get(kept_ids, i));
        double expected = json_number_value(json_array_get(kept_probs, i));

        num_least += expected < 1e-30;
        assert_float_equal(probs[id] / sum, expected, 2e-6);
    }
    for (size_t i = 0; i < json_array_size(every_10th); i++)
        assert_float_equal(probs[i * 10] / sum, json_number_value(json_array_get(every_10th, i)),
                           2e-6);
    if (num_least == 0)
        assert_int_equal(n, json_integer_value(json_object_get(json, "n_kept")));
}

static void the_kept_tokens_and_their_probabilities_are_the_references(void **state)
{
    (void)state;
    AUTO_FREE(sampler) struct sampler *sampler = sampler_new(VOCAB);
    AUTO_MEM char *logits_path = mem_printf("%s/sampling/logits.f32", getenv("TANDEM_TEST_DATA"));
    AUTO_MEM char *cases_path = mem_printf("%s/sampling/cases.jsonl", getenv("TANDEM_TEST_DATA"));
    AUTO_MEM float *all_logits = mem_new_array(float, 89 * VOCAB);
    AUTO_MEM char *line = NULL;
    size_t line_size = 0;
    int num_cases = 0;
    FILE *f = fopen(logits_path, "rb");

    assert_non_null(f);
    assert_int_equal(fread(all_logits, sizeof(float), 89 * VOCAB, f), 89 * VOCAB);
    fclose(f);
    f = fopen(cases_path, "r");
    assert_non_null(f);
    for (; getline(&line, &line_size, f) > 0; num_cases++) {
        json_t *json = json_loads(line, 0, NULL);
        struct reference reference;

        load_reference(&reference, json, all_logits);
        sampler_edit_logits(sampler, reference.logits, &reference.row);
        if (json_number_value(json_object_get(json, "greedy_margin")) > 0)
            assert_int_equal(sampler_argmax(reference.logits, VOCAB),
                             json_integer_value(json_object_get(json, "greedy_id")));
        if (json_object_get(json, "n_kept"))
            check_kept(json, sampler, &reference);
        arena_close(&reference.arena);
        json_decref(json);
    }
    fclose(f);
    assert_int_equal(num_cases, 89);
}

/* ---- draws ---------------------------------------------------------------------------------- */

static void philox_gives_the_papers_numbers(void **state)
{
    (void)state;
    uint32_t out[4];

    /* Known answers of Random123's kat_vectors: philox4x32 10. */
    philox4x32(0, 0, 0, out);
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c);
    assert_int_equal(out[3], 0x9b00dbd8);
    philox4x32(UINT64_MAX, UINT64_MAX, UINT64_MAX, out);
    assert_int_equal(out[0], 0x408f276d);
    assert_int_equal(out[3], 0x6d5451fd);
}

static void draws_follow_the_distribution(void **state)
{
    (void)state;
    enum { N = 40000, TOKENS = 12 };
    AUTO_FREE(sampler) struct sampler *sampler = sampler_new(TOKENS);
    struct sampling_params params;
    float logits[TOKENS];
    int32_t counts[TOKENS] = {0}, n;
    double sum = 0, chi_square = 0;

    sampling_params_init(&params);
    params.top_k = 10;
    params.temperature = 0.8f;
    for (int i = 0; i < TOKENS; i++)
        logits[i] = (float)((i * 7) % TOKENS) * 0.3f;

    for (int i = 0; i < N; i++) {
        float row_logits[TOKENS];
        struct sampler_result result;

        params.seed = i / 200;
        memcpy(row_logits, logits, sizeof logits);
        sampler_run(sampler, row_logits,
                    &(struct sampler_row){.params = &params, .position = i % 200}, &result);
        assert_in_range(result.token, 0, TOKENS - 1);
        counts[result.token]++;
    }

    const struct candidate *kept = sampler_keep(sampler, logits, &params, &n);

    assert_int_equal(n, 10);
    for (int32_t i = 0; i < n; i++)
        sum += exp(kept[i].logit);
    for (int32_t i = 0; i < n; i++) {
        double expected = N * exp(kept[i].logit) / sum;
        double difference = counts[kept[i].token] - expected;

        chi_square += difference * difference / expected;
        counts[kept[i].token] = 0;
    }
    assert_true(chi_square < 27.9); /* 9 degrees of freedom, p = 0.001 */
    for (int i = 0; i < TOKENS; i++)
        assert_int_equal(counts[i], 0); /* nothing outside of what was kept */
}

static void a_draw_depends_on_seed_and_position_alone(void **state)
{
    (void)state;
    AUTO_FREE(sampler) struct sampler *sampler = sampler_new(VOCAB);
    AUTO_FREE(sampler) struct sampler *other = sampler_new(VOCAB);
    struct sampling_params params;
    int32_t first = -1, num_different = 0;

    sampling_params_init(&params);
    for (int position = 0; position < 50; position++) {
        float a[VOCAB] = {0}, b[VOCAB] = {0};
        struct sampler_result ra, rb;

        params.seed = 42;
        sampler_run(sampler, a, &(struct sampler_row){.params = &params, .position = position}, &ra);
        params.seed = 7; /* another request in between changes nothing */
        sampler_run(sampler, b, &(struct sampler_row){.params = &params, .position = position}, &rb);
        memset(b, 0, sizeof b);
        params.seed = 42;
        sampler_run(other, b, &(struct sampler_row){.params = &params, .position = position}, &rb);
        assert_int_equal(ra.token, rb.token);
        num_different += first != ra.token;
        first = ra.token;
    }
    assert_true(num_different > 40);
}

static void a_row_without_a_possible_token_says_so(void **state)
{
    (void)state;
    AUTO_FREE(sampler) struct sampler *sampler = sampler_new(64);
    uint32_t nothing[2] = {0};
    float logits[64] = {0};
    struct sampling_params params;
    struct sampler_result result;

    sampling_params_init(&params);
    for (int greedy = 0; greedy < 2; greedy++) {
        params.temperature = greedy ? 0 : 1;
        sampler_run(sampler, logits, &(struct sampler_row){.params = &params, .bitmask = nothing},
                    &result);
        assert_int_equal(result.token, -1);
        for (int i = 0; i < 64; i++)
            logits[i] = NAN;
        sampler_run(sampler, logits, &(struct sampler_row){.params = &params}, &result);
        assert_int_equal(result.token, -1);
    }
}

static void logprobs_are_those_of_the_logits_before_any_edit(void **state)
{
    (void)state;
    AUTO_FREE(sampler) struct sampler *sampler = sampler_new(4);
    float logits[4] = {0, logf(2), logf(4), logf(1)}; /* 1/8 2/8 4/8 1/8 */
    struct sampling_params params;
    struct sampler_result result;
    uint32_t mask = 1 << 1;

    sampling_params_init(&params);
    params.temperature = 0;
    params.logprobs = 3;
    sampler_run(sampler, logits, &(struct sampler_row){.params = &params, .bitmask = &mask}, &result);
    assert_int_equal(result.token, 1);
    assert_int_equal(result.rank, 2);
    assert_float_equal(result.logprob, log(0.25), 1e-6);
    assert_int_equal(result.num_top, 3);
    assert_int_equal(result.top_tokens[0], 2);
    assert_int_equal(result.top_tokens[2], 0); /* the lower id of two equals */
    assert_float_equal(result.top_logprobs[0], log(0.5), 1e-6);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_kept_tokens_and_their_probabilities_are_the_references),
    cmocka_unit_test(philox_gives_the_papers_numbers),
    cmocka_unit_test(draws_follow_the_distribution),
    cmocka_unit_test(a_draw_depends_on_seed_and_position_alone),
    cmocka_unit_test(a_row_without_a_possible_token_says_so),
    cmocka_unit_test(logprobs_are_those_of_the_logits_before_any_edit),
};
TEST_MAIN(tests)
