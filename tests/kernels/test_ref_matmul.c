#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"

#include "kernels/quant_block.h"

#include "proto/base/memory.h"

#include <math.h>

/* The arithmetic of matmul in doubles, on dequantised weights and the quantised activations. */
static double exact(const struct activations *a, int32_t r, const float *w, bool quantised,
                    double *magnitude_out)
{
    double sum = 0;

    *magnitude_out = 0;
    for (int32_t i = 0; i < a->k; i++) {
        int64_t at = (int64_t)r * a->k + i;
        double x = quantised ? (double)a->q[at] * a->d[at / 32] : a->x[at];

        sum += x * w[i];
        *magnitude_out += fabs(x * w[i]);
    }
    return sum;
}

/* What weights may be away from the file's. Those of four and five bits become whole numbers of a step, one for a row:
 * s is half a step off at most, times a code of 15 or 31, and the base another half. A step is less than 2 / MOST_WEIGHT of
 * offset * |d| + |m + offset * d|, where d is a seventh or a 15th of the largest weight at most, and what follows no more
 * than that weight. */
static float tolerated(enum tensor_type type, const float *row, int32_t k)
{
    float most = 0;

    for (int32_t i = 0; i < k; i++)
        most = fmaxf(most, fabsf(row[i]));
    if (type == TYPE_Q4_0 || type == TYPE_Q4_1)
        return 8 * 2.0f / MOST_WEIGHT * (8.0f / 7 + 1) * most;
    return type == TYPE_Q5_0 || type == TYPE_Q5_1 ? 16 * 2.0f / MOST_WEIGHT * (16.0f / 15 + 1) * most : 1e-7f;
}

static void check_type(enum tensor_type type, int32_t tensor_k, int32_t k0, int32_t k)
{
    enum { ROWS = 3, N = 7 };
    struct random random = {type + 1};
    struct device *dev = open_device("ref", 1);
    const struct kernels *kernels = device_kernels(dev);
    char *tensor = random_weights(&random, type, N, tensor_k);
    struct activations a;
    struct matrix w;
    float out[ROWS * N], rows[N * 1024], *exact_rows = mem_new_array(float, N * k);

    activations_init(&a, &random, ROWS, k);
    matrix_init(&w, dev, type, tensor, tensor_k, 0, N, k0, k);
    kernels->quantize(dev, &a);
    kernels->matmul(dev, out, N, &a, &w);
    kernels->embedding(dev, rows, (const int32_t[]){10, 11, 12, 13, 14, 15, 16}, N, &w, 10, 1);
    for (int32_t c = 0; c < N; c++) {
        float *exact_row = exact_rows + c * k;

        tensor_dequantize(type, tensor + c * tensor_row_bytes(type, tensor_k), k0, k, exact_row);
        for (int32_t i = 0; i < k; i++)
            if (fabsf(rows[c * k + i] - exact_row[i]) > 1e-6f * fabsf(exact_row[i]) + tolerated(type, exact_row, k))
                fail_msg("%s: weight %d,%d is %g, not %g", tensor_type_info(type)->name, c, i,
                         (double)rows[c * k + i], (double)exact_row[i]);
        for (int32_t r = 0; r < ROWS; r++) {
            double magnitude, want = exact(&a, r, rows + c * k, type >= TYPE_Q4_0, &magnitude);

            if (fabs(out[r * N + c] - want) > 2e-6 * magnitude)
                fail_msg("%s: output %d,%d is %g, not %g", tensor_type_info(type)->name, r, c,
                         (double)out[r * N + c], want);
        }
    }
    mem_free(exact_rows);
    mem_free(tensor);
    matrix_close(&w, dev);
    activations_close(&a);
    device_close(dev);
}

static void every_type_agrees_with_its_dequantiser(void **state)
{
    (void)state;
    for (int type = 0; type < NUM_TENSOR_TYPES; type++) {
        check_type(type, 768, 0, 768);
        check_type(type, 1024, 192, 384); /* a shard that begins and ends inside a K type's 256 */
    }
}

static void quantising_errs_by_half_a_step_at_most(void **state)
{
    enum { ROWS = 5, K = 384, GROUP = 96 };
    struct random random = {7};
    struct device *dev = open_device("ref", 1);
    struct activations a;

    (void)state;
    activations_init(&a, &random, ROWS, K);
    ((float *)a.x)[0] = INFINITY;
    memset((float *)a.x + GROUP, 0, GROUP * sizeof(float));
    assert_int_equal(a.group, GROUP);
    device_kernels(dev)->quantize(dev, &a);
    assert_true(isinf(a.d[0]) && isinf(a.d[2]));
    assert_true(a.d[3] == 0 && a.z[3] == 0 && a.q[GROUP + 40] == 0 && a.d[5] == 0);
    for (int i = 2 * GROUP; i < ROWS * K; i++) {
        assert_in_range(a.q[i] + 127, 0, 254);
        assert_true(fabs((double)a.q[i] * a.d[i / 32] - a.x[i]) <= a.d[i / 32] * 0.50001);
    }
    activations_close(&a);
    device_close(dev);
}

static void whole_scales_are_those_of_the_forms(void **state)
{
    (void)state;
    for (int type = 0; type < NUM_TENSOR_TYPES; type++)
        assert_int_equal(has_whole_scales(type), quant_form(type).scales == SCALE_WHOLE);
}

static void ids_of_other_ranks_are_zeros(void **state)
{
    struct random random = {9};
    struct device *dev = open_device("ref", 1);
    float *tensor = random_weights(&random, TYPE_F32, 4, 32), out[3 * 32];
    struct matrix w;

    (void)state;
    matrix_init(&w, dev, TYPE_F32, tensor, 32, 0, 4, 0, 32);
    device_kernels(dev)->embedding(dev, out, (const int32_t[]){99, 102, 104}, 3, &w, 100, 2);
    for (int i = 0; i < 32; i++) {
        assert_true(out[i] == 0 && out[64 + i] == 0);
        assert_true(out[32 + i] == 2 * tensor[2 * 32 + i]);
    }
    mem_free(tensor);
    matrix_close(&w, dev);
    device_close(dev);
}

static void a_device_that_is_not_here_is_refused(void **state)
{
    struct device *dev;

    (void)state;
    expect_fails(device_open(&(struct device_options){"cpu", "avx9000", 1}, &dev), ERR_UNSUPPORTED,
                 "avx9000");
    expect_fails(device_open(&(struct device_options){"tpu", NULL, 1}, &dev), ERR_UNSUPPORTED, "tpu");
    expect_fails(device_open(&(struct device_options){"cpu", NULL, 0}, &dev), ERR_INVALID, "0 threads");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_type_agrees_with_its_dequantiser),
    cmocka_unit_test(quantising_errs_by_half_a_step_at_most),
    cmocka_unit_test(whole_scales_are_those_of_the_forms),
    cmocka_unit_test(ids_of_other_ranks_are_zeros),
    cmocka_unit_test(a_device_that_is_not_here_is_refused),
};
TEST_MAIN(tests)
