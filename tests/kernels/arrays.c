#include "tests/kernels/arrays.h"

#include "tests/kernels/copying_device.h"
#include "tests/support/expect.h"
#include "tests/support/under_tsan.h"

#include "kernels/cpu/device.h"
#include "kernels/cpu/table.h"

#include <stdlib.h>

void matrix_init(struct matrix *w, struct device *dev, enum tensor_type type, const void *tensor,
                 int32_t tensor_k, int32_t n0, int32_t n, int32_t k0, int32_t k)
{
    const struct kernels *kernels = device_kernels(dev);
    int64_t row_bytes = tensor_row_bytes(type, tensor_k);

    *w = (struct matrix){.type = type, .n = n, .k = k};
    expect_ok(device_alloc(dev, kernels->matrix_bytes(type, n, k), "a matrix", &w->data));
    kernels->matrix_pack(dev, w, 0, n, (const char *)tensor + n0 * row_bytes, row_bytes, k0);
}

void matrix_init_codes(struct matrix *w, struct device *dev, int32_t n, int32_t k, bool has_blocks,
                       const uint8_t *codes, const float *scales)
{
    enum { BLOCK = 128 };
    const struct kernels *kernels = device_kernels(dev);
    int32_t first = n > BLOCK ? BLOCK : 0;

    *w = (struct matrix){.type = TYPE_F8_E4M3, .n = n, .k = k, .fp8_has_blocks = has_blocks};
    w->data = device_array(dev, NULL, kernels->fp8_bytes(n, k, has_blocks));
    kernels->fp8_pack(dev, w, first, n - first, codes + (int64_t)first * k, k,
                      scales + (has_blocks ? first / BLOCK * ((k + BLOCK - 1) / BLOCK) : first));
    if (first)
        kernels->fp8_pack(dev, w, 0, first, codes, k, scales);
}

void matrix_close(struct matrix *w, struct device *dev)
{
    const struct kernels *kernels = device_kernels(dev);

    device_free(dev, w->data, w->type == TYPE_F8_E4M3 ? kernels->fp8_bytes(w->n, w->k, w->fp8_has_blocks)
                                                      : kernels->matrix_bytes(w->type, w->n, w->k));
}

void *device_array(struct device *dev, const void *from, int64_t bytes)
{
    void *p;

    expect_ok(device_alloc(dev, bytes, "a test's array", &p));
    if (from)
        expect_ok(device_write(dev, p, from, bytes));
    return p;
}

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
    if (HAS_EMU512 && has_avx2 && n < MOST_ISAS)
        isas[n++] = "emu512"; /* compiled for it */
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

#if HAS_EMU512
    if (isa && strcmp(isa, "emu512") == 0) {
        expect_ok(cpu_device_new(&kernels_emu512, num_threads, NULL, &dev));
        return dev;
    }
#endif
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
