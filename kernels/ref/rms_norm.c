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

void rms_norm_ref(float *out, const float *x, const float *w, int32_t n, float eps)
{
    float squares[SUM_LANES] = {0};

    for (int32_t i = 0; i < n; i++)
        squares[i % SUM_LANES] = fmaf(x[i], x[i], squares[i % SUM_LANES]);

    float scale = 1.0f / sqrtf(sum_lanes_ref(squares) / (float)n + eps);

    for (int32_t i = 0; i < n; i++)
        out[i] = x[i] * scale * w[i];
}
