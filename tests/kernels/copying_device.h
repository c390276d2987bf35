/*
 * copying_device: a device with memory of its own behind one that seems to share the host's, so that the same tests
 * hold its kernels: each call copies what the kernel reads and writes there, and back what it writes.
 */
#ifndef TESTS_KERNELS_COPYING_DEVICE_H
#define TESTS_KERNELS_COPYING_DEVICE_H

#include "kernels/kernels.h"

/* Takes the device, which is a "cuda" one. */
struct device *copying_device_new(struct device *inner);

#endif
