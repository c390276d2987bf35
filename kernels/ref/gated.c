#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include <math.h>

void silu_mul_ref(struct device *dev, float *out, const float *gate, const float *up,
                  int64_t stride, int32_t rows, int32_t n)
{
    (void)dev;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < n; i++) {
            float g = gate[r * stride + i];

            out[(int64_t)r * n + i] = g / (1.0f + exp_ref(-g)) * up[r * stride + i];
        }
}

void gelu_mul_ref(struct device *dev, float *out, const float *gate, const float *up,
                  int64_t stride, int32_t rows, int32_t n)
{
    (void)dev;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < n; i++) {
            float g = gate[r * stride + i];
            float u = GELU_SCALE * fmaf(GELU_CUBE * g * g, g, g);

            out[(int64_t)r * n + i] = g / (1.0f + exp_ref(-2.0f * u)) * up[r * stride + i];
        }
}
