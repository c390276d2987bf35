#include "kernels/numerics.h"
#include "kernels/quant_block.h"
#include "kernels/ref/ref.h"

#include <math.h>

static int8_t round_code(float x)
{
    x = rintf(x);
    return x > 127 ? 127 : x < -127 ? -127 : x == x ? (int8_t)x : 0;
}

static void quantize_block(const float *x, int8_t *q, float *d, float *z, int16_t *sums)
{
    float max = 0;

    for (int i = 0; i < QUANT_BLOCK; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;

    float scale = max < SMALLEST_MAX ? 0 : max / 127.0f;
    float inverse = max < SMALLEST_MAX ? 0 : 127.0f / max;

    sums[0] = sums[1] = 0;
    for (int i = 0; i < QUANT_BLOCK; i++) {
        q[i] = round_code(x[i] * inverse);
        sums[i / 16] += q[i];
    }
    *d = scale;
    *z = scale * (float)(sums[0] + sums[1]);
}

void quantize_ref(struct device *dev, const struct activations *a)
{
    (void)dev;
    ASSERT(a->k % QUANT_BLOCK == 0, "k %d", a->k);
    for (int64_t b = 0; b < (int64_t)a->rows * (a->k / QUANT_BLOCK); b++)
        quantize_block(a->x + b * QUANT_BLOCK, a->q + b * QUANT_BLOCK, a->d + b, a->z + b,
                       a->sums + 2 * b);
}
