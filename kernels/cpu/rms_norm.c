#include "kernels/cpu/cpu.h"

#include <math.h>

enum { VECTORS = SUM_LANES / LANES };

struct rms_norm {
    float *out;
    int64_t out_stride;
    const float *x;
    int64_t x_stride;
    const float *w;
    int32_t n;
    float eps;
};

static void norm_row(const struct rms_norm *args, const float *x, float *out)
{
    vf squares[VECTORS];
    float tail[SUM_LANES] = {0};
    int32_t n = args->n, whole = n / SUM_LANES * SUM_LANES, i;

    memcpy(tail, x + whole, (size_t)(n - whole) * sizeof(float));
    for (int v = 0; v < VECTORS; v++)
        squares[v] = vf_set(0);
    for (i = 0; i < whole; i += SUM_LANES)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            vf in = vf_load(x + i + v * LANES);

            squares[v] = vf_fma(in, in, squares[v]);
        }
    for (int v = 0; v < VECTORS; v++) {
        vf in = vf_load(tail + v * LANES);

        squares[v] = vf_fma(in, in, squares[v]);
    }

    vf scale = vf_set(1.0f / sqrtf(vf_sum_lanes(squares) / (float)n + args->eps));

    for (i = 0; i + LANES <= n; i += LANES)
        vf_store(out + i, vf_load(x + i) * scale * vf_load(args->w + i));
    for (; i < n; i++)
        out[i] = x[i] * scale[0] * args->w[i];
}

static void norm_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct rms_norm *args = arg;

    (void)scratch;
    for (int64_t r = first; r < end; r++)
        norm_row(args, args->x + r * args->x_stride, args->out + r * args->out_stride);
}

void KERNEL(rms_norm)(struct device *dev, float *out, int64_t out_stride, const float *x,
                      int64_t x_stride, const float *w, int32_t rows, int32_t n, float eps)
{
    struct rms_norm args = {out, out_stride, x, x_stride, w, n, eps};

    device_run(dev, rows, 8, norm_rows, &args);
}
