#include "tests/kernels/arrays.h"

#include "tests/support/expect.h"

#include "kernels/cpu/device.h"
#include "kernels/cpu/table.h"

#include "proto/base/memory.h"

#include <math.h>

/* xorshift64* (Vigna 2016) */
uint32_t random_u32(struct random *random)
{
    uint64_t s = random->state ? random->state : 88172645463325252u;

    s ^= s >> 12;
    s ^= s << 25;
    s ^= s >> 27;
    random->state = s;
    return (uint32_t)(s * 2685821657736338717u >> 32);
}

float random_float(struct random *random, float low, float high)
{
    return low + (high - low) * ((float)(random_u32(random) >> 8) * 0x1p-24f);
}

void random_hidden(struct random *random, float *out, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        float scale = random_u32(random) % 97 == 0 ? 20 : 1;

        out[i] = scale * random_float(random, -1, 1) * random_float(random, 0.1f, 2);
    }
}

static void put_half(uint8_t *p, float f)
{
    uint16_t h = float_to_half(f);

    memcpy(p, &h, 2);
}

/* Random codes and scales everywhere, then the halves, whose places are in proto/model/quant.c. */
static void random_block(struct random *random, enum tensor_type type, uint8_t *block, float size)
{
    static const struct {
        int d, m;    /* offsets of the half scale and minimum, -1: none */
        float range; /* largest code times largest scale */
    } places[NUM_TENSOR_TYPES] = {
        [TYPE_Q4_0] = {0, -1, 8},        [TYPE_Q4_1] = {0, 2, 8},
        [TYPE_Q5_0] = {0, -1, 16},       [TYPE_Q5_1] = {0, 2, 16},
        [TYPE_Q8_0] = {0, -1, 128},      [TYPE_Q2_K] = {80, 82, 15 * 2},
        [TYPE_Q3_K] = {108, -1, 32 * 4}, [TYPE_Q4_K] = {0, 2, 63 * 8},
        [TYPE_Q5_K] = {0, 2, 63 * 16},   [TYPE_Q6_K] = {208, -1, 128 * 32},
    };
    float d = size / places[type].range * random_float(random, 0.5f, 1.5f);

    for (int i = 0; i < tensor_type_info(type)->block_bytes; i++)
        block[i] = (uint8_t)random_u32(random);
    put_half(block + places[type].d, d);
    if (places[type].m >= 0)
        put_half(block + places[type].m,
                 type < TYPE_Q2_K ? -size : size / (type == TYPE_Q2_K ? 15 : 63));
}

void *random_weights(struct random *random, enum tensor_type type, int32_t rows, int32_t k)
{
    int64_t row_bytes = tensor_row_bytes(type, k);
    const struct tensor_type_info *info = tensor_type_info(type);
    uint8_t *tensor = mem_alloc((size_t)(rows * row_bytes) + 1);
    float size = 1 / sqrtf((float)k);

    for (int64_t at = 0; at < rows * row_bytes; at += info->block_bytes) {
        float f = random_float(random, -size, size);

        if (type == TYPE_F32)
            memcpy(tensor + at, &f, 4);
        else if (type == TYPE_F16)
            put_half(tensor + at, f);
        else if (type == TYPE_BF16)
            memcpy(tensor + at, (char *)&f + 2, 2);
        else
            random_block(random, type, tensor + at, size);
    }
    return tensor;
}

static void *aligned(int64_t bytes)
{
    void *p = aligned_alloc(64, (size_t)(bytes + 127) / 64 * 64);

    assert_non_null(p);
    memset(p, 0, (size_t)bytes);
    return p;
}

void activations_init(struct activations *a, struct random *random, int32_t rows, int32_t k)
{
    int64_t count = (int64_t)rows * k;
    float *x = aligned(count * 4);

    random_hidden(random, x, count);
    *a = (struct activations){
        .rows = rows, .k = k, .x = x,
        .q = aligned(count),
        .d = aligned(count / 32 * 4),
        .z = aligned(count / 32 * 4),
        .sums = aligned(count / 32 * 4),
    };
}

void activations_close(struct activations *a)
{
    free((void *)a->x);
    free(a->q);
    free(a->d);
    free(a->z);
    free(a->sums);
}

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
    device_free(dev, w->data, device_kernels(dev)->matrix_bytes(w->type, w->n, w->k));
}

const char *const *tested_isas(void)
{
    static const char *isas[16];
    bool has_avx2 = false;
    int n = 0;

    for (const char *const *isa = device_isas(); *isa; isa++) {
        if (strcmp(*isa, "ref") != 0)
            isas[n++] = *isa;
        has_avx2 |= strcmp(*isa, "avx2") == 0;
    }
    if (has_avx2)
        isas[n++] = "emu512"; /* compiled for it */
    return isas;
}

struct device *open_device(const char *isa, int32_t num_threads)
{
    struct device *dev;

#if defined(__x86_64__)
    if (isa && strcmp(isa, "emu512") == 0) {
        expect_ok(cpu_device_new(&kernels_emu512, num_threads, &dev));
        return dev;
    }
#endif
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
