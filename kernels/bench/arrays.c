#include "kernels/bench/arrays.h"

#include "proto/base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

    ASSERT(p, "no %lld bytes", (long long)bytes);
    memset(p, 0, (size_t)bytes);
    return p;
}

void activations_init(struct activations *a, struct random *random, int32_t rows, int32_t k)
{
    int64_t count = (int64_t)rows * k;
    float *x = aligned(count * 4);

    random_hidden(random, x, count);
    *a = (struct activations){
        .rows = rows, .k = k, .group = k % 32 ? 0 : activation_group(k), .x = x,
        .q = aligned(count),
        .d = aligned(count / 32 * 4),
        .z = aligned(count / 32 * 4),
        .sums = aligned(count / 32 * 4),
    };
    for (int i = 0; i < NUM_STARTS; i++)
        a->starts[i] = aligned(count / 32 * 4);
}

void activations_close(struct activations *a)
{
    free((void *)a->x);
    free(a->q);
    free(a->d);
    free(a->z);
    free(a->sums);
    for (int i = 0; i < NUM_STARTS; i++)
        free(a->starts[i]);
}
