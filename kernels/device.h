/*
 * device: what devices of every kind begin with; for the files of this room.
 *
 * Thread: a device and all it owns belong to one thread.
 */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "kernels/kernels.h"

/* That sums among ranks may take between their devices. */
struct comm_way {
    const char *name;
    /* Every rank calls it. ERR_UNSUPPORTED, for all alike: they can't go it. */
    enum status (*open)(struct device *dev, struct comm *host, const struct comm_device_options *options,
                        struct comm **out);
    bool is_open_to_all; /* what it sends between hosts is not encrypted: there it is gone by name alone */
};

struct device_ops {
    void (*close)(struct device *dev);
    enum status (*alloc)(struct device *dev, int64_t bytes, const char *what, void **out);
    void (*free)(struct device *dev, void *p, int64_t bytes);
    void (*expect_full)(struct device *dev, void *p, int64_t bytes); /* NULL: nothing to do */
    void (*touch)(struct device *dev, void *p, int64_t bytes); /* likewise */
    void (*expect_soon)(struct device *dev, void *p, int64_t bytes); /* likewise */
    struct device_memory (*memory)(const struct device *dev);
    /* NULL: the device has no threads of the host's. */
    int32_t (*num_threads)(const struct device *dev);
    void (*share_out)(struct device *dev, int64_t count,
                      void (*part)(void *args, int64_t first, int64_t end, int32_t thread), void *args);
    /* Of a device with memory of its own; NULL: it has none. */
    enum status (*write)(struct device *dev, void *to, const void *from, int64_t bytes);
    enum status (*read)(struct device *dev, void *to, const void *from, int64_t bytes);
    enum status (*push)(struct device *dev, void *to, const void *from, int64_t bytes); /* from alloc_host */
    enum status (*check)(struct device *dev); /* failures of what was launched, as far as they are known */
    /* Page-locked; kernels may write to it too. */
    enum status (*alloc_host)(struct device *dev, int64_t bytes, const char *what, void **out);
    void (*free_host)(struct device *dev, void *p);
    enum status (*limit_read_gb_s)(struct device *dev, double *gb_s_out); /* see bench/limits.h */
    /* NULL: it can't. A recording that fails is over. */
    enum status (*record)(struct device *dev);
    enum status (*end_record)(struct device *dev, struct device_recording **out);
    enum status (*replay)(struct device *dev, struct device_recording *recording);
    void (*recording_free)(struct device *dev, struct device_recording *recording);
    const struct comm_way *comm_ways; /* best first, to one without a name; NULL: there is none */
    /* NULL: kernels have run when their calls return. */
    void (*mark)(struct device *dev, struct device_mark *mark_out);
    bool (*has_passed)(const struct device *dev, const struct device_mark *mark, int64_t *ns_out);
    /* Any thread. NULL: nobody would listen. */
    void (*begin_range)(const char *name, int64_t step);
    void (*end_range)(void);
};

struct device {
    const struct device_ops *ops;
    const struct kernels *kernels;
};

#endif
