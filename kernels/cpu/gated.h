/*
 * gated: the activations of a gated MLP, a block of 32 at a time, in registers.
 */
#ifndef KERNELS_CPU_GATED_H
#define KERNELS_CPU_GATED_H

#include "kernels/cpu/quantize.h"

INLINE void vf_exp_block(vf *x)
{
    enum { EACH = BLOCK_VECTORS < 4 ? BLOCK_VECTORS : 4 };

    for (int v = 0; v < BLOCK_VECTORS; v += EACH)
        vf_exp_each(EACH, x + v, EXP_LOWEST);
}

/* act of BLOCK_VECTORS vectors at once: the exponentials wait for themselves, not for each other. */
INLINE void silu(vf *g)
{
    vf e[BLOCK_VECTORS];

    UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
        e[v] = -g[v];
    vf_exp_block(e);
    UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
        g[v] = g[v] / (1.0f + e[v]);
}

INLINE void gelu(vf *g)
{
    vf e[BLOCK_VECTORS];

    UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
        e[v] = -2.0f * (GELU_SCALE * vf_fma(GELU_CUBE * g[v] * g[v], g[v], g[v]));
    vf_exp_block(e);
    UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
        g[v] = g[v] / (1.0f + e[v]);
}

/* x = act(gate) * up, of 32. */
INLINE void gated_of(void (*const act)(vf *), vf *x, const float *gate, const float *up)
{
    UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
        x[v] = vf_load(gate + v * LANES);
    act(x);
    UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
        x[v] *= vf_load(up + v * LANES);
}

/* A block to out. */
INLINE void gate_block(void (*const act)(vf *), float *out, const float *gate, const float *up)
{
    vf x[BLOCK_VECTORS];

    gated_of(act, x, gate, up);
    UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
        vf_store(out + v * LANES, x[v]);
}

#endif
