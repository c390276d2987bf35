#include "worker/slab.h"

#include "proto/base/rounding.h"

enum { ALIGNMENT = 64 };

enum status slab_open(struct slab *slab, struct device *dev, const char *what)
{
    void *base;

    ASSERT(slab_is_measuring(slab) && slab->used > 0);
    TRY(device_alloc(dev, slab->used, what, &base));
    slab->dev = dev;
    slab->base = base;
    slab->bytes = slab->used;
    slab->used = 0;
    return OK;
}

void slab_close(struct slab *slab)
{
    if (slab->base)
        device_free(slab->dev, slab->base, slab->bytes);
    *slab = (struct slab){0};
}

void *slab_take(struct slab *slab, int64_t bytes)
{
    int64_t at = slab->used;

    slab->used += round_up(bytes, ALIGNMENT);
    if (slab_is_measuring(slab))
        return NULL;
    ASSERT(slab->used <= slab->bytes, "%lld of %lld bytes", (long long)slab->used,
           (long long)slab->bytes);
    return slab->base + at;
}
