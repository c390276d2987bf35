#include "kernels/cpu/quantize.h"
#include "kernels/cpu/cpu.h"

INLINE void quantize_some(const int blocks, const struct activations *a, int64_t first, int64_t end)
{
    for (int64_t b = first * blocks; b < end * blocks; b += blocks) {
        vf x[GROUP_VECTORS];

        UNROLL for (int i = 0; i < blocks * BLOCK_VECTORS; i++)
            x[i] = vf_load(a->x + b * QUANT_BLOCK + i * LANES);
        quantize_group(a, b, blocks, x);
    }
}

static void quantize_groups(const void *args, int64_t first, int64_t end, void *scratch)
{
    const struct activations *a = args;

    (void)scratch;
    FOR_GROUP(group_blocks(a), quantize_some, a, first, end);
}

void KERNEL(quantize)(struct device *dev, const struct activations *a)
{
    int32_t blocks = group_blocks(a);

    device_run(dev, (int64_t)a->rows * (a->k / QUANT_BLOCK / blocks), divide_up(64, blocks), quantize_groups, a);
}
