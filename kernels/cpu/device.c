#include "kernels/cpu/device.h"

#include "proto/base/memory.h"

static enum status device_init(struct device *dev, const struct kernels *kernels,
                               int32_t num_threads)
{
    void *scratch;

    dev->kernels = kernels;
    TRY(team_new(num_threads, &dev->team));
    TRY(mem_map((size_t)num_threads * SCRATCH_BYTES, "scratch of kernels", &scratch));
    dev->scratch = scratch;
    return OK;
}

enum status device_new(const struct kernels *kernels, int32_t num_threads, struct device **out)
{
    struct device *dev = mem_new(struct device);
    enum status status = device_init(dev, kernels, num_threads);

    if (status != OK) {
        device_close(dev);
        return status;
    }
    *out = dev;
    return OK;
}

void device_close(struct device *dev)
{
    if (!dev)
        return;
    if (dev->scratch)
        mem_unmap(dev->scratch, (size_t)team_num_threads(dev->team) * SCRATCH_BYTES);
    team_free(dev->team);
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

void device_expect_full(struct device *dev, void *p, int64_t bytes)
{
    (void)dev;
    mem_expect_full(p, (size_t)bytes);
}

void device_free(struct device *dev, void *p, int64_t bytes)
{
    (void)dev;
    if (p)
        mem_unmap(p, (size_t)bytes);
}

struct run {
    const struct device *dev;
    int64_t count;
    int32_t num_threads; /* that get a share */
    void (*part)(const void *args, int64_t first, int64_t end, void *scratch);
    const void *args;
};

static void run_part(void *arg, int32_t thread)
{
    const struct run *run = arg;

    if (thread < run->num_threads)
        run->part(run->args, run->count * thread / run->num_threads,
                  run->count * (thread + 1) / run->num_threads,
                  run->dev->scratch + (int64_t)thread * SCRATCH_BYTES);
}

void device_run(struct device *dev, int64_t count, int64_t grain,
                void (*part)(const void *args, int64_t first, int64_t end, void *scratch),
                const void *args)
{
    int64_t num_threads = MIN((int64_t)team_num_threads(dev->team), count / grain);
    struct run run = {dev, count, (int32_t)MAX(num_threads, (int64_t)1), part, args};

    if (run.num_threads == 1)
        run_part(&run, 0);
    else
        team_run(dev->team, run_part, &run);
}
