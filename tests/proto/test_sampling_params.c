#include "tests/support/expect.h"

#include "proto/wire/messages.h"

#include <math.h>

static const char *key_at_fault;

static enum status parse(const char *text, struct arena *arena, struct sampling_params *params)
{
    json_error_t error;
    json_t *json = json_loads(text, 0, &error);

    assert_non_null(json);
    sampling_params_init(params);
    enum status status = sampling_params_from_json(json, arena, params, &key_at_fault);
    json_decref(json);
    return status;
}

static void what_is_not_given_has_the_default_and_others_keys_are_left_alone(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    expect_ok(parse("{\"model\": \"x\", \"temperature\": null}", &arena, &params));
    assert_int_equal(params.n, 1);
    assert_float_equal(params.temperature, 1, 0);
    assert_int_equal(params.seed, -1);
    assert_int_equal(params.max_tokens, -1);
    assert_int_equal(params.logprobs, -1);
    assert_int_equal(params.prompt_logprobs, -1);
    assert_true(params.skip_special_tokens);
    assert_false(sampling_params_has_key("model"));
    assert_false(sampling_params_has_key("logit_bias_values"));
    assert_true(sampling_params_has_key("logit_bias"));
    expect_ok(sampling_params_validate(&params, 100, 64, MAX_LOGPROBS));
}

static void every_parameter_is_read(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    expect_ok(parse("{\"n\": 3, \"temperature\": 0.5, \"top_p\": 0.25, \"top_k\": 40, \"min_p\": 0.125,"
                    "\"seed\": 9007199254740993, \"max_completion_tokens\": 7, \"min_tokens\": 2,"
                    "\"stop\": [\"a\", \"bc\"], \"stop_token_ids\": [5, 6, 5], \"ignore_eos\": true,"
                    "\"logprobs\": true, \"top_logprobs\": 4, \"prompt_logprobs\": 3, \"presence_penalty\": -2,"
                    "\"frequency_penalty\": 2.0, \"repetition_penalty\": 1.5,"
                    "\"logit_bias\": {\"7\": -1e9, \"8\": 3}, \"skip_special_tokens\": false,"
                    "\"include_stop_str_in_output\": true}", &arena, &params));
    assert_int_equal(params.n, 3);
    assert_float_equal(params.temperature, 0.5f, 0);
    assert_float_equal(params.min_p, 0.125f, 0);
    assert_true(params.seed == 9007199254740993);
    assert_int_equal(params.max_tokens, 7);
    assert_int_equal(params.min_tokens, 2);
    assert_int_equal(params.num_stop, 2);
    assert_string_equal(params.stop[1], "bc");
    assert_int_equal(params.num_stop_token_ids, 2);
    assert_int_equal(params.logprobs, 4);
    assert_int_equal(params.prompt_logprobs, 3);
    assert_float_equal(params.frequency_penalty, 2, 0);
    assert_int_equal(params.num_logit_bias, 2);
    assert_int_equal(params.logit_bias_ids[0], 7);
    assert_float_equal(params.logit_bias_values[0], -100, 0);
    assert_false(params.skip_special_tokens);
    assert_true(params.include_stop_str_in_output);
}

static void what_is_out_of_range_is_refused_in_known_words(void **state)
{
    (void)state;
    static const struct {
        const char *json, *words;
    } rows[] = {
        {"{\"n\": 0}", "n must be at least 1, got 0."},
        {"{\"n\": 16385}", "n must be at most 16384, got 16385."},
        {"{\"n\": 1.0}", "n must be an integer."},
        {"{\"n\": true}", "n must be an integer."},
        {"{\"temperature\": -0.1}", "temperature must be in [0, 2], got -0.1"},
        {"{\"temperature\": 2.01}", "temperature must be in [0, 2], got 2.01"},
        {"{\"temperature\": \"hot\"}", "temperature must be a number."},
        {"{\"top_p\": 0}", "top_p must be in (0, 1], got 0."},
        {"{\"top_p\": 1e-60}", "top_p must be in (0, 1], got 1e-60."},
        {"{\"top_k\": -2}", "top_k must be 0 (disable), or at least 1, got -2."},
        {"{\"top_k\": 99999999999}", "top_k must be at most 2147483647, got 99999999999."},
        {"{\"min_p\": 1.5}", "min_p must be in [0, 1], got 1.5."},
        {"{\"presence_penalty\": 3}", "presence_penalty must be in [-2, 2], got 3."},
        {"{\"repetition_penalty\": 0}", "repetition_penalty must be greater than zero, got 0."},
        {"{\"max_tokens\": 0}", "max_tokens must be at least 1, got 0."},
        {"{\"max_tokens\": -1}", "max_tokens must be at least 1, got -1."},
        {"{\"max_completion_tokens\": 0}", "max_completion_tokens must be at least 1, got 0."},
        {"{\"min_tokens\": -1}", "min_tokens must be greater than or equal to 0, got -1."},
        {"{\"ignore_eos\": 1}", "ignore_eos must be true or false."},
        {"{\"stop\": \"\"}", "stop cannot contain an empty string."},
        {"{\"stop\": [1]}", "stop must be a text or a list of texts."},
        {"{\"stop_token_ids\": [1, \"2\"]}", "element 1 is none"},
        {"{\"logprobs\": -2}", "logprobs must be non-negative or -1, got -2."},
        {"{\"top_logprobs\": -2}", "top_logprobs must be a non-negative integer or -1."},
        {"{\"prompt_logprobs\": true}", "prompt_logprobs must be an integer."},
        {"{\"prompt_logprobs\": -2}", "`prompt_logprobs` must be a positive value or -1."},
        {"{\"allowed_token_ids\": []}", "allowed_token_ids is not None and empty!"},
        {"{\"allowed_token_ids\": 3}", "allowed_token_ids must be a list of at most"},
        {"{\"allowed_token_ids\": [3, -1]}", "element 1 is none"},
        {"{\"bad_words\": \"x\"}", "bad_words must be a list of at most 128 texts."},
        {"{\"bad_words\": [\"x\", \"\"]}", "bad_words cannot contain an empty string."},
        {"{\"bad_words\": [1]}", "bad_words must be a text or a list of texts."},
        {"{\"top_logprobs\": 3}", "when using `top_logprobs`, `logprobs` must be set to true."},
        {"{\"logit_bias\": {\"x\": 1}}", "the key 'x', which is no token id"},
        {"{\"logit_bias\": {\"1\": 1, \"01\": 2}}", "names token 1 twice"},
        {"{\"seed\": 1.5}", "seed must be an integer"},
    };
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_fails(parse(rows[i].json, &arena, &params), ERR_INVALID, rows[i].words);
}

static void parameters_are_checked_against_each_other_and_the_model(void **state)
{
    (void)state;
    static const struct {
        const char *json, *words;
    } rows[] = {
        {"{\"n\": 2, \"temperature\": 0}", "n must be 1 when using greedy sampling, got 2."},
        {"{\"min_tokens\": 5, \"max_tokens\": 4}",
         "min_tokens must be less than or equal to max_tokens=4, got 5."},
        {"{\"min_tokens\": 64}", "maximum model length of 64"},
        {"{\"logprobs\": 21}",
         "Requested sample logprobs of 21, which is greater than max allowed: 20"},
        {"{\"prompt_logprobs\": 21}",
         "Requested prompt logprobs of 21, which is greater than max allowed: 20"},
        {"{\"prompt_logprobs\": -1}",
         "Requested prompt logprobs of 100, which is greater than max allowed: 20"},
        {"{\"logprobs\": -1}",
         "Requested sample logprobs of 100, which is greater than max allowed: 20"},
        {"{\"allowed_token_ids\": [1, 100]}",
         "allowed_token_ids contains out-of-vocab token id!"},
        {"{\"stop_token_ids\": [100]}", "token_id 100 in stop_token_ids"},
        {"{\"logit_bias\": {\"100\": 1}}", "Vocabulary size: 100"},
    };
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        expect_ok(parse(rows[i].json, &arena, &params));
        expect_fails(sampling_params_validate(&params, 100, 64, MAX_LOGPROBS), ERR_INVALID,
                     rows[i].words);
    }
    sampling_params_init(&params);
    params.top_p = NAN;
    expect_fails(sampling_params_validate(&params, 100, 64, 20), ERR_INVALID, "got nan.");
}

static void a_temperature_that_would_overflow_is_raised(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    expect_ok(parse("{\"temperature\": 0.001}", &arena, &params));
    assert_float_equal(params.temperature, LEAST_TEMPERATURE, 0);
    expect_ok(parse("{\"temperature\": 0.000001}", &arena, &params));
    assert_true(sampling_params_is_greedy(&params));
}

static void a_refused_request_leaves_the_parameters_as_they_were(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params, before;

    sampling_params_init(&before);
    expect_fails(parse("{\"n\": 5, \"logit_bias\": 3}", &arena, &params), ERR_INVALID, "logit_bias");
    assert_string_equal(key_at_fault, "logit_bias");
    assert_true(message_equal(&sampling_params_type, &params, &before));
    assert_int_equal(params.n, 1);
}

static void logprobs_of_the_whole_vocabulary_need_no_limit_or_a_large_one(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    expect_ok(parse("{\"logprobs\": -1}", &arena, &params));
    assert_int_equal(params.logprobs, LOGPROBS_ALL);
    expect_ok(sampling_params_validate(&params, 100, 64, -1));
    expect_ok(sampling_params_validate(&params, 100, 64, 100));
    expect_fails(sampling_params_validate(&params, 100, 64, 99), ERR_INVALID,
                 "Requested sample logprobs of 100");
    expect_ok(parse("{\"logprobs\": true, \"top_logprobs\": -1}", &arena, &params));
    assert_int_equal(params.logprobs, LOGPROBS_ALL);
}

static void lists_of_bad_words_must_add_up(void **state)
{
    (void)state;
    static const int32_t ids[] = {1, 2, 99}, counts[] = {1, 2}, empty[] = {3, 0};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    expect_ok(parse("{\"bad_words\": [\"a b\", \"c\"]}", &arena, &params));
    assert_int_equal(params.num_bad_words, 2);
    assert_string_equal(params.bad_words[0], "a b");
    expect_fails(sampling_params_validate(&params, 100, 64, 20), ERR_UNSUPPORTED,
                 "`bad_words` is not supported yet"); /* nobody has tokenised them */
    params.bad_words_token_ids = ids, params.num_bad_words_token_ids = 3;
    params.bad_words_counts = counts, params.num_bad_words_counts = 2;
    expect_ok(sampling_params_validate(&params, 100, 64, 20));
    expect_fails(sampling_params_validate(&params, 99, 64, 20), ERR_INVALID,
                 "token_id 99 in bad_words");
    params.num_bad_words_counts = 1;
    expect_fails(sampling_params_validate(&params, 100, 64, 20), ERR_INVALID,
                 "lists of 1 tokens in all, and there are 3");
    params.bad_words_counts = empty, params.num_bad_words_counts = 2;
    expect_fails(sampling_params_validate(&params, 100, 64, 20), ERR_INVALID,
                 "list 1 has 0 tokens");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_not_given_has_the_default_and_others_keys_are_left_alone),
    cmocka_unit_test(every_parameter_is_read),
    cmocka_unit_test(what_is_out_of_range_is_refused_in_known_words),
    cmocka_unit_test(parameters_are_checked_against_each_other_and_the_model),
    cmocka_unit_test(a_temperature_that_would_overflow_is_raised),
    cmocka_unit_test(a_refused_request_leaves_the_parameters_as_they_were),
    cmocka_unit_test(logprobs_of_the_whole_vocabulary_need_no_limit_or_a_large_one),
    cmocka_unit_test(lists_of_bad_words_must_add_up),
};
TEST_MAIN(tests)
