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

const char *cuda_uuid_of(const struct device *dev); /* [CUDA_UUID_BYTES] */

/* Ways for sums to take: see comm_way. */
MUST_USE enum status comm_ipc_open(struct device *dev, struct comm *host,
                                   const struct comm_device_options *options, struct comm **out);
MUST_USE enum status comm_nccl_open(struct device *dev, struct comm *host,
                                    const struct comm_device_options *options, struct comm **out);

#endif
