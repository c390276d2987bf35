/* The simulated device: how long kernels take, and in which order. */
#include "tests/support/expect.h"

#include "kernels/kernels.h"
#include "proto/base/clock.h"
#include "proto/base/memory.h"

/* Slow enough that a test's own time does not show: an hour for the matmul below. */
static const struct sim_device SLOW = {
    .memory_bytes = 1e9,
    .memory_bytes_per_s = 1000,
    .flops_per_s = 1e6,
    .kernel_overhead_ns = 1e9,
    .link_latency_ns = 2e9,
    .link_bytes_per_s = 100,
};

static struct device *open_device(const struct sim_device *is_like)
{
    struct device *dev;

    expect_ok(device_open(&(struct device_options){.name = "sim", .sim = is_like}, &dev));
    return dev;
}

/* From one mark to the next, in seconds. */
static double seconds_since(struct device *dev, struct device_mark *last)
{
    struct device_mark mark;
    double seconds;

    device_mark(dev, &mark);
    seconds = (double)(mark.ns - last->ns) / 1e9;
    *last = mark;
    return seconds;
}

static void expect_seconds(double seconds, double wanted)
{
    if (seconds < wanted || seconds > wanted + 1e-6 * wanted)
        fail_msg("%.9f s instead of %.9f", seconds, wanted);
}

static void a_kernel_takes_its_overhead_and_the_slower_of_work_and_memory(void **state)
{
    struct device *dev = open_device(&SLOW);
    const struct kernels *kernels = device_kernels(dev);
    struct matrix w = {.type = TYPE_BF16, .n = 100, .k = 50};
    struct activations a = {.rows = 1, .k = 50};
    struct device_mark mark;

    (void)state;
    device_mark(dev, &mark);
    /* 10,000 bytes of weights and 300 of activations against 10,000 operations */
    kernels->matmul(dev, NULL, 0, &a, &w);
    expect_seconds(seconds_since(dev, &mark), 1 + 10.3);
    /* 1,000,000 rows: 300 MB against 10^10 operations */
    a.rows = 1000000;
    kernels->matmul(dev, NULL, 0, &a, &w);
    expect_seconds(seconds_since(dev, &mark), 1 + 300010.0);
    kernels->add_norm(dev, &(struct add_norm_args){.rows = 5, .n = 100, .norm = (float[]){0}});
    expect_seconds(seconds_since(dev, &mark), 1 + 2.0);
    device_close(dev);
}

static void attention_reads_each_requests_cache_once(void **state)
{
    struct device *dev = open_device(&SLOW);
    int32_t row_start[] = {0, 2, 3}, positions[] = {8, 9, 99};
    struct batch_view batch = {
        .rows = 3, .num_requests = 2, .row_start = row_start, .positions = positions};
    struct kv_layer kv = {.num_kv_heads = 2, .head_dim = 16};
    struct attention_args args = {.kv = &kv, .batch = &batch, .num_heads = 4};
    struct device_mark mark;

    (void)state;
    device_mark(dev, &mark);
    device_kernels(dev)->attention(dev, &args);
    /* 10 + 100 positions of 2 heads of 16 halves, keys and values */
    expect_seconds(seconds_since(dev, &mark), 1 + 110 * 2 * 16 * 2 * 2 / 1000.0);
    kv.type = KV_INT8; /* and a scale */
    device_kernels(dev)->attention(dev, &args);
    expect_seconds(seconds_since(dev, &mark), 1 + 110 * 2 * (16 + 4) * 2 / 1000.0);
    device_close(dev);
}

static void an_exchange_takes_its_latency_and_what_a_ring_sends(void **state)
{
    struct device *dev = open_device(&SLOW);
    struct device_mark mark;
    struct comm *comm;
    int64_t told[4];
    double sum[1] = {5};

    (void)state;
    expect_ok(comm_open_sim(dev, 4, &comm));
    device_mark(dev, &mark);
    expect_ok(comm_all_reduce_f64(comm, sum, 100));
    expect_seconds(seconds_since(dev, &mark), 2 + 2 * 0.75 * 200 / 100.0);
    assert_true(sum[0] == 5);
    expect_ok(comm_all_gather(comm, sum, 60, 60, NULL, told));
    expect_seconds(seconds_since(dev, &mark), 2 + 0.75 * 4 * 60 / 100.0);
    comm_close(comm);
    device_close(dev);
}

static void a_mark_has_passed_when_the_stream_got_there(void **state)
{
    struct sim_device is_like = SLOW;
    struct device *dev;
    struct device_mark before, after;
    int64_t ns;

    (void)state;
    is_like.kernel_overhead_ns = 20e6;
    dev = open_device(&is_like);
    device_mark(dev, &before);
    device_kernels(dev)->add_norm(dev, &(struct add_norm_args){0});
    device_mark(dev, &after);
    assert_true(device_has_passed(dev, &before, &ns));
    assert_false(device_has_passed(dev, &after, &ns));
    assert_int_equal(ns, before.ns + 20000000);
    while (!device_has_passed(dev, &after, &ns))
        continue;
    assert_true(clock_now_ns() >= after.ns);
    /* An idle stream starts again from now. */
    device_mark(dev, &before);
    assert_true(before.ns > after.ns);
    device_close(dev);
}

static void its_memory_has_an_end(void **state)
{
    struct device *dev = open_device(&SLOW);
    void *p;

    (void)state;
    expect_ok(device_alloc(dev, 900000000, "weights", &p));
    assert_int_equal(device_memory(dev).available_bytes, 100000000);
    expect_fails(device_alloc(dev, 200000000, "the KV cache", &(void *){NULL}), ERR_NO_MEMORY,
                 "the KV cache: 200000000 bytes, the simulated device has 100000000 left");
    device_free(dev, p, 900000000);
    assert_int_equal(device_memory(dev).available_bytes, 1000000000);
    device_close(dev);
}

static void a_draw_keeps_to_the_mask_and_depends_on_the_token_before(void **state)
{
    struct device *dev = open_device(&SLOW);
    const struct kernels *kernels = device_kernels(dev);
    uint32_t mask[4] = {0};
    struct draw_args args = {.vocab_size = 100, .seed = 7, .previous = 5, .position = 9};
    int32_t token = kernels->draw(dev, &args), num_others = 0;

    (void)state;
    assert_in_range(token, 0, 99);
    assert_int_equal(kernels->draw(dev, &args), token);
    for (args.previous = 10; args.previous < 20; args.previous++)
        num_others += kernels->draw(dev, &args) != token;
    assert_true(num_others > 5);
    args.bitmask = mask;
    assert_int_equal(kernels->draw(dev, &args), -1);
    for (int32_t only = 0; only < 100; only++) {
        memset(mask, 0, sizeof mask);
        mask[only / 32] = (uint32_t)1 << (only % 32);
        assert_int_equal(kernels->draw(dev, &args), only);
    }
    mask[3] = 0xfffffff0; /* beyond the vocabulary */
    mask[0] = mask[1] = mask[2] = 0;
    assert_int_equal(kernels->draw(dev, &args), -1);
    device_close(dev);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_kernel_takes_its_overhead_and_the_slower_of_work_and_memory),
    cmocka_unit_test(attention_reads_each_requests_cache_once),
    cmocka_unit_test(an_exchange_takes_its_latency_and_what_a_ring_sends),
    cmocka_unit_test(a_mark_has_passed_when_the_stream_got_there),
    cmocka_unit_test(its_memory_has_an_end),
    cmocka_unit_test(a_draw_keeps_to_the_mask_and_depends_on_the_token_before),
};
TEST_MAIN(tests)
