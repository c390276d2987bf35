#include "kernels/numerics.h"
#include "kernels/quant_block.h"
#include "kernels/ref/ref.h"

#include <math.h>

static int8_t round_code(float x)
{
    x = rintf(x);
    return x > 127 ? 127 : x < -127 ? -127 : x == x ? (int8_t)x : 0;
}

/* Block b, of a group whose largest is `max`. */
static void quantize_block(const struct activations *a, int64_t b, float max)
{
    const float *x = a->x + b * QUANT_BLOCK;
    int8_t *q = a->q + b * QUANT_BLOCK;
    int16_t *sums = a->sums + 2 * b;
    float scale = max < SMALLEST_MAX ? 0 : max / 127.0f;
    float inverse = max < SMALLEST_MAX ? 0 : 127.0f / max;

    sums[0] = sums[1] = 0;
    for (int i = 0; i < QUANT_BLOCK; i++) {
        q[i] = round_code(x[i] * inverse);
        sums[i / 16] += q[i];
    }
    put_starts(a, b, sums[0], sums[1]);
    a->d[b] = scale;
    if (a->z)
        a->z[b] = scale * (float)(sums[0] + sums[1]);
}

void quantize_ref(struct device *dev, const struct activations *a)
{
    int32_t blocks = a->group / QUANT_BLOCK;

    (void)dev;
    ASSERT(has_whole_groups(a), "groups of %d in rows of %d", a->group, a->k);
    for (int64_t first = 0; first < (int64_t)a->rows * (a->k / QUANT_BLOCK); first += blocks) {
        float max = 0;

        for (int64_t i = first * QUANT_BLOCK; i < (first + blocks) * QUANT_BLOCK; i++)
            max = fabsf(a->x[i]) > max ? fabsf(a->x[i]) : max;
        for (int64_t b = first; b < first + blocks; b++)
            quantize_block(a, b, max);
    }
}
