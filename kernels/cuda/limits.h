/*
 * limits: see module.h.
 *
 * Thread: the device's.
 */
#ifndef KERNELS_CUDA_LIMITS_H
#define KERNELS_CUDA_LIMITS_H

#include "kernels/cuda/module.h"

extern "C" const char *limit_read(struct cuda_state *state, double *gb_s_out);

#endif
