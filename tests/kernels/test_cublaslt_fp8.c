/*
 * Matmuls by codes of 8 bits and their scales, by cuBLASLt: as test_cublaslt.c has those of 16 bits, and
 * test_fp8_codes.c those by our own kernels. Emulated GPUs are of three kinds: one that multiplies by scales of vectors
 * and blocks, one that has codes alone, one that has none.
 */
#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"
#include "tests/support/told.h"

#include "proto/base/memory.h"

#include <math.h>
#include <unistd.h>

enum { BLOCK = 128, HOPPER = 0, ADA = 1, AMPERE = 2 }; /* ordinals */

struct problem {
    int32_t rows, n, k;
    bool has_blocks;
    uint8_t *codes; /* [n, k] */
    float *scales;  /* [n], or [n / 128, k / 128], rounded up */
    float *x;       /* [rows, k] */
    double *wanted; /* [rows, n]: of x in codes, exactly */
    double *most;   /* likewise: the sum of what is added, all of it positive */
    double *plain;  /* likewise: of x as it is */
};

struct result {
    float *out, *alone; /* [rows, n]: matmul, matmul_groups_float */
    double *sums;       /* [rows, n]: matmul_groups */
};

/* ---- devices ----------------------------------------------------------------------------------- */

static const char *library(void)
{
    return getenv("TANDEM_TEST_CUBLASLT");
}

/* from_rows: that are cuBLASLt's; 0: none. */
static enum status open_gpu(int32_t ordinal, int32_t from_rows, struct device **out)
{
    return device_open(&(struct device_options){.name = "cuda",
                                                .num_threads = 1,
                                                .ordinal = ordinal,
                                                .module = getenv("TANDEM_TEST_CUDA_MODULE"),
                                                .cublaslt_rows = from_rows,
                                                .cublaslt = library()},
                       out);
}

static struct device *gpu(int32_t ordinal)
{
    struct device *dev;

    expect_ok(open_gpu(ordinal, 9, &dev));
    return dev;
}

/* Where our own kernels do it all. */
static struct device *gpu_alone(int32_t ordinal)
{
    struct device *dev;

    expect_ok(open_gpu(ordinal, 0, &dev));
    return dev;
}

static struct device *gpu_with(int32_t ordinal, const char *fault)
{
    struct device *dev;

    setenv("EMULATED_CUBLASLT_FAULT", fault, 1);
    dev = gpu(ordinal);
    return dev;
}

/* ---- problems ---------------------------------------------------------------------------------- */

static float scale_at(const struct problem *p, int32_t column, int32_t k)
{
    return p->has_blocks ? p->scales[column / BLOCK * ((p->k + BLOCK - 1) / BLOCK) + k / BLOCK] : p->scales[column];
}

/* As a GPU does: a scale of the row, or of each 128 of it. */
static void make_codes_of_row(const struct problem *p, const float *x, double *out)
{
    int32_t width = p->has_blocks ? BLOCK : p->k;

    for (int32_t first = 0; first < p->k; first += width) {
        int32_t end = MIN(first + width, p->k);
        float most = 0, scale;

        for (int32_t k = first; k < end; k++)
            most = fmaxf(most, fabsf(x[k]));
        scale = fmaxf(most / 448, 0x1p-100f);
        for (int32_t k = first; k < end; k++)
            out[k] = (double)fp8_to_float(float_to_fp8(x[k] * (1 / scale))) * (double)scale;
    }
}

static void specify(struct problem *p)
{
    AUTO_MEM double *x = mem_new_array(double, p->k);

    for (int32_t r = 0; r < p->rows; r++) {
        make_codes_of_row(p, p->x + (int64_t)r * p->k, x);
        for (int32_t c = 0; c < p->n; c++) {
            double sum = 0, most = 0, plain = 0;

            for (int32_t k = 0; k < p->k; k++) {
                double w = (double)fp8_to_float(p->codes[(int64_t)c * p->k + k]) * (double)scale_at(p, c, k);

                sum += x[k] * w;
                most += fabs(x[k] * w);
                plain += (double)p->x[(int64_t)r * p->k + k] * w;
            }
            p->wanted[(int64_t)r * p->n + c] = sum;
            p->most[(int64_t)r * p->n + c] = most;
            p->plain[(int64_t)r * p->n + c] = plain;
        }
    }
}

static void problem_init(struct problem *p)
{
    struct random random = {(uint64_t)(p->rows + p->n * 7 + p->k + p->has_blocks)};
    int64_t num_scales = p->has_blocks ? (p->n + BLOCK - 1) / BLOCK * (int64_t)((p->k + BLOCK - 1) / BLOCK) : p->n;

    p->codes = mem_new_array(uint8_t, (int64_t)p->n * p->k);
    p->scales = mem_new_array(float, num_scales);
    p->x = mem_new_array(float, (int64_t)p->rows * p->k);
    p->wanted = mem_new_array(double, (int64_t)p->rows * p->n);
    p->most = mem_new_array(double, (int64_t)p->rows * p->n);
    p->plain = mem_new_array(double, (int64_t)p->rows * p->n);
    for (int64_t i = 0; i < num_scales; i++)
        p->scales[i] = random_float(&random, 0.0005f, 0.004f);
    for (int64_t i = 0; i < (int64_t)p->n * p->k; i++)
        p->codes[i] = float_to_fp8(random_float(&random, -448, 448));
    random_hidden(&random, p->x, (int64_t)p->rows * p->k);
}

static void problem_close(struct problem *p)
{
    mem_free(p->codes);
    mem_free(p->scales);
    mem_free(p->x);
    mem_free(p->wanted);
    mem_free(p->most);
    mem_free(p->plain);
}

static void weights_init(const struct problem *p, struct device *dev, struct matrix *w)
{
    matrix_init_codes(w, dev, p->n, p->k, p->has_blocks, p->codes, p->scales);
}

/* skew: floats before the results, and behind each row, of which none may be touched. */
static void multiply(const struct problem *p, struct device *dev, const struct matrix *w, int32_t skew,
                     struct result *result)
{
    const struct kernels *kernels = device_kernels(dev);
    int64_t stride = p->n + skew, count = (int64_t)p->rows * p->n, x_bytes = (int64_t)p->rows * p->k * 4;
    int64_t out_count = skew + p->rows * stride;
    float *wide = mem_new_array(float, out_count);
    struct activations a = {.rows = p->rows, .k = p->k, .x = device_array(dev, p->x, x_bytes)};
    float *out, *alone = device_array(dev, NULL, count * 4);
    double *sums = device_array(dev, NULL, count * 8);

    *result = (struct result){mem_new_array(float, count), mem_new_array(float, count),
                              mem_new_array(double, count)};
    for (int64_t i = 0; i < out_count; i++)
        wide[i] = 12345;
    out = device_array(dev, wide, out_count * 4);
    kernels->matmul(dev, out + skew, stride, &a, w);
    expect_ok(device_read(dev, wide, out, out_count * 4));
    for (int64_t i = 0; i < skew; i++)
        assert_true(wide[i] == 12345);
    for (int32_t r = 0; r < p->rows; r++) {
        memcpy(result->out + (int64_t)r * p->n, wide + skew + r * stride, (size_t)p->n * 4);
        for (int i = 0; i < skew; i++)
            assert_true(wide[skew + r * stride + p->n + i] == 12345);
    }
    kernels->matmul_groups(dev, sums, &a, w, 32);
    kernels->matmul_groups_float(dev, alone, &a, w, 32);
    expect_ok(device_read(dev, result->sums, sums, count * 8));
    expect_ok(device_read(dev, result->alone, alone, count * 4));
    device_free(dev, a.x, x_bytes);
    device_free(dev, out, out_count * 4);
    device_free(dev, alone, count * 4);
    device_free(dev, sums, count * 8);
    mem_free(wide);
}

static void result_close(struct result *result)
{
    mem_free(result->out);
    mem_free(result->alone);
    mem_free(result->sums);
}

static bool are_same(const struct problem *p, const struct result *a, const struct result *b)
{
    size_t count = (size_t)p->rows * (size_t)p->n;

    return memcmp(a->out, b->out, count * 4) == 0 && memcmp(a->sums, b->sums, count * 8) == 0 &&
           memcmp(a->alone, b->alone, count * 4) == 0;
}

/* Floats are added up in an order of the library's. */
static void expect_exact(const struct problem *p, const struct result *result)
{
    for (int64_t i = 0; i < (int64_t)p->rows * p->n; i++) {
        double bound = 2e-6 * p->most[i] + 1e-30;

        if (fabs((double)result->out[i] - p->wanted[i]) > bound)
            fail_msg("%d x %d x %d%s: %lld: %.9g, not %.9g", p->rows, p->n, p->k, p->has_blocks ? " in blocks" : "",
                     (long long)i, (double)result->out[i], p->wanted[i]);
        assert_true(fabs((double)result->alone[i] - p->wanted[i]) <= bound);
        assert_true(fabs(result->sums[i] - p->wanted[i]) <= bound + EXACT_GRID);
        assert_true(result->sums[i] == nearbyint(result->sums[i] / EXACT_GRID) * EXACT_GRID);
    }
}

/* What rounding rows to 8 bits costs: the root of the mean square of errors beside that of results. */
static double error_of(const struct problem *p, const struct result *result)
{
    double error = 0, all = 0;

    for (int64_t i = 0; i < (int64_t)p->rows * p->n; i++) {
        error += ((double)result->out[i] - p->plain[i]) * ((double)result->out[i] - p->plain[i]);
        all += p->plain[i] * p->plain[i];
    }
    return sqrt(error / all);
}

/* How often what goes to stderr in the meantime has `part`. */
static int count_told(const struct problem *p, struct device *dev, const struct matrix *w, struct result *result,
                      const char *part)
{
    struct told told = told_begin();

    multiply(p, dev, w, 0, result);
    return told_end(told, part);
}

/* ---- tests ------------------------------------------------------------------------------------- */

/* What our own kernels give. */
static void multiply_alone(const struct problem *p, int32_t ordinal, struct result *result)
{
    struct device *dev = gpu_alone(ordinal);
    struct matrix w;

    weights_init(p, dev, &w);
    multiply(p, dev, &w, 0, result);
    matrix_close(&w, dev);
    device_close(dev);
}

/* Does cuBLASLt multiply by codes of so many columns there? */
static bool goes_by_codes(int32_t ordinal, int32_t n, bool has_blocks)
{
    struct problem p = {9, n, 96, .has_blocks = has_blocks};
    struct device *dev = gpu(ordinal);
    struct result result, alone;
    struct matrix w;
    bool is_other;

    problem_init(&p);
    weights_init(&p, dev, &w);
    multiply(&p, dev, &w, 0, &result);
    multiply_alone(&p, ordinal, &alone);
    is_other = !are_same(&p, &result, &alone);
    result_close(&result);
    result_close(&alone);
    matrix_close(&w, dev);
    problem_close(&p);
    device_close(dev);
    return is_other;
}

static void who_multiplies_by_codes_is_known(void **state)
{
    static const struct {
        int32_t ordinal;
        bool has_rows, has_blocks;
    } kinds[] = {{HOPPER, true, true}, {ADA, true, false}, {AMPERE, false, false}};

    (void)state;
    for (size_t i = 0; library() && i < COUNT_OF(kinds); i++) {
        assert_int_equal(goes_by_codes(kinds[i].ordinal, 64, false), kinds[i].has_rows);
        assert_int_equal(goes_by_codes(kinds[i].ordinal, 64, true), kinds[i].has_blocks);
        assert_false(goes_by_codes(kinds[i].ordinal, 72, false)); /* the library wants multiples of 16 */
    }
}

static void codes_are_multiplied_with_their_scales(void **state)
{
    static const int32_t shapes[][3] = {/* rows, n, k */
                                        {9, 32, 64}, {17, 48, 200}, {30, 160, 384}, {32, 16, 32}, {11, 272, 600}};

    (void)state;
    for (int32_t ordinal = HOPPER; ordinal <= (library() ? ADA : HOPPER); ordinal++)
        for (size_t i = 0; i < 2 * COUNT_OF(shapes); i++) {
            struct problem p = {shapes[i / 2][0], shapes[i / 2][1], shapes[i / 2][2], .has_blocks = i % 2};
            struct device *dev;
            struct matrix w;

            if (!goes_by_codes(ordinal, p.n, p.has_blocks))
                continue;
            dev = gpu(ordinal);
            problem_init(&p);
            specify(&p);
            weights_init(&p, dev, &w);
            for (int32_t skew = 0; skew < 4; skew += 3) {
                struct result result;

                multiply(&p, dev, &w, skew, &result);
                expect_exact(&p, &result);
                assert_true(error_of(&p, &result) < 0.04);
                result_close(&result);
            }
            matrix_close(&w, dev);
            problem_close(&p);
            device_close(dev);
        }
}

static void few_rows_are_our_own_kernels(void **state)
{
    struct problem p = {8, 32, 128, .has_blocks = false};
    struct device *dev = gpu(HOPPER);
    struct result result, alone;
    struct matrix w;

    (void)state;
    problem_init(&p);
    weights_init(&p, dev, &w);
    multiply(&p, dev, &w, 0, &result);
    multiply_alone(&p, HOPPER, &alone);
    assert_true(are_same(&p, &result, &alone));
    result_close(&result);
    result_close(&alone);
    matrix_close(&w, dev);
    problem_close(&p);
    device_close(dev);
}

static void rows_of_any_size_have_a_scale(void **state)
{
    static const float factors[] = {1, 1e20f, 1e-20f, 1e-32f, 0};

    (void)state;
    for (int32_t i = 0; i < 4; i++) {
        struct problem p = {12, 32, 256, .has_blocks = i % 2};
        struct device *dev = gpu(library() ? i / 2 : HOPPER);
        bool is_by_codes = goes_by_codes(library() ? i / 2 : HOPPER, p.n, p.has_blocks);
        struct result result;
        struct matrix w;

        problem_init(&p);
        for (int32_t r = 0; r < p.rows; r++)
            for (int32_t k = 0; k < p.k; k++)
                p.x[r * p.k + k] *= factors[r % (int)COUNT_OF(factors)];
        weights_init(&p, dev, &w);
        for (int32_t round = 0; is_by_codes && round < 2; round++) {
            if (round) {
                p.x[10 * p.k + 3] = NAN;
                p.x[11 * p.k + 200] = INFINITY;
            } else {
                specify(&p);
            }
            multiply(&p, dev, &w, 0, &result);
            for (int64_t at = 0; at < (round ? 10 : p.rows) * p.n; at++)
                assert_true(fabs((double)result.out[at] - p.wanted[at]) <= 2e-6 * p.most[at] + 1e-30);
            for (int64_t at = 10 * p.n; round && at < p.rows * p.n; at++)
                assert_false(isfinite(result.out[at]));
            result_close(&result);
        }
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
    }
}

static void more_rows_than_its_memory_holds_go_in_pieces(void **state)
{
    struct problem p = {2054, 8192, 32, .has_blocks = false};
    struct device *dev = gpu(library() ? ADA : HOPPER);
    int64_t x_bytes = (int64_t)p.rows * p.k * 4, out_bytes = (int64_t)p.rows * p.n * 4;
    float *out = mem_new_array(float, (int64_t)p.rows * p.n);
    struct activations a = {.rows = p.rows, .k = p.k};
    struct matrix w;
    float *on_device;

    (void)state;
    problem_init(&p);
    weights_init(&p, dev, &w);
    a.x = device_array(dev, p.x, x_bytes);
    on_device = device_array(dev, NULL, out_bytes);
    device_kernels(dev)->matmul(dev, on_device, p.n, &a, &w);
    expect_ok(device_read(dev, out, on_device, out_bytes));
    for (int32_t r = 0; r < p.rows; r += r == 0 || r % 256 == 255 ? 1 : 85) {
        struct problem one = p; /* of a row */

        one.rows = 1;
        one.x = p.x + (int64_t)r * p.k;
        specify(&one);
        for (int32_t c = 0; c < p.n; c++)
            assert_true(fabs((double)out[(int64_t)r * p.n + c] - one.wanted[c]) <= 2e-6 * one.most[c]);
    }
    device_free(dev, a.x, x_bytes);
    device_free(dev, on_device, out_bytes);
    mem_free(out);
    matrix_close(&w, dev);
    problem_close(&p);
    device_close(dev);
}

static void a_matmul_by_codes_can_be_recorded(void **state)
{
    (void)state;
    for (int32_t i = 0; i < 4; i++) {
        struct problem p = {14, 32, 256, .has_blocks = i % 2};
        struct device *dev = gpu(library() ? i / 2 : HOPPER);
        bool is_by_codes = goes_by_codes(library() ? i / 2 : HOPPER, p.n, p.has_blocks);
        int64_t x_bytes = (int64_t)p.rows * p.k * 4, out_bytes = (int64_t)p.rows * p.n * 4;
        struct activations a = {.rows = p.rows, .k = p.k};
        float *out = mem_new_array(float, p.rows * p.n), *on_device;
        struct device_recording *recording;
        struct matrix w;

        problem_init(&p);
        weights_init(&p, dev, &w);
        a.x = device_array(dev, NULL, x_bytes);
        on_device = device_array(dev, NULL, out_bytes);
        expect_ok(device_record(dev));
        device_kernels(dev)->matmul(dev, on_device, p.n, &a, &w);
        expect_ok(device_end_record(dev, &recording));
        for (int round = 0; is_by_codes && round < 2; round++) {
            for (int32_t at = 0; at < p.rows * p.k; at++)
                p.x[at] *= 1e-3f;
            specify(&p);
            expect_ok(device_write(dev, a.x, p.x, x_bytes));
            expect_ok(device_replay(dev, recording));
            expect_ok(device_read(dev, out, on_device, out_bytes));
            for (int32_t at = 0; at < p.rows * p.n; at++)
                assert_true(fabs((double)out[at] - p.wanted[at]) <= 2e-6 * p.most[at]);
        }
        device_recording_free(dev, recording);
        device_free(dev, a.x, x_bytes);
        device_free(dev, on_device, out_bytes);
        mem_free(out);
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
    }
}

static void what_it_refuses_is_our_own_kernels_and_told_once(void **state)
{
    static const char *const faults[] = {"fp8", "heuristic", "matmul"};
    const char *told = "cuBLASLt refuses a matmul of 48 rows by 64 x 128 of fp8";

    (void)state;
    for (size_t i = 0; library() && i < 2 * COUNT_OF(faults); i++) {
        struct problem p = {45, 64, 128, .has_blocks = i % 2};
        struct device *dev = gpu_with(HOPPER, faults[i / 2]);
        struct result results[2], alone;
        struct matrix w;

        problem_init(&p);
        weights_init(&p, dev, &w);
        multiply_alone(&p, HOPPER, &alone);
        for (int round = 0; round < 2; round++) {
            assert_int_equal(count_told(&p, dev, &w, &results[round], told), round == 0);
            assert_true(are_same(&p, &results[round], &alone));
            result_close(&results[round]);
        }
        result_close(&alone);
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
        unsetenv("EMULATED_CUBLASLT_FAULT");
    }
}

/* A library of before 12.9, or one that does not want to. */
static void without_modes_of_scales_a_kernel_behind_multiplies(void **state)
{
    static const char *const faults[] = {"modes", "vectors"};

    (void)state;
    for (size_t i = 0; library() && i < COUNT_OF(faults); i++) {
        struct problem p = {21, 48, 96, .has_blocks = false};
        struct device *dev = gpu_with(HOPPER, faults[i]);
        struct result result;
        struct matrix w;

        problem_init(&p);
        specify(&p);
        assert_int_equal(goes_by_codes(HOPPER, p.n, true), i == 1);
        weights_init(&p, dev, &w);
        multiply(&p, dev, &w, 0, &result);
        expect_exact(&p, &result);
        result_close(&result);
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
        unsetenv("EMULATED_CUBLASLT_FAULT");
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(who_multiplies_by_codes_is_known),
    cmocka_unit_test(codes_are_multiplied_with_their_scales),
    cmocka_unit_test(few_rows_are_our_own_kernels),
    cmocka_unit_test(rows_of_any_size_have_a_scale),
    cmocka_unit_test(more_rows_than_its_memory_holds_go_in_pieces),
    cmocka_unit_test(a_matmul_by_codes_can_be_recorded),
    cmocka_unit_test(what_it_refuses_is_our_own_kernels_and_told_once),
    cmocka_unit_test(without_modes_of_scales_a_kernel_behind_multiplies),
};

int main(void)
{
    struct device *dev;

    if (!has_gpus())
        return 0;
    setenv("EMULATED_CUDA_CAPABILITY", "9.0,8.9,8.0", 1);
    setenv("EMULATED_CUDA_DEVICES", "3", 1);
    if (open_gpu(HOPPER, 9, &dev) != OK) {
        printf("1..0 # SKIP %s\n", fail_text());
        return library() ? 1 : 0;
    }
    device_close(dev);
    if (!library() && !goes_by_codes(HOPPER, 64, false)) {
        puts("1..0 # SKIP this GPU does not multiply codes of 8 bits");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
