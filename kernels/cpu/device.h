/*
 * device: what a CPU device is made of; for the kernels of this room.
 *
 * Thread: a device and all it owns belong to one thread; its team works for that one.
 */
#ifndef KERNELS_CPU_DEVICE_H
#define KERNELS_CPU_DEVICE_H

#include "kernels/cpu/team.h"
#include "kernels/cpu/toucher.h"
#include "kernels/device.h"

/* Each thread's memory within one operation; nothing in it lasts. */
enum { SCRATCH_BYTES = 512 << 10 };

struct attention_shared;

struct cpu_device {
    struct device device;
    struct team *team;
    struct toucher *toucher;
    char *scratch; /* num_threads * SCRATCH_BYTES */
    struct attention_shared *attention; /* what threads that share a request tell each other */
};

/* A device that runs these kernels on threads as device_options has them; ERR_IO or ERR_NO_MEMORY when the system lacks threads or room. */
MUST_USE enum status cpu_device_new(const struct kernels *kernels, int32_t num_threads,
                                    const cpu_set_t *cpus, struct device **out);

static inline struct cpu_device *cpu_device_of(const struct device *dev)
{
    return (struct cpu_device *)dev; /* its first member */
}

/*
 * Does items [0, count) by calls of part(args, first, end, scratch), as team_share does. How they are split must not
 * show in the result.
 */
void device_run(struct device *dev, int64_t count, int64_t grain,
                void (*part)(const void *args, int64_t first, int64_t end, void *scratch),
                const void *args);

/* The same by calls of part(args, piece, share, scratch), for who wants to know what his thread does next. */
void device_share(struct device *dev, int64_t count, int64_t grain,
                  void (*part)(const void *args, struct span piece, struct span share, void *scratch),
                  const void *args);

/* The same for every instruction set. */
void take_rows_cpu(struct device *dev, const struct take_rows_args *args);

#endif
