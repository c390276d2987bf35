/*
 * cuda/host: what the program's own files in this folder share.
 *
 * Thread: see cuda.h.
 */
#ifndef KERNELS_CUDA_HOST_H
#define KERNELS_CUDA_HOST_H

#include "kernels/cuda/module.h"

/* The module; a device has been opened. */
const struct cuda_module *cuda_module(void);
struct cuda_state *cuda_state_of(const struct device *dev);

/* Every rank of the host calls this. ERR_UNSUPPORTED, for all alike: their GPUs do not reach each other. */
MUST_USE enum status comm_ipc_open(struct device *dev, struct comm *host, int32_t rank, struct comm **out);

#endif
