#include "kernels/cpu/quantize.h"
#include "kernels/cpu/cpu.h"

static void quantize_blocks(const void *args, int64_t first, int64_t end, void *scratch)
{
    const struct activations *a = args;

    (void)scratch;
    for (int64_t b = first; b < end; b++) {
        vf x[BLOCK_VECTORS];

        UNROLL for (int i = 0; i < BLOCK_VECTORS; i++)
            x[i] = vf_load(a->x + b * QUANT_BLOCK + i * LANES);
        quantize_block(a, b, x);
    }
}

void KERNEL(quantize)(struct device *dev, const struct activations *a)
{
    ASSERT(a->k % QUANT_BLOCK == 0, "k %d", a->k);
    device_run(dev, (int64_t)a->rows * (a->k / QUANT_BLOCK), 64, quantize_blocks, a);
}
