/* What of the KV cache the device hears of before steps write it. */
#include "tests/support/expect.h"

#include "kernels/device.h"
#include "tests/support/tiny_model.h"
#include "worker/models/model.h"

#include <unistd.h>

enum { GROUP_TOKENS = KV_BLOCK_TOKENS * KV_GROUP_BLOCKS, NUM_BLOCKS = 5 * KV_GROUP_BLOCKS, MAX_ROWS = GROUP_TOKENS + 1 };

/* Of the last call, in bytes of the KV cache. */
static struct {
    const char *base;
    int64_t first, bytes;
    int num_calls;
} expected;

static void note(struct device *dev, void *p, int64_t bytes)
{
    (void)dev;
    expected.first = (char *)p - expected.base;
    expected.bytes = bytes;
    expected.num_calls++;
}

static void note_kv_cache(struct device *dev, void *p, int64_t bytes)
{
    (void)dev;
    (void)bytes;
    expected.base = p; /* the last that is told of is the KV cache */
}

static struct model_file *open_tiny(void)
{
    char path[] = "/tmp/tandem-test-XXXXXX.gguf";
    struct model_file *file;

    close(mkstemps(path, 5));
    tiny_model_write(path, NULL);
    expect_ok(model_file_open(path, &file));
    unlink(path);
    return file;
}

/* A row of each of two requests, whose last blocks these are. */
static void step(struct model *model, int32_t position, int32_t one, int32_t other)
{
    int32_t tables[2][GROUP_TOKENS * 5 / KV_BLOCK_TOKENS] = {0};
    float logits[2 * 1024];

    tables[0][position / KV_BLOCK_TOKENS] = one;
    tables[1][position / KV_BLOCK_TOKENS] = other;
    assert_true(model_shard(model)->num_tokens <= 1024);
    expect_ok(model_forward(model, &(struct model_step){
                                       .batch = {.rows = 2,
                                                 .num_requests = 2,
                                                 .row_start = (int32_t[]){0, 1, 2},
                                                 .positions = (int32_t[]){position, position},
                                                 .block_tables = tables[0],
                                                 .block_table_stride = (int32_t)COUNT_OF(tables[0])},
                                       .ids = (int32_t[]){5, 6},
                                       .logit_rows = (int32_t[]){0, 1},
                                       .num_logit_rows = 2,
                                       .logits_out = logits,
                                   }));
}

static void the_groups_after_those_that_a_step_writes_are_expected_once(void **state)
{
    struct model_file *file = open_tiny();
    AUTO_FREE(model) struct model *model = NULL;
    struct device_ops ops;
    struct device *dev;

    (void)state;
    expect_ok(device_open(&(struct device_options){.name = "cpu", .num_threads = 1}, &dev));
    ops = *dev->ops;
    ops.expect_full = note_kv_cache;
    ops.expect_soon = note;
    dev->ops = &ops;
    expect_ok(model_load(dev, file,
                         &(struct model_options){.world = 1,
                                                 .kv_type = KV_BFLOAT16,
                                                 .max_batched_tokens = MAX_ROWS,
                                                 .max_logit_rows = 2,
                                                 .max_position = 1024},
                         &model));
    expect_ok(model_alloc_kv(model, NUM_BLOCKS));

    int64_t group = model_kv_block_bytes(model) * KV_GROUP_BLOCKS;

    /* 257 rows may want two groups. */
    step(model, 0, 1, 0);
    assert_int_equal(expected.num_calls, 1);
    assert_int_equal(expected.first, group);
    assert_int_equal(expected.bytes, 2 * group);
    step(model, 17, 14, 15);
    assert_int_equal(expected.num_calls, 1);
    step(model, 33, 3, 16);
    assert_int_equal(expected.num_calls, 2);
    assert_int_equal(expected.first, 2 * group);
    assert_int_equal(expected.bytes, 2 * group);
    /* Then to the end, of which there is less, and never again. */
    step(model, 600, 50, 17);
    assert_int_equal(expected.num_calls, 3);
    assert_int_equal(expected.first, 4 * group);
    assert_int_equal(expected.bytes, group);
    step(model, 601, NUM_BLOCKS - 1, 17);
    step(model, 0, 1, 0);
    assert_int_equal(expected.num_calls, 3);

    /* A new one begins anew. */
    model_free_kv(model);
    expect_ok(model_alloc_kv(model, NUM_BLOCKS));
    step(model, 0, 1, 0);
    assert_int_equal(expected.num_calls, 4);
    assert_int_equal(expected.first, group);
    model_free(give(model));
    model_file_free(file);
    device_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_groups_after_those_that_a_step_writes_are_expected_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
