/*
 * quantize: a block of 32 activations from registers, for the kernels that make activations.
 */
#ifndef KERNELS_CPU_QUANTIZE_H
#define KERNELS_CPU_QUANTIZE_H

#include "kernels/cpu/vec.h"
#include "kernels/quant_block.h"

enum { BLOCK_VECTORS = QUANT_BLOCK / LANES };

/* Block b of `a`, counted over rows, from x: [BLOCK_VECTORS]. */
INLINE void quantize_block(const struct activations *a, int64_t b, const vf *x)
{
    vf most = vf_set(0);
    vi codes[BLOCK_VECTORS];
    int32_t sums[2];

    UNROLL for (int i = 0; i < BLOCK_VECTORS; i++)
        most = vf_max(vf_abs(x[i]), most);

    float max = vf_max_lanes(most);
    float scale = max < SMALLEST_MAX ? 0 : max / 127.0f;
    float inverse = max < SMALLEST_MAX ? 0 : 127.0f / max;

    UNROLL for (int i = 0; i < BLOCK_VECTORS; i++) {
        vf v = x[i] * inverse; /* at most 127 and a bit, which rounds to 127 */

        v = (vf)((vi)v & (v == v)); /* NaN: 0 */
        codes[i] = (vi)(v + EXP_ROUND) - (vi)vf_set(EXP_ROUND);
    }
    store_codes(a->q + b * QUANT_BLOCK, codes, sums);
    a->sums[2 * b] = (int16_t)sums[0];
    a->sums[2 * b + 1] = (int16_t)sums[1];
    a->d[b] = scale;
    a->z[b] = scale * (float)(sums[0] + sums[1]);
}

/* The activations of block b, in whichever of the two forms are wanted. */
INLINE void put_block(const struct activations *a, int64_t b, const vf *x)
{
    if (a->x)
        UNROLL for (int i = 0; i < BLOCK_VECTORS; i++)
            vf_store(a->x + b * QUANT_BLOCK + i * LANES, x[i]);
    if (a->q)
        quantize_block(a, b, x);
}

#endif
