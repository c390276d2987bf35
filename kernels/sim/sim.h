/*
 * sim: a device that only takes time; for the files of this room. README.md has the model of time.
 *
 * Launching a kernel costs its caller nothing: its time is added to the end of the stream. Memory
 * is address space that nobody touches.
 *
 * Thread: see kernels.h.
 */
#ifndef KERNELS_SIM_SIM_H
#define KERNELS_SIM_SIM_H

#include "kernels/device.h"

extern const struct kernels kernels_sim;

MUST_USE enum status sim_device_new(const struct sim_device *is_like, struct device **out);

/* Adds a kernel that does so many floating-point operations and moves so many bytes of memory. */
void sim_launch(struct device *dev, double flops, double bytes);
/* Adds work to the kernel that was launched last. */
void sim_extend(struct device *dev, double flops, double bytes);
/* Adds an exchange between `world` ranks; bytes: what each one contributes, what it sends `passes`
 * times. */
void sim_exchange(struct device *dev, int32_t world, double passes, double bytes);

#endif
