/*
 * matmul: what the matmuls of this module are made of: one task, and three kernels for it. All have the bits of
 * ref/matmul.c; which is taken is a matter of time only.
 *
 * Weights lie as kernels/cpu/packed.h says: a panel is 32 columns, a record of it a block of 32 of k.
 *
 * Thread: the device's.
 */
#ifndef KERNELS_CUDA_MATMUL_H
#define KERNELS_CUDA_MATMUL_H

#include "kernels/cpu/packed.h"
#include "kernels/cuda/state.h"

struct matmul_task {
    struct activations a;
    const uint8_t *weights; /* panels */
    int32_t n;
    int32_t num_records; /* of a panel: k / 32, for float types k */
    int32_t first_block; /* as in struct matrix */
    int64_t panel_bytes, supers_bytes;
    float *out;     /* NULL: doubles are wanted */
    int64_t out_stride;
    double *sums;        /* [rows, n] */
    int32_t group;       /* records of a group; 0: none */
    int32_t scale_group; /* records of the activations that share a scale; of quantised types */
};

/* F32. */
void matmul_float(struct cuda_state *state, const struct matmul_task *task);
/* Quantised ones. few: the warps of a block share out the k of a panel, so that a few rows keep all of a device
 * busy. many: a warp has 32 columns of many rows to itself. */
void matmul_few(struct cuda_state *state, enum tensor_type type, const struct matmul_task *task);
void matmul_many(struct cuda_state *state, enum tensor_type type, const struct matmul_task *task);
/* F16 and BF16, and codes of 8 bits that stand for BF16: those of half_layout.h and fp8_layout.h, by a rule of their
 * own. */
void matmul_half(struct cuda_state *state, const struct matrix *w, const struct matmul_task *task);
/* Once, when the device is opened. */
cudaError_t matmul_prepare(const struct cuda_state *state);
cudaError_t matmul_half_prepare(const struct cuda_state *state);

static inline int32_t num_panels(const struct matmul_task *task)
{
    return divide_up(task->n, PANEL);
}

#endif
