#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include <math.h>

float sum_lanes_ref(const float *lanes)
{
    float sums[SUM_LANES];

    for (int i = 0; i < SUM_LANES; i++)
        sums[i] = lanes[i];
    for (int width = SUM_LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            sums[i] += sums[i + width];
    return sums[0];
}

void rms_norm_ref(struct device *dev, float *out, int64_t out_stride, const float *x,
                  int64_t x_stride, const float *w, int32_t rows, int32_t n, float eps)
{
    (void)dev;
    for (int32_t r = 0; r < rows; r++) {
        const float *in = x + r * x_stride;
        float squares[SUM_LANES] = {0};

        for (int32_t i = 0; i < n; i++)
            squares[i % SUM_LANES] = fmaf(in[i], in[i], squares[i % SUM_LANES]);

        float scale = 1.0f / sqrtf(sum_lanes_ref(squares) / (float)n + eps);

        for (int32_t i = 0; i < n; i++)
            out[r * out_stride + i] = in[i] * scale * w[i];
    }
}
