/*
 * Weights that are codes of 8 bits, on a GPU, by our own kernels: what comes of them has the bits of the BF16 that they
 * stand for.
 */
#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"

#include "proto/base/memory.h"

#include <math.h>

enum { SKEW = 3, LESS_SHARED = 1 /* the ordinal of such a GPU */ };

struct problem {
    struct fp8_weights w;
    int32_t most_rows;
    uint16_t *bf16; /* [n, k]: what they stand for */
    float *x;       /* [most_rows, k] */
};

static struct device *gpu(int32_t ordinal)
{
    struct device *dev;

    expect_ok(device_open(&(struct device_options){.name = "cuda",
                                                   .num_threads = 1,
                                                   .ordinal = ordinal,
                                                   .module = getenv("TANDEM_TEST_CUDA_MODULE")},
                          &dev));
    return dev;
}

static void expand(struct problem *p)
{
    for (int64_t i = 0; i < (int64_t)p->w.n * p->w.k; i++)
        fp8_to_bf16(&p->w.codes[i], 1, fp8_scale_at(&p->w, (int32_t)(i / p->w.k), (int32_t)(i % p->w.k)), &p->bf16[i]);
}

/* Any code that is a number. */
static void problem_init(struct problem *p)
{
    struct random random = {(uint64_t)(p->w.n * 7 + p->w.k + p->w.has_blocks)};

    fp8_weights_init(&p->w, &random);
    p->bf16 = mem_new_array(uint16_t, (int64_t)p->w.n * p->w.k);
    p->x = mem_new_array(float, (int64_t)p->most_rows * p->w.k);
    for (int64_t i = 0; i < (int64_t)p->w.n * p->w.k; i++) {
        p->w.codes[i] = (uint8_t)random_u32(&random);
        p->w.codes[i] ^= (p->w.codes[i] & 0x7f) == 0x7f;
    }
    random_hidden(&random, p->x, (int64_t)p->most_rows * p->w.k);
    expand(p);
}

static void problem_close(struct problem *p)
{
    fp8_weights_close(&p->w);
    mem_free(p->bf16);
    mem_free(p->x);
}

static void expect_same(const struct problem *p, int32_t rows, int32_t group_k, const struct products *got,
                        const struct products *want)
{
    char *what = mem_printf("%d x %d x %d, groups of %d%s", rows, p->w.n, p->w.k, group_k,
                            p->w.has_blocks ? ", blocks" : "");

    expect_same_floats(what, got->out, want->out, (int64_t)rows * p->w.n);
    expect_same_floats(what, got->alone, want->alone, (int64_t)rows * p->w.n);
    if (memcmp(got->sums, want->sums, (size_t)rows * (size_t)p->w.n * sizeof *got->sums) != 0)
        fail_msg("%s: sums differ", what);
    mem_free(what);
}

/* ---- tests ------------------------------------------------------------------------------------- */

struct row {
    int32_t rows, n, k, group_k;
};

/* Few rows and many; columns that fill no tile; k that fills no line of memory, no block, no 32 and no pair of halves;
 * two halves of k, which end within a block; groups that end within one, and that many warps share. */
static const struct row shapes[] = {
    {1, 1, 32, 32},      {3, 24, 77, 0},      {8, 40, 96, 32},       {9, 33, 200, 0},      {5, 272, 640, 160},
    {8, 16, 2304, 96},   {2, 48, 2144, 0},    {33, 160, 2144, 0},    {20, 136, 1152, 192}, {70, 300, 384, 96},
    {150, 144, 224, 32}, {300, 130, 2080, 0}, {8, 16, 8192, 128},
};

static void check(struct device *codes_on, struct device *halves_on, const struct row *shape, bool has_blocks)
{
    struct problem p = {{shape->n, shape->k, has_blocks}, shape->rows};
    struct matrix codes, halves;
    struct products got, want;

    problem_init(&p);
    matrix_init_fp8(&codes, codes_on, &p.w);
    matrix_init(&halves, halves_on, TYPE_BF16, p.bf16, p.w.k, 0, p.w.n, 0, p.w.k);
    products_init(&got, codes_on, &codes, p.x, p.most_rows, shape->group_k, SKEW);
    products_init(&want, halves_on, &halves, p.x, p.most_rows, shape->group_k, SKEW);
    expect_same(&p, p.most_rows, shape->group_k, &got, &want);
    products_close(&got);
    products_close(&want);
    matrix_close(&codes, codes_on);
    matrix_close(&halves, halves_on);
    problem_close(&p);
}

static void codes_have_the_bits_of_what_they_stand_for(void **state)
{
    struct device *dev = gpu(0);

    (void)state;
    for (size_t i = 0; i < 2 * COUNT_OF(shapes); i++)
        check(dev, dev, &shapes[i / 2], i % 2);
    device_close(dev);
}

static void a_gpu_of_less_shared_memory_has_the_same_bits(void **state)
{
    struct device *dev, *other;

    (void)state;
    if (!has_gpu_of_less_shared_memory())
        return;
    dev = gpu(0);
    other = gpu(LESS_SHARED);
    for (size_t i = 0; i < 2 * COUNT_OF(shapes); i++)
        check(other, dev, &shapes[i / 2], i % 2);
    device_close(dev);
    device_close(other);
}

static void rows_of_any_batch_have_the_same_bits(void **state)
{
    static const int32_t counts[] = {1, 7, 8, 9, 40, 129};

    (void)state;
    for (int32_t has_blocks = 0; has_blocks < 2; has_blocks++) {
        struct problem p = {{72, 2304, has_blocks}, 130};
        struct device *dev = gpu(0);
        struct products all, some;
        struct matrix w;

        problem_init(&p);
        matrix_init_fp8(&w, dev, &p.w);
        products_init(&all, dev, &w, p.x, p.most_rows, 192, SKEW);
        for (size_t i = 0; i < COUNT_OF(counts); i++) {
            struct products part = {counts[i], p.w.n, all.out + p.w.n, all.alone + p.w.n, all.sums + p.w.n};

            products_init(&some, dev, &w, p.x + p.w.k, counts[i], 192, SKEW);
            expect_same(&p, counts[i], 192, &some, &part);
            products_close(&some);
        }
        products_close(&all);
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
    }
}

/* NaN is NaN, whichever; all else has its bits. */
static void expect_weight(const char *what, int32_t code, float scale, float got, uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16, got_bits;
    float want;

    memcpy(&want, &bits, 4);
    memcpy(&got_bits, &got, 4);
    if (isnan(want) ? !isnan(got) : got_bits != bits)
        fail_msg("%s: code %02x by %a is %a, not %a", what, code, (double)scale, (double)got, (double)want);
}

/* Column c has code c alone, and zeros: 1 times it is what comes out, and in an embedding it is found as it is. */
static void every_code_by_any_scale_is_rounded_as_on_a_host(void **state)
{
    static const float scales[] = {1, 0.0123f, 3e-3f, 0x1.fffffep-9f, 0, 1e-38f, 0x1p-149f, 257, 1e30f, 0x1.8p127f};
    enum { CODES = 256, K = 64, ROWS = 9 };

    (void)state;
    for (size_t i = 0; i < 2 * COUNT_OF(scales); i++) {
        struct problem p = {{CODES, K, i % 2}, ROWS};
        int32_t at = 36 + (int32_t)(i / 2 % 2 + i / 4 % 2 * 8); /* of four that share a word */
        struct device *dev = gpu(0);
        float found[CODES * K], *found_there = device_array(dev, NULL, sizeof found);
        int32_t ids[CODES], *ids_there;
        struct matrix w;

        problem_init(&p);
        memset(p.w.codes, 0, (size_t)CODES * K);
        memset(p.x, 0, (size_t)ROWS * K * sizeof *p.x);
        for (int64_t s = 0; s < fp8_num_scales(&p.w); s++)
            p.w.scales[s] = scales[i / 2];
        for (int32_t c = 0; c < CODES; c++)
            p.w.codes[c * K + at] = (uint8_t)(ids[c] = c);
        for (int32_t r = 0; r < ROWS; r++)
            p.x[r * K + at] = 1;
        expand(&p);
        matrix_init_fp8(&w, dev, &p.w);
        for (int32_t rows = 1; rows <= ROWS; rows += ROWS - 1) {
            struct products result;

            products_init(&result, dev, &w, p.x, rows, 0, SKEW);
            for (int32_t c = 0; c < CODES; c++) /* a sum that begins with +0 is never -0 */
                expect_weight("matmul", c, scales[i / 2], result.out[c],
                              p.bf16[c * K + at] == 0x8000 ? 0 : p.bf16[c * K + at]);
            products_close(&result);
        }
        ids_there = device_array(dev, ids, sizeof ids);
        device_kernels(dev)->embedding(dev, found_there, ids_there, CODES, &w, 0, 1);
        expect_ok(device_read(dev, found, found_there, sizeof found));
        for (int32_t e = 0; e < CODES * K; e++)
            expect_weight("embedding", p.w.codes[e], scales[i / 2], found[e], p.bf16[e]);
        device_free(dev, ids_there, sizeof ids);
        device_free(dev, found_there, sizeof found);
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
    }
}

static void embeddings_have_the_bits_of_what_they_stand_for(void **state)
{
    static const int32_t ids[] = {7, 8, 39, 306, 307, 5000, -1, 134, 135}, widths[] = {96, 200, 77, 5000};
    enum { ROWS = COUNT_OF(ids), N = 300, FIRST_ID = 7 };

    (void)state;
    for (size_t i = 0; i < 2 * COUNT_OF(widths); i++) {
        struct problem p = {{N, widths[i / 2], i % 2}, 1};
        struct device *dev = gpu(0);
        int64_t bytes = (int64_t)ROWS * p.w.k * 4;
        float *got = mem_new_array(float, ROWS * p.w.k), *want = mem_new_array(float, ROWS * p.w.k);
        float *there = device_array(dev, NULL, bytes);
        int32_t *ids_there = device_array(dev, ids, sizeof ids);
        struct matrix codes, halves;

        problem_init(&p);
        matrix_init_fp8(&codes, dev, &p.w);
        matrix_init(&halves, dev, TYPE_BF16, p.bf16, p.w.k, 0, N, 0, p.w.k);
        device_kernels(dev)->embedding(dev, there, ids_there, ROWS, &codes, FIRST_ID, 3);
        expect_ok(device_read(dev, got, there, bytes));
        device_kernels(dev)->embedding(dev, there, ids_there, ROWS, &halves, FIRST_ID, 3);
        expect_ok(device_read(dev, want, there, bytes));
        expect_same_floats("embedding", got, want, (int64_t)ROWS * p.w.k);
        device_free(dev, there, bytes);
        device_free(dev, ids_there, sizeof ids);
        matrix_close(&codes, dev);
        matrix_close(&halves, dev);
        problem_close(&p);
        mem_free(got);
        mem_free(want);
        device_close(dev);
    }
}

static void a_weight_takes_a_byte(void **state)
{
    struct device *cpu = open_device("ref", 1), *dev = gpu(0);

    (void)state;
    assert_null(device_kernels(cpu)->fp8_bytes);
    for (int32_t has_blocks = 0; has_blocks < 2; has_blocks++) {
        double bytes = (double)device_kernels(dev)->fp8_bytes(4096, 4096, has_blocks) / (4096.0 * 4096);

        assert_true(bytes >= 1 && bytes < 1.002);
    }
    device_close(cpu);
    device_close(dev);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(codes_have_the_bits_of_what_they_stand_for),
    cmocka_unit_test(a_gpu_of_less_shared_memory_has_the_same_bits),
    cmocka_unit_test(rows_of_any_batch_have_the_same_bits),
    cmocka_unit_test(every_code_by_any_scale_is_rounded_as_on_a_host),
    cmocka_unit_test(embeddings_have_the_bits_of_what_they_stand_for),
    cmocka_unit_test(a_weight_takes_a_byte),
};

int main(void)
{
    struct device *dev;

    if (!has_gpus())
        return 0;
    setenv("EMULATED_CUDA_CAPABILITY", "8.0,8.9", 1);
    if (device_open(&(struct device_options){.name = "cuda", .num_threads = 1,
                                             .module = getenv("TANDEM_TEST_CUDA_MODULE")}, &dev) != OK) {
        printf("1..0 # SKIP %s\n", fail_text());
        return strstr(getenv("TANDEM_TEST_CUDA_MODULE"), "emulated") ? 1 : 0;
    }
    device_close(dev);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
