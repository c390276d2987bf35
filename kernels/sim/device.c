#include "kernels/sim/sim.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"

#include <sys/mman.h>
#include <sys/prctl.h>

struct sim {
    struct device device;
    struct sim_device is_like;
    double end_ns; /* of the stream, CLOCK_MONOTONIC; in the past: it is idle */
    int64_t used_bytes;
};

static struct sim *sim_of(const struct device *dev)
{
    return (struct sim *)dev; /* its first member */
}

static void sim_close(struct device *dev)
{
    mem_free(sim_of(dev));
}

/* Zeros that cost nothing until somebody touches them, and nobody does. */
static enum status sim_alloc(struct device *dev, int64_t bytes, const char *what, void **out)
{
    struct sim *sim = sim_of(dev);
    int64_t left = device_memory(dev).free_bytes;
    void *p;

    if (bytes > left)
        return fail(ERR_NO_MEMORY, "%s: %lld bytes, the simulated device has %lld left", what,
                    (long long)bytes, (long long)left);
    p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "%s: %lld bytes of address space: %m", what, (long long)bytes);
    sim->used_bytes += bytes;
    *out = p;
    return OK;
}

static void sim_free(struct device *dev, void *p, int64_t bytes)
{
    munmap(p, (size_t)bytes);
    sim_of(dev)->used_bytes -= bytes;
}

static struct device_memory sim_memory(const struct device *dev)
{
    const struct sim *sim = sim_of(dev);
    int64_t total = (int64_t)sim->is_like.memory_bytes, left = total - sim->used_bytes;

    return (struct device_memory){total, left, left};
}

/* What is launched from here on starts now, or when what is running ends. */
static void sim_mark(struct device *dev, struct device_mark *mark_out)
{
    struct sim *sim = sim_of(dev);
    double now_ns = (double)clock_now_ns();

    sim->end_ns = MAX(sim->end_ns, now_ns);
    mark_out->ns = (int64_t)sim->end_ns;
}

static bool sim_has_passed(const struct device *dev, const struct device_mark *mark,
                           int64_t *ns_out)
{
    (void)dev;
    *ns_out = mark->ns;
    return mark->ns <= clock_now_ns();
}

static const struct device_ops sim_ops = {
    .close = sim_close,
    .alloc = sim_alloc,
    .free = sim_free,
    .memory = sim_memory,
    .mark = sim_mark,
    .has_passed = sim_has_passed,
};

enum status sim_device_new(const struct sim_device *is_like, struct device **out)
{
    struct sim *sim = mem_new(struct sim);

    /* This thread will wait for the stream to the microsecond. */
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    sim->device = (struct device){.ops = &sim_ops, .kernels = &kernels_sim};
    sim->is_like = *is_like;
    *out = &sim->device;
    return OK;
}

/* 0 stands for a rate without limit. */
static double ns_at(double amount, double per_s)
{
    return per_s > 0 ? amount / per_s * 1e9 : 0;
}

void sim_launch(struct device *dev, double flops, double bytes)
{
    sim_of(dev)->end_ns += sim_of(dev)->is_like.kernel_overhead_ns;
    sim_extend(dev, flops, bytes);
}

void sim_extend(struct device *dev, double flops, double bytes)
{
    struct sim *sim = sim_of(dev);
    double compute_ns = ns_at(flops, sim->is_like.flops_per_s);
    double memory_ns = ns_at(bytes, sim->is_like.memory_bytes_per_s);

    sim->end_ns += MAX(compute_ns, memory_ns);
}

void sim_exchange(struct device *dev, int32_t world, double passes, double bytes)
{
    struct sim *sim = sim_of(dev);
    double sent = passes * (world - 1) / world * bytes;

    sim->end_ns += sim->is_like.link_latency_ns + ns_at(sent, sim->is_like.link_bytes_per_s);
}
