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
    double *parts[3];
};

static void inputs_init(struct inputs *in, int32_t n)
{
    struct random random = {(uint64_t)n};
    int64_t count = ROWS * (n + SLACK);

    in->n = n;
    in->x = mem_new_array(float, count);
    in->y = mem_new_array(float, count);
    in->w = mem_new_array(float, count);
    random_hidden(&random, in->x, count);
    random_hidden(&random, in->y, count);
    random_hidden(&random, in->w, count);
    for (size_t p = 0; p < COUNT_OF(in->parts); p++) {
        in->parts[p] = mem_new_array(double, count);
        for (int64_t i = 0; i < count; i++)
            in->parts[p][i] = (double)random_u32(&random) * EXACT_GRID - 100;
    }
}

static void inputs_close(struct inputs *in)
{
    mem_free(in->x);
    mem_free(in->y);
    mem_free(in->w);
    for (size_t p = 0; p < COUNT_OF(in->parts); p++)
        mem_free(in->parts[p]);
}

/* What a kernel writes. */
struct outputs {
    float *residual; /* [ROWS, n], x before */
    struct activations a;
};

static void outputs_init(struct outputs *out, const struct inputs *in)
{
    struct random random = {1};

    activations_init(&out->a, &random, ROWS, in->n);
    out->residual = mem_new_array(float, ROWS * in->n);
    memcpy(out->residual, in->x, (size_t)ROWS * in->n * sizeof(float));
}

static void outputs_close(struct outputs *out)
{
    activations_close(&out->a);
    mem_free(out->residual);
}

typedef void run_kernel(const struct kernels *k, struct device *dev, const struct inputs *in,
                        struct outputs *out);

static struct add_norm_args norm_of(const struct inputs *in, struct outputs *out)
{
    return (struct add_norm_args){.rows = ROWS, .n = in->n, .residual = out->residual,
                                  .norm = in->w, .eps = 1e-5f, .out = &out->a};
}

static void run_norm(const struct kernels *k, struct device *dev, const struct inputs *in,
                     struct outputs *out)
{
    struct add_norm_args args = norm_of(in, out);

    k->add_norm(dev, &args);
}

static void run_norm_of_some(const struct kernels *k, struct device *dev, const struct inputs *in,
                             struct outputs *out)
{
    struct add_norm_args args = norm_of(in, out);

    args.rows = 4;
    args.row_ids = (const int32_t[]){66, 0, 3, 3};
    k->add_norm(dev, &args);
}

static void run_add_norm(const struct kernels *k, struct device *dev, const struct inputs *in,
                         struct outputs *out)
{
    struct add_norm_args args = norm_of(in, out);

    args.sum = in->y;
    k->add_norm(dev, &args);
}

static void run_add_parts(const struct kernels *k, struct device *dev, const struct inputs *in,
                          struct outputs *out)
{
    struct add_norm_args args = norm_of(in, out);

    args.parts = (const double *const *)in->parts;
    args.num_parts = COUNT_OF(in->parts);
    struct activations codes = out->a;

    codes.x = NULL;
    args.out = &codes;
    k->add_norm(dev, &args);
}

static void run_add_normed(const struct kernels *k, struct device *dev, const struct inputs *in,
                           struct outputs *out)
{
    struct add_norm_args args = norm_of(in, out);

    args.parts = (const double *const *)in->parts;
    args.num_parts = 1;
    args.post_norm = in->y;
    args.out = &(struct activations){.rows = ROWS, .k = in->n, .x = out->a.x};
    k->add_norm(dev, &args);
}

static void run_add(const struct kernels *k, struct device *dev, const struct inputs *in,
                    struct outputs *out)
{
    struct add_norm_args args = norm_of(in, out);

    args.sum = in->y;
    args.post_norm = in->w;
    args.norm = NULL;
    k->add_norm(dev, &args);
}

static void run_silu(const struct kernels *k, struct device *dev, const struct inputs *in,
                     struct outputs *out)
{
    k->silu_mul(dev, &out->a, in->x, in->y, in->n + SLACK);
}

/* Of n columns some, and of rows some more than once; the other rows stay as they are. */
static void run_take_rows(const struct kernels *k, struct device *dev, const struct inputs *in,
                          struct outputs *out)
{
    static const int32_t row_ids[] = {66, 0, 3, 3, 1, 2, 5, 64, 4, 4, 4, 9, 60, 7, 8, 6, 31, 33};

    k->take_rows(dev, &(struct take_rows_args){.rows = COUNT_OF(row_ids), .n = in->n - 5, .out = out->residual,
                                               .in = in->y, .stride = in->n, .row_ids = row_ids});
}

static void run_gelu(const struct kernels *k, struct device *dev, const struct inputs *in,
                     struct outputs *out)
{
    k->gelu_mul(dev, &out->a, in->x, in->y, in->n + SLACK);
}

static void expect_same_activations(const char *what, const struct activations *a,
                                    const struct activations *b)
{
    int64_t blocks = (int64_t)a->rows * (a->k / 32);

    expect_same_floats(what, a->x, b->x, blocks * 32);
    expect_same_floats(what, a->d, b->d, blocks);
    expect_same_floats(what, a->z, b->z, blocks);
    if (memcmp(a->q, b->q, (size_t)blocks * 32) != 0 ||
        memcmp(a->sums, b->sums, (size_t)blocks * 2 * sizeof(int16_t)) != 0)
        fail_msg("%s: codes differ", what);
}

static void check(const char *name, run_kernel *run)
{
    static const int32_t sizes[] = {32, 64, 576, 640, MAX_N, 96};

    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        struct inputs in;
        struct outputs want;

        inputs_init(&in, sizes[s]);
        outputs_init(&want, &in);
        run(&kernels_ref, NULL, &in, &want);
        for (const char *const *isa = tested_isas(); *isa; isa++)
            for (int threads = 1; threads <= 2; threads++) {
                struct device *dev = open_device(*isa, threads);
                char *what = mem_printf("%s %s n %d", *isa, name, sizes[s]);
                struct outputs out;

                outputs_init(&out, &in);
                run(device_kernels(dev), dev, &in, &out);
                expect_same_floats(what, out.residual, want.residual, ROWS * sizes[s]);
                expect_same_activations(what, &out.a, &want.a);
                mem_free(what);
                outputs_close(&out);
                device_close(dev);
            }
        outputs_close(&want);
        inputs_close(&in);
    }
}

static void row_kernels_have_the_bits_of_the_specification(void **state)
{
    (void)state;
    check("norm", run_norm);
    check("norm of some rows", run_norm_of_some);
    check("add and norm", run_add_norm);
    check("add parts and norm", run_add_parts);
    check("add the norm and norm", run_add_normed);
    check("add the norm", run_add);
    check("silu_mul", run_silu);
    check("gelu_mul", run_gelu);
    check("take_rows", run_take_rows);
}

/* What add_norm of one row does, by definition. */
static void the_specification_of_add_norm_is_right(void **state)
{
    enum { N = 64 };
    struct random random = {9};
    float residual[N], sum[N], post[N], norm[N], out[N], was[N];
    struct activations a = {.rows = 1, .k = N, .x = out};
    double added[N], squares = 0, sums = 0;

    (void)state;
    for (int i = 0; i < N; i++) {
        was[i] = residual[i] = random_float(&random, -2, 2);
        sum[i] = random_float(&random, -2, 2);
        post[i] = random_float(&random, 0, 2);
        norm[i] = random_float(&random, 0, 2);
        sums += (double)sum[i] * sum[i];
    }
    add_norm_ref(NULL, &(struct add_norm_args){.rows = 1, .n = N, .residual = residual, .sum = sum,
                                               .post_norm = post, .norm = norm, .eps = 1e-3f,
                                               .out = &a});
    for (int i = 0; i < N; i++) {
        added[i] = was[i] + sum[i] / sqrt(sums / N + 1e-3) * post[i];
        squares += added[i] * added[i];
        assert_true(fabs(residual[i] - added[i]) < 1e-5);
    }
    for (int i = 0; i < N; i++)
        assert_true(fabs(out[i] - added[i] / sqrt(squares / N + 1e-3) * norm[i]) < 1e-5);
}

/* Into values of a head: what codes round, what they can't hold and what is no number. */
static void put_special_values(float *v, int32_t stride, int32_t dim)
{
    static const float specials[][16] = {
        {0, -0.0f},
        {1e-38f, -0x1p-101f, 0x1p-102f},          /* too small for a scale */
        {127, 63.5f, -126.5f, 0.5f, -1.5f, 2.5f}, /* ties of int8 */
        {448, 449, -464, 1e30f, 465},             /* the largest of fp8, and more */
        /* and its least */
        {0x1p-6f, 0x1.ep-7f, 0x1.dp-7f, 0x1p-9f, 0x1p-10f, 0x1.8p-9f, 0x1.cp-9f, -0x1p-10f, 0x1.1p-10f},
        {17, 18, 19, -17, -19, 17.001f, 0x1.fp3f, 0x1.ffp3f}, /* ties of fp8 */
        {1, NAN},
        {1, -INFINITY},
        {NAN, INFINITY},
        {0x1p-100f, 0x1p-101f},
        {0x1.fffffep127f, -0x1.fffffep126f},
        {0x1p-50f, -0x1p-50f, 0x1.fffffep-51f, -0x1p-60f, 0x1p-140f}, /* the least of bfloat16, and less */
        {0x1.01p0f, 0x1.03p0f, -0x1.01p0f, 0x1.010002p0f, 0x1.00ffp0f, 0x1.ffp3f, 0x1.fefep3f}, /* its ties */
    };

    for (size_t i = 0; i < COUNT_OF(specials); i++) {
        memset(v + (int64_t)i * stride, 0, (size_t)dim * sizeof(float));
        memcpy(v + (int64_t)i * stride + dim - 16, specials[i], sizeof(specials[i]));
    }
}

static void rope_store_has_the_bits_of_the_specification(void **state)
{
    enum { HEADS = 3, KV_HEADS = 2, MAX_POSITION = 100, REQUESTS = 3, BLOCKS = REQUESTS * 7 };
    static const int32_t dims[][2] = {{64, 64}, {256, 256}, {96, 48}, {16, 10}};
    static const int32_t row_start[REQUESTS + 1] = {0, 1, 40, ROWS};

    (void)state;
    for (size_t d = 0; d < COUNT_OF(dims); d++)
        for (int turn = 0; turn < 2 * NUM_KV_TYPES; turn++) {
            struct random random = {d + 1};
            int32_t dim = dims[d][0], stride = (HEADS + 2 * KV_HEADS) * dim + 5;
            enum kv_type type = turn / 2;
            bool adjacent = turn % 2;
            int32_t positions[ROWS], tables[BLOCKS];
            int64_t group_stride = KV_GROUP_BLOCKS * KV_HEADS * kv_head_bytes(type, dim) / 2 + 32;
            int64_t halves = kv_num_groups(BLOCKS) * group_stride;
            float *x = mem_new_array(float, ROWS * stride);
            float *want = mem_new_array(float, ROWS * stride);
            float *out = mem_new_array(float, ROWS * stride);
            float *cos_sin = mem_new_array(float, MAX_POSITION * dims[d][1]), w[256];
            float *bias = mem_new_array(float, stride);
            struct kv_layer kv[2] = {{.num_blocks = BLOCKS, .num_kv_heads = KV_HEADS, .head_dim = dim,
                                     .group_stride = group_stride, .type = type}};
            struct batch_view batch = {ROWS, REQUESTS, row_start, positions, tables, BLOCKS / REQUESTS};

            kv[1] = kv[0];
            for (int i = 0; i < 2; i++) {
                kv[i].k = mem_new_array(uint16_t, halves);
                kv[i].v = mem_new_array(uint16_t, halves);
            }
            random_hidden(&random, x, ROWS * stride);
            random_hidden(&random, w, COUNT_OF(w));
            random_hidden(&random, bias, stride);
            if (type != KV_FLOAT16)
                put_special_values(x + (HEADS + KV_HEADS) * dim, stride, dim);
            for (int i = 0; i < BLOCKS; i++)
                tables[i] = BLOCKS - 1 - i;
            for (int i = 0; i < ROWS; i++)
                positions[i] = i ? positions[i - 1] + 1 : 17;
            positions[1] = 0;
            for (int i = 2; i < ROWS; i++)
                positions[i] = i == 40 ? 30 : positions[i - 1] + 1;
            for (int i = 0; i < MAX_POSITION * dims[d][1]; i++)
                cos_sin[i] = random_float(&random, -1, 1);

            struct rope_args args = {.stride = stride, .batch = &batch, .num_heads = HEADS,
                                     .bias = (d + (size_t)type) % 2 ? bias : NULL,
                                     .q_norm = adjacent ? w : NULL, .k_norm = d % 2 ? w : NULL,
                                     .eps = 1e-5f, .cos_sin = cos_sin, .rope_dim = dims[d][1],
                                     .adjacent = adjacent};

            memcpy(want, x, ROWS * stride * sizeof(float));
            args.qkv = want;
            args.kv = &kv[0];
            rope_store_ref(NULL, &args);
            for (const char *const *isa = tested_isas(); *isa; isa++) {
                struct device *dev = open_device(*isa, 2);

                memcpy(out, x, ROWS * stride * sizeof(float));
                memset(kv[1].k, 0, (size_t)halves * 2);
                memset(kv[1].v, 0, (size_t)halves * 2);
                args.qkv = out;
                args.kv = &kv[1];
                device_kernels(dev)->rope_store(dev, &args);
                expect_same_floats(*isa, out, want, ROWS * stride);
                assert_memory_equal(kv[0].k, kv[1].k, (size_t)halves * 2);
                assert_memory_equal(kv[0].v, kv[1].v, (size_t)halves * 2);
                device_close(dev);
            }
            for (int i = 0; i < 2; i++) {
                mem_free(kv[i].k);
                mem_free(kv[i].v);
            }
            mem_free(x);
            mem_free(want);
            mem_free(out);
            mem_free(bias);
            mem_free(cos_sin);
        }
}

static void check_quantize(int32_t group)
{
    enum { K = 1920, BLOCKS = ROWS * K / 32 };
    struct random random = {3};
    struct activations want, out;

    activations_init(&want, &random, ROWS, K);
    want.group = group;

    float *x = want.x;

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
        out.group = group;
        memcpy(out.x, x, ROWS * K * sizeof(float));
        device_kernels(dev)->quantize(dev, &out);
        assert_memory_equal(out.q, want.q, ROWS * K);
        assert_memory_equal(out.d, want.d, BLOCKS * sizeof(float));
        assert_memory_equal(out.sums, want.sums, BLOCKS * 2 * sizeof(int16_t));
        for (int i = 0; i < NUM_STARTS && strcmp(*isa, "cuda") != 0; i++)
            assert_memory_equal(out.starts[i], want.starts[i], BLOCKS * sizeof(int32_t));
        for (int b = 0; b < BLOCKS; b++)
            assert_true(out.z[b] == want.z[b] || (isnan(out.z[b]) && isnan(want.z[b])));
        activations_close(&out);
        device_close(dev);
    }
    activations_close(&want);
}

static void quantize_has_the_bits_of_the_specification(void **state)
{
    (void)state;
    for (int32_t group = 32; group <= MAX_ACTIVATION_GROUP; group += 32)
        check_quantize(group);
}

static void groups_of_activations_divide_what_is_to_be_whole(void **state)
{
    static const struct { int32_t columns, group; } rows[] = {
        {32, 32}, {64, 64}, {96, 96}, {128, 64}, {160, 32}, {192, 96}, {224, 32}, {256, 64}, {576, 96}, {640, 64},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(activation_group(rows[i].columns), rows[i].group);
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
    enum { COUNT = 32 };
    float gate[COUNT], up[COUNT], out[COUNT];
    struct activations a = {.rows = 1, .k = COUNT, .x = out};

    (void)state;
    for (int i = 0; i < COUNT; i++)
        up[i] = 1;
    for (float start = -20; start < 20; start += COUNT * 0.0137f) {
        for (int i = 0; i < COUNT; i++)
            gate[i] = start + (float)i * 0.0137f;
        silu_mul_ref(NULL, &a, gate, up, COUNT);
        for (int i = 0; i < COUNT; i++) {
            double g = gate[i], silu = g / (1 + exp(-g));

            assert_true(fabs(out[i] - silu) <= 4e-7 * fabs(silu));
        }
        gelu_mul_ref(NULL, &a, gate, up, COUNT);
        for (int i = 0; i < COUNT; i++) {
            double g = gate[i], u = 0.7978845608028654 * (g + 0.044715 * g * g * g);
            double gelu = 0.5 * g * (1 + tanh(u));

            assert_true(fabs(out[i] - gelu) <= 4e-6 * fabs(gelu) + 1e-10);
        }
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(row_kernels_have_the_bits_of_the_specification),
    cmocka_unit_test(the_specification_of_add_norm_is_right),
    cmocka_unit_test(rope_store_has_the_bits_of_the_specification),
    cmocka_unit_test(quantize_has_the_bits_of_the_specification),
    cmocka_unit_test(groups_of_activations_divide_what_is_to_be_whole),
    cmocka_unit_test(exp_is_right_to_an_ulp),
    cmocka_unit_test(activations_are_right_to_a_few_ulps),
};
TEST_MAIN(tests)
