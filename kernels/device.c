#include "kernels/device.h"

#include "proto/base/clock.h"

void device_close(struct device *dev)
{
    if (dev)
        dev->ops->close(dev);
}

const struct kernels *device_kernels(const struct device *dev)
{
    return dev->kernels;
}

enum status device_alloc(struct device *dev, int64_t bytes, const char *what, void **out)
{
    return dev->ops->alloc(dev, bytes, what, out);
}

void device_free(struct device *dev, void *p, int64_t bytes)
{
    if (p)
        dev->ops->free(dev, p, bytes);
}

void device_expect_full(struct device *dev, void *p, int64_t bytes)
{
    if (dev->ops->expect_full)
        dev->ops->expect_full(dev, p, bytes);
}

int64_t device_available_bytes(const struct device *dev)
{
    return dev->ops->available_bytes(dev);
}

void device_mark(struct device *dev, struct device_mark *mark_out)
{
    if (dev->ops->mark)
        dev->ops->mark(dev, mark_out);
    else
        mark_out->ns = clock_now_ns();
}

bool device_has_passed(const struct device *dev, const struct device_mark *mark, int64_t *ns_out)
{
    if (dev->ops->has_passed)
        return dev->ops->has_passed(dev, mark, ns_out);
    *ns_out = mark->ns;
    return true;
}
