/*
 * norm: the sum of squares of a row, in the order of numerics.h.
 */
#ifndef KERNELS_CPU_NORM_H
#define KERNELS_CPU_NORM_H

#include "kernels/cpu/vec.h"

#include <math.h>

enum { SUM_VECTORS = SUM_LANES / LANES };

INLINE void add_squares(vf *squares, const vf *x)
{
    UNROLL for (int v = 0; v < SUM_VECTORS; v++)
        squares[v] = vf_fma(x[v], x[v], squares[v]);
}

/* What a row of n is multiplied by, given its squares: [SUM_VECTORS]. */
INLINE float norm_scale(const vf *squares, int32_t n, float eps)
{
    return 1.0f / sqrtf(vf_sum_lanes(squares) / (float)n + eps);
}

#endif
