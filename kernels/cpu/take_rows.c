#include "kernels/cpu/device.h"

#include <string.h>

static void copy_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct take_rows_args *args = arg;

    (void)scratch;
    for (int64_t r = first; r < end; r++)
        memcpy(args->out + r * args->stride, args->in + args->row_ids[r] * args->stride,
               (size_t)args->n * sizeof(float));
}

void take_rows_cpu(struct device *dev, const struct take_rows_args *args)
{
    device_run(dev, args->rows, 16, copy_rows, args);
}
