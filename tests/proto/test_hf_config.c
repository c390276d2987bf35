#include "tests/support/expect.h"

#include "proto/base/file_read.h"
#include "proto/model/hf_config.h"

static enum status read_bytes(const void *data, size_t size, struct hf_config *out)
{
    json_auto_t *root = NULL;

    TRY(hf_config_parse(data, size, &root));
    return hf_config_read(root, out);
}

static enum status read_text(const char *text, struct hf_config *out)
{
    return read_bytes(text, strlen(text), out);
}

static void read_shape(const char *name, struct hf_config *out)
{
    AUTO_MEM char *path = mem_printf("%s/shapes/%s.json", getenv("TANDEM_TEST_DATA"), name);
    AUTO_CLOSE(bytes) struct bytes file = {0};

    expect_ok(file_read(path, 1 << 20, &file));
    expect_ok(read_bytes(file.data, file.size, out));
}

/* A file of one architecture, and what a test adds to it: a key that is there twice counts as refused, so keys that
 * tests replace are not in it. */
#define SHAPE                                                                                      \
    "\"intermediate_size\":128,\"num_hidden_layers\":3,\"vocab_size\":300,"                        \
    "\"max_position_embeddings\":512"
#define WIDTH "\"hidden_size\":64,"
#define HEADS "\"num_attention_heads\":4,\"num_key_value_heads\":2,"
#define WIDTH_IS(x) "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":" x "," HEADS SHAPE "}"
#define LLAMA(x) "{\"architectures\":[\"LlamaForCausalLM\"]," WIDTH HEADS SHAPE x "}"
#define QWEN2(x) "{\"architectures\":[\"Qwen2ForCausalLM\"]," WIDTH HEADS SHAPE x "}"
#define QWEN3(x) "{\"architectures\":[\"Qwen3ForCausalLM\"]," WIDTH HEADS SHAPE x "}"
#define GEMMA(x) "{\"architectures\":[\"Gemma3ForCausalLM\"]," WIDTH HEADS SHAPE x "}"

/* ---- what is read ------------------------------------------------------------------------------ */

static void the_shapes_of_real_models_are_read(void **state)
{
    static const struct {
        const char *file, *architecture;
        int32_t hidden_size, num_layers, head_dim, intermediate_size, vocab_size;
        float rope_theta, factor;
        bool is_tied;
    } rows[] = {
        {"llama-3.2-1b", "llama", 2048, 16, 64, 8192, 128256, 500000, 32, true},
        {"llama-3.1-8b", "llama", 4096, 32, 128, 14336, 128256, 500000, 8, false},
        {"qwen3-8b", "qwen3", 4096, 36, 128, 12288, 151936, 1000000, 0, false},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct hf_config config;

        read_shape(rows[i].file, &config);
        assert_string_equal(config.model.architecture, rows[i].architecture);
        assert_int_equal(config.model.hidden_size, rows[i].hidden_size);
        assert_int_equal(config.model.num_layers, rows[i].num_layers);
        assert_int_equal(config.model.num_heads, 32);
        assert_int_equal(config.model.num_kv_heads, 8);
        assert_int_equal(config.model.head_dim, rows[i].head_dim);
        assert_int_equal(config.model.rope_dim, rows[i].head_dim);
        assert_int_equal(config.model.intermediate_size, rows[i].intermediate_size);
        assert_int_equal(config.model.vocab_size, rows[i].vocab_size);
        assert_true(config.model.rope_theta == rows[i].rope_theta);
        assert_true(config.llama3.factor == rows[i].factor);
        assert_int_equal(config.model.rope_scaling,
                         rows[i].factor > 0 ? ROPE_SCALING_LLAMA3 : ROPE_SCALING_NONE);
        assert_true(config.model.rope_scaling_factor == 1);
        assert_int_equal(config.is_tied, rows[i].is_tied);
    }
}

static void what_a_file_leaves_out_is_as_transformers_has_it(void **state)
{
    struct hf_config llama, qwen2, qwen3, gemma3;

    (void)state;
    expect_ok(read_text(LLAMA(",\"head_dim\":null,\"rope_scaling\":null"), &llama));
    assert_int_equal(llama.model.head_dim, 16);
    assert_true(llama.model.rope_theta == 10000 && llama.model.rms_norm_eps == 1e-6f);
    assert_true(llama.model.rope_theta_local == 10000);
    assert_false(llama.is_tied);
    expect_ok(read_text(QWEN2(",\"sliding_window\":131072,\"max_window_layers\":28,\"use_sliding_window\":false"),
                        &qwen2));
    assert_string_equal(qwen2.model.architecture, "qwen2");
    assert_int_equal(qwen2.model.head_dim, 16);
    assert_int_equal(qwen2.model.sliding_window, 0);
    assert_true(qwen2.model.rope_theta == 10000 && !qwen2.is_tied);
    expect_ok(read_text(QWEN3(",\"sliding_window\":4096,\"use_sliding_window\":false"), &qwen3));
    assert_int_equal(qwen3.model.head_dim, 128);
    assert_int_equal(qwen3.model.sliding_window, 0);
    expect_ok(read_text(GEMMA(",\"sliding_window\":32"), &gemma3));
    assert_int_equal(gemma3.model.head_dim, 256);
    assert_int_equal(gemma3.model.sliding_window, 32);
    assert_int_equal(gemma3.model.sliding_pattern, 6);
    assert_true(gemma3.model.rope_theta == 1000000 && gemma3.model.rope_theta_local == 10000);
    assert_true(gemma3.is_tied);
}

static void both_ways_to_write_rope_are_read(void **state)
{
    struct hf_config config;

    (void)state;
    expect_ok(read_text(LLAMA(",\"rope_theta\":7,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}"), &config));
    assert_true(config.model.rope_theta == 7 && config.model.rope_scaling_factor == 4);
    assert_int_equal(config.model.rope_scaling, ROPE_SCALING_LINEAR);
    expect_ok(read_text(LLAMA(",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":9}"), &config));
    assert_true(config.model.rope_theta == 9 && config.model.rope_theta_local == 9);
    assert_int_equal(config.model.rope_scaling, ROPE_SCALING_NONE);
    expect_ok(read_text(GEMMA(",\"sliding_window\":8,\"sliding_window_pattern\":2,\"rope_parameters\":{"
                              "\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8,\"rope_theta\":5},"
                              "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":3}},"
                              "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\"]"),
                        &config));
    assert_true(config.model.rope_theta == 5 && config.model.rope_theta_local == 3);
    assert_true(config.model.rope_scaling_factor == 8);
    assert_int_equal(config.model.sliding_pattern, 2);
}

/* The values of rope_freqs.weight as the converter to GGUF computes them for Llama 3.2 1B: pairs that turn often
 * are left alone, those that hardly turn are divided by the factor. */
static void llama3_divides_slow_pairs_alone(void **state)
{
    struct hf_config config;

    (void)state;
    read_shape("llama-3.2-1b", &config);
    assert_true(hf_config_llama3_factor(&config, 0) == 1);
    assert_true(hf_config_llama3_factor(&config, 14) == 1);
    assert_float_equal(hf_config_llama3_factor(&config, 15), 1.651329, 1e-5);
    assert_float_equal(hf_config_llama3_factor(&config, 17), 9.666729, 1e-5);
    assert_true(hf_config_llama3_factor(&config, 18) == 32);
    assert_true(hf_config_llama3_factor(&config, 31) == 32);
}

/* ---- what is refused --------------------------------------------------------------------------- */

static void what_does_not_fit_is_refused_with_key_and_value(void **state)
{
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"", "line 1, column 0"},
        {"{", "line 1, column 1"},
        {"[]", "is no JSON object"},
        {"{}", "architectures is missing"},
        {LLAMA(",\"vocab_size\":300"), "duplicate object key"},
        {"{\"architectures\":[\"LlamaForCausalLM\"]}", "num_hidden_layers is missing"},
        {"{\"architectures\":[\"LlamaForCausalLM\"]," HEADS SHAPE "}", "hidden_size is missing"},
        {WIDTH_IS("null"), "hidden_size is missing"},
        {WIDTH_IS("\"64\""), "hidden_size is \"64\"; a whole number from 32 to 131072 is possible"},
        {WIDTH_IS("64.0"), "hidden_size is 64.0; a whole number"},
        {WIDTH_IS("-64"), "hidden_size is -64;"},
        {WIDTH_IS("9223372036854775807"), "hidden_size is 9223372036854775807;"},
        {WIDTH_IS("99999999999999999999"), "too big integer"},
        {WIDTH_IS("[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27]"),
         ",24, ...; a whole number"},
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"num_attention_heads\":4,\"num_key_value_heads\":3," WIDTH
         SHAPE "}", "num_key_value_heads is 3, which does not divide num_attention_heads, 4"},
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"num_attention_heads\":3," WIDTH SHAPE "}",
         "hidden_size is 64, which does not divide into 3 heads, and head_dim is missing"},
        {LLAMA(",\"rms_norm_eps\":true"), "rms_norm_eps is true; a number from 1e-12 to 0.1 is possible"},
        {LLAMA(",\"rms_norm_eps\":0"), "rms_norm_eps is 0;"},
        {LLAMA(",\"rope_theta\":1e300"), "rope_theta is 1e300; a number from 1 to 1e+12"},
        {LLAMA(",\"tie_word_embeddings\":1"), "tie_word_embeddings is 1; true or false"},
        {LLAMA(",\"hidden_act\":[]"), "hidden_act is []; a text"},
        {LLAMA(",\"rope_scaling\":8"), "rope_scaling is 8; an object is needed"},
        {LLAMA(",\"rope_parameters\":\"x\""), "rope_parameters is \"x\"; an object is needed"},
        {LLAMA(",\"rope_scaling\":{\"rope_type\":\"linear\"}"), "factor is missing"},
        {LLAMA(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
               "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}"),
         "low_freq_factor is 4; less than high_freq_factor, 4, is possible"},
        {LLAMA(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}"), "low_freq_factor is missing"},
        {GEMMA(""), "sliding_window is missing"},
        {GEMMA(",\"sliding_window\":0"), "sliding_window is 0; a whole number from 1"},
        {QWEN3(",\"layer_types\":[\"full_attention\"]"), "layer_types is [\"full_attention\"]; one text for each"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct hf_config config;

        expect_fails(read_text(rows[i].text, &config), ERR_CORRUPT, rows[i].sentence);
    }
}

static void what_is_not_computed_here_is_refused_by_name(void **state)
{
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"{\"architectures\":[\"MambaForCausalLM\"]}",
         "architectures is [\"MambaForCausalLM\"]; these are supported: LlamaForCausalLM, Qwen2ForCausalLM, "
         "Qwen3ForCausalLM, "
         "Gemma3ForCausalLM"},
        {"{\"architectures\":7}", "architectures is 7; these are supported"},
        {LLAMA(",\"head_dim\":40"), "head_dim is 40; 16 to 256 in steps of 16 are supported"},
        {LLAMA(",\"head_dim\":512"), "head_dim is 512;"},
        {LLAMA(",\"hidden_act\":\"gelu\""), "hidden_act is \"gelu\"; \"silu\" is supported"},
        {GEMMA(",\"hidden_activation\":\"silu\""), "\"gelu_pytorch_tanh\" is supported"},
        {LLAMA(",\"attention_bias\":true"), "attention_bias is true; false is supported"},
        {QWEN3(",\"use_sliding_window\":true"), "use_sliding_window is true;"},
        {GEMMA(",\"final_logit_softcapping\":30.0"), "final_logit_softcapping is 30.0; null is supported"},
        {LLAMA(",\"partial_rotary_factor\":0.5"), "partial_rotary_factor is 0.5; 1 is supported"},
        {LLAMA(",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}"),
         "rope_type is \"yarn\"; these are supported: default, linear, llama3"},
        {GEMMA(",\"sliding_window\":8,\"query_pre_attn_scalar\":168"),
         "query_pre_attn_scalar is 168; 256 is supported"},
        {QWEN3(",\"layer_types\":[\"full_attention\",\"full_attention\",\"sliding_attention\"]"),
         "layer_types has \"sliding_attention\" at 2; \"full_attention\" is supported"},
        {QWEN3(",\"layer_types\":[1,2,3]"), "layer_types has \"\" at 0;"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct hf_config config;

        expect_fails(read_text(rows[i].text, &config), ERR_UNSUPPORTED, rows[i].sentence);
    }
}

static void a_file_too_large_is_not_parsed(void **state)
{
    AUTO_MEM char *large = mem_alloc((1 << 20) + 1);
    struct hf_config config;

    (void)state;
    memset(large, ' ', (1 << 20) + 1);
    expect_fails(read_bytes(large, (1 << 20) + 1, &config), ERR_CORRUPT,
                 "has 1048577 bytes; 1048576 is the limit");
}

static void a_refusal_leaves_the_caller_what_it_had(void **state)
{
    struct hf_config config = {.is_tied = true};

    (void)state;
    expect_fails(read_text("{}", &config), ERR_CORRUPT, "architectures");
    assert_true(config.is_tied);
    assert_int_equal(config.model.hidden_size, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_shapes_of_real_models_are_read),
    cmocka_unit_test(what_a_file_leaves_out_is_as_transformers_has_it),
    cmocka_unit_test(both_ways_to_write_rope_are_read),
    cmocka_unit_test(llama3_divides_slow_pairs_alone),
    cmocka_unit_test(what_does_not_fit_is_refused_with_key_and_value),
    cmocka_unit_test(what_is_not_computed_here_is_refused_by_name),
    cmocka_unit_test(a_file_too_large_is_not_parsed),
    cmocka_unit_test(a_refusal_leaves_the_caller_what_it_had),
};

TEST_MAIN(tests)
