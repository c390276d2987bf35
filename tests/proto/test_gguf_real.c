#include "tests/support/expect.h"

#include "proto/model/model_file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <xxhash.h>

static struct model_file *open_real(const char *file_name)
{
    AUTO_MEM char *path = mem_printf("%s/%s", getenv("TANDEM_TEST_MODELS"), file_name);
    struct model_file *file = NULL;

    expect_ok(model_file_open(path, &file));
    return file;
}

static json_t *load_reference(const char *name)
{
    AUTO_MEM char *path = mem_printf("%s/model/%s", getenv("TANDEM_TEST_DATA"), name);
    json_error_t error;
    json_t *reference = json_load_file(path, 0, &error);

    if (!reference)
        fail_msg("%s: %s", path, error.text);
    return reference;
}

static void expect_texts(const json_t *wanted, const struct text_view *texts, int32_t n)
{
    AUTO_CLOSE(bytes) struct bytes joined = {0};
    char hash[17];

    assert_int_equal(n, json_integer_value(json_object_get(wanted, "count")));
    for (int32_t i = 0; i < n; i++) {
        bytes_append(&joined, "\n", i > 0);
        bytes_append(&joined, texts[i].data, texts[i].size);
    }
    snprintf(hash, sizeof hash, "%016llx",
             (unsigned long long)XXH3_64bits(joined.data, joined.size));
    assert_string_equal(hash, json_string_value(json_object_get(wanted, "xxh3")));
}

static void expect_tensors(const json_t *wanted, const struct model_file *file)
{
    const char *first = model_file_tensor_at(file, 0)->data;
    const json_t *row0 = json_array_get(wanted, 0);
    json_int_t first_offset = json_integer_value(json_array_get(row0, 4));

    assert_int_equal(model_file_num_tensors(file), json_array_size(wanted));
    for (int32_t i = 0; i < model_file_num_tensors(file); i++) {
        const struct tensor *tensor = model_file_tensor_at(file, i);
        const json_t *row = json_array_get(wanted, (size_t)i);

        assert_string_equal(tensor->name, json_string_value(json_array_get(row, 0)));
        assert_string_equal(tensor_type_info(tensor->type)->name,
                            json_string_value(json_array_get(row, 1)));
        assert_int_equal(tensor->num_columns, json_integer_value(json_array_get(row, 2)));
        assert_int_equal(tensor->num_rows, json_integer_value(json_array_get(row, 3)));
        assert_int_equal((const char *)tensor->data - first,
                         json_integer_value(json_array_get(row, 4)) - first_offset);
    }
}

static void expect_values(const json_t *wanted, const float *values)
{
    for (size_t i = 0; i < json_array_size(wanted); i++) {
        float value = (float)json_real_value(json_array_get(wanted, i));

        assert_memory_equal(&values[i], &value, sizeof value);
    }
}

static void expect_dequantized(const json_t *wanted, const struct model_file *file)
{
    const struct tensor *tensor =
        model_file_tensor(file, json_string_value(json_object_get(wanted, "name")));
    int64_t row_bytes = tensor_row_bytes(tensor->type, tensor->num_columns), at = 0;
    int64_t n = tensor->num_columns * tensor->num_rows;
    AUTO_MEM float *row = mem_new_array(float, (size_t)tensor->num_columns);
    double sum = 0, wanted_sum = json_real_value(json_object_get(wanted, "sum"));

    for (int64_t i = 0; i < tensor->num_rows; i++, at += tensor->num_columns) {
        tensor_dequantize(tensor->type, (const char *)tensor->data + i * row_bytes, 0,
                          tensor->num_columns, row);
        for (int64_t j = 0; j < tensor->num_columns; j++)
            sum += (double)row[j];
        if (i == 0)
            expect_values(json_object_get(wanted, "first"), row);
        if (n / 2 >= at && n / 2 < at + tensor->num_columns)
            expect_values(json_object_get(wanted, "middle"), row + (n / 2 - at));
        if (i == tensor->num_rows - 1)
            expect_values(json_object_get(wanted, "last"), row + tensor->num_columns - 16);
    }
    assert_true(fabs(sum - wanted_sum) <= 1e-6 * fabs(wanted_sum));
}

static void expect_as_gguf_py_reads_it(const struct model_file *file, const char *reference_name)
{
    const struct vocabulary *vocabulary = model_file_vocabulary(file);
    json_t *reference = load_reference(reference_name);
    json_t *tensors = json_object_get(reference, "dequantized");

    expect_texts(json_object_get(reference, "tokens"), vocabulary->tokens, vocabulary->num_tokens);
    expect_texts(json_object_get(reference, "merges"), vocabulary->merges, vocabulary->num_merges);
    expect_tensors(json_object_get(reference, "tensors"), file);
    for (size_t i = 0; i < json_array_size(tensors); i++)
        expect_dequantized(json_array_get(tensors, i), file);
    json_decref(reference);
}

static void smollm2_reads_as_gguf_py_reads_it(void **state)
{
    (void)state;
    AUTO_FREE(model_file) struct model_file *file = open_real("SmolLM2-135M-Instruct.Q4_1.gguf");
    const struct model_config *config = model_file_config(file);
    const struct vocabulary *vocabulary = model_file_vocabulary(file);

    assert_string_equal(config->architecture, "llama");
    assert_string_equal(config->name, "Smollm2 135M 8k Lc100K Mix1 Ep2");
    assert_int_equal(config->num_layers, 30);
    assert_int_equal(config->hidden_size, 576);
    assert_int_equal(config->intermediate_size, 1536);
    assert_int_equal(config->num_heads, 9);
    assert_int_equal(config->num_kv_heads, 3);
    assert_int_equal(config->head_dim, 64);
    assert_int_equal(config->max_position, 8192);
    assert_int_equal(config->vocab_size, 49152);
    assert_true(config->rope_theta == 100000);
    assert_true(config->rms_norm_eps == 1e-5f);
    assert_string_equal(vocabulary->pre, "smollm");
    assert_int_equal(vocabulary->bos_id, 1);
    assert_int_equal(vocabulary->eos_id, 2);
    assert_int_equal(vocabulary->unknown_id, 0);
    assert_false(vocabulary->add_bos);
    assert_memory_equal(vocabulary->chat_template.data, "{% for message in messages %}", 29);
    expect_as_gguf_py_reads_it(file, "smollm2.json");
}

static void gemma3_reads_as_gguf_py_reads_it(void **state)
{
    (void)state;
    AUTO_FREE(model_file) struct model_file *file = open_real("gemma-3-270m-q4_k_m.gguf");
    const struct model_config *config = model_file_config(file);
    const struct vocabulary *vocabulary = model_file_vocabulary(file);

    assert_string_equal(config->architecture, "gemma3");
    assert_int_equal(config->num_layers, 18);
    assert_int_equal(config->hidden_size, 640);
    assert_int_equal(config->num_heads, 4);
    assert_int_equal(config->num_kv_heads, 1);
    assert_int_equal(config->head_dim, 256);
    assert_int_equal(config->sliding_window, 512);
    assert_int_equal(config->sliding_pattern, 6);
    assert_true(config->rope_theta == 1000000 && config->rope_theta_local == 10000);
    assert_true(config->rms_norm_eps == 1e-6f);
    assert_string_equal(vocabulary->model, "llama");
    assert_int_equal(vocabulary->bos_id, 2);
    assert_int_equal(vocabulary->eos_id, 1);
    assert_true(vocabulary->add_bos);
    assert_true(vocabulary->scores[0] == -1000);
    assert_int_equal(vocabulary->types[5], TOKEN_USER_DEFINED);
    assert_int_equal(vocabulary->chat_template.size, 0);
    expect_as_gguf_py_reads_it(file, "gemma3.json");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(smollm2_reads_as_gguf_py_reads_it),
    cmocka_unit_test(gemma3_reads_as_gguf_py_reads_it),
};
TEST_MAIN_WITH_MODELS(tests)
