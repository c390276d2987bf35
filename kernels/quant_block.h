/*
 * quant_block: 32 weights of any quantised type as codes and scales, and what they mean.
 *
 * This is the arithmetic that every matmul of quantised weights does, on every device. For a block
 * of weights with codes u, and a block of activations with codes a, scale d_a, z_a = d_a * sum(a):
 *
 *  SCALE_WHOLE  w = step * (s * (u - offset) + t), where s and t are whole numbers, and step is a power of two, one for
 *               the whole row of the tensor. With d (, m) of the file's block, w being d * (u - offset) or d * u + m:
 *      step = the least that no (offset * |d| + |m + offset * d|) / MOST_WEIGHT of the row's blocks is above; m + offset * d
 *             is 0 where there is no m
 *      s = round(d / step)    t = round(m / step) + offset * s | 0
 *      total += s * sum((u - offset) * a) + t * sum(a)      of the blocks of activations that share d_a
 *      acc = fma(float(total), d_a, acc)                    after the last one of these
 *      out = acc * step
 *    So w / step fits in 16 bits, as do a block's sum((u - offset) * a), or that of half of one of five bits: instructions
 *    that multiply 16 bits and add do the work of a conversion and two fmas, and where matrices of bytes are multiplied,
 *    weights are two of these. Of a group |total| is below 2^31.
 *    Where sums are to be exact (matmul_groups), acc is a double that begins with WHOLE_MAGIC, 1.5 * 2^52 times
 *    WHOLE_GRID, so that each fma rounds to a multiple of that grid:
 *      acc = fma(double(total), odd(d_a), acc);  out = (acc - WHOLE_MAGIC) * step
 *    odd(d_a) is the double d_a with its last bit set: times a total of 31 bits it is not halfway between two
 *    multiples as long as d_a is below 2^11, so what is added does not depend on what it is added to; and doubles
 *    count in units of the grid as long as sums are below 2^41 steps.
 *
 *  SCALE_PLAIN, SCALE_SUPER  w = d_w * u + m_w
 *      d_w = d           no m_w                             SCALE_PLAIN
 *      d_w = d * scale   m_w = -(m * min)                   SCALE_SUPER (exact in a float)
 *      acc = fma(float(sum(u * a)), d_w * d_a, acc)
 *      acc = fma(m_w, z_a, acc)                             not where there is no m_w
 *
 *  SCALE_HALVES  w = d * scale[h] * (u - offset) - m * min[h], h = which half of the block
 *      acc = fma(float(sum over h of scale[h] * sum((u - offset) * a)), d * d_a, acc)
 *      acc = fma(float(sum over h of min[h] * sum(a)), -(m * d_a), acc)    where there is a min
 *
 * But for totals, every integer sum is below 2^24, so its float is exact; every product of d and a scale is exact.
 *
 * Kept readable by C++ and nvcc.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_QUANT_BLOCK_H
#define KERNELS_QUANT_BLOCK_H

#include "kernels/numerics.h"

#include "proto/model/quant.h"

#include <stdint.h>
#include <string.h>

/* What is a constant for a constant type; in C++ it may be an argument of a template. And what GPUs call beside it. */
#if defined(__CUDACC__)
#define QUANT_CONSTANT __host__ __device__ constexpr
#define QUANT_INLINE   __host__ __device__ inline
#elif defined(__cplusplus)
#define QUANT_CONSTANT constexpr
#define QUANT_INLINE   inline
#else
#define QUANT_CONSTANT inline
#define QUANT_INLINE   inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { QUANT_BLOCK = 32, SUPER_BLOCKS = 8 }; /* elements of a block; blocks of a K type's 256 */

enum scale_kind { SCALE_NONE, SCALE_WHOLE, SCALE_PLAIN, SCALE_SUPER, SCALE_HALVES };

#define WHOLE_GRID  0x1p-10
#define WHOLE_MAGIC GRID_MAGIC(WHOLE_GRID)

enum { MOST_WEIGHT = 31000 }; /* weights fit in 16 bits, whichever way s and m are rounded */

/* (bits of a float + QUANT_STEP_UP) & QUANT_STEP_MASK: the power of two that it is, or the next above it; 0 of 0. */
enum { QUANT_STEP_UP = 0x7fffff, QUANT_STEP_MASK = 0x7f800000 };

struct quant_form {
    enum scale_kind scales; /* SCALE_NONE: F32, F16, BF16 */
    int code_bits;          /* 4, 5, 6 unsigned (Q2_K and Q3_K use 2 and 3 of them); 8 signed */
    int offset;             /* taken off each code; 0: none */
    bool has_min;           /* m (and min) mean something */
};

struct quant_block {
    uint8_t codes[QUANT_BLOCK];
    uint16_t d, m; /* half */
    int8_t scale[2], min[2]; /* SCALE_SUPER uses [0] */
    int16_t s, t;  /* SCALE_WHOLE: quant_block_whole */
};

/* Constant for a constant type, so a kernel compiled for one type has no branches on it. */
static QUANT_CONSTANT struct quant_form quant_form(enum tensor_type type)
{
    switch (type) {
    case TYPE_Q4_0: return (struct quant_form){SCALE_WHOLE, 4, 8, false};
    case TYPE_Q4_1: return (struct quant_form){SCALE_WHOLE, 4, 8, true};
    case TYPE_Q5_0: return (struct quant_form){SCALE_WHOLE, 5, 16, false};
    case TYPE_Q5_1: return (struct quant_form){SCALE_WHOLE, 5, 16, true};
    case TYPE_Q8_0: return (struct quant_form){SCALE_PLAIN, 8, 0, false};
    case TYPE_Q2_K: return (struct quant_form){SCALE_HALVES, 4, 0, true};
    case TYPE_Q3_K: return (struct quant_form){SCALE_HALVES, 4, 4, false};
    case TYPE_Q4_K: return (struct quant_form){SCALE_SUPER, 4, 0, true};
    case TYPE_Q5_K: return (struct quant_form){SCALE_SUPER, 5, 0, true};
    case TYPE_Q6_K: return (struct quant_form){SCALE_HALVES, 6, 32, false};
    default: return (struct quant_form){SCALE_NONE, 0, 0, false};
    }
}

static QUANT_INLINE double quant_odd(float d)
{
    double x = (double)d;
    int64_t bits;

    memcpy(&bits, &x, sizeof(bits));
    bits |= 1;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* To nearest even, of |x| below 2^22. */
static inline int32_t quant_round(float x)
{
    return (int32_t)(x + EXP_ROUND - EXP_ROUND);
}

/* The weight of code i, as the matmul sees it. step: of its row, of SCALE_WHOLE. */
static inline float quant_block_weight(struct quant_form form, const struct quant_block *w, float step, int i)
{
    float d = half_to_float(w->d), m = half_to_float(w->m);
    int h = i / 16, code = form.code_bits == 8 ? (int8_t)w->codes[i] : w->codes[i];

    if (form.scales == SCALE_WHOLE)
        return step * (float)(w->s * (code - form.offset) + w->t);
    if (form.scales == SCALE_HALVES)
        return __builtin_fmaf((float)(w->scale[h] * (code - form.offset)), d,
                              -(m * (float)w->min[h]));
    if (form.scales == SCALE_SUPER) {
        d *= (float)w->scale[0];
        m *= -(float)w->min[0];
    }
    return __builtin_fmaf((float)code, d, m);
}

/* Block `index` (elements 32 * index and on) of the row of a GGUF tensor at `row`. */
void quant_block_read(enum tensor_type type, const void *row, int64_t index,
                      struct quant_block *out);

/* SCALE_WHOLE: the step of a row of so many blocks, all of the tensor's. NaN where a scale is not finite: so is all
 * that comes of the row then. */
float quant_row_step(enum tensor_type type, const void *row, int64_t num_blocks);

static inline float quant_inverse(float step)
{
    return step > 0 ? 1.0f / step : 0; /* all scales are 0, or one is none */
}

/* s and t of a block whose d and m are there; inverse: of its row's step. */
static inline void quant_block_whole(struct quant_form form, float inverse, struct quant_block *block)
{
    block->s = block->t = 0;
    if (inverse == 0)
        return;
    block->s = (int16_t)quant_round(half_to_float(block->d) * inverse);
    if (form.has_min)
        block->t = (int16_t)(quant_round(half_to_float(block->m) * inverse) + form.offset * block->s);
}

#ifdef __cplusplus
}
#endif
#endif
