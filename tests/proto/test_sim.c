#include "tests/support/expect.h"

#include "proto/model/model_file.h"
#include "proto/model/sim.h"

#include <sys/stat.h>
#include <unistd.h>

static char path[64];

static void write_file(const char *text)
{
    FILE *f;

    snprintf(path, sizeof path, "/tmp/tandem-test-sim-%d.json", (int)getpid());
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

#define DEVICE                                                                                     \
    "\"device\":{\"name\":\"d\",\"memory_gb\":2,\"memory_gb_per_s\":3,\"tflops\":4,"                 \
    "\"kernel_overhead_us\":5,\"link_latency_us\":6,\"link_gb_per_s\":7}"
#define SHAPE                                                                                      \
    "\"num_layers\":3,\"hidden_size\":64,\"intermediate_size\":128,\"num_heads\":4,"               \
    "\"num_kv_heads\":2,\"head_dim\":16,\"vocab_size\":300,\"max_position\":512"
#define MODEL "\"model\":{\"weight_type\":\"BF16\"," SHAPE "}"
#define GOOD  "{" DEVICE "," MODEL ",\"tp\":2}"

static void a_file_says_what_the_device_is_like(void **state)
{
    struct sim_device device;
    int32_t tp;

    (void)state;
    write_file(GOOD);
    expect_ok(sim_file_read(path, &device, &tp));
    assert_int_equal(tp, 2);
    assert_true(device.memory_bytes == 2e9 && device.memory_bytes_per_s == 3e9);
    assert_true(device.flops_per_s == 4e12 && device.kernel_overhead_ns == 5e3);
    assert_true(device.link_latency_ns == 6e3 && device.link_bytes_per_s == 7e9);
}

static void it_is_a_model_of_zeros_with_a_vocabulary_of_bytes(void **state)
{
    AUTO_FREE(model_file) struct model_file *file = NULL;
    const struct vocabulary *vocabulary;
    const struct tensor *tensor;

    (void)state;
    write_file(GOOD);
    expect_ok(model_file_open(path, &file));
    assert_string_equal(model_file_config(file)->architecture, "llama");
    assert_int_equal(model_file_config(file)->num_layers, 3);
    assert_int_equal(model_file_num_tensors(file), 3 + 9 * 3);
    tensor = model_file_tensor(file, "blk.2.ffn_down.weight");
    assert_non_null(tensor);
    assert_int_equal(tensor->num_rows, 64);
    assert_int_equal(tensor->num_columns, 128);
    assert_int_equal(((const char *)tensor->data)[64 * 128 * 2 - 1], 0);
    vocabulary = model_file_vocabulary(file);
    assert_int_equal(vocabulary->num_tokens, 300);
    assert_memory_equal(vocabulary->tokens['A'].data, "A", 1);
    assert_int_equal(vocabulary->eos_id, 256);
    assert_true(model_file_fingerprint(file) != 0);

    AUTO_FREE(model_file) struct model_file *wordless = NULL;

    expect_ok(model_file_open_parts(path, MODEL_WITHOUT_WORDS, &wordless));
    assert_int_equal(model_file_vocabulary(wordless)->num_tokens, 300);
    assert_null(model_file_vocabulary(wordless)->tokens);
}

static void what_does_not_fit_is_refused_by_name(void **state)
{
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"{", "line 1, column 1"},
        {"{" MODEL ",\"tp\":2}", "\"device\" is missing"},
        {"{" DEVICE ",\"tp\":2}", "\"model\" is missing"},
        {"{" DEVICE "," MODEL "}", "\"tp\" is missing"},
        {"{" DEVICE "," MODEL ",\"tp\":257}", "ranks from 1 to 256"},
        {"{" DEVICE "," MODEL ",\"tp\":2,\"speed\":1}", "\"speed\" is not known"},
        {"{" DEVICE ",\"model\":{\"weight_type\":\"BF16\",\"depth\":1," SHAPE "},\"tp\":1}",
         "model.depth is not known"},
        {"{" DEVICE ",\"model\":{\"weight_type\":\"BF17\"," SHAPE "},\"tp\":1}",
         "model.weight_type is \"BF17\""},
        {"{" DEVICE ",\"model\":{\"weight_type\":\"F8_E4M3\"," SHAPE "},\"tp\":1}",
         "model.weight_type is \"F8_E4M3\""},
        {"{" DEVICE ",\"model\":{\"weight_type\":\"Q4_K\"," SHAPE "},\"tp\":1}",
         "has 64 columns; Q4_K has blocks of 256"},
        {"{\"device\":{\"name\":[1]}," MODEL ",\"tp\":1}", "device.name is no text"},
        {"{\"device\":{\"memory_gb\":-1}," MODEL ",\"tp\":1}",
         "device.memory_gb is -1; it must be 0.001 to 1e+06"},
        {"{\"device\":{\"memory_gb\":\"8\"}," MODEL ",\"tp\":1}",
         "device.memory_gb is missing, or is no number"},
        {"{" DEVICE ",\"model\":{\"weight_type\":\"BF16\",\"num_layers\":2.5,\"hidden_size\":64,"
         "\"intermediate_size\":128,\"num_heads\":4,\"num_kv_heads\":2,\"head_dim\":16,"
         "\"vocab_size\":300,\"max_position\":512},\"tp\":1}",
         "model.num_layers is 2.5; it must be a whole number"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct model_file *file;

        write_file(rows[i].text);
        expect_fails(model_file_open(path, &file), ERR_CORRUPT, rows[i].sentence);
        assert_non_null(strstr(fail_text(), path));
    }
}

static void what_is_no_file_is_refused_and_not_waited_for(void **state)
{
    struct sim_device device;
    struct model_file *file;
    int32_t tp;

    (void)state;
    expect_fails(sim_file_read("/nonexistent.json", &device, &tp), ERR_NOT_FOUND,
                 "/nonexistent.json");
    write_file("");
    expect_fails(sim_file_read(path, &device, &tp), ERR_CORRUPT, "is empty");
    expect_fails(sim_file_read("/", &device, &tp), ERR_UNSUPPORTED, "is not a regular file");

    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody writes to it */
    expect_fails(sim_file_read(path, &device, &tp), ERR_UNSUPPORTED, "is not a regular file");
    expect_fails(model_file_open(path, &file), ERR_UNSUPPORTED, "is not a regular file");
    assert_int_equal(unlink(path), 0);
    write_file(GOOD);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_says_what_the_device_is_like),
        cmocka_unit_test(it_is_a_model_of_zeros_with_a_vocabulary_of_bytes),
        cmocka_unit_test(what_does_not_fit_is_refused_by_name),
        cmocka_unit_test(what_is_no_file_is_refused_and_not_waited_for),
    };

    return cmocka_run_group_tests(tests, NULL, remove_file);
}
