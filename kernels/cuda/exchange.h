/*
 * exchange: sums among ranks, as module.h says of them.
 *
 * Thread: as a device; exchange_abort and exchange_waits_for: any.
 */
#ifndef KERNELS_CUDA_EXCHANGE_H
#define KERNELS_CUDA_EXCHANGE_H

#include "kernels/cuda/module.h"

extern "C" {
const char *exchange_open(struct cuda_state *state, int32_t world, int32_t rank, int64_t sum_max, void *handle_out,
                          struct cuda_exchange **out);
const char *exchange_connect(struct cuda_exchange *exchange, const void *handles);
void exchange_abort(struct cuda_exchange *exchange);
int32_t exchange_waits_for(const struct cuda_exchange *exchange);
double *exchange_buffer(struct cuda_exchange *exchange);
const double *const *exchange_sum(struct cuda_exchange *exchange);
void exchange_align(struct cuda_exchange *exchange);
const char *exchange_gather(struct cuda_exchange *exchange, const struct comm_columns *columns);
const char *exchange_add_disjoint(struct cuda_exchange *exchange, float *x, int64_t count);
void exchange_close(struct cuda_exchange *exchange);
}

#endif
