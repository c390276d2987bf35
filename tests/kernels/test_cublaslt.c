/*
 * Matmuls of 16-bit weights by cuBLASLt: the library is that of TANDEM_TEST_CUBLASLT, an emulated one, beside the
 * emulated GPUs of TANDEM_TEST_CUDA_MODULE; where these are real, it is the machine's own, and it is made to refuse
 * nothing.
 */
#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"
#include "tests/support/told.h"

#include "proto/base/memory.h"

#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SKEW = 5 }; /* rows begin where nothing is aligned */

/* A product of a ref device and one of a GPU. */
struct problem {
    enum tensor_type type;
    int32_t rows, n, k, group_k;
    void *tensor;
    struct activations a;
    float *wanted; /* [rows, n] */
};

static const char *library(void)
{
    return getenv("TANDEM_TEST_CUBLASLT");
}

static enum status open_gpu(int32_t cublaslt_rows, const char *file, struct device **out)
{
    return device_open(&(struct device_options){.name = "cuda",
                                                .num_threads = 1,
                                                .module = getenv("TANDEM_TEST_CUDA_MODULE"),
                                                .cublaslt_rows = cublaslt_rows,
                                                .cublaslt = file},
                       out);
}

static struct device *gpu(int32_t cublaslt_rows)
{
    struct device *dev;

    expect_ok(open_gpu(cublaslt_rows, library(), &dev));
    return dev;
}

static void problem_init(struct problem *p)
{
    struct random random = {(uint64_t)(p->type * 1000 + p->rows + p->n + p->k)};

    p->tensor = random_weights(&random, p->type, p->n, p->k);
    p->wanted = mem_new_array(float, p->rows * p->n);
    activations_init(&p->a, &random, p->rows, p->k);
}

/* What is wanted of the activations as they are now. */
static void specify(struct problem *p)
{
    struct device *dev = open_device("ref", 1);
    struct matrix w;

    matrix_init(&w, dev, p->type, p->tensor, p->k, 0, p->n, 0, p->k);
    device_kernels(dev)->matmul(dev, p->wanted, p->n, &p->a, &w);
    matrix_close(&w, dev);
    device_close(dev);
}

static void problem_close(struct problem *p)
{
    activations_close(&p->a);
    mem_free(p->tensor);
    mem_free(p->wanted);
}

static void multiply(const struct problem *p, struct device *dev, struct products *result)
{
    struct matrix w;

    matrix_init(&w, dev, p->type, p->tensor, p->k, 0, p->n, 0, p->k);
    products_init(result, dev, &w, p->a.x, p->rows, p->group_k, SKEW);
    matrix_close(&w, dev);
}

/* Weights are of about 1 / sqrt(k), and errors mostly cancel out. */
static double tolerance(const struct problem *p, int32_t row)
{
    double squares = 0;

    for (int32_t i = 0; i < p->k; i++)
        squares += (double)p->a.x[(int64_t)row * p->k + i] * (double)p->a.x[(int64_t)row * p->k + i];
    return ldexp(sqrt(squares / p->k), p->type == TYPE_BF16 ? -6 : -8);
}

static void expect_near(const struct problem *p, const struct products *result, int32_t row)
{
    double most = tolerance(p, row);

    for (int64_t i = (int64_t)row * p->n; i < (int64_t)(row + 1) * p->n; i++) {
        double wanted = (double)p->wanted[i];

        if (fabs((double)result->out[i] - wanted) > most)
            fail_msg("%s %d x %d x %d: row %d: %g, not %g", tensor_type_info(p->type)->name, p->rows, p->n, p->k,
                     row, (double)result->out[i], wanted);
        if (!p->group_k)
            continue;
        assert_true(fabs((double)result->alone[i] - wanted) <= most);
        assert_true(fabs(result->sums[i] - wanted) <= most + EXACT_GRID);
        assert_true(result->sums[i] == nearbyint(result->sums[i] / EXACT_GRID) * EXACT_GRID);
    }
}

/* How often what goes to stderr in the meantime has `part`. */
static int count_told(const struct problem *p, struct device *dev, struct products *result, const char *part)
{
    struct told told = told_begin();

    multiply(p, dev, result);
    return told_end(told, part);
}

/* Before the library is opened, which is once. */
static void a_library_that_is_not_there_or_another_is_a_sentence(void **state)
{
    struct device *dev;

    (void)state;
    expect_fails(open_gpu(9, "/nowhere/lt.so", &dev), ERR_NOT_FOUND, "cuBLASLt is not found: /nowhere/lt.so: ");
    expect_fails(open_gpu(9, "libc.so.6", &dev), ERR_NOT_FOUND, "libc.so.6 is no cuBLASLt: it has no cublasLtGetV");
    if (!library())
        return;
    setenv("EMULATED_CUBLASLT_FAULT", "version", 1);
    expect_fails(open_gpu(9, library(), &dev), ERR_NOT_FOUND,
                 "is cuBLASLt of version number 120100, and tandem_cuda.so was built for CUDA 13's");
    setenv("EMULATED_CUBLASLT_FAULT", "create", 1);
    expect_fails(open_gpu(9, library(), &dev), ERR_NOT_FOUND, "cuBLASLt does not start on GPU 0");
    unsetenv("EMULATED_CUBLASLT_FAULT");
}

static void products_are_near_the_specification(void **state)
{
    static const int32_t shapes[][4] = {/* rows, n, k, group_k */
                                        {1, 7, 32, 32},    {8, 96, 40, 0},    {9, 33, 96, 32},  {17, 130, 200, 0},
                                        {64, 32, 256, 64}, {100, 64, 100, 0}, {65, 96, 512, 128}};
    struct device *dev = gpu(1);

    (void)state;
    for (int type = 0; type < 2; type++)
        for (size_t i = 0; i < COUNT_OF(shapes); i++) {
            struct problem p = {.type = type ? TYPE_BF16 : TYPE_F16, .rows = shapes[i][0], .n = shapes[i][1],
                                .k = shapes[i][2], .group_k = shapes[i][3]};
            struct products result;

            problem_init(&p);
            specify(&p);
            assert_true(count_told(&p, dev, &result, "refuses") == 0 || !library());
            for (int32_t r = 0; r < p.rows; r++)
                expect_near(&p, &result, r);
            products_close(&result);
            problem_close(&p);
        }
    device_close(dev);
}

static void rows_that_halves_cannot_hold_are_scaled(void **state)
{
    static const float factors[] = {1, 1e7f, 1e-7f, 1e30f, 1e-30f, 1e-42f, 0};
    struct problem p = {.type = TYPE_F16, .rows = 12, .n = 40, .k = 100};
    struct device *dev = gpu(1);
    struct products result;

    (void)state;
    problem_init(&p);
    for (int32_t r = 0; r < p.rows; r++)
        for (int32_t i = 0; i < p.k; i++)
            p.a.x[r * p.k + i] *= factors[r % (int)COUNT_OF(factors)];
    p.a.x[10 * p.k + 3] = NAN;
    p.a.x[11 * p.k + 3] = INFINITY;
    specify(&p);
    multiply(&p, dev, &result);
    for (int32_t r = 0; r < 10; r++)
        if (factors[r % (int)COUNT_OF(factors)] != 1e-42f) /* as little is left of it in floats */
            expect_near(&p, &result, r);
    for (int32_t i = 0; i < p.n; i++)
        assert_false(isfinite(result.out[10 * p.n + i]) || isfinite(result.out[11 * p.n + i]));
    products_close(&result);
    problem_close(&p);
    device_close(dev);
}

static void more_rows_than_its_memory_holds_go_in_pieces(void **state)
{
    struct problem p = {.type = TYPE_BF16, .rows = 4100, .n = 2, .k = 8192};
    struct device *dev = gpu(1);
    struct products result;

    (void)state;
    problem_init(&p);
    specify(&p);
    multiply(&p, dev, &result);
    for (int32_t r = 0; r < p.rows; r++)
        expect_near(&p, &result, r);
    products_close(&result);
    problem_close(&p);
    device_close(dev);
}

static void few_rows_and_other_devices_keep_their_kernels(void **state)
{
    struct problem few = {.type = TYPE_BF16, .rows = 8, .n = 64, .k = 128, .group_k = 32};
    struct problem more = {.type = TYPE_BF16, .rows = 90, .n = 64, .k = 128, .group_k = 32};
    struct device *plain = gpu(0), *dev = gpu(9);
    struct products a, b;

    (void)state;
    problem_init(&few);
    multiply(&few, plain, &a);
    multiply(&few, dev, &b);
    assert_true(products_are_same(&a, &b));
    products_close(&a);
    products_close(&b);
    problem_init(&more);
    multiply(&more, plain, &a);
    multiply(&more, dev, &b);
    assert_false(products_are_same(&a, &b)); /* or it is not in use */
    products_close(&a);
    products_close(&b);
    problem_close(&few);
    problem_close(&more);
    device_close(plain);
    device_close(dev);
}

static void a_matmul_can_be_recorded(void **state)
{
    struct problem p = {.type = TYPE_F16, .rows = 24, .n = 64, .k = 128};
    struct device *dev = gpu(9);
    int64_t x_bytes = (int64_t)p.rows * p.k * 4, out_bytes = (int64_t)p.rows * p.n * 4;
    struct device_recording *recording;
    struct products result = {.out = mem_new_array(float, p.rows * p.n)};
    struct activations a = {.rows = p.rows, .k = p.k};
    struct matrix w;
    float *out;

    (void)state;
    problem_init(&p);
    a.x = device_array(dev, NULL, x_bytes);
    out = device_array(dev, NULL, out_bytes);
    matrix_init(&w, dev, p.type, p.tensor, p.k, 0, p.n, 0, p.k);
    expect_ok(device_record(dev)); /* the first use of all */
    device_kernels(dev)->matmul(dev, out, p.n, &a, &w);
    expect_ok(device_end_record(dev, &recording));
    for (int round = 0; round < 2; round++) {
        for (int32_t i = 0; i < p.rows * p.k; i++)
            p.a.x[i] *= 1e-6f;
        specify(&p);
        expect_ok(device_write(dev, a.x, p.a.x, x_bytes));
        expect_ok(device_replay(dev, recording));
        expect_ok(device_read(dev, result.out, out, out_bytes));
        for (int32_t r = 0; r < p.rows; r++)
            expect_near(&p, &result, r);
    }
    device_recording_free(dev, recording);
    matrix_close(&w, dev);
    device_free(dev, a.x, x_bytes);
    device_free(dev, out, out_bytes);
    products_close(&result);
    problem_close(&p);
    device_close(dev);
}

static void what_it_refuses_is_our_own_kernels_and_told_once(void **state)
{
    static const char *const faults[] = {"heuristic", "matmul"};
    struct problem p = {.type = TYPE_BF16, .rows = 45, .n = 64, .k = 128, .group_k = 32};
    const char *told = "cuBLASLt refuses a matmul of 48 rows by 64 x 128 of bf16";
    struct device *plain = gpu(0);
    struct products wanted, result;

    (void)state;
    problem_init(&p);
    multiply(&p, plain, &wanted);
    for (size_t i = 0; library() && i < COUNT_OF(faults); i++) {
        struct device *dev = gpu(9);

        setenv("EMULATED_CUBLASLT_FAULT", faults[i], 1);
        assert_int_equal(count_told(&p, dev, &result, told), 1);
        assert_true(products_are_same(&wanted, &result));
        products_close(&result);
        assert_int_equal(count_told(&p, dev, &result, "cuBLASLt"), 0);
        products_close(&result);
        unsetenv("EMULATED_CUBLASLT_FAULT");
        device_close(dev);
    }
    products_close(&wanted);
    problem_close(&p);
    device_close(plain);
}

static void what_it_refuses_for_fewer_rows_is_asked_for_again(void **state)
{
    struct problem p = {.type = TYPE_BF16, .rows = 45, .n = 64, .k = 128, .group_k = 32};
    struct device *plain = gpu(0), *dev = gpu(9);
    struct products own, result;

    (void)state;
    problem_init(&p);
    specify(&p);
    multiply(&p, plain, &own);
    setenv("EMULATED_CUBLASLT_FAULT", "narrow", 1);
    assert_int_equal(count_told(&p, dev, &result, "refuses"), 0);
    unsetenv("EMULATED_CUBLASLT_FAULT");
    assert_false(products_are_same(&own, &result));
    for (int32_t r = 0; r < p.rows; r++)
        expect_near(&p, &result, r);
    products_close(&own);
    products_close(&result);
    problem_close(&p);
    device_close(plain);
    device_close(dev);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_library_that_is_not_there_or_another_is_a_sentence),
    cmocka_unit_test(products_are_near_the_specification),
    cmocka_unit_test(rows_that_halves_cannot_hold_are_scaled),
    cmocka_unit_test(more_rows_than_its_memory_holds_go_in_pieces),
    cmocka_unit_test(few_rows_and_other_devices_keep_their_kernels),
    cmocka_unit_test(a_matmul_can_be_recorded),
    cmocka_unit_test(what_it_refuses_is_our_own_kernels_and_told_once),
    cmocka_unit_test(what_it_refuses_for_fewer_rows_is_asked_for_again),
};

/* In a process of its own, since the library stays open, and a test wants to see it opened. */
static bool has_library(void)
{
    pid_t pid = fork();
    int status = -1;

    if (pid == 0) {
        struct device *dev;

        if (open_gpu(1, library(), &dev) == OK)
            _exit(0);
        printf("1..0 # SKIP %s\n", fail_text());
        fflush(stdout);
        _exit(1);
    }
    return waitpid(pid, &status, 0) == pid && status == 0;
}

int main(void)
{
    if (!has_gpus())
        return 0;
    return library() || has_library() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
