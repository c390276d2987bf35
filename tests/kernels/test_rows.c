#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"

#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <math.h>

/* Kernels that work row by row: each instruction set against ref, same bits, on 1 and 2 threads. */

enum { ROWS = 67, MAX_N = 1536, SLACK = 7 };

struct inputs {
    int32_t n;
    float *x, *y, *w; /* [ROWS, n + SLACK] */
    double *sum;
};

static void inputs_init(struct inputs *in, int32_t n)
{
    struct random random = {(uint64_t)n};
    int64_t count = ROWS * (n + SLACK);

    in->n = n;
    in->x = mem_new_array(float, count);
    in->y = mem_new_array(float, count);
    in->w = mem_new_array(float, count);
    in->sum = mem_new_array(double, count);
    random_hidden(&random, in->x, count);
    random_hidden(&random, in->y, count);
    random_hidden(&random, in->w, count);
    for (int64_t i = 0; i < count; i++)
        in->sum[i] = (double)random_u32(&random) * EXACT_GRID - 100;
}

static void inputs_close(struct inputs *in)
{
    mem_free(in->x);
    mem_free(in->y);
    mem_free(in->w);
    mem_free(in->sum);
}

/* Runs one kernel into out: [ROWS, n + SLACK]. */
typedef void run_kernel(const struct kernels *k, struct device *dev, const struct inputs *in,
                        float *out);

static void run_rms_norm(const struct kernels *k, struct device *dev, const struct inputs *in,
                         float *out)
{
    k->rms_norm(dev, out, in->n + 3, in->x, in->n + SLACK, in->w, ROWS, in->n, 1e-5f);
}

static void run_rms_norm_in_place(const struct kernels *k, struct device *dev,
                                  const struct inputs *in, float *out)
{
    memcpy(out, in->x, (size_t)ROWS * (in->n + SLACK) * sizeof(float));
    k->rms_norm(dev, out, in->n, out, in->n, in->w, ROWS, in->n, 1e-6f);
}

static void run_silu(const struct kernels *k, struct device *dev, const struct inputs *in, float *out)
{
    k->silu_mul(dev, out, in->x, in->y, in->n + SLACK, ROWS, in->n);
}

static void run_gelu(const struct kernels *k, struct device *dev, const struct inputs *in, float *out)
{
    k->gelu_mul(dev, out, in->x, in->y, in->n + SLACK, ROWS, in->n);
}

static void run_add(const struct kernels *k, struct device *dev, const struct inputs *in, float *out)
{
    memcpy(out, in->x, (size_t)ROWS * in->n * sizeof(float));
    k->add(dev, out, in->y, ROWS, in->n);
    k->add_exact(dev, out, in->sum, ROWS, in->n);
}

static void run_round(const struct kernels *k, struct device *dev, const struct inputs *in, float *out)
{
    k->round_exact(dev, out, in->sum, (int64_t)ROWS * in->n);
}

static void run_gather(const struct kernels *k, struct device *dev, const struct inputs *in, float *out)
{
    k->gather_rows(dev, out, in->x, (const int32_t[]){66, 0, 3, 3}, 4, in->n);
}

static void check(const char *name, run_kernel *run)
{
    static const int32_t sizes[] = {16, 64, 576, 640, MAX_N, 1, 13, 100};

    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        struct inputs in;
        int64_t count = ROWS * (sizes[s] + SLACK);
        float *want = mem_new_array(float, count);

        inputs_init(&in, sizes[s]);
        run(&kernels_ref, NULL, &in, want);
        for (const char *const *isa = tested_isas(); *isa; isa++)
            for (int threads = 1; threads <= 2; threads++) {
                struct device *dev = open_device(*isa, threads);
                float *out = mem_new_array(float, count);
                char *what = mem_printf("%s %s n %d", *isa, name, sizes[s]);

                run(device_kernels(dev), dev, &in, out);
                expect_same_floats(what, out, want, count);
                mem_free(what);
                mem_free(out);
                device_close(dev);
            }
        mem_free(want);
        inputs_close(&in);
    }
}

static void row_kernels_have_the_bits_of_the_specification(void **state)
{
    (void)state;
    check("rms_norm", run_rms_norm);
    check("rms_norm in place", run_rms_norm_in_place);
    check("silu_mul", run_silu);
    check("gelu_mul", run_gelu);
    check("add", run_add);
    check("round_exact", run_round);
    check("gather_rows", run_gather);
}

static void rope_has_the_bits_of_the_specification(void **state)
{
    enum { HEADS = 3, MAX_POSITION = 100 };
    static const int32_t dims[][2] = {{64, 64}, {256, 256}, {96, 48}, {16, 10}};

    (void)state;
    for (size_t d = 0; d < COUNT_OF(dims); d++)
        for (int adjacent = 0; adjacent < 2; adjacent++) {
            struct random random = {d + 1};
            int32_t stride = HEADS * dims[d][0] + 5, positions[ROWS];
            float *x = mem_new_array(float, ROWS * stride);
            float *want = mem_new_array(float, ROWS * stride);
            float *out = mem_new_array(float, ROWS * stride);
            float *cos_sin = mem_new_array(float, MAX_POSITION * dims[d][1]);

            random_hidden(&random, x, ROWS * stride);
            for (int i = 0; i < ROWS; i++)
                positions[i] = (int32_t)(random_u32(&random) % MAX_POSITION);
            for (int i = 0; i < MAX_POSITION * dims[d][1]; i++)
                cos_sin[i] = random_float(&random, -1, 1);
            memcpy(want, x, ROWS * stride * sizeof(float));
            rope_ref(NULL, want, stride, positions, cos_sin, ROWS, HEADS, dims[d][0], dims[d][1],
                     adjacent);
            for (const char *const *isa = tested_isas(); *isa; isa++) {
                struct device *dev = open_device(*isa, 2);

                memcpy(out, x, ROWS * stride * sizeof(float));
                device_kernels(dev)->rope(dev, out, stride, positions, cos_sin, ROWS, HEADS,
                                          dims[d][0], dims[d][1], adjacent);
                expect_same_floats(*isa, out, want, ROWS * stride);
                device_close(dev);
            }
            mem_free(x);
            mem_free(want);
            mem_free(out);
            mem_free(cos_sin);
        }
}

static void quantize_has_the_bits_of_the_specification(void **state)
{
    enum { K = 640, BLOCKS = ROWS * K / 32 };
    struct random random = {3};
    struct activations want, out;

    (void)state;
    activations_init(&want, &random, ROWS, K);

    float *x = (float *)want.x;

    for (int i = 0; i < 32; i++) {
        x[i] = 0;
        x[32 + i] = (float)i * 1e-38f; /* too small */
        x[64 + i] = i % 2 ? 63.5f : -127; /* ties, and the largest code */
        x[96 + i] = (float)i;
        x[128 + i] = (float)i;
    }
    x[100] = NAN;
    x[130] = -INFINITY;
    quantize_ref(NULL, &want);
    for (const char *const *isa = tested_isas(); *isa; isa++) {
        struct device *dev = open_device(*isa, 2);

        activations_init(&out, &random, ROWS, K);
        memcpy((float *)out.x, x, ROWS * K * sizeof(float));
        device_kernels(dev)->quantize(dev, &out);
        assert_memory_equal(out.q, want.q, ROWS * K);
        assert_memory_equal(out.d, want.d, BLOCKS * sizeof(float));
        assert_memory_equal(out.sums, want.sums, BLOCKS * 2 * sizeof(int16_t));
        for (int b = 0; b < BLOCKS; b++)
            assert_true(out.z[b] == want.z[b] || (isnan(out.z[b]) && isnan(want.z[b])));
        activations_close(&out);
        device_close(dev);
    }
    activations_close(&want);
}

/* Every 1009th float; in steps of the last place (ulp) of the true value. */
static void exp_is_right_to_an_ulp(void **state)
{
    double worst = 0;

    (void)state;
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 1009) {
        uint32_t word = (uint32_t)bits;
        float x;

        memcpy(&x, &word, 4);
        if (!(x >= EXP_LOWEST && x <= EXP_HIGHEST))
            continue;

        double want = exp((double)x);
        double ulp = nextafterf((float)want, INFINITY) - (double)(float)want;
        double error = fabs(exp_ref(x) - want) / ulp;

        worst = error > worst ? error : worst;
    }
    print_message("# exp: at most %.3f ulp\n", worst);
    assert_true(worst < 1.0);
    assert_true(exp_ref(0) == 1 && exp_ref(-INFINITY) == 0 && exp_ref(-88) == 0);
    assert_true(isnan(exp_ref(NAN)));
    assert_true(exp_ref(1000) == exp_ref(EXP_HIGHEST));
}

static void activations_are_right_to_a_few_ulps(void **state)
{
    (void)state;
    for (float g = -20; g < 20; g += 0.0137f) {
        float up = 1, out;
        double u = 0.7978845608028654 * (g + 0.044715 * (double)g * g * g);
        double silu = g / (1 + exp(-(double)g)), gelu = 0.5 * g * (1 + tanh(u));

        silu_mul_ref(NULL, &out, &g, &up, 1, 1, 1);
        assert_true(fabs(out - silu) <= 4e-7 * fabs(silu));
        gelu_mul_ref(NULL, &out, &g, &up, 1, 1, 1);
        assert_true(fabs(out - gelu) <= 4e-6 * fabs(gelu) + 1e-10);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(row_kernels_have_the_bits_of_the_specification),
    cmocka_unit_test(rope_has_the_bits_of_the_specification),
    cmocka_unit_test(quantize_has_the_bits_of_the_specification),
    cmocka_unit_test(exp_is_right_to_an_ulp),
    cmocka_unit_test(activations_are_right_to_a_few_ulps),
};
TEST_MAIN(tests)
