#include "kernels/ref/ref.h"

#include <string.h>

void add_exact_ref(struct device *dev, float *x, const double *sum, int32_t rows, int32_t n)
{
    (void)dev;
    for (int64_t i = 0; i < (int64_t)rows * n; i++)
        x[i] += (float)sum[i];
}

void add_ref(struct device *dev, float *x, const float *y, int32_t rows, int32_t n)
{
    (void)dev;
    for (int64_t i = 0; i < (int64_t)rows * n; i++)
        x[i] += y[i];
}

void round_exact_ref(struct device *dev, float *out, const double *sum, int64_t count)
{
    (void)dev;
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)sum[i];
}

void gather_rows_ref(struct device *dev, float *out, const float *x, const int32_t *rows,
                     int32_t count, int32_t n)
{
    (void)dev;
    for (int32_t i = 0; i < count; i++)
        memcpy(out + (int64_t)i * n, x + (int64_t)rows[i] * n, (size_t)n * sizeof(float));
}
