/* What a model asks for by its generation_config.json, and what requests make of it. */
#include "tests/support/expect.h"

#include "engine/front/openai.h"
#include "tests/support/small_vocabulary.h"

static struct text_view view(const char *text)
{
    return (struct text_view){text, strlen(text)};
}

static struct generation_config config_of(const char *text, const char *told_wanted)
{
    AUTO_CLOSE(bytes) struct bytes told = {0};
    struct generation_config config;

    expect_ok(generation_config_read(view(text), &config, &told));
    assert_string_equal(told.size ? bytes_text(&told) : "", told_wanted);
    return config;
}

static void what_it_says_is_a_default(void **state)
{
    struct generation_config config =
        config_of("{\"do_sample\":true,\"eos_token_id\":[1,2],\"temperature\":0.6,\"top_k\":20,\"top_p\":0.95,"
                  "\"min_p\":0.1,\"repetition_penalty\":1.5,\"max_new_tokens\":99,\"pad_token_id\":\"odd\"}",
                  "{\"repetition_penalty\": 1.5, \"temperature\": 0.6, \"top_k\": 20, \"top_p\": 0.95, "
                  "\"min_p\": 0.1, \"max_new_tokens\": 99}");

    (void)state;
    assert_true(config.params.temperature == 0.6f && config.params.top_p == 0.95f && config.params.min_p == 0.1f);
    assert_true(config.params.repetition_penalty == 1.5f);
    assert_int_equal(config.params.top_k, 20);
    assert_int_equal(config.params.max_tokens, -1);
    assert_int_equal(config.most_tokens, 99);
    assert_true(config.has_temperature);
}

static void what_it_does_not_say_is_neutral(void **state)
{
    static const char *const texts[] = {"", "{}", "{\"eos_token_id\":3,\"do_sample\":false}",
                                        "{\"temperature\":null,\"top_k\":null,\"max_new_tokens\":null}"};
    struct sampling_params neutral;

    (void)state;
    sampling_params_init(&neutral);
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        struct generation_config config = config_of(texts[i], "");

        assert_memory_equal(&config.params, &neutral, sizeof neutral);
        assert_int_equal(config.most_tokens, -1);
        assert_false(config.has_temperature);
    }
}

static void hostile_values_are_refused_by_name(void **state)
{
    static const struct {
        const char *text;
        enum status status;
        const char *sentence;
    } rows[] = {
        {"{", ERR_CORRUPT, "line 1, column 1"},
        {"[]", ERR_CORRUPT, "is no JSON object"},
        {"{\"top_k\":1,\"top_k\":2}", ERR_CORRUPT, "duplicate object key"},
        {"{\"temperature\":-1}", ERR_INVALID, "temperature must be in [0, 2], got -1."},
        {"{\"temperature\":\"hot\"}", ERR_INVALID, "temperature must be a number."},
        {"{\"temperature\":1e999}", ERR_CORRUPT, "line 1"},
        {"{\"top_p\":0}", ERR_INVALID, "top_p must be in (0, 1], got 0."},
        {"{\"top_k\":-2}", ERR_INVALID, "top_k must be 0 (disable), or at least 1, got -2."},
        {"{\"top_k\":0.5}", ERR_INVALID, "top_k must be an integer."},
        {"{\"top_k\":4294967296}", ERR_INVALID, "top_k must be at most 2147483647, got 4294967296."},
        {"{\"min_p\":2}", ERR_INVALID, "min_p must be in [0, 1], got 2."},
        {"{\"repetition_penalty\":0}", ERR_INVALID, "repetition_penalty must be greater than zero, got 0."},
        {"{\"repetition_penalty\":[1]}", ERR_INVALID, "repetition_penalty must be a number."},
        {"{\"max_new_tokens\":0}", ERR_CORRUPT, "max_new_tokens is 0; a whole number from 1 to"},
        {"{\"max_new_tokens\":true}", ERR_CORRUPT, "max_new_tokens is true"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct generation_config config = {.most_tokens = 7};
        AUTO_CLOSE(bytes) struct bytes told = {0};

        expect_fails(generation_config_read(view(rows[i].text), &config, &told), rows[i].status, rows[i].sentence);
        assert_int_equal(config.most_tokens, 7); /* as it was */
        assert_int_equal(told.size, 0);
    }
}

/* ---- requests ---------------------------------------------------------------------------------- */

static struct tokenizer *tokenizer;

static struct sampling_params params_of(const struct generation_config *config, const char *text)
{
    const struct openai_model model = {
        .tokenizer = tokenizer, .max_model_len = 1000, .seed = -1, .generation_config = config};
    AUTO_FREE(generation) struct generation *generation = NULL;
    const char *param;
    json_t *body;

    expect_ok(openai_decode(text, strlen(text), 1, &body));
    expect_ok(openai_read(&model, OPENAI_EITHER, body, &generation, &param));
    json_decref(body);
    return generation->params; /* its numbers are used alone */
}

static void requests_say_otherwise_field_by_field(void **state)
{
    struct generation_config config = config_of("{\"temperature\":0.5,\"top_k\":20,\"top_p\":0.5}",
                                                "{\"temperature\": 0.5, \"top_k\": 20, \"top_p\": 0.5}");
    struct sampling_params params = params_of(&config, "{\"prompt\":\"a\",\"temperature\":1.5,\"top_p\":null}");

    (void)state;
    assert_true(params.temperature == 1.5f && params.top_p == 0.5f);
    assert_int_equal(params.top_k, 20);
    params = params_of(NULL, "{\"prompt\":\"a\",\"temperature\":1.5}");
    assert_true(params.temperature == 1.5f && params.top_p == 1);
    assert_int_equal(params.top_k, 0);
}

static void no_answer_is_longer_than_it_says(void **state)
{
    static const struct {
        const char *body;
        int32_t of_ten, of_hundred;
    } rows[] = {
        {"{\"prompt\":\"a\"}", 10, 16},
        {"{\"prompt\":\"a\",\"max_tokens\":5}", 5, 5},
        {"{\"prompt\":\"a\",\"max_tokens\":50}", 10, 50},
        {"{\"prompt\":\"a\",\"max_tokens\":500}", 10, 100},
    };
    struct generation_config ten = config_of("{\"max_new_tokens\":10}", "{\"max_new_tokens\": 10}");
    struct generation_config hundred = config_of("{\"max_new_tokens\":100}", "{\"max_new_tokens\": 100}");

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(params_of(&ten, rows[i].body).max_tokens, rows[i].of_ten);
        assert_int_equal(params_of(&hundred, rows[i].body).max_tokens, rows[i].of_hundred);
    }
}

static int make_tokenizer(void **state)
{
    struct vocabulary vocabulary = small_bpe_vocabulary();

    (void)state;
    expect_ok(tokenizer_new(&vocabulary, &tokenizer));
    return 0;
}

static int free_tokenizer(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_it_says_is_a_default),
        cmocka_unit_test(what_it_does_not_say_is_neutral),
        cmocka_unit_test(hostile_values_are_refused_by_name),
        cmocka_unit_test(requests_say_otherwise_field_by_field),
        cmocka_unit_test(no_answer_is_longer_than_it_says),
    };

    return cmocka_run_group_tests(tests, make_tokenizer, free_tokenizer);
}
