#include "kernels/cpu/device.h"

#include "proto/base/memory.h"

void device_close(struct device *dev)
{
    mem_free(dev);
}

const struct kernels *device_kernels(const struct device *dev)
{
    return dev->kernels;
}

enum status device_alloc(struct device *dev, int64_t bytes, const char *what, void **out)
{
    (void)dev;
    return mem_map((size_t)bytes, what, out);
}

void device_free(struct device *dev, void *p, int64_t bytes)
{
    (void)dev;
    if (p)
        mem_unmap(p, (size_t)bytes);
}
