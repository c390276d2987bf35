/*
 * columns: what ranks have of a matrix's columns, put beside each other.
 *
 * Thread: the device's.
 */
#ifndef KERNELS_CUDA_COLUMNS_H
#define KERNELS_CUDA_COLUMNS_H

#include "kernels/cuda/state.h"

/* To columns->out, those of one rank. part: the device's, [rows, columns of this rank]. */
void put_columns(struct cuda_state *state, const struct comm_columns *columns, int32_t world, int32_t rank,
                 const float *part);

/* Of 256 threads each, for kernels whose threads take several of `count` elements where these are many. */
dim3 column_blocks(const struct cuda_state *state, int64_t count);

#endif
