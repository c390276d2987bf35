/*
 * cublaslt: matmuls of 16-bit weights, and of codes of 8 bits, by cuBLASLt, for who lets a row's bits depend on the
 * rows beside it. See cuda_cublaslt_table in module.h.
 *
 * Thread: the device's.
 */
#ifndef KERNELS_CUDA_CUBLASLT_H
#define KERNELS_CUDA_CUBLASLT_H

#include "kernels/cuda/matmul.h"

/* w: of 16 bits, or codes of 8. false: nothing of the task is to be relied on, and it is matmul_half's: cuBLASLt is not
 * in use, or not for so few rows, or it has no codes here, or refuses. */
bool cublaslt_matmul(struct cuda_state *state, const struct matrix *w, const struct matmul_task *task);
/* When the device is closed; the stream has nothing to do any more. */
void cublaslt_close(struct cuda_state *state);

#endif
