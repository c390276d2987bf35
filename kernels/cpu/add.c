/* Plain loops, which the compiler makes vectors of. */
#include "kernels/cpu/cpu.h"

enum { GRAIN = 8192 };

struct add {
    float *out;
    const float *y;
    const double *sum;
};

static void add_exact_range(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct add *args = arg;
    float *restrict x = args->out;
    const double *restrict sum = args->sum;

    (void)scratch;
    for (int64_t i = first; i < end; i++)
        x[i] += (float)sum[i];
}

static void add_range(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct add *args = arg;
    float *x = args->out;
    const float *y = args->y;

    (void)scratch;
    for (int64_t i = first; i < end; i++)
        x[i] += y[i];
}

static void round_exact_range(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct add *args = arg;
    float *restrict out = args->out;
    const double *restrict sum = args->sum;

    (void)scratch;
    for (int64_t i = first; i < end; i++)
        out[i] = (float)sum[i];
}

void KERNEL(add_exact)(struct device *dev, float *x, const double *sum, int32_t rows, int32_t n)
{
    device_run(dev, (int64_t)rows * n, GRAIN, add_exact_range, &(struct add){x, NULL, sum});
}

void KERNEL(add)(struct device *dev, float *x, const float *y, int32_t rows, int32_t n)
{
    device_run(dev, (int64_t)rows * n, GRAIN, add_range, &(struct add){x, y, NULL});
}

void KERNEL(round_exact)(struct device *dev, float *out, const double *sum, int64_t count)
{
    device_run(dev, count, GRAIN, round_exact_range, &(struct add){out, NULL, sum});
}
