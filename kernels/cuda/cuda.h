/*
 * cuda: GPUs, by the module tandem_cuda.so. What is here is the program's side of it: it knows no CUDA.
 *
 * Weights are packed on the host in the layout of cpu/packed.h, which is also that of the fragments of int8 tensor
 * cores, and then written to the device.
 *
 * Thread: a device and all it owns belong to one thread.
 */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/kernels.h"

/* ERR_MISSING: no module, no driver or no GPU; ERR_INVALID: fewer of them; ERR_UNSUPPORTED: one that the module has no
 * code for. */
MUST_USE enum status cuda_device_new(const struct device_options *options, struct device **out);

#endif
