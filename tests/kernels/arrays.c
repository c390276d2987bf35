#include "tests/kernels/arrays.h"

#include "tests/kernels/copying_device.h"
#include "tests/support/expect.h"
#include "tests/support/under_tsan.h"

#include "kernels/cpu/device.h"
#include "kernels/cpu/table.h"

#include "proto/base/memory.h"

#include <stdlib.h>

enum { UNTOUCHED = 12345 };

void matrix_init(struct matrix *w, struct device *dev, enum tensor_type type, const void *tensor,
                 int32_t tensor_k, int32_t n0, int32_t n, int32_t k0, int32_t k)
{
    const struct kernels *kernels = device_kernels(dev);
    int64_t row_bytes = tensor_row_bytes(type, tensor_k);

    *w = (struct matrix){.type = type, .n = n, .k = k};
    expect_ok(device_alloc(dev, kernels->matrix_bytes(type, n, k), "a matrix", &w->data));
    kernels->matrix_pack(dev, w, 0, n, (const char *)tensor + n0 * row_bytes, row_bytes, k0);
}

void matrix_close(struct matrix *w, struct device *dev)
{
    const struct kernels *kernels = device_kernels(dev);

    device_free(dev, w->data, w->type == TYPE_F8_E4M3 ? kernels->fp8_bytes(w->n, w->k, w->fp8_has_blocks)
                                                      : kernels->matrix_bytes(w->type, w->n, w->k));
}

enum { FP8_BLOCK = 128 };

static int32_t num_blocks(int32_t items)
{
    return divide_up(items, FP8_BLOCK);
}

int64_t fp8_num_scales(const struct fp8_weights *weights)
{
    return weights->has_blocks ? (int64_t)num_blocks(weights->n) * num_blocks(weights->k) : weights->n;
}

float fp8_scale_at(const struct fp8_weights *weights, int32_t column, int32_t k)
{
    return weights->scales[weights->has_blocks ? column / FP8_BLOCK * num_blocks(weights->k) + k / FP8_BLOCK : column];
}

void fp8_weights_init(struct fp8_weights *weights, struct random *random)
{
    weights->codes = mem_new_array(uint8_t, (int64_t)weights->n * weights->k);
    weights->scales = mem_new_array(float, fp8_num_scales(weights));
    for (int64_t i = 0; i < fp8_num_scales(weights); i++)
        weights->scales[i] = random_float(random, 0.0005f, 0.004f);
}

void fp8_weights_close(struct fp8_weights *weights)
{
    mem_free(weights->codes);
    mem_free(weights->scales);
}

void matrix_init_fp8(struct matrix *w, struct device *dev, const struct fp8_weights *weights)
{
    const struct kernels *kernels = device_kernels(dev);
    int32_t n = weights->n, k = weights->k, first = n > FP8_BLOCK ? FP8_BLOCK : 0;

    *w = (struct matrix){.type = TYPE_F8_E4M3, .n = n, .k = k, .fp8_has_blocks = weights->has_blocks};
    w->data = device_array(dev, NULL, kernels->fp8_bytes(n, k, weights->has_blocks));
    kernels->fp8_pack(dev, w, first, n - first, weights->codes + (int64_t)first * k, k,
                      weights->scales + (weights->has_blocks ? first / FP8_BLOCK * num_blocks(k) : first));
    if (first)
        kernels->fp8_pack(dev, w, 0, first, weights->codes, k, weights->scales);
}

static void check_untouched(const float *p, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        assert_true(p[i] == UNTOUCHED);
}

static void multiply(struct products *products, struct device *dev, const struct matrix *w,
                     const struct activations *a, int32_t skew)
{
    int64_t n = products->n, stride = n + skew, count = skew + products->rows * stride;
    float *wide = mem_new_array(float, count), *there;

    for (int64_t i = 0; i < count; i++)
        wide[i] = UNTOUCHED;
    there = device_array(dev, wide, count * 4);
    device_kernels(dev)->matmul(dev, there + skew, stride, a, w);
    expect_ok(device_read(dev, wide, there, count * 4));
    check_untouched(wide, skew);
    for (int32_t r = 0; r < products->rows; r++) {
        const float *row = wide + skew + r * stride;

        memcpy(products->out + r * n, row, (size_t)n * 4);
        check_untouched(row + n, skew);
    }
    device_free(dev, there, count * 4);
    mem_free(wide);
}

static void multiply_groups(struct products *products, struct device *dev, const struct matrix *w,
                            const struct activations *a, int32_t group_k)
{
    const struct kernels *kernels = device_kernels(dev);
    int64_t count = (int64_t)products->rows * products->n;
    float *alone = device_array(dev, NULL, count * 4);
    double *sums = device_array(dev, NULL, count * 8);

    kernels->matmul_groups(dev, sums, a, w, group_k);
    kernels->matmul_groups_float(dev, alone, a, w, group_k);
    expect_ok(device_read(dev, products->sums, sums, count * 8));
    expect_ok(device_read(dev, products->alone, alone, count * 4));
    device_free(dev, alone, count * 4);
    device_free(dev, sums, count * 8);
}

void products_init(struct products *products, struct device *dev, const struct matrix *w, const float *x, int32_t rows,
                   int32_t group_k, int32_t skew)
{
    int64_t count = (int64_t)rows * w->n, x_bytes = (int64_t)rows * w->k * 4;
    struct activations a = {.rows = rows, .k = w->k, .x = device_array(dev, x, x_bytes)};

    *products = (struct products){rows, w->n, mem_new_array(float, count), mem_new_array(float, count),
                                  mem_new_array(double, count)};
    multiply(products, dev, w, &a, skew);
    if (group_k)
        multiply_groups(products, dev, w, &a, group_k);
    device_free(dev, a.x, x_bytes);
}

void products_close(struct products *products)
{
    mem_free(products->out);
    mem_free(products->alone);
    mem_free(products->sums);
}

bool products_are_same(const struct products *a, const struct products *b)
{
    size_t count = (size_t)a->rows * (size_t)a->n;

    return memcmp(a->out, b->out, count * 4) == 0 && memcmp(a->sums, b->sums, count * 8) == 0 &&
           memcmp(a->alone, b->alone, count * 4) == 0;
}

void *device_array(struct device *dev, const void *from, int64_t bytes)
{
    void *p;

    expect_ok(device_alloc(dev, bytes, "a test's array", &p));
    if (from)
        expect_ok(device_write(dev, p, from, bytes));
    return p;
}

/* What this machine lacks, and the build has for tests; then NULL. */
static const struct emulated {
    const char *name;
    const struct kernels *kernels;
} emulated[] = {
#if HAS_EMU512
    {"emu512", &kernels_emu512},
#endif
#if HAS_EMUAMX
    {"emuamx", &kernels_emuamx},
#endif
    {NULL, NULL},
};

const char *const *tested_isas(void)
{
    static const char *isas[16];
    bool has_avx2 = false;
    int n = 0;

    for (const char *const *isa = device_isas(); *isa && n < MOST_ISAS; isa++) {
        if (strcmp(*isa, "ref") != 0)
            isas[n++] = *isa;
        has_avx2 |= strcmp(*isa, "avx2") == 0;
    }
    for (const struct emulated *e = emulated; e->name && has_avx2 && n < MOST_ISAS; e++) /* compiled for it */
        isas[n++] = e->name;
    if (getenv("TANDEM_TEST_CUDA_MODULE"))
        isas[n++] = "cuda";
    return isas;
}

bool has_gpu_of_less_shared_memory(void)
{
    const char *module = getenv("TANDEM_TEST_CUDA_MODULE");

    if (module && strstr(module, "emulated"))
        return true;
    puts("# no emulated GPUs: what is about their shared memory is skipped");
    return false;
}

struct device *open_device(const char *isa, int32_t num_threads)
{
    struct device *dev;

    for (const struct emulated *e = emulated; isa && e->name; e++)
        if (strcmp(isa, e->name) == 0) {
            expect_ok(cpu_device_new(e->kernels, num_threads, NULL, &dev));
            return dev;
        }
    if (isa && strncmp(isa, "cuda", 4) == 0) {
        setenv("EMULATED_CUDA_CAPABILITY", "8.0,8.9", 0);
        expect_ok(device_open(&(struct device_options){.name = "cuda",
                                                       .num_threads = num_threads,
                                                       .ordinal = strcmp(isa, "cuda:1") == 0,
                                                       .module = getenv("TANDEM_TEST_CUDA_MODULE")},
                              &dev));
        return copying_device_new(dev);
    }
    expect_ok(device_open(&(struct device_options){"cpu", isa, num_threads}, &dev));
    return dev;
}

void expect_same_floats(const char *what, const float *a, const float *b, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], 4) != 0)
            fail_msg("%s: element %lld of %lld is %a, not %a", what, (long long)i, (long long)count,
                     (double)a[i], (double)b[i]);
}
