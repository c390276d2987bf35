#include "kernels/cpu/cpu.h"

struct gated {
    float *out;
    const float *gate, *up;
    int64_t stride;
    int32_t n;
};

INLINE vf silu(vf g)
{
    return g / (1.0f + vf_exp(-g));
}

INLINE vf gelu(vf g)
{
    vf u = GELU_SCALE * vf_fma(GELU_CUBE * g * g, g, g);

    return g / (1.0f + vf_exp(-2.0f * u));
}

INLINE void gate_rows(vf (*const act)(vf), const struct gated *args, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) {
        const float *gate = args->gate + r * args->stride, *up = args->up + r * args->stride;
        float *out = args->out + r * args->n;
        int32_t i;

        for (i = 0; i + LANES <= args->n; i += LANES)
            vf_store(out + i, act(vf_load(gate + i)) * vf_load(up + i));
        for (; i < args->n; i++)
            out[i] = act(vf_set(gate[i]))[0] * up[i];
    }
}

static void silu_rows(const void *args, int64_t first, int64_t end, void *scratch)
{
    (void)scratch;
    gate_rows(silu, args, first, end);
}

static void gelu_rows(const void *args, int64_t first, int64_t end, void *scratch)
{
    (void)scratch;
    gate_rows(gelu, args, first, end);
}

void KERNEL(silu_mul)(struct device *dev, float *out, const float *gate, const float *up,
                      int64_t stride, int32_t rows, int32_t n)
{
    device_run(dev, rows, 4, silu_rows, &(struct gated){out, gate, up, stride, n});
}

void KERNEL(gelu_mul)(struct device *dev, float *out, const float *gate, const float *up,
                      int64_t stride, int32_t rows, int32_t n)
{
    device_run(dev, rows, 4, gelu_rows, &(struct gated){out, gate, up, stride, n});
}
