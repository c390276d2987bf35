#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "proto/model/dummy.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static char folder[64], path[96];

static void write_config(const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

#define SHAPE                                                                                      \
    "\"hidden_size\":256,\"intermediate_size\":512,\"num_hidden_layers\":2,"                       \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":64,\"vocab_size\":1000,"     \
    "\"max_position_embeddings\":512"
#define LLAMA "{\"architectures\":[\"LlamaForCausalLM\"]," SHAPE "}"
#define TIED_LLAMA3                                                                                \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"tie_word_embeddings\":true,\"rope_scaling\":{"    \
    "\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"          \
    "\"original_max_position_embeddings\":64}," SHAPE "}"
#define QWEN2 "{\"architectures\":[\"Qwen2ForCausalLM\"]," SHAPE "}"
#define QWEN3 "{\"architectures\":[\"Qwen3ForCausalLM\"]," SHAPE "}"
#define GEMMA3                                                                                     \
    "{\"architectures\":[\"Gemma3ForCausalLM\"],\"sliding_window\":64,\"query_pre_attn_scalar\":64," \
    SHAPE "}"

static struct model_file *open_dummy(const char *text, enum tensor_type type, uint64_t seed)
{
    struct model_file *file = NULL;

    write_config(text);
    expect_ok(dummy_open(folder, &(struct dummy_options){type, seed}, MODEL_WHOLE, &file));
    return file;
}

static size_t bytes_of(const struct tensor *tensor)
{
    return (size_t)(tensor_row_bytes(tensor->type, tensor->num_columns) * tensor->num_rows);
}

/* ---- the shape --------------------------------------------------------------------------------- */

static void expect_tensor(const struct model_file *file, const char *name, enum tensor_type type,
                          int64_t num_rows, int64_t num_columns)
{
    const struct tensor *tensor = model_file_tensor(file, name);

    assert_non_null(tensor);
    assert_int_equal(tensor->type, type);
    assert_int_equal(tensor->num_rows, num_rows);
    assert_int_equal(tensor->num_columns, num_columns);
}

static void it_has_the_tensors_of_its_architecture(void **state)
{
    AUTO_FREE(model_file) struct model_file *llama = open_dummy(LLAMA, TYPE_BF16, 0);
    AUTO_FREE(model_file) struct model_file *tied = open_dummy(TIED_LLAMA3, TYPE_Q8_0, 0);
    AUTO_FREE(model_file) struct model_file *qwen2 = open_dummy(QWEN2, TYPE_F16, 0);
    AUTO_FREE(model_file) struct model_file *qwen3 = open_dummy(QWEN3, TYPE_Q4_0, 0);
    AUTO_FREE(model_file) struct model_file *gemma3 = open_dummy(GEMMA3, TYPE_Q6_K, 0);
    AUTO_FREE(model_file) struct model_file *fp8 = open_dummy(LLAMA, TYPE_F8_E4M3, 0);

    (void)state;
    assert_int_equal(model_file_num_tensors(llama), 3 + 9 * 2);
    expect_tensor(llama, "token_embd.weight", TYPE_BF16, 1000, 256);
    expect_tensor(llama, "output.weight", TYPE_BF16, 1000, 256);
    expect_tensor(llama, "output_norm.weight", TYPE_F32, 1, 256);
    expect_tensor(llama, "blk.1.attn_k.weight", TYPE_BF16, 128, 256);
    expect_tensor(llama, "blk.1.ffn_down.weight", TYPE_BF16, 256, 512);

    assert_int_equal(model_file_num_tensors(tied), 3 + 9 * 2);
    assert_null(model_file_tensor(tied, "output.weight"));
    expect_tensor(tied, "rope_freqs.weight", TYPE_F32, 1, 32);
    assert_int_equal(model_file_config(tied)->rope_scaling, ROPE_SCALING_LLAMA3);
    assert_true(((const float *)model_file_tensor(tied, "rope_freqs.weight")->data)[31] == 8);

    assert_int_equal(model_file_num_tensors(qwen2), 3 + 12 * 2);
    expect_tensor(qwen2, "blk.1.attn_k.bias", TYPE_F32, 1, 128);
    assert_int_equal(model_file_num_tensors(qwen3), 3 + 11 * 2);
    expect_tensor(qwen3, "blk.0.attn_k_norm.weight", TYPE_F32, 1, 64);
    assert_int_equal(model_file_num_tensors(gemma3), 2 + 13 * 2);
    expect_tensor(gemma3, "blk.0.post_ffw_norm.weight", TYPE_F32, 1, 256);
    assert_int_equal(model_file_config(gemma3)->sliding_window, 64);

    expect_tensor(fp8, "token_embd.weight", TYPE_BF16, 1000, 256);
    expect_tensor(fp8, "output.weight", TYPE_BF16, 1000, 256);
    expect_tensor(fp8, "blk.1.ffn_down.weight", TYPE_F8_E4M3, 256, 512);
    assert_int_equal(model_file_tensor(fp8, "blk.1.ffn_down.weight")->scales.rows, 1);
    assert_int_equal(model_file_tensor(fp8, "blk.1.ffn_down.weight")->scales.columns, 512);
}

static void its_vocabulary_is_of_bytes_and_has_the_size_of_the_shape(void **state)
{
    AUTO_FREE(model_file) struct model_file *file = open_dummy(LLAMA, TYPE_BF16, 0);
    const struct vocabulary *vocabulary = model_file_vocabulary(file);

    (void)state;
    assert_int_equal(vocabulary->num_tokens, 1000);
    assert_memory_equal(vocabulary->tokens['A'].data, "A", 1);
    assert_int_equal(vocabulary->eos_id, 256);
    for (int32_t i = 0; i < vocabulary->num_tokens; i++)
        assert_true(vocabulary->tokens[i].size > 0);
    assert_false(model_file_is_simulated(file));
}

/* ---- the weights ------------------------------------------------------------------------------- */

static void dequantize_row(const struct tensor *tensor, int64_t row, float *out)
{
    const char *data = tensor->data;

    tensor_dequantize(tensor->type, data + row * tensor_row_bytes(tensor->type, tensor->num_columns), 0,
                      tensor->num_columns, out);
    for (int64_t k = 0; tensor->type == TYPE_F8_E4M3 && k < tensor->num_columns; k++)
        out[k] *= *tensor_row_scales(tensor, row);
}

static void expect_weights(const struct tensor *tensor, float deviation)
{
    AUTO_MEM float *row = mem_new_array(float, tensor->num_columns);
    double sum = 0, squares = 0, n = (double)(tensor->num_rows * tensor->num_columns);

    for (int64_t i = 0; i < tensor->num_rows; i++) {
        dequantize_row(tensor, i, row);
        for (int64_t k = 0; k < tensor->num_columns; k++) {
            assert_true(isfinite(row[k]));
            sum += row[k];
            squares += (double)row[k] * row[k];
        }
    }
    assert_true(fabs(sum / n) < 0.15 * deviation);
    assert_true(sqrt(squares / n) > 0.8 * deviation && sqrt(squares / n) < 1.25 * deviation);
}

static void matrices_of_every_type_are_about_as_large_as_trained_ones(void **state)
{
    (void)state;
    for (int type = 0; type <= TYPE_F8_E4M3; type++) {
        AUTO_FREE(model_file) struct model_file *file = open_dummy(LLAMA, (enum tensor_type)type, 1);

        expect_weights(model_file_tensor(file, "token_embd.weight"), 1.0f / 16);
        expect_weights(model_file_tensor(file, "blk.1.ffn_down.weight"), 1.0f / 16);
    }
}

static void norms_are_near_one(void **state)
{
    AUTO_FREE(model_file) struct model_file *file = open_dummy(QWEN3, TYPE_BF16, 0);

    (void)state;
    for (int32_t i = 0; i < model_file_num_tensors(file); i++) {
        const struct tensor *tensor = model_file_tensor_at(file, i);
        const float *norm = tensor->data;

        for (int64_t k = 0; tensor->num_rows == 1 && k < tensor->num_columns; k++)
            assert_true(norm[k] > 0.7f && norm[k] < 1.3f);
    }
}

static void no_two_tensors_begin_alike_and_all_are_aligned(void **state)
{
    (void)state;
    for (int type = 0; type <= TYPE_F8_E4M3; type++) {
        AUTO_FREE(model_file) struct model_file *file = open_dummy(LLAMA, (enum tensor_type)type, 0);

        for (int32_t i = 0; i < model_file_num_tensors(file); i++) {
            const struct tensor *tensor = model_file_tensor_at(file, i);

            if (tensor->num_rows > 1)
                assert_int_equal((uintptr_t)tensor->data % 64, 0);
            for (int32_t k = 0; k < i; k++)
                assert_int_not_equal(memcmp(tensor->data, model_file_tensor_at(file, k)->data, 256), 0);
        }
    }
}

/* Constants that were computed once: every machine has the same. */
static void a_seed_gives_the_same_bits_everywhere(void **state)
{
    AUTO_FREE(model_file) struct model_file *a = open_dummy(QWEN3, TYPE_Q4_K, 7);
    AUTO_FREE(model_file) struct model_file *b = open_dummy(QWEN3, TYPE_Q4_K, 7);
    AUTO_FREE(model_file) struct model_file *of_seed = open_dummy(QWEN3, TYPE_Q4_K, 8);
    AUTO_FREE(model_file) struct model_file *of_type = open_dummy(QWEN3, TYPE_Q5_K, 7);
    AUTO_FREE(model_file) struct model_file *of_shape = open_dummy(LLAMA, TYPE_Q4_K, 7);
    const struct tensor *tensor;

    (void)state;
    for (int32_t i = 0; i < model_file_num_tensors(a); i++) {
        tensor = model_file_tensor_at(a, i);
        assert_memory_equal(tensor->data, model_file_tensor_at(b, i)->data, bytes_of(tensor));
    }
    assert_true(model_file_fingerprint(a) == model_file_fingerprint(b));
    assert_true(model_file_fingerprint(a) != model_file_fingerprint(of_seed));
    assert_true(model_file_fingerprint(a) != model_file_fingerprint(of_type));
    assert_true(model_file_fingerprint(a) != model_file_fingerprint(of_shape));
    tensor = model_file_tensor(a, "blk.1.ffn_up.weight");
    assert_true(XXH3_64bits(tensor->data, bytes_of(tensor)) == 0x53ac3675f38cb349);
    tensor = model_file_tensor(a, "blk.1.attn_q_norm.weight");
    assert_true(XXH3_64bits(tensor->data, bytes_of(tensor)) == 0xc1f0e18ca89d553d);
}

/* 16 times: what comes again has no block that is cut. */
static void a_tensor_larger_than_the_memory_is_whole(void **state)
{
    static const char text[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":32768,\"intermediate_size\":512,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"head_dim\":64,\"vocab_size\":40000,"
        "\"max_position_embeddings\":512}";
    AUTO_FREE(model_file) struct model_file *file = open_dummy(text, TYPE_Q6_K, 0);
    const struct tensor *tensor = model_file_tensor(file, "token_embd.weight");
    int64_t row_bytes = tensor_row_bytes(tensor->type, tensor->num_columns);
    AUTO_MEM float *row = mem_new_array(float, tensor->num_columns);

    (void)state;
    assert_true(bytes_of(tensor) > (size_t)16 * (64 << 20));
    for (int64_t i = 0; i < tensor->num_rows; i += 101) {
        tensor_dequantize(tensor->type, (const char *)tensor->data + i * row_bytes, 0, tensor->num_columns, row);
        for (int64_t k = 0; k < tensor->num_columns; k++)
            assert_true(fabsf(row[k]) < 0.1f);
    }
}

/* ---- files ------------------------------------------------------------------------------------- */

static void a_folder_and_its_file_are_the_same_model(void **state)
{
    struct dummy_options options = {TYPE_F16, 3};
    AUTO_FREE(model_file) struct model_file *of_folder = open_dummy(LLAMA, TYPE_F16, 3);
    AUTO_FREE(model_file) struct model_file *of_slashes = NULL, *of_file = NULL;
    AUTO_MEM char *slashes = mem_printf("%s//", folder);

    (void)state;
    expect_ok(dummy_open(slashes, &options, MODEL_WHOLE, &of_slashes));
    expect_ok(dummy_open(path, &options, MODEL_WHOLE, &of_file));
    assert_string_equal(model_file_config(of_folder)->name, strrchr(folder, '/') + 1);
    assert_string_equal(model_file_config(of_slashes)->name, strrchr(folder, '/') + 1);
    assert_string_equal(model_file_config(of_file)->name, "config.json");
    assert_true(model_file_fingerprint(of_folder) == model_file_fingerprint(of_file));
    model_file_free(give(of_slashes));
}

static void what_can_not_be_is_refused_with_its_path(void **state)
{
    static const struct {
        const char *text;
        enum tensor_type type;
        enum status status;
        const char *sentence;
    } rows[] = {
        {"", TYPE_BF16, ERR_CORRUPT, "is empty"},
        {"{}", TYPE_BF16, ERR_CORRUPT, "architectures is missing"},
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":128,"
         "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"vocab_size\":300,"
         "\"max_position_embeddings\":512}",
         TYPE_Q4_K, ERR_CORRUPT, "token_embd.weight has 64 columns; Q4_K has blocks of 256"},
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":131072,\"intermediate_size\":128,"
         "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"head_dim\":64,\"vocab_size\":1048576,"
         "\"max_position_embeddings\":512}",
         TYPE_BF16, ERR_UNSUPPORTED, "token_embd.weight has 274877906944 bytes; 68719476736 is the limit"},
    };
    struct model_file *file;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        write_config(rows[i].text);
        expect_fails(dummy_open(folder, &(struct dummy_options){rows[i].type, 0}, MODEL_WHOLE, &file),
                     rows[i].status, rows[i].sentence);
        assert_non_null(strstr(fail_text(), path));
    }
    expect_fails(dummy_open("/nonexistent", &(struct dummy_options){TYPE_BF16, 0}, MODEL_WHOLE, &file),
                 ERR_NOT_FOUND, "/nonexistent: ");
    assert_int_equal(unlink(path), 0);
    expect_fails(dummy_open(folder, &(struct dummy_options){TYPE_BF16, 0}, MODEL_WHOLE, &file), ERR_NOT_FOUND,
                 path);
    write_config("{}");
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/tandem-test-dummy-%d", (int)getpid());
    snprintf(path, sizeof path, "%s/config.json", folder);
    return mkdir(folder, 0700);
}

static int remove_folder(void **state)
{
    (void)state;
    return unlink(path) | rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_has_the_tensors_of_its_architecture),
        cmocka_unit_test(its_vocabulary_is_of_bytes_and_has_the_size_of_the_shape),
        cmocka_unit_test(matrices_of_every_type_are_about_as_large_as_trained_ones),
        cmocka_unit_test(norms_are_near_one),
        cmocka_unit_test(no_two_tensors_begin_alike_and_all_are_aligned),
        cmocka_unit_test(a_seed_gives_the_same_bits_everywhere),
        cmocka_unit_test(a_tensor_larger_than_the_memory_is_whole),
        cmocka_unit_test(a_folder_and_its_file_are_the_same_model),
        cmocka_unit_test(what_can_not_be_is_refused_with_its_path),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
