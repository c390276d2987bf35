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
    int32_t rows;
    struct fp8_weights w;
    float *x;       /* [rows, k] */
    double *wanted; /* [rows, n]: of x in codes, exactly */
    double *most;   /* likewise: the sum of what is added, all of it positive */
    double *plain;  /* likewise: of x as it is */
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

/* As a GPU does: a scale of the row, or of each 128 of it. */
static void make_codes_of_row(const struct problem *p, const float *x, double *out)
{
    int32_t width = p->w.has_blocks ? BLOCK : p->w.k;

    for (int32_t first = 0; first < p->w.k; first += width) {
        int32_t end = MIN(first + width, p->w.k);
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
    AUTO_MEM double *x = mem_new_array(double, p->w.k);

    for (int32_t r = 0; r < p->rows; r++) {
        make_codes_of_row(p, p->x + (int64_t)r * p->w.k, x);
        for (int32_t c = 0; c < p->w.n; c++) {
            double sum = 0, most = 0, plain = 0;

            for (int32_t k = 0; k < p->w.k; k++) {
                float code = fp8_to_float(p->w.codes[(int64_t)c * p->w.k + k]);
                double w = (double)code * (double)fp8_scale_at(&p->w, c, k);

                sum += x[k] * w;
                most += fabs(x[k] * w);
                plain += (double)p->x[(int64_t)r * p->w.k + k] * w;
            }
            p->wanted[(int64_t)r * p->w.n + c] = sum;
            p->most[(int64_t)r * p->w.n + c] = most;
            p->plain[(int64_t)r * p->w.n + c] = plain;
        }
    }
}

static void problem_init(struct problem *p)
{
    struct random random = {(uint64_t)(p->rows + p->w.n * 7 + p->w.k + p->w.has_blocks)};

    fp8_weights_init(&p->w, &random);
    p->x = mem_new_array(float, (int64_t)p->rows * p->w.k);
    p->wanted = mem_new_array(double, (int64_t)p->rows * p->w.n);
    p->most = mem_new_array(double, (int64_t)p->rows * p->w.n);
    p->plain = mem_new_array(double, (int64_t)p->rows * p->w.n);
    for (int64_t i = 0; i < (int64_t)p->w.n * p->w.k; i++)
        p->w.codes[i] = float_to_fp8(random_float(&random, -448, 448));
    random_hidden(&random, p->x, (int64_t)p->rows * p->w.k);
}

static void problem_close(struct problem *p)
{
    fp8_weights_close(&p->w);
    mem_free(p->x);
    mem_free(p->wanted);
    mem_free(p->most);
    mem_free(p->plain);
}

/* In groups of 32, too. */
static void multiply(const struct problem *p, struct device *dev, const struct matrix *w, int32_t skew,
                     struct products *result)
{
    products_init(result, dev, w, p->x, p->rows, 32, skew);
}

/* Floats are added up in an order of the library's. */
static void expect_exact(const struct problem *p, const struct products *result)
{
    for (int64_t i = 0; i < (int64_t)p->rows * p->w.n; i++) {
        double bound = 2e-6 * p->most[i] + 1e-30;

        if (fabs((double)result->out[i] - p->wanted[i]) > bound)
            fail_msg("%d x %d x %d%s: %lld: %.9g, not %.9g", p->rows, p->w.n, p->w.k,
                     p->w.has_blocks ? " in blocks" : "", (long long)i, (double)result->out[i], p->wanted[i]);
        assert_true(fabs((double)result->alone[i] - p->wanted[i]) <= bound);
        assert_true(fabs(result->sums[i] - p->wanted[i]) <= bound + EXACT_GRID);
        assert_true(result->sums[i] == nearbyint(result->sums[i] / EXACT_GRID) * EXACT_GRID);
    }
}

/* What rounding rows to 8 bits costs: the root of the mean square of errors beside that of results. */
static double error_of(const struct problem *p, const struct products *result)
{
    double error = 0, all = 0;

    for (int64_t i = 0; i < (int64_t)p->rows * p->w.n; i++) {
        error += ((double)result->out[i] - p->plain[i]) * ((double)result->out[i] - p->plain[i]);
        all += p->plain[i] * p->plain[i];
    }
    return sqrt(error / all);
}

/* How often what goes to stderr in the meantime has `part`. */
static int count_told(const struct problem *p, struct device *dev, const struct matrix *w, struct products *result,
                      const char *part)
{
    struct told told = told_begin();

    multiply(p, dev, w, 0, result);
    return told_end(told, part);
}

/* ---- tests ------------------------------------------------------------------------------------- */

/* What our own kernels give. */
static void multiply_alone(const struct problem *p, int32_t ordinal, struct products *result)
{
    struct device *dev = gpu_alone(ordinal);
    struct matrix w;

    matrix_init_fp8(&w, dev, &p->w);
    multiply(p, dev, &w, 0, result);
    matrix_close(&w, dev);
    device_close(dev);
}

/* Does cuBLASLt multiply by codes of so many columns there? */
static bool goes_by_codes(int32_t ordinal, int32_t n, bool has_blocks)
{
    struct problem p = {9, {n, 96, has_blocks}};
    struct device *dev = gpu(ordinal);
    struct products result, alone;
    struct matrix w;
    bool is_other;

    problem_init(&p);
    matrix_init_fp8(&w, dev, &p.w);
    multiply(&p, dev, &w, 0, &result);
    multiply_alone(&p, ordinal, &alone);
    is_other = !products_are_same(&result, &alone);
    products_close(&result);
    products_close(&alone);
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
            struct problem p = {shapes[i / 2][0], {shapes[i / 2][1], shapes[i / 2][2], i % 2}};
            struct device *dev;
            struct matrix w;

            if (!goes_by_codes(ordinal, p.w.n, p.w.has_blocks))
                continue;
            dev = gpu(ordinal);
            problem_init(&p);
            specify(&p);
            matrix_init_fp8(&w, dev, &p.w);
            for (int32_t skew = 0; skew < 4; skew += 3) {
                struct products result;

                multiply(&p, dev, &w, skew, &result);
                expect_exact(&p, &result);
                assert_true(error_of(&p, &result) < 0.04);
                products_close(&result);
            }
            matrix_close(&w, dev);
            problem_close(&p);
            device_close(dev);
        }
}

static void few_rows_are_our_own_kernels(void **state)
{
    struct problem p = {8, {32, 128, false}};
    struct device *dev = gpu(HOPPER);
    struct products result, alone;
    struct matrix w;

    (void)state;
    problem_init(&p);
    matrix_init_fp8(&w, dev, &p.w);
    multiply(&p, dev, &w, 0, &result);
    multiply_alone(&p, HOPPER, &alone);
    assert_true(products_are_same(&result, &alone));
    products_close(&result);
    products_close(&alone);
    matrix_close(&w, dev);
    problem_close(&p);
    device_close(dev);
}

static void rows_of_any_size_have_a_scale(void **state)
{
    static const float factors[] = {1, 1e20f, 1e-20f, 1e-32f, 0};

    (void)state;
    for (int32_t i = 0; i < 4; i++) {
        struct problem p = {12, {32, 256, i % 2}};
        struct device *dev = gpu(library() ? i / 2 : HOPPER);
        bool is_by_codes = goes_by_codes(library() ? i / 2 : HOPPER, p.w.n, p.w.has_blocks);
        struct products result;
        struct matrix w;

        problem_init(&p);
        for (int32_t r = 0; r < p.rows; r++)
            for (int32_t k = 0; k < p.w.k; k++)
                p.x[r * p.w.k + k] *= factors[r % (int)COUNT_OF(factors)];
        matrix_init_fp8(&w, dev, &p.w);
        for (int32_t round = 0; is_by_codes && round < 2; round++) {
            if (round) {
                p.x[10 * p.w.k + 3] = NAN;
                p.x[11 * p.w.k + 200] = INFINITY;
            } else {
                specify(&p);
            }
            multiply(&p, dev, &w, 0, &result);
            for (int64_t at = 0; at < (round ? 10 : p.rows) * p.w.n; at++)
                assert_true(fabs((double)result.out[at] - p.wanted[at]) <= 2e-6 * p.most[at] + 1e-30);
            for (int64_t at = 10 * p.w.n; round && at < p.rows * p.w.n; at++)
                assert_false(isfinite(result.out[at]));
            products_close(&result);
        }
        matrix_close(&w, dev);
        problem_close(&p);
        device_close(dev);
    }
}

static void more_rows_than_its_memory_holds_go_in_pieces(void **state)
{
    struct problem p = {2054, {8192, 32, false}};
    struct device *dev = gpu(library() ? ADA : HOPPER);
    int64_t x_bytes = (int64_t)p.rows * p.w.k * 4, out_bytes = (int64_t)p.rows * p.w.n * 4;
    float *out = mem_new_array(float, (int64_t)p.rows * p.w.n);
    struct activations a = {.rows = p.rows, .k = p.w.k};
    struct matrix w;
    float *on_device;

    (void)state;
    problem_init(&p);
    matrix_init_fp8(&w, dev, &p.w);
    a.x = device_array(dev, p.x, x_bytes);
    on_device = device_array(dev, NULL, out_bytes);
    device_kernels(dev)->matmul(dev, on_device, p.w.n, &a, &w);
    expect_ok(device_read(dev, out, on_device, out_bytes));
    for (int32_t r = 0; r < p.rows; r += r == 0 || r % 256 == 255 ? 1 : 85) {
        struct problem one = p; /* of a row */

        one.rows = 1;
        one.x = p.x + (int64_t)r * p.w.k;
        specify(&one);
        for (int32_t c = 0; c < p.w.n; c++)
            assert_true(fabs((double)out[(int64_t)r * p.w.n + c] - one.wanted[c]) <= 2e-6 * one.most[c]);
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
        struct problem p = {14, {32, 256, i % 2}};
        struct device *dev = gpu(library() ? i / 2 : HOPPER);
        bool is_by_codes = goes_by_codes(library() ? i / 2 : HOPPER, p.w.n, p.w.has_blocks);
        int64_t x_bytes = (int64_t)p.rows * p.w.k * 4, out_bytes = (int64_t)p.rows * p.w.n * 4;
        struct activations a = {.rows = p.rows, .k = p.w.k};
        float *out = mem_new_array(float, p.rows * p.w.n), *on_device;
        struct device_recording *recording;
        struct matrix w;

        problem_init(&p);
        matrix_init_fp8(&w, dev, &p.w);
        a.x = device_array(dev, NULL, x_bytes);
        on_device = device_array(dev, NULL, out_bytes);
        expect_ok(device_record(dev));
        device_kernels(dev)->matmul(dev, on_device, p.w.n, &a, &w);
        expect_ok(device_end_record(dev, &recording));
        for (int round = 0; is_by_codes && round < 2; round++) {
            for (int32_t at = 0; at < p.rows * p.w.k; at++)
                p.x[at] *= 1e-3f;
            specify(&p);
            expect_ok(device_write(dev, a.x, p.x, x_bytes));
            expect_ok(device_replay(dev, recording));
            expect_ok(device_read(dev, out, on_device, out_bytes));
            for (int32_t at = 0; at < p.rows * p.w.n; at++)
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
        struct problem p = {45, {64, 128, i % 2}};
        struct device *dev = gpu_with(HOPPER, faults[i / 2]);
        struct products results[2], alone;
        struct matrix w;

        problem_init(&p);
        matrix_init_fp8(&w, dev, &p.w);
        multiply_alone(&p, HOPPER, &alone);
        for (int round = 0; round < 2; round++) {
            assert_int_equal(count_told(&p, dev, &w, &results[round], told), round == 0);
            assert_true(products_are_same(&results[round], &alone));
            products_close(&results[round]);
        }
        products_close(&alone);
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
        struct problem p = {21, {48, 96, false}};
        struct device *dev = gpu_with(HOPPER, faults[i]);
        struct products result;
        struct matrix w;

        problem_init(&p);
        specify(&p);
        assert_int_equal(goes_by_codes(HOPPER, p.w.n, true), i == 1);
        matrix_init_fp8(&w, dev, &p.w);
        multiply(&p, dev, &w, 0, &result);
        expect_exact(&p, &result);
        products_close(&result);
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
