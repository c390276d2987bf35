/*
 * quant_block: 32 weights of any quantised type as codes and scales, and what they mean.
 *
 * This is the arithmetic that every matmul of quantised weights does, on every device. For a block
 * of weights with codes u, and a block of activations with codes a, scale d_a, z_a = d_a * sum(a):
 *
 *  SCALE_PLAIN, SCALE_SUPER  w = d_w * u + m_w
 *      d_w = d           m_w = m | -offset * d | none       SCALE_PLAIN
 *      d_w = d * scale   m_w = -(m * min)                   SCALE_SUPER (exact in a float)
 *      acc = fma(float(sum(u * a)), d_w * d_a, acc)
 *      acc = fma(m_w, z_a, acc)                             not where there is no m_w
 *
 *  SCALE_HALVES  w = d * scale[h] * (u - offset) - m * min[h], h = which half of the block
 *      acc = fma(float(sum over h of scale[h] * sum((u - offset) * a)), d * d_a, acc)
 *      acc = fma(float(sum over h of min[h] * sum(a)), -(m * d_a), acc)    where there is a min
 *
 * Every integer sum is below 2^24, so its float is exact; every product of d and a scale is exact.
 *
 * Kept readable by C++ and nvcc.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_QUANT_BLOCK_H
#define KERNELS_QUANT_BLOCK_H

#include "proto/model/quant.h"

#include <stdint.h>

/* What is a constant for a constant type; in C++ it may be an argument of a template. */
#if defined(__CUDACC__)
#define QUANT_CONSTANT __host__ __device__ constexpr
#elif defined(__cplusplus)
#define QUANT_CONSTANT constexpr
#else
#define QUANT_CONSTANT inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { QUANT_BLOCK = 32, SUPER_BLOCKS = 8 }; /* elements of a block; blocks of a K type's 256 */

enum scale_kind { SCALE_NONE, SCALE_PLAIN, SCALE_SUPER, SCALE_HALVES };

struct quant_form {
    enum scale_kind scales; /* SCALE_NONE: F32, F16, BF16 */
    int code_bits;          /* 4, 5, 6 unsigned (Q2_K and Q3_K use 2 and 3 of them); 8 signed */
    int offset;             /* taken off each code, 0 where `has_min` or signed */
    bool has_min;           /* m (and min) mean something */
};

struct quant_block {
    uint8_t codes[QUANT_BLOCK];
    uint16_t d, m; /* half */
    int8_t scale[2], min[2]; /* SCALE_SUPER uses [0] */
};

/* Constant for a constant type, so a kernel compiled for one type has no branches on it. */
static QUANT_CONSTANT struct quant_form quant_form(enum tensor_type type)
{
    switch (type) {
    case TYPE_Q4_0: return (struct quant_form){SCALE_PLAIN, 4, 8, false};
    case TYPE_Q4_1: return (struct quant_form){SCALE_PLAIN, 4, 0, true};
    case TYPE_Q5_0: return (struct quant_form){SCALE_PLAIN, 5, 16, false};
    case TYPE_Q5_1: return (struct quant_form){SCALE_PLAIN, 5, 0, true};
    case TYPE_Q8_0: return (struct quant_form){SCALE_PLAIN, 8, 0, false};
    case TYPE_Q2_K: return (struct quant_form){SCALE_HALVES, 4, 0, true};
    case TYPE_Q3_K: return (struct quant_form){SCALE_HALVES, 4, 4, false};
    case TYPE_Q4_K: return (struct quant_form){SCALE_SUPER, 4, 0, true};
    case TYPE_Q5_K: return (struct quant_form){SCALE_SUPER, 5, 0, true};
    case TYPE_Q6_K: return (struct quant_form){SCALE_HALVES, 6, 32, false};
    default: return (struct quant_form){SCALE_NONE, 0, 0, false};
    }
}

/* The weight of code i, as the matmul sees it. */
static inline float quant_block_weight(struct quant_form form, const struct quant_block *w, int i)
{
    float d = half_to_float(w->d), m = half_to_float(w->m);
    int h = i / 16, code = form.code_bits == 8 ? (int8_t)w->codes[i] : w->codes[i];

    if (form.scales == SCALE_HALVES)
        return __builtin_fmaf((float)(w->scale[h] * (code - form.offset)), d,
                              -(m * (float)w->min[h]));
    if (form.scales == SCALE_SUPER) {
        d *= (float)w->scale[0];
        m *= -(float)w->min[0];
    } else if (!form.has_min) {
        m = (float)-form.offset * d;
    }
    return __builtin_fmaf((float)code, d, m);
}

/* Block `index` (elements 32 * index and on) of the row of a GGUF tensor at `row`. */
void quant_block_read(enum tensor_type type, const void *row, int64_t index,
                      struct quant_block *out);

#ifdef __cplusplus
}
#endif
#endif
