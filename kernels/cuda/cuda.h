/*
 * cuda: GPUs, by the module tandem_cuda.so. What is here is the program's side of it: it knows no CUDA.
 *
 * Weights are packed on the host, those that are quantised in the layout of cpu/packed.h, which is also that of the
 * fragments of int8 tensor cores, those of 16 bits in that of half_layout.h; then they are written to the device.
 *
 * Thread: a device and all it owns belong to one thread.
 */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/kernels.h"

/* The layout of its weights, and the packing of columns on the host: as the table's rows matrix_bytes and matrix_pack, but
 * that w->data is the host's, and `host` the CPU device that does the work. */
int64_t matrix_bytes_cuda(enum tensor_type type, int32_t n, int32_t k);
void matrix_pack_cuda_host(struct device *host, struct matrix *w, int32_t at, int32_t n, const void *src,
                           int64_t src_row_bytes, int64_t k0);

/* ERR_MISSING: no module, no driver or no GPU; ERR_INVALID: fewer of them; ERR_UNSUPPORTED: one that the module has no
 * code for; ERR_NOT_FOUND: a GPU, and no cuBLASLt that it can use. */
MUST_USE enum status cuda_device_new(const struct device_options *options, struct device **out);

#endif
