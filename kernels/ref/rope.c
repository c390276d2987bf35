#include "kernels/ref/ref.h"

#include <math.h>

void rope_ref(struct device *dev, float *x, int64_t stride, const int32_t *positions,
              const float *cos_sin, int32_t rows, int32_t num_heads, int32_t head_dim,
              int32_t rope_dim, bool adjacent)
{
    int32_t half = rope_dim / 2;

    (void)dev;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t h = 0; h < num_heads; h++)
            for (int32_t i = 0; i < half; i++) {
                const float *angle = cos_sin + ((int64_t)positions[r] * half + i) * 2;
                float *head = x + r * stride + (int64_t)h * head_dim;
                float *first = head + (adjacent ? 2 * i : i);
                float *second = head + (adjacent ? 2 * i + 1 : i + half);
                float a = *first, b = *second;

                *first = fmaf(a, angle[0], -(b * angle[1]));
                *second = fmaf(a, angle[1], b * angle[0]);
            }
}
