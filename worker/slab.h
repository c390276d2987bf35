/*
 * slab: one device allocation, cut into pieces that are freed together.
 *
 * Who fills a slab runs the same code twice: first on an unopened slab, where pieces are NULL
 * and only their sizes are added up, then on the opened one. So what is allocated and what is used
 * cannot differ, and a large model gets large pages.
 *
 * What the host puts into them goes by device_write.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_SLAB_H
#define WORKER_SLAB_H

#include "kernels/kernels.h"

struct slab {
    struct device *dev;
    char *base;    /* NULL: measuring */
    int64_t bytes; /* allocated */
    int64_t used;
};

/* Allocates what was measured, zeroed, and starts over; ERR_NO_MEMORY names `what`. */
MUST_USE enum status slab_open(struct slab *slab, struct device *dev, const char *what);
void slab_close(struct slab *slab); /* a zeroed slab is fine */

static inline bool slab_is_measuring(const struct slab *slab)
{
    return !slab->base;
}

/* 64-byte aligned; NULL while measuring. */
void *slab_take(struct slab *slab, int64_t bytes);

#define slab_take_array(slab, type, n) ((type *)slab_take((slab), (int64_t)sizeof(type) * (n)))

#endif
