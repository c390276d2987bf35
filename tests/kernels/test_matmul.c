#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"

#include "proto/base/memory.h"

#include <math.h>

/* Everything a test compares with: the specification's outputs. */
struct problem {
    enum tensor_type type;
    int32_t rows, n, k, tensor_k, k0, group_k;
    void *tensor;
    struct activations a;
    float *out;  /* [rows, n] */
    double *sum; /* [rows, n] */
};

static void quantize(struct device *dev, struct activations *a)
{
    if (a->k % 32 == 0)
        device_kernels(dev)->quantize(dev, a);
}

static void problem_init(struct problem *p)
{
    struct random random = {p->type * 1000 + p->rows + p->n + p->k};
    struct device *dev = open_device("ref", 1);
    struct matrix w;

    p->tensor = random_weights(&random, p->type, p->n, p->tensor_k);
    p->out = mem_new_array(float, p->rows * p->n);
    p->sum = mem_new_array(double, p->rows * p->n);
    activations_init(&p->a, &random, p->rows, p->k);
    if (p->group_k)
        p->a.group = activation_group(p->group_k);
    matrix_init(&w, dev, p->type, p->tensor, p->tensor_k, 0, p->n, p->k0, p->k);
    quantize(dev, &p->a);
    device_kernels(dev)->matmul(dev, p->out, p->n, &p->a, &w);
    if (p->group_k)
        device_kernels(dev)->matmul_groups(dev, p->sum, &p->a, &w, p->group_k);
    matrix_close(&w, dev);
    device_close(dev);
}

static void problem_close(struct problem *p)
{
    activations_close(&p->a);
    mem_free(p->tensor);
    mem_free(p->out);
    mem_free(p->sum);
}

/* The outputs of one device on the first `rows` rows from row `first`, against the problem's. */
static void check(struct problem *p, struct device *dev, const struct matrix *w, int32_t first,
                  int32_t rows)
{
    const struct kernels *kernels = device_kernels(dev);
    struct activations a = activations_rows(&p->a, first, rows);
    int64_t stride = p->n + 5;
    float *out = mem_new_array(float, rows * stride);

    for (int i = 0; i < NUM_STARTS; i++)
        if (!reads_start(p->type, i))
            a.starts[i] = NULL;
    if (!reads_z(p->type))
        a.z = NULL;

    double *sum = mem_new_array(double, rows * p->n);
    char *what = mem_printf("%s %s %d x %d x %d (%d rows)", kernels->name,
                            tensor_type_info(p->type)->name, p->rows, p->n, p->k, rows);

    for (int64_t i = 0; i < rows * stride; i++)
        out[i] = 12345;
    kernels->matmul(dev, out, stride, &a, w);
    for (int32_t r = 0; r < rows; r++) {
        expect_same_floats(what, out + r * stride, p->out + (int64_t)(first + r) * p->n, p->n);
        for (int i = 0; i < 5; i++)
            assert_true(out[r * stride + p->n + i] == 12345); /* nothing beyond a row is touched */
    }
    if (p->group_k) {
        kernels->matmul_groups(dev, sum, &a, w, p->group_k);
        if (memcmp(sum, p->sum + (int64_t)first * p->n, (size_t)rows * p->n * sizeof(double)) != 0)
            fail_msg("%s: groups of %d differ", what, p->group_k);
        kernels->matmul_groups_float(dev, out, &a, w, p->group_k);
        for (int64_t i = 0; i < (int64_t)rows * p->n; i++)
            assert_true(out[i] == (float)sum[i]);
    }
    mem_free(what);
    mem_free(out);
    mem_free(sum);
}

/* GPUs add what weights of 16 bits give on tensor cores, in an order of the hardware's; all in the same. */
static bool has_bits_of_ref(const char *isa, enum tensor_type type)
{
    return strcmp(isa, "cuda") != 0 || (type != TYPE_F16 && type != TYPE_BF16);
}

/* What an output may be away from the specification where activations are rounded to 8 bits: their errors, of 2^-9
 * at most, mostly cancel out, and weights are of about 1 / sqrt(k). */
static double tolerance(const struct problem *p, int32_t row)
{
    double squares = 0;

    for (int32_t i = 0; i < p->k; i++) {
        double x = (double)p->a.x[(int64_t)row * p->k + i];

        squares += x * x;
    }
    return ldexp(sqrt(squares / p->tensor_k), -6) + 1e-6;
}

/* Near the specification is what is wanted; what is got is what every other call is to give. */
static void accept_near(struct problem *p, struct device *dev, const struct matrix *w)
{
    const struct kernels *kernels = device_kernels(dev);
    float *out = mem_new_array(float, p->rows * p->n);
    double *sum = mem_new_array(double, p->rows * p->n);

    kernels->matmul(dev, out, p->n, &p->a, w);
    if (p->group_k)
        kernels->matmul_groups(dev, sum, &p->a, w, p->group_k);
    for (int32_t r = 0; r < p->rows; r++)
        for (int64_t i = (int64_t)r * p->n; i < (int64_t)(r + 1) * p->n; i++) {
            assert_true(fabs((double)out[i] - (double)p->out[i]) < tolerance(p, r));
            if (p->group_k)
                assert_true(fabs(sum[i] - p->sum[i]) < tolerance(p, r));
        }
    memcpy(p->out, out, (size_t)p->rows * p->n * sizeof *out);
    memcpy(p->sum, sum, (size_t)p->rows * p->n * sizeof *sum);
    mem_free(out);
    mem_free(sum);
}

/* "cuda" comes last: then the problem may change what it wants. */
static void check_isa(struct problem *p, const char *isa)
{
    struct device *dev = open_device(isa, 1), *two = open_device(isa, 2);
    struct matrix w;

    matrix_init(&w, dev, p->type, p->tensor, p->tensor_k, 0, p->n, p->k0, p->k);
    if (!has_bits_of_ref(isa, p->type))
        accept_near(p, dev, &w);
    check(p, dev, &w, 0, p->rows);
    check(p, two, &w, 0, p->rows);
    for (int32_t first = 0; first < p->rows; first += 1 + first * 2)
        for (int32_t rows = 1; first + rows <= p->rows; rows += 1 + rows)
            check(p, dev, &w, first, rows);
    matrix_close(&w, dev);
    device_close(dev);
    device_close(two);
}

static void check_everywhere(struct problem p)
{
    problem_init(&p);
    for (const char *const *isa = tested_isas(); *isa; isa++)
        check_isa(&p, *isa);
    problem_close(&p);
}

static void every_type_has_the_bits_of_the_specification(void **state)
{
    (void)state;
    for (int type = 0; type < NUM_TENSOR_TYPES; type++) {
        /* chunks, groups that end within a chunk and beyond one; a panel of 6 columns */
        check_everywhere((struct problem){type, 19, 70, 2304, 2304, 0, 192, NULL});
        check_everywhere((struct problem){type, 7, 32, 2304, 2304, 0, 1152, NULL});
        /* a shard that begins and ends inside a K type's 256 */
        check_everywhere((struct problem){type, 9, 33, 224, 1024, 160, 32, NULL});
        check_everywhere((struct problem){type, 1, 1, 32, 256, 32, 32, NULL});
    }
    check_everywhere((struct problem){TYPE_F32, 5, 40, 77, 77, 0, 0, NULL}); /* any k */
}

/* Of every two of these, c + a * b: some are so near to halfway between two floats that doubles say halfway. */
static void a_product_and_its_sum_are_rounded_once(void **state)
{
    static const struct { float c, a, b; } terms[] = {
        {0x1.000002p0f, 0x1.0002p-12f, 0x1.fffcp-13f},
        {0x1.000002p0f, 0x1.0002p-12f, -0x1.fffcp-13f},
        {-0x1.000006p40f, 0x1.0002p8f, -0x1.fffcp7f},
        {0x1.000004p-127f, 0x1.0002p-75f, 0x1.fffcp-76f}, /* below the normal floats */
        {0x1p-126f, 0x1.0002p-75f, -0x1.fffcp-76f},
        {0x1.fffffep127f, 0x1p52f, 0x1.fffffep50f},
        {0, 0x1p-75f, 0x1p-75f},
        {1, -1, 1},
        {INFINITY, 1, 1},
    };
    enum { N = COUNT_OF(terms) };
    float weights[N][2], x[N][2];
    int32_t num_mild = 0; /* what a sum of doubles gets wrong */

    (void)state;
    for (int i = 0; i < N; i++) {
        memcpy(weights[i], (float[]){terms[i].c, terms[i].b}, sizeof(weights[i]));
        memcpy(x[i], (float[]){1, terms[i].a}, sizeof(x[i]));
        num_mild += (float)((double)terms[i].a * terms[i].b + terms[i].c) != fmaf(terms[i].a, terms[i].b, terms[i].c);
    }
    assert_int_equal(num_mild, 4);
    for (const char *const *isa = tested_isas(); *isa; isa++) {
        struct device *dev = open_device(*isa, 1);
        struct activations a = {.rows = N, .k = 2, .x = x[0]};
        struct matrix w;
        float out[N][N];

        matrix_init(&w, dev, TYPE_F32, weights, 2, 0, N, 0, 2);
        device_kernels(dev)->matmul(dev, out[0], N, &a, &w);
        for (int r = 0; r < N; r++)
            for (int i = 0; i < N; i++) {
                float want = fmaf(x[r][1], weights[i][1], weights[i][0]);

                expect_same_floats(*isa, &out[r][i], &want, 1);
            }
        matrix_close(&w, dev);
        device_close(dev);
    }
}

static void rows_of_any_batch_have_the_same_bits(void **state)
{
    (void)state;
    check_everywhere((struct problem){TYPE_Q4_1, 300, 64, 576, 576, 0, 192, NULL});
    check_everywhere((struct problem){TYPE_Q6_K, 260, 32, 512, 512, 0, 256, NULL});
    check_everywhere((struct problem){TYPE_Q4_1, 260, 33, 2304, 2304, 0, 768, NULL}); /* chunks */
}

/* Rows and columns enough for the kernel that a GPU has for many of both; groups that end in the middle of what it
 * reads at once; of the last rows, less than half of those that a block takes. */
static void many_rows_and_columns_have_the_same_bits(void **state)
{
    (void)state;
    for (int type = TYPE_Q4_0; type < NUM_TENSOR_TYPES; type++) {
        struct problem p = {type, 130, 266, 288, 512, 160, 96, NULL};

        problem_init(&p);
        for (const char *const *isa = tested_isas(); *isa; isa++) {
            struct device *dev = open_device(*isa, 1);
            struct matrix w;

            matrix_init(&w, dev, p.type, p.tensor, p.tensor_k, 0, p.n, p.k0, p.k);
            check(&p, dev, &w, 0, p.rows);
            check(&p, dev, &w, 1, 97);
            matrix_close(&w, dev);
            device_close(dev);
        }
        problem_close(&p);
    }
}

/* Rows of logits, which CPUs write past their caches: far apart, from where a vector may begin. */
static void check_long_rows(struct problem p)
{
    enum { STRIDE = 1 << 14, BEYOND = 100 };
    size_t bytes = (size_t)p.rows * STRIDE * sizeof(float);
    float *out = aligned_alloc(4096, bytes);

    problem_init(&p);
    for (const char *const *isa = tested_isas(); *isa && strcmp(*isa, "cuda") != 0; isa++) {
        struct device *dev = open_device(*isa, 2);
        struct matrix w;

        matrix_init(&w, dev, p.type, p.tensor, p.tensor_k, 0, p.n, p.k0, p.k);
        for (int32_t rows = 1; rows <= p.rows; rows += 6) {
            struct activations a = p.a;

            a.rows = rows;
            for (size_t i = 0; i < bytes / sizeof *out; i++)
                out[i] = 12345;
            device_kernels(dev)->matmul(dev, out, STRIDE, &a, &w);
            for (int32_t r = 0; r < p.rows; r++) {
                int64_t written = r < rows ? p.n : 0;

                expect_same_floats(*isa, out + (int64_t)r * STRIDE, p.out + (int64_t)r * p.n, written);
                for (int64_t i = written; i < written + BEYOND; i++)
                    assert_true(out[(int64_t)r * STRIDE + i] == 12345);
            }
        }
        matrix_close(&w, dev);
        device_close(dev);
    }
    problem_close(&p);
    free(out);
}

static void long_rows_have_the_same_bits(void **state)
{
    (void)state;
    check_long_rows((struct problem){TYPE_Q8_0, 19, 70, 576, 576, 0, 0, NULL});
    check_long_rows((struct problem){TYPE_Q6_K, 19, 70, 2304, 2304, 0, 0, NULL}); /* chunks */
    check_long_rows((struct problem){TYPE_F32, 13, 64, 300, 300, 0, 0, NULL});
}

/* Tiles of 16 rows, or of less where they share them, whose last one begins within the one before; groups of 96, 64 and
 * 32 elements, two chunks and more of them, a group alone, and a panel of 6 columns. Slices of 150 rows and tiles of 15. */
static void many_rows_have_the_bits_of_the_specification(void **state)
{
    static const enum tensor_type types[] = {TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(types); i++)
        check_everywhere((struct problem){types[i], 65, 70, 384, 384, 0, 192, NULL});
    check_everywhere((struct problem){TYPE_Q4_1, 80, 32, 960, 960, 0, 480, NULL});
    check_everywhere((struct problem){TYPE_Q5_1, 70, 32, 320, 320, 0, 64, NULL});
    check_everywhere((struct problem){TYPE_Q4_0, 69, 38, 416, 416, 0, 32, NULL});
    check_everywhere((struct problem){TYPE_Q4_1, 70, 32, 96, 96, 0, 96, NULL});
    check_everywhere((struct problem){TYPE_Q5_0, 300, 32, 192, 192, 0, 96, NULL});
}

/* Kernels' largest blocks: of up to 32 rows, and for 16 bits of few columns with many groups, and of many rows. */
static void a_gpu_of_less_shared_memory_has_the_same_bits(void **state)
{
    static const struct problem problems[] = {
        {TYPE_Q4_0, 32, 64, 1024, 1024, 0, 256, NULL},  {TYPE_Q4_K, 32, 64, 1024, 1024, 0, 256, NULL},
        {TYPE_Q6_K, 32, 64, 1024, 1024, 0, 256, NULL},  {TYPE_F32, 32, 64, 256, 256, 0, 64, NULL},
        {TYPE_F16, 8, 48, 1536, 1536, 0, 192, NULL},    {TYPE_F16, 160, 160, 512, 512, 0, 128, NULL},
        {TYPE_BF16, 8, 48, 1536, 1536, 0, 192, NULL},   {TYPE_BF16, 160, 160, 512, 512, 0, 128, NULL},
    };

    (void)state;
    for (size_t i = 0; has_gpu_of_less_shared_memory() && i < COUNT_OF(problems); i++) {
        struct problem p = problems[i];
        struct device *gpu = open_device("cuda", 1), *other = open_device("cuda:1", 1);
        struct matrix w;

        problem_init(&p);
        matrix_init(&w, gpu, p.type, p.tensor, p.k, 0, p.n, 0, p.k);
        if (!has_bits_of_ref("cuda", p.type))
            accept_near(&p, gpu, &w);
        check(&p, other, &w, 0, p.rows);
        matrix_close(&w, gpu);
        problem_close(&p);
        device_close(other);
        device_close(gpu);
    }
}

/* Columns [n0, n) and [0, n0) on two devices are the columns of the whole. */
static void a_column_shard_has_the_bits_of_the_whole(void **state)
{
    enum { ROWS = 10, N = 96, K = 256, N0 = 40 };
    (void)state;
    for (const char *const *isa = tested_isas(); *isa; isa++)
        for (int type = 0; type < NUM_TENSOR_TYPES; type++) {
            struct problem p = {type, ROWS, N, K, K, 0, 0, NULL};
            struct device *dev = open_device(*isa, 1);
            struct matrix w;
            float out[ROWS * N];

            problem_init(&p);
            if (!has_bits_of_ref(*isa, type)) {
                matrix_init(&w, dev, type, p.tensor, K, 0, N, 0, K);
                accept_near(&p, dev, &w);
                matrix_close(&w, dev);
            }
            matrix_init(&w, dev, type, p.tensor, K, N0, N - N0, 0, K);
            device_kernels(dev)->matmul(dev, out, N, &p.a, &w);
            for (int r = 0; r < ROWS; r++)
                expect_same_floats(*isa, out + r * N, p.out + r * N + N0, N - N0);
            matrix_close(&w, dev);
            problem_close(&p);
            device_close(dev);
        }
}

/* Gates and ups of FFN columns in one kernel, where a device has it: as codes, and as floats. */
static void check_gated(const char *isa, struct problem *p, const struct activations *want, bool is_silu)
{
    struct device *dev = open_device(isa, 2);
    const struct kernels *kernels = device_kernels(dev);
    int32_t ffn = p->n / 2;
    struct activations out;
    struct random random = {1};
    struct matrix w;

    if (kernels->matmul_silu_mul) {
        activations_init(&out, &random, p->rows, ffn);
        matrix_init(&w, dev, p->type, p->tensor, p->tensor_k, 0, p->n, 0, p->k);
        (is_silu ? kernels->matmul_silu_mul : kernels->matmul_gelu_mul)(dev, &out, &p->a, &w);
        expect_same_floats(isa, out.x, want->x, (int64_t)p->rows * ffn);
        expect_same_floats(isa, out.d, want->d, (int64_t)p->rows * ffn / 32);
        assert_memory_equal(out.q, want->q, (size_t)p->rows * (size_t)ffn);
        matrix_close(&w, dev);
        activations_close(&out);
    }
    device_close(dev);
}

static void gated_matmuls_have_the_bits_of_their_two_kernels(void **state)
{
    static const struct problem problems[] = {
        {TYPE_Q4_1, 19, 192, 96, 96, 0, 0, NULL}, {TYPE_Q5_0, 100, 192, 288, 288, 0, 0, NULL},
        {TYPE_Q4_K, 1, 64, 512, 512, 0, 0, NULL},
        {TYPE_Q6_K, 300, 64, 256, 256, 0, 0, NULL}, {TYPE_F32, 7, 128, 64, 64, 0, 0, NULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(problems); i++)
        for (int is_silu = 0; is_silu < 2; is_silu++) {
            struct problem p = problems[i];
            struct device *ref = open_device("ref", 1);
            struct random random = {2};
            struct activations want;

            problem_init(&p);
            activations_init(&want, &random, p.rows, p.n / 2);
            (is_silu ? device_kernels(ref)->silu_mul : device_kernels(ref)->gelu_mul)(ref, &want, p.out,
                                                                                     p.out + p.n / 2, p.n);
            for (const char *const *isa = tested_isas(); *isa; isa++)
                check_gated(*isa, &p, &want, is_silu);
            activations_close(&want);
            problem_close(&p);
            device_close(ref);
        }
}

/* q, k and v side by side in one matrix. */
static void several_tensors_pack_into_one_matrix(void **state)
{
    enum { ROWS = 5, N = 160, K = 64 };
    (void)state;
    for (const char *const *isa = tested_isas(); *isa; isa++) {
        struct problem p = {TYPE_Q4_1, ROWS, N, K, K, 0, 0, NULL};
        struct device *dev = open_device(*isa, 2);
        const struct kernels *kernels = device_kernels(dev);
        struct matrix w = {.type = p.type, .n = N, .k = K};
        int64_t row_bytes = tensor_row_bytes(p.type, K);
        float out[ROWS * N];

        problem_init(&p);
        expect_ok(device_alloc(dev, kernels->matrix_bytes(p.type, N, K), "qkv", &w.data));
        kernels->matrix_pack(dev, &w, 96, 50, (char *)p.tensor + 96 * row_bytes, row_bytes, 0);
        kernels->matrix_pack(dev, &w, 0, 96, p.tensor, row_bytes, 0);
        kernels->matmul(dev, out, N, &p.a, &w);
        for (int r = 0; r < ROWS; r++)
            expect_same_floats(*isa, out + r * N, p.out + r * N, 146);
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
    }
}

/* Of more blocks than scales are read of at a time, and whose part begins and ends inside of what is read. */
static void rows_of_any_length_are_packed(void **state)
{
    enum { ROWS = 2, N = 37, K = 600 * 32, K0 = 40 * 32 };
    static const enum tensor_type types[] = {TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1, TYPE_Q8_0, TYPE_BF16};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(types); i++)
        for (int is_part = 0; is_part < 2; is_part++) {
            struct problem p = {.type = types[i], .rows = ROWS, .n = N, .k = is_part ? K - K0 - 32 : K, .tensor_k = K,
                                .k0 = is_part ? K0 : 0};

            problem_init(&p);
            for (const char *const *isa = tested_isas(); *isa; isa++) {
                struct device *dev = open_device(*isa, 2);
                struct matrix w;

                matrix_init(&w, dev, p.type, p.tensor, p.tensor_k, 0, p.n, p.k0, p.k);
                if (!has_bits_of_ref(*isa, p.type))
                    accept_near(&p, dev, &w);
                check(&p, dev, &w, 0, p.rows);
                matrix_close(&w, dev);
                device_close(dev);
            }
            problem_close(&p);
        }
}

/*
 * Ranks hold whole groups. With scales 1e-10 apart a float partial has bits far below the grid,
 * and the sum of unrounded partials depends on the order: the test shows that too.
 */
static void sums_of_groups_are_exact_in_any_order(void **state)
{
    enum { ROWS = 8, N = 64, K = 768, GROUP = 96, GROUPS = K / GROUP };
    bool unrounded_differs = false;

    (void)state;
    for (const char *const *isa = tested_isas(); *isa; isa++) {
        struct random random = {77};
        struct device *dev = open_device(*isa, 2);
        const struct kernels *kernels = device_kernels(dev);
        float *tensor = random_weights(&random, TYPE_F32, N, K);
        double whole[ROWS * N], sum[ROWS * N] = {0}, part[ROWS * N], plain[2][ROWS * N] = {{0}};
        struct activations a;
        struct matrix w;

        activations_init(&a, &random, ROWS, K);
        for (int i = 0; i < ROWS * K; i++)
            ((float *)a.x)[i] *= i % K / GROUP % 2 ? 1e-10f : 1;
        matrix_init(&w, dev, TYPE_F32, tensor, K, 0, N, 0, K);
        kernels->matmul_groups(dev, whole, &a, &w, GROUP);
        matrix_close(&w, dev);
        for (int i = 0; i < GROUPS; i++) {
            int g = i * 5 % GROUPS; /* another order */
            struct activations one = {.rows = ROWS, .k = GROUP};
            float *x = mem_new_array(float, ROWS * GROUP), out[ROWS * N];

            for (int r = 0; r < ROWS; r++)
                memcpy(x + r * GROUP, a.x + r * K + g * GROUP, GROUP * sizeof(float));
            one.x = x;
            matrix_init(&w, dev, TYPE_F32, tensor, K, 0, N, g * GROUP, GROUP);
            kernels->matmul_groups(dev, part, &one, &w, GROUP);
            kernels->matmul(dev, out, N, &one, &w);
            for (int j = 0; j < ROWS * N; j++) {
                sum[j] += part[j];
                plain[0][j] += out[j];
            }
            matrix_close(&w, dev);

            g = i;
            for (int r = 0; r < ROWS; r++)
                memcpy(x + r * GROUP, a.x + r * K + g * GROUP, GROUP * sizeof(float));
            matrix_init(&w, dev, TYPE_F32, tensor, K, 0, N, g * GROUP, GROUP);
            kernels->matmul(dev, out, N, &one, &w);
            for (int j = 0; j < ROWS * N; j++)
                plain[1][j] += out[j];
            matrix_close(&w, dev);
            mem_free(x);
        }
        assert_memory_equal(sum, whole, sizeof(sum));
        unrounded_differs |= memcmp(plain[0], plain[1], sizeof(plain[0])) != 0;
        mem_free(tensor);
        activations_close(&a);
        device_close(dev);
    }
    assert_true(unrounded_differs);
}

/*
 * The same of whole scales, where totals times the scale of activations are halfway between two multiples of the
 * grid, but for that scale's last bit: adding these to what is odd or even would depend on the order.
 */
static void sums_of_whole_scales_are_exact_in_any_order(void **state)
{
    enum { ROWS = 8, N = 64, K = 768, GROUP = 96, GROUPS = K / GROUP };
    static const enum tensor_type types[] = {TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1};

    (void)state;
    for (const char *const *isa = tested_isas(); *isa; isa++)
        for (size_t i = 0; i < COUNT_OF(types); i++) {
            struct random random = {(uint64_t)types[i]};
            struct device *dev = open_device(*isa, 2);
            const struct kernels *kernels = device_kernels(dev);
            char *tensor = random_weights(&random, types[i], N, K);
            double whole[ROWS * N], sum[ROWS * N] = {0}, part[ROWS * N];
            struct activations a;
            struct matrix w;

            activations_init(&a, &random, ROWS, K);
            a.group = GROUP;
            for (int j = 0; j < ROWS * K; j++) /* d: half of the grid */
                a.x[j] = ldexpf(j % GROUP == 0 ? 127 : floorf(random_float(&random, -127, 128)), -11);
            kernels->quantize(dev, &a);
            assert_true(a.d[0] == 0x1p-11f);
            matrix_init(&w, dev, types[i], tensor, K, 0, N, 0, K);
            kernels->matmul_groups(dev, whole, &a, &w, GROUP);
            matrix_close(&w, dev);
            for (int g = GROUPS; g-- > 0;) {
                struct activations one;

                activations_init(&one, &random, ROWS, GROUP);
                for (int r = 0; r < ROWS; r++)
                    memcpy(one.x + r * GROUP, a.x + r * K + g * GROUP, GROUP * sizeof(float));
                kernels->quantize(dev, &one);
                matrix_init(&w, dev, types[i], tensor, K, 0, N, g * GROUP, GROUP);
                kernels->matmul_groups(dev, part, &one, &w, GROUP);
                for (int j = 0; j < ROWS * N; j++)
                    sum[j] += part[j];
                matrix_close(&w, dev);
                activations_close(&one);
            }
            assert_memory_equal(sum, whole, sizeof(sum));
            mem_free(tensor);
            activations_close(&a);
            device_close(dev);
        }
}

/* Weights of one block for all: d, m and the byte of every two codes, or of five bits' high ones. */
static char *equal_weights(enum tensor_type type, int32_t n, int32_t k, float d, float m, uint8_t codes)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    int64_t bytes = n * tensor_row_bytes(type, k);
    char *tensor = mem_alloc((size_t)bytes);
    uint16_t halves[2] = {float_to_half(d), float_to_half(m)};

    memset(tensor, codes, (size_t)bytes);
    for (int64_t at = 0; at < bytes; at += info->block_bytes)
        memcpy(tensor + at, halves, type == TYPE_Q4_1 || type == TYPE_Q5_1 ? 4 : 2);
    return tensor;
}

/* The largest whole numbers that there are: sums of products just below 2^15, and of three blocks of these times scales
 * and bases. */
static void totals_reach_their_limits(void **state)
{
    enum { ROWS = 66, N = 32, K = 192 }; /* most kernels of many rows have them, too */
    static const struct { enum tensor_type type; float d, m; uint8_t codes; } rows[] = {
        {TYPE_Q4_1, 0x1.ffcp-1f, -4.0f, 0xff}, {TYPE_Q4_1, 0x1.ffcp-1f, -12.0f, 0x00},
        {TYPE_Q5_1, 0x1.ffcp-1f, -8.0f, 0xff}, {TYPE_Q5_1, 0x1.ffcp-1f, -24.0f, 0x00},
        {TYPE_Q4_0, -65504, 0, 0x00},          {TYPE_Q5_0, 65504, 0, 0xff},
        {TYPE_Q4_1, 0, 60000, 0x53},           {TYPE_Q4_1, 0x1p-24f, 0x1p-24f, 0x97},
        {TYPE_Q4_0, 0, 0, 0x35},               {TYPE_Q5_1, 0x1p-14f, 65504, 0x5a},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (int sign = -1; sign <= 1; sign += 2) {
            char *tensor = equal_weights(rows[i].type, N, K, rows[i].d, rows[i].m, rows[i].codes);
            double weight = 0;
            struct random random = {1};
            struct device *ref = open_device("ref", 1);
            struct activations a;
            struct matrix w;
            float want[ROWS * N], first[K];

            activations_init(&a, &random, ROWS, K);
            for (int j = 0; j < ROWS * K; j++)
                a.x[j] = (float)sign;
            device_kernels(ref)->quantize(ref, &a);
            matrix_init(&w, ref, rows[i].type, tensor, K, 0, N, 0, K);
            device_kernels(ref)->matmul(ref, want, N, &a, &w);
            matrix_close(&w, ref);
            device_close(ref);
            tensor_dequantize(rows[i].type, tensor, 0, K, first);
            for (int j = 0; j < K; j++)
                weight += (double)first[j];
            assert_true(fabs((double)want[0] - sign * weight) <= fabs(weight) * 1e-3);
            for (const char *const *isa = tested_isas(); *isa; isa++) {
                struct device *dev = open_device(*isa, 1);
                float out[ROWS * N];

                matrix_init(&w, dev, rows[i].type, tensor, K, 0, N, 0, K);
                device_kernels(dev)->matmul(dev, out, N, &a, &w);
                expect_same_floats(*isa, out, want, ROWS * N);
                matrix_close(&w, dev);
                device_close(dev);
            }
            activations_close(&a);
            mem_free(tensor);
        }
}

/* And a column of them alone. */
static void a_scale_that_is_no_number_makes_none(void **state)
{
    enum { N = 3, K = 64 };
    static const enum tensor_type types[] = {TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1};

    (void)state;
    for (const char *const *isa = tested_isas(); *isa; isa++)
        for (size_t i = 0; i < COUNT_OF(types); i++)
            for (int is_m = 0; is_m <= (types[i] == TYPE_Q4_1 || types[i] == TYPE_Q5_1); is_m++) {
                char *tensor = equal_weights(types[i], N, K, 1, 1, 0x17);
                struct random random = {1};
                struct device *dev = open_device(*isa, 1);
                uint16_t infinity = float_to_half(INFINITY);
                struct activations a;
                struct matrix w;
                double sums[N];
                float out[N];

                memcpy(tensor + tensor_row_bytes(types[i], K) + 2 * is_m, &infinity, 2);
                activations_init(&a, &random, 1, K);
                device_kernels(dev)->quantize(dev, &a);
                matrix_init(&w, dev, types[i], tensor, K, 0, N, 0, K);
                device_kernels(dev)->matmul(dev, out, N, &a, &w);
                device_kernels(dev)->matmul_groups(dev, sums, &a, &w, K);
                for (int c = 0; c < N; c++)
                    assert_true(isnan(out[c]) == (c == 1) && isnan(sums[c]) == (c == 1));
                matrix_close(&w, dev);
                activations_close(&a);
                mem_free(tensor);
                device_close(dev);
            }
}

static void embeddings_have_the_bits_of_the_specification(void **state)
{
    enum { ROWS = 9, N = 100, K = 96 };
    (void)state;
    for (int type = 0; type < NUM_TENSOR_TYPES; type++) {
        struct random random = {type + 5};
        char *tensor = random_weights(&random, type, N, 256);
        int32_t ids[ROWS] = {0, 7, 8, 39, 40, 106, 107, 5000, -1};
        float want[ROWS * K], out[ROWS * K];

        for (const char *const *isa = tested_isas(); *isa; isa++) {
            struct device *ref = open_device("ref", 1), *dev = open_device(*isa, 2);
            struct matrix w;

            matrix_init(&w, ref, type, tensor, 256, 0, N, 160, K);
            device_kernels(ref)->embedding(ref, want, ids, ROWS, &w, 7, 3);
            matrix_close(&w, ref);
            matrix_init(&w, dev, type, tensor, 256, 0, N, 160, K);
            device_kernels(dev)->embedding(dev, out, ids, ROWS, &w, 7, 3);
            matrix_close(&w, dev);
            expect_same_floats(*isa, out, want, ROWS * K);
            device_close(ref);
            device_close(dev);
        }
        mem_free(tensor);
    }
}

/* Bits a weight of a tensor of 1024 × 1024, super scales and all. */
static void packed_sizes_are_near_the_files(void **state)
{
    struct device *dev = open_device(NULL, 1);

    (void)state;
    for (int type = 0; type < NUM_TENSOR_TYPES; type++) {
        double file = (double)tensor_row_bytes(type, 1024) / 128;
        double packed = (double)device_kernels(dev)->matrix_bytes(type, 1024, 1024) / (1024 * 128);

        print_message("# %s: %.3f bits a weight, %.3f in the file\n", tensor_type_info(type)->name,
                      packed, file);
        if (type != TYPE_Q2_K && type != TYPE_Q3_K) /* stored with codes of 4 bits */
            assert_true(packed < file * 1.04);
        assert_true(packed < 8.51 || type < TYPE_Q4_0);
    }
    device_close(dev);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_type_has_the_bits_of_the_specification),
        cmocka_unit_test(many_rows_have_the_bits_of_the_specification),
    cmocka_unit_test(a_product_and_its_sum_are_rounded_once),
    cmocka_unit_test(rows_of_any_batch_have_the_same_bits),
    cmocka_unit_test(many_rows_and_columns_have_the_same_bits),
    cmocka_unit_test(long_rows_have_the_same_bits),
    cmocka_unit_test(a_gpu_of_less_shared_memory_has_the_same_bits),
    cmocka_unit_test(a_column_shard_has_the_bits_of_the_whole),
    cmocka_unit_test(gated_matmuls_have_the_bits_of_their_two_kernels),
    cmocka_unit_test(several_tensors_pack_into_one_matrix),
    cmocka_unit_test(rows_of_any_length_are_packed),
    cmocka_unit_test(sums_of_groups_are_exact_in_any_order),
    cmocka_unit_test(sums_of_whole_scales_are_exact_in_any_order),
    cmocka_unit_test(totals_reach_their_limits),
    cmocka_unit_test(a_scale_that_is_no_number_makes_none),
    cmocka_unit_test(embeddings_have_the_bits_of_the_specification),
    cmocka_unit_test(packed_sizes_are_near_the_files),
};
TEST_MAIN(tests)
