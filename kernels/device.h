/*
 * device: what devices of every kind begin with; for the files of this room.
 *
 * Thread: a device and all it owns belong to one thread.
 */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "kernels/kernels.h"

struct device_ops {
    void (*close)(struct device *dev);
    enum status (*alloc)(struct device *dev, int64_t bytes, const char *what, void **out);
    void (*free)(struct device *dev, void *p, int64_t bytes);
    void (*expect_full)(struct device *dev, void *p, int64_t bytes); /* NULL: nothing to do */
    int64_t (*available_bytes)(const struct device *dev);
    /* NULL: kernels have run when their calls return. */
    void (*mark)(struct device *dev, struct device_mark *mark_out);
    bool (*has_passed)(const struct device *dev, const struct device_mark *mark, int64_t *ns_out);
};

struct device {
    const struct device_ops *ops;
    const struct kernels *kernels;
};

#endif
