/*
 * device: what a CPU device is made of; for the kernels of this room.
 *
 * Thread: a device and all it owns belong to one thread.
 */
#ifndef KERNELS_CPU_DEVICE_H
#define KERNELS_CPU_DEVICE_H

#include "kernels/kernels.h"

struct device {
    const struct kernels *kernels;
};

#endif
