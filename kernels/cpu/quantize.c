#include "kernels/cpu/cpu.h"
#include "kernels/quant_block.h"

enum { VECTORS = QUANT_BLOCK / LANES };

static void quantize_block(const float *x, int8_t *q, float *d, float *z, int16_t *sums)
{
    typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    vf in[VECTORS], most = vf_set(0);
    float max = 0;
    vi total[2] = {vi_set(0), vi_set(0)};
    int sum[2] = {0, 0};

    UNROLL for (int i = 0; i < VECTORS; i++) {
        in[i] = vf_load(x + i * LANES);
        most = vf_max(vf_abs(in[i]), most);
    }
    UNROLL for (int i = 0; i < LANES; i++)
        max = most[i] > max ? most[i] : max;

    float scale = max < SMALLEST_MAX ? 0 : max / 127.0f;
    float inverse = max < SMALLEST_MAX ? 0 : 127.0f / max;

    UNROLL for (int i = 0; i < VECTORS; i++) {
        vf v = in[i] * inverse;

        v = (vf)((vi)v & (v == v)); /* NaN: 0 */
        v = vf_select(v > 127.0f, vf_set(127), vf_select(v < -127.0f, vf_set(-127), v));

        vi code = (vi)(v + EXP_ROUND) - (vi)vf_set(EXP_ROUND);

        *(bytes *)(q + i * LANES) = __builtin_convertvector(code, bytes);
        total[i * LANES / 16] += code;
    }
    UNROLL for (int i = 0; i < LANES; i++) {
        sum[0] += total[0][i];
        sum[1] += total[1][i];
    }
    sums[0] = (int16_t)sum[0];
    sums[1] = (int16_t)sum[1];
    *d = scale;
    *z = scale * (float)(sum[0] + sum[1]);
}

static void quantize_blocks(const void *args, int64_t first, int64_t end, void *scratch)
{
    const struct activations *a = args;

    (void)scratch;
    for (int64_t b = first; b < end; b++)
        quantize_block(a->x + b * QUANT_BLOCK, a->q + b * QUANT_BLOCK, a->d + b, a->z + b,
                       a->sums + 2 * b);
}

void KERNEL(quantize)(struct device *dev, const struct activations *a)
{
    ASSERT(a->k % QUANT_BLOCK == 0, "k %d", a->k);
    device_run(dev, (int64_t)a->rows * (a->k / QUANT_BLOCK), 128, quantize_blocks, a);
}
