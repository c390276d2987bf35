/*
 * quantize: groups of activations from registers, for the kernels that make activations.
 */
#ifndef KERNELS_CPU_QUANTIZE_H
#define KERNELS_CPU_QUANTIZE_H

#include "kernels/cpu/vec.h"
#include "kernels/quant_block.h"

enum {
    BLOCK_VECTORS = QUANT_BLOCK / LANES,
    MAX_GROUP_BLOCKS = MAX_ACTIVATION_GROUP / QUANT_BLOCK,
    GROUP_VECTORS = MAX_ACTIVATION_GROUP / LANES, /* at most */
};

INLINE void quantize_block(const struct activations *a, int64_t b, const vf *x, float scale, float inverse)
{
    vi codes[BLOCK_VECTORS];
    int32_t sums[2];

    UNROLL for (int i = 0; i < BLOCK_VECTORS; i++) {
        vf v = x[i] * inverse; /* at most 127 and a bit, which rounds to 127 */

        v = (vf)((vi)v & (v == v)); /* NaN: 0 */
        codes[i] = (vi)(v + EXP_ROUND) - (vi)vf_set(EXP_ROUND);
    }
    store_codes(a->q + b * QUANT_BLOCK, codes, sums);
    a->sums[2 * b] = (int16_t)sums[0];
    a->sums[2 * b + 1] = (int16_t)sums[1];
    put_starts(a, b, sums[0], sums[1]);
    a->d[b] = scale;
    if (a->z)
        a->z[b] = scale * (float)(sums[0] + sums[1]);
}

/* Blocks [b, b + count), counted over rows, which are a group, from x: [count * BLOCK_VECTORS]. */
INLINE void quantize_group(const struct activations *a, int64_t b, const int count, const vf *x)
{
    vf most = vf_set(0);

    UNROLL for (int i = 0; i < count * BLOCK_VECTORS; i++)
        most = vf_max(vf_abs(x[i]), most);

    float max = vf_max_lanes(most);
    float scale = max < SMALLEST_MAX ? 0 : max / 127.0f;
    float inverse = max < SMALLEST_MAX ? 0 : 127.0f / max;

    UNROLL for (int i = 0; i < count; i++)
        quantize_block(a, b + i, x + i * BLOCK_VECTORS, scale, inverse);
}

/* The activations of a group, in whichever of the two forms are wanted. */
INLINE void put_group(const struct activations *a, int64_t b, const int count, const vf *x)
{
    if (a->x)
        UNROLL for (int i = 0; i < count * BLOCK_VECTORS; i++)
            vf_store(a->x + b * QUANT_BLOCK + i * LANES, x[i]);
    if (a->q)
        quantize_group(a, b, count, x);
}

/* Blocks of a group; of floats, which have none, of what is done at a time. */
INLINE int32_t group_blocks(const struct activations *a)
{
    ASSERT(!a->q || has_whole_groups(a), "groups of %d in rows of %d", a->group, a->k);
    return a->q ? a->group / QUANT_BLOCK : 1;
}

/* f(count, ...), compiled for each count that group_blocks gives, so that a group stays in registers. */
#define FOR_GROUP(count, f, ...)                                                                   \
    switch (count) {                                                                               \
    case 1: f(1, __VA_ARGS__); break;                                                              \
    case 2: f(2, __VA_ARGS__); break;                                                              \
    default: f(MAX_GROUP_BLOCKS, __VA_ARGS__); break;                                              \
    }

#endif
