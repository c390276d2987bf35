/*
 * numerics: the constants that fix the bits of a result, shared by ref/ and cpu/.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_NUMERICS_H
#define KERNELS_NUMERICS_H

#include "kernels/kernels.h"

#include <string.h>

enum {
    /* Sums over a row: element i adds to partial sum i % 16 in order of i; then halves are added
     * to each other, 8, 4, 2, 1. Whole numbers of vectors on every instruction set. */
    SUM_LANES = 16,
    /* Attention: positions [256 t, 256 t + 256) are one tile. Each tile has a softmax of its own, and
     * they are merged in order of position: several threads can share a long request, a tile each. */
    KV_TILE_TOKENS = 256,
};

/* Attention: the maximum of no scores. Finite, so that no difference of two maxima is NaN. */
#define NO_SCORE -0x1.fffffep127f

/*
 * Attention over KV_BFLOAT16 is made of products of bfloat16, which are exact in a float, and adds them up in pairs, of
 * neighbouring dimensions of q and k or of neighbouring positions of v: sum = fma(a[2i + 1], b[2i + 1], sum), then
 * sum = fma(a[2i], b[2i], sum). That is what the instruction VDPBF16PS does, but that it takes subnormal floats for
 * zeros; so that none comes up, bfloat16_of_float takes what is below BFLOAT16_LEAST for zero: all factors are multiples
 * of 2^-57 then, products and sums of 2^-114. The exponential of a score BFLOAT16_EXP_LOWEST below the maximum is zero.
 */
#define BFLOAT16_LEAST      0x1p-50f
#define BFLOAT16_EXP_LOWEST -34.0f /* exp(-34) > 2^-50 */

/* The scale of KV_FP8. */
#define FP8_SCALE 256.0f

/* Adding and subtracting this rounds a double to a multiple of a grid, half to even, up to 2^51 of
 * them: it is 1.5 * 2^52 of them, where a double counts in units of the grid. */
#define GRID_MAGIC(grid) (6755399441055744.0 * (grid))
#define EXACT_MAGIC      GRID_MAGIC(EXACT_GRID)

/* quantize and KV_INT8: a block whose max|x| is below this counts as zeros, since 127 / max would overflow. */
#define SMALLEST_MAX 0x1p-100f

/*
 * What takes the offset of the codes of SCALE_WHOLE off sums of their products with a block of activations on CPUs, pairs
 * of 16 bits (whole_start in cpu/vec.h). In the low ones, of which "raised" are 2^15 more, so that they stay positive and
 * nothing is carried over to the high ones as products are added:
 *   START_MIN       of four bits: -8 * sum(a), raised; in the high ones sum(a), for minima of five bits too
 *   START_HALVES    of five bits: -16 * sum(a) of the first half; in the high ones that of the second
 *   START_SECOND    that of the second, raised
 *   START_PLAIN     of four bits: -8 * sum(a)
 */
static inline void put_starts(const struct activations *a, int64_t block, int32_t sum0, int32_t sum1)
{
    int32_t sum = sum0 + sum1;

    if (a->starts[START_MIN])
        a->starts[START_MIN][block] = sum * 65536 + 0x8000 - 8 * sum;
    if (a->starts[START_HALVES])
        a->starts[START_HALVES][block] = (-16 * sum0 & 0xffff) - 16 * sum1 * 65536;
    if (a->starts[START_SECOND])
        a->starts[START_SECOND][block] = 0x8000 - 16 * sum1;
    if (a->starts[START_PLAIN])
        a->starts[START_PLAIN][block] = -8 * sum;
}

/*
 * exp(x) = 2^n * (1 + r + r² * P(r)), n = round(x / ln 2), r = x - n * ln 2 in two parts.
 * P is the minimax polynomial of Cephes (S. Moshier, expf.c). Largest error found over all floats:
 * 1 ulp (tests/kernels/test_rows.c). Below EXP_LOWEST the result is 0, from EXP_HIGHEST on it stays.
 */
#define EXP_LOWEST    -87.0f
#define EXP_HIGHEST   88.0f
#define EXP_LOG2_E    1.44269504088896341f
#define EXP_LN2_HIGH  0.693359375f
#define EXP_LN2_LOW   -2.12194440e-4f
#define EXP_ROUND     12582912.0f /* 1.5 * 2^23: the low bits of x + this are round(x) */
#define EXP_P0        1.9875691500e-4f
#define EXP_P1        1.3981999507e-3f
#define EXP_P2        8.3334519073e-3f
#define EXP_P3        4.1665795894e-2f
#define EXP_P4        1.6666665459e-1f
#define EXP_P5        5.0000001201e-1f

/* gelu(g) = g / (1 + exp(-2 u)), u = GELU_SCALE * (g + GELU_CUBE * g³), which is the tanh form. */
#define GELU_SCALE 0.797884560802865356f /* sqrt(2 / pi) */
#define GELU_CUBE  0.044715f

/* Rounded to nearest even. NaN stays NaN. */
static inline uint16_t bfloat16_of_float(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof(bits));
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fc0;
    return f < BFLOAT16_LEAST && f > -BFLOAT16_LEAST ? 0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float float_of_bfloat16(uint16_t b)
{
    uint32_t bits = (uint32_t)b << 16;
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

#endif
