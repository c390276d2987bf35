#include "tests/support/expect.h"

#include "proto/config/config.h"

#include <ctype.h>
#include <stdlib.h>

struct own {
    char *prompt;
    bool json;
    double scale;
};
static const struct option own_options[] = {
    OPTION(struct own, prompt, OPTION_TEXT, NULL, "what to go on from", .group = "Input"),
    OPTION(struct own, json, OPTION_BOOL, NULL, "a line of JSON for each result"),
    OPTION(struct own, scale, OPTION_F64, "1", "of nothing", .least = 0.5, .most = 2),
};

#define PARSE(config, own, ...)                                                                    \
    ({                                                                                             \
        const char *argv_[] = {"tandem", ##__VA_ARGS__};                                           \
        config_parse((config), (own), COUNT_OF(argv_), (char *const *)argv_);                      \
    })

static void defaults_are_there_and_the_command_line_beats_the_environment(void **state)
{
    (void)state;
    AUTO_CLOSE(config) struct config config;

    setenv("TANDEM_TP", "4", 1);
    setenv("TANDEM_PORT", "81", 1);
    enum status status = PARSE(&config, NULL, "--port=82");
    unsetenv("TANDEM_TP");
    unsetenv("TANDEM_PORT");
    expect_ok(status);
    assert_int_equal(config.tp, 4);
    assert_int_equal(config.port, 82);
    assert_int_equal(config.max_num_seqs, 256);
    assert_true(config.enable_chunked_prefill);
    assert_string_equal(config.host, "127.0.0.1");
    assert_null(config.model);
}

static void a_flag_is_understood_in_every_spelling(void **state)
{
    (void)state;
    struct own own = {0};
    struct option_set more = {own_options, COUNT_OF(own_options), &own};
    AUTO_CLOSE(config) struct config config;

    expect_ok(PARSE(&config, &more, "--model", "m.gguf", "--tensor-parallel-size=3", "--prompt", "-x",
                    "--no-enable-chunked-prefill", "--json", "--kv_cache_memory", "1.5GiB", "-port",
                    "0", "--executor=multiproc", "--scale", "0.5"));
    assert_string_equal(config.model, "m.gguf");
    assert_int_equal(config.tp, 3);
    assert_false(config.enable_chunked_prefill);
    assert_true(config.kv_cache_memory == 3LL << 29);
    assert_int_equal(config.port, 0);
    assert_string_equal(own.prompt, "-x");
    assert_true(own.json);
    assert_float_equal(own.scale, 0.5, 0);
    options_close(&more);
}

static void a_mistake_is_named_with_what_would_fit(void **state)
{
    (void)state;
    static const struct {
        const char *flag, *value, *words;
    } rows[] = {
        {"--max-num-seq", "3", "option --max-num-seq is unknown; did you mean --max-num-seqs?"},
        {"--tensor-paralel-size", "3", "did you mean --tensor-parallel-size?"},
        {"--qqqqqqq", "3", "option --qqqqqqq is unknown"},
        {"--tp", "two", "--tp must be an integer, not 'two'"},
        {"--tp", "257", "--tp must be 0 to 256, not 257"},
        {"--tp", "9999999999", "--tp must be an integer of 32 bits, not '9999999999'"},
        {"--port", "70000", "--port must be 0 to 65535, not 70000"},
        {"--port", "", "--port must be an integer, not ''"},
        {"--block-size=32", "--json", "--block-size must be 16, not 32"},
        {"--executor", "ray", "--executor must be one of uniproc multiproc distributed, not 'ray'"},
        {"--kv-cache-dtype", "int4",
         "must be one of auto bfloat16 float16 fp8 fp8_e4m3 int8 int8_per_token_head, not 'int4'"},
        {"--kv-cache-memory", "-1G", "--kv-cache-memory must be a size in bytes such as 1.5GiB"},
        {"--kv-cache-memory", "3 cups", "not '3 cups'"},
        {"--json=maybe", "--json", "--json must be true or false, not 'maybe'"},
        {"--no-json=1", "--json", "--no-json takes no value"},
        {"--no-tp", "2", "option --no-tp is unknown"},
        {"--scale", "nan", "--scale must be a number, not 'nan'"},
        {"--json", "word", "'word' is not an option; options begin with --"},
        {"--json", "--tp", "--tp needs a value"},
    };
    struct own own = {0};
    struct option_set more = {own_options, COUNT_OF(own_options), &own};

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_CLOSE(config) struct config config;

        expect_fails(PARSE(&config, &more, rows[i].flag, rows[i].value), ERR_INVALID, rows[i].words);
        options_close(&more);
    }
}

/* Other programs of ours have variables, too: they must not stop this one. */
static void an_unknown_variable_is_no_obstacle_and_a_wrong_value_is(void **state)
{
    (void)state;
    AUTO_CLOSE(config) struct config config, refused;

    setenv("TANDEM_MAX_NUM_SEQ", "1", 1);
    enum status status = PARSE(&config, NULL);
    unsetenv("TANDEM_MAX_NUM_SEQ");
    expect_ok(status);
    assert_int_equal(config.max_num_seqs, 256);
    setenv("TANDEM_MAX_NUM_SEQS", "many", 1);
    status = PARSE(&refused, NULL);
    unsetenv("TANDEM_MAX_NUM_SEQS");
    expect_fails(status, ERR_INVALID, "TANDEM_MAX_NUM_SEQS must be an integer, not 'many'");
}

static void an_empty_variable_is_unset_unless_it_is_text(void **state)
{
    static const char *const names[] = {"TANDEM_TP", "TANDEM_KV_CACHE_DTYPE", "TANDEM_ASYNC_SCHEDULING",
                                        "TANDEM_WATERMARK", "TANDEM_KV_CACHE_MEMORY", "TANDEM_TOKEN"};

    (void)state;
    AUTO_CLOSE(config) struct config config, standard, refused;

    expect_ok(PARSE(&standard, NULL));
    for (size_t i = 0; i < COUNT_OF(names); i++)
        setenv(names[i], "", 1);
    enum status status = PARSE(&config, NULL);
    for (size_t i = 0; i < COUNT_OF(names); i++)
        unsetenv(names[i]);
    expect_ok(status);
    assert_int_equal(config.tp, standard.tp);
    assert_string_equal(config.kv_cache_dtype, standard.kv_cache_dtype);
    assert_int_equal(config.async_scheduling, standard.async_scheduling);
    assert_true(config.watermark == standard.watermark);
    assert_int_equal(config.kv_cache_memory, standard.kv_cache_memory);
    assert_null(standard.token);
    assert_string_equal(config.token, "");
    expect_fails(PARSE(&refused, NULL, "--tp="), ERR_INVALID, "--tp must be an integer, not ''");
}

static void every_word_is_a_type_of_kv_cache(void **state)
{
    static const struct {
        const char *word;
        enum kv_type type;
    } rows[] = {
        {"auto", KV_BFLOAT16}, {"bfloat16", KV_BFLOAT16}, {"float16", KV_FLOAT16}, {"fp8", KV_FP8},
        {"fp8_e4m3", KV_FP8},  {"int8", KV_INT8},         {"int8_per_token_head", KV_INT8},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_CLOSE(config) struct config config;

        expect_ok(PARSE(&config, NULL, "--kv-cache-dtype", rows[i].word));
        assert_int_equal(config_kv_type(&config), rows[i].type);
        assert_non_null(strstr(KV_TYPE_WORDS, kv_type_name(rows[i].type)));
    }
}

/* Each word of the row is a type, and each type a word. */
static void every_type_can_be_that_of_random_weights(void **state)
{
    (void)state;
    for (int i = 0; i <= TYPE_F8_E4M3; i++) {
        AUTO_MEM char *name = mem_strdup(tensor_type_info((enum tensor_type)i)->name);
        AUTO_CLOSE(config) struct config config;
        struct model_file *file;

        for (char *c = name; *c; c++)
            *c = (char)tolower((unsigned char)*c);
        expect_ok(PARSE(&config, NULL, "--model", "/nowhere", "--load-format", "dummy", "--dummy-type", name));
        expect_fails(config_open_model(&config, MODEL_WHOLE, &file), ERR_NOT_FOUND, "/nowhere");
    }
}

static void settings_that_do_not_go_together_are_refused(void **state)
{
    (void)state;
    AUTO_CLOSE(config) struct config config;

    expect_fails(PARSE(&config, NULL, "--executor", "uniproc", "--tp", "2"), ERR_INVALID,
                 "--executor uniproc runs one rank, --tp is 2; use multiproc");
    config_close(&config);
    expect_fails(PARSE(&config, NULL, "--no-exact-sums", "--tp", "3"), ERR_INVALID,
                 "--no-exact-sums is for one rank, --tp is 3");
    config_close(&config);
    expect_fails(PARSE(&config, NULL, "--no-enable-chunked-prefill", "--max-model-len", "4096"),
                 ERR_INVALID, "--max-num-batched-tokens is 2048, without chunked prefill it must");
    config_close(&config);
    expect_fails(PARSE(&config, NULL, "--executor", "distributed", "--max-logprobs", "500"),
                 ERR_INVALID, "--max-logprobs 500 for --max-num-batched-tokens 2048 and "
                 "--max-num-seqs 256 makes answers of 9289728 bytes; with --executor distributed "
                 "8388608 is the limit");
    config_close(&config);
    expect_fails(PARSE(&config, NULL, "--executor", "distributed", "--max-logprobs", "-1"),
                 ERR_INVALID, "--max-logprobs -1 is not for --executor distributed");
}

static void settings_survive_json(void **state)
{
    (void)state;
    AUTO_CLOSE(config) struct config config, again;

    expect_ok(PARSE(&config, NULL, "--model", "a \"b\"", "--kv-cache-memory", "3T", "--seed", "-5"));
    AUTO_MEM char *text = config_to_json(&config);
    config_init(&again);
    expect_ok(config_from_json(text, &again));
    AUTO_MEM char *text_again = config_to_json(&again);
    assert_string_equal(text, text_again);
    assert_string_equal(again.model, "a \"b\"");
    assert_true(again.seed == -5);

    expect_fails(config_from_json("{\"prot\": 1}", &again), ERR_INVALID,
                 "the setting prot is unknown; did you mean port?");
    expect_fails(config_from_json("{\"port\": true}", &again), ERR_INVALID, "port has a value of");
    expect_fails(config_from_json("{\"port\": 1.5}", &again), ERR_INVALID, "port must be an integer");
    expect_ok(config_from_json("{\"load_format\": null}", &again));
    expect_fails(config_from_json("{\"load_format\": \"dummy\", \"sim\": \"f\"}", &again), ERR_INVALID,
                 "--load-format dummy is for --model alone; --sim has no weights");
    expect_fails(config_from_json("{\"load_format\": \"safetensors\", \"sim\": \"f\"}", &again), ERR_INVALID,
                 "--load-format safetensors is for --model alone; --sim has no weights");
    expect_fails(config_from_json("{\"port\"", &again), ERR_INVALID, "settings, line 1, column 7");
}

static void help_has_a_line_for_every_row_in_groups(void **state)
{
    (void)state;
    struct option_set more = {own_options, COUNT_OF(own_options), NULL};
    AUTO_CLOSE(bytes) struct bytes out = {0};

    config_help(&more, &out);
    const char *text = bytes_text(&out);
    assert_non_null(strstr(text, "\nInput\n  --prompt TEXT "));
    assert_non_null(strstr(text, "requests in one step at most (256)\n"));
    assert_non_null(strstr(text, "(on; --no-enable-chunked-prefill)\n"));
    assert_non_null(strstr(text, "  --executor WORD "));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(defaults_are_there_and_the_command_line_beats_the_environment),
    cmocka_unit_test(a_flag_is_understood_in_every_spelling),
    cmocka_unit_test(a_mistake_is_named_with_what_would_fit),
    cmocka_unit_test(an_unknown_variable_is_no_obstacle_and_a_wrong_value_is),
    cmocka_unit_test(an_empty_variable_is_unset_unless_it_is_text),
    cmocka_unit_test(every_word_is_a_type_of_kv_cache),
    cmocka_unit_test(every_type_can_be_that_of_random_weights),
    cmocka_unit_test(settings_that_do_not_go_together_are_refused),
    cmocka_unit_test(settings_survive_json),
    cmocka_unit_test(help_has_a_line_for_every_row_in_groups),
};
TEST_MAIN(tests)
