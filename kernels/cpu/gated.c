#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gated.h"

struct gated {
    const struct activations *out;
    const float *gate, *up;
    int64_t stride;
};

/* Blocks are counted over rows: one row's can be shared out, too. */
INLINE void gate_blocks(void (*const act)(vf *), const struct gated *args, int64_t first, int64_t end)
{
    int64_t row_blocks = args->out->k / QUANT_BLOCK;

    for (int64_t b = first; b < end; b++) {
        int64_t at = b / row_blocks * args->stride + b % row_blocks * QUANT_BLOCK;

        put_gated_block(act, args->out, b, args->gate + at, args->up + at);
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
