#include "kernels/cpu/cpu.h"

struct rope {
    float *x;
    int64_t stride;
    const int32_t *positions;
    const float *cos_sin;
    int32_t num_heads, head_dim, half;
    bool adjacent;
};

/* angles: [half, 2] cosines and sines */
static void rotate_halves(float *restrict first, float *restrict second,
                          const float *restrict angles, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = first[i], b = second[i], cos = angles[2 * i], sin = angles[2 * i + 1];

        first[i] = __builtin_fmaf(a, cos, -(b * sin));
        second[i] = __builtin_fmaf(a, sin, b * cos);
    }
}

static void rotate_adjacent(float *restrict x, const float *restrict angles, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1], cos = angles[2 * i], sin = angles[2 * i + 1];

        x[2 * i] = __builtin_fmaf(a, cos, -(b * sin));
        x[2 * i + 1] = __builtin_fmaf(a, sin, b * cos);
    }
}

static void rope_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct rope *args = arg;

    (void)scratch;
    for (int64_t r = first; r < end; r++) {
        const float *angles = args->cos_sin + (int64_t)args->positions[r] * args->half * 2;

        for (int32_t h = 0; h < args->num_heads; h++) {
            float *head = args->x + r * args->stride + (int64_t)h * args->head_dim;

            if (args->adjacent)
                rotate_adjacent(head, angles, args->half);
            else
                rotate_halves(head, head + args->half, angles, args->half);
        }
    }
}

void KERNEL(rope)(struct device *dev, float *x, int64_t stride, const int32_t *positions,
                  const float *cos_sin, int32_t rows, int32_t num_heads, int32_t head_dim,
                  int32_t rope_dim, bool adjacent)
{
    struct rope args = {x, stride, positions, cos_sin, num_heads, head_dim, rope_dim / 2, adjacent};

    device_run(dev, rows, 8, rope_rows, &args);
}
