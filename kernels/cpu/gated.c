#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gated.h"

struct gated {
    const struct activations *out;
    const float *gate, *up;
    int64_t stride;
};

/* Groups are counted over rows: one row's can be shared out, too. */
INLINE void gate_groups(const int blocks, void (*const act)(vf *), const struct gated *args, int64_t first, int64_t end)
{
    int64_t columns = blocks * QUANT_BLOCK, row_groups = args->out->k / columns;

    for (int64_t g = first; g < end; g++) {
        int64_t at = g / row_groups * args->stride + g % row_groups * columns;
        vf x[GROUP_VECTORS];

        UNROLL for (int i = 0; i < blocks; i++)
            gated_of(act, x + i * BLOCK_VECTORS, args->gate + at + i * QUANT_BLOCK, args->up + at + i * QUANT_BLOCK);
        put_group(args->out, g * blocks, blocks, x);
    }
}

static void silu_groups(const void *args, int64_t first, int64_t end, void *scratch)
{
    const struct gated *gated = args;

    (void)scratch;
    FOR_GROUP(group_blocks(gated->out), gate_groups, silu, gated, first, end);
}

static void gelu_groups(const void *args, int64_t first, int64_t end, void *scratch)
{
    const struct gated *gated = args;

    (void)scratch;
    FOR_GROUP(group_blocks(gated->out), gate_groups, gelu, gated, first, end);
}

static void run(struct device *dev, void (*groups)(const void *, int64_t, int64_t, void *),
                const struct gated *args)
{
    int32_t blocks = group_blocks(args->out);

    ASSERT(args->out->k % QUANT_BLOCK == 0, "rows of %d", args->out->k);
    device_run(dev, (int64_t)args->out->rows * (args->out->k / QUANT_BLOCK / blocks), divide_up(16, blocks), groups,
               args);
}

void KERNEL(silu_mul)(struct device *dev, const struct activations *out, const float *gate,
                      const float *up, int64_t stride)
{
    run(dev, silu_groups, &(struct gated){out, gate, up, stride});
}

void KERNEL(gelu_mul)(struct device *dev, const struct activations *out, const float *gate,
                      const float *up, int64_t stride)
{
    run(dev, gelu_groups, &(struct gated){out, gate, up, stride});
}
