#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <math.h>

static float silu(float g)
{
    return g / (1.0f + exp_ref(-g));
}

static float gelu(float g)
{
    float u = GELU_SCALE * fmaf(GELU_CUBE * g * g, g, g);

    return g / (1.0f + exp_ref(-2.0f * u));
}

static void gate_rows(float (*act)(float), const struct activations *out, const float *gate,
                      const float *up, int64_t stride)
{
    float *x = mem_new_array(float, out->k);

    for (int32_t r = 0; r < out->rows; r++) {
        for (int32_t i = 0; i < out->k; i++)
            x[i] = act(gate[r * stride + i]) * up[r * stride + i];
        put_row_ref(out, r, x);
    }
    mem_free(x);
}

void silu_mul_ref(struct device *dev, const struct activations *out, const float *gate,
                  const float *up, int64_t stride)
{
    (void)dev;
    gate_rows(silu, out, gate, up, stride);
}

void gelu_mul_ref(struct device *dev, const struct activations *out, const float *gate,
                  const float *up, int64_t stride)
{
    (void)dev;
    gate_rows(gelu, out, gate, up, stride);
}
