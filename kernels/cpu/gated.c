#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantize.h"

INLINE void vf_exp_block(vf *x)
{
    enum { EACH = BLOCK_VECTORS < 4 ? BLOCK_VECTORS : 4 };

    for (int v = 0; v < BLOCK_VECTORS; v += EACH)
        vf_exp_each(EACH, x + v);
}

struct gated {
    const struct activations *out;
    const float *gate, *up;
    int64_t stride;
};

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

/* Blocks are counted over rows: one row's can be shared out, too. */
INLINE void gate_blocks(void (*const act)(vf *), const struct gated *args, int64_t first, int64_t end)
{
    int64_t row_blocks = args->out->k / QUANT_BLOCK;

    for (int64_t b = first; b < end; b++) {
        int64_t at = b / row_blocks * args->stride + b % row_blocks * QUANT_BLOCK;
        vf x[BLOCK_VECTORS];

        UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
            x[v] = vf_load(args->gate + at + v * LANES);
        act(x);
        UNROLL for (int v = 0; v < BLOCK_VECTORS; v++)
            x[v] *= vf_load(args->up + at + v * LANES);
        put_block(args->out, b, x);
    }
}

static void silu_blocks(const void *args, int64_t first, int64_t end, void *scratch)
{
    (void)scratch;
    gate_blocks(silu, args, first, end);
}

static void gelu_blocks(const void *args, int64_t first, int64_t end, void *scratch)
{
    (void)scratch;
    gate_blocks(gelu, args, first, end);
}

static void run(struct device *dev, void (*blocks)(const void *, int64_t, int64_t, void *),
                const struct gated *args)
{
    ASSERT(args->out->k % QUANT_BLOCK == 0, "rows of %d", args->out->k);
    device_run(dev, (int64_t)args->out->rows * (args->out->k / QUANT_BLOCK), 16, blocks, args);
}

void KERNEL(silu_mul)(struct device *dev, const struct activations *out, const float *gate,
                      const float *up, int64_t stride)
{
    run(dev, silu_blocks, &(struct gated){out, gate, up, stride});
}

void KERNEL(gelu_mul)(struct device *dev, const struct activations *out, const float *gate,
                      const float *up, int64_t stride)
{
    run(dev, gelu_blocks, &(struct gated){out, gate, up, stride});
}
