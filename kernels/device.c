#include "kernels/device.h"

#include "proto/base/clock.h"

#include <string.h>

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

void device_touch(struct device *dev, void *p, int64_t bytes)
{
    if (dev->ops->touch)
        dev->ops->touch(dev, p, bytes);
}

void device_expect_soon(struct device *dev, void *p, int64_t bytes)
{
    if (dev->ops->expect_soon)
        dev->ops->expect_soon(dev, p, bytes);
}

struct device_memory device_memory(const struct device *dev)
{
    return dev->ops->memory(dev);
}

int32_t device_num_threads(const struct device *dev)
{
    return dev->ops->num_threads ? dev->ops->num_threads(dev) : 1;
}

void device_share_out(struct device *dev, int64_t count,
                      void (*part)(void *args, int64_t first, int64_t end, int32_t thread), void *args)
{
    if (dev->ops->share_out)
        dev->ops->share_out(dev, count, part, args);
    else if (count > 0)
        part(args, 0, count, 0);
}

bool device_has_own_memory(const struct device *dev)
{
    return dev->ops->write;
}

enum status device_check(struct device *dev)
{
    return dev->ops->check ? dev->ops->check(dev) : OK;
}

static void copy(void *to, const void *from, int64_t bytes)
{
    if (to != from && bytes > 0)
        memcpy(to, from, (size_t)bytes);
}

enum status device_write(struct device *dev, void *to, const void *from, int64_t bytes)
{
    if (dev->ops->write)
        return dev->ops->write(dev, to, from, bytes);
    copy(to, from, bytes);
    return OK;
}

enum status device_read(struct device *dev, void *to, const void *from, int64_t bytes)
{
    if (dev->ops->read)
        return dev->ops->read(dev, to, from, bytes);
    copy(to, from, bytes);
    return OK;
}

enum status device_mirror_open(struct device *dev, int64_t bytes, const char *what, struct device_mirror *out)
{
    struct device_mirror mirror = {.bytes = bytes};
    void *device, *host;
    enum status status;

    TRY(device_alloc(dev, bytes, what, &device));
    host = device;
    if (device_has_own_memory(dev)) {
        status = dev->ops->alloc_host(dev, bytes, what, &host);
        if (status != OK) {
            device_free(dev, device, bytes);
            return status;
        }
    }
    mirror.device = device;
    mirror.host = host;
    *out = mirror;
    return OK;
}

void device_mirror_close(struct device *dev, struct device_mirror *mirror)
{
    if (mirror->host && mirror->host != mirror->device)
        dev->ops->free_host(dev, mirror->host);
    device_free(dev, mirror->device, mirror->bytes);
    *mirror = (struct device_mirror){0};
}

enum status device_mirror_push(struct device *dev, const struct device_mirror *mirror, int64_t bytes)
{
    if (!device_has_own_memory(dev))
        return OK;
    return dev->ops->push(dev, mirror->device, mirror->host, bytes);
}

enum status device_mirror_pull(struct device *dev, const struct device_mirror *mirror, int64_t bytes)
{
    if (!device_has_own_memory(dev))
        return OK;
    return dev->ops->read(dev, mirror->host, mirror->device, bytes);
}

bool device_can_record(const struct device *dev)
{
    return dev->ops->record;
}

enum status device_record(struct device *dev)
{
    return dev->ops->record(dev);
}

enum status device_end_record(struct device *dev, struct device_recording **out)
{
    return dev->ops->end_record(dev, out);
}

enum status device_replay(struct device *dev, struct device_recording *recording)
{
    return dev->ops->replay(dev, recording);
}

void device_recording_free(struct device *dev, struct device_recording *recording)
{
    if (recording)
        dev->ops->recording_free(dev, recording);
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

void device_begin_range(const struct device *dev, const char *name, int64_t step)
{
    if (dev->ops->begin_range)
        dev->ops->begin_range(name, step);
}

void device_end_range(const struct device *dev)
{
    if (dev->ops->end_range)
        dev->ops->end_range();
}
