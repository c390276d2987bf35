/*
 * comm_promises: what every comm keeps, tried by each of its ranks.
 *
 * Thread: any; a comm belongs to one.
 */
#ifndef TESTS_SUPPORT_COMM_PROMISES_H
#define TESTS_SUPPORT_COMM_PROMISES_H

#include "kernels/kernels.h"

/* Of the comm's buffers, and of its shared memory, if it has any. */
enum { PROMISE_BUFFER_BYTES = 4096, PROMISE_SHARED_BYTES = 1000 };

/* Sums, gathers and barriers, among all ranks at once; world at most 16. false: a call failed (fail_text) or
 * brought what it should not. */
bool comm_keeps_its_promises(struct comm *comm, int32_t rank, int32_t world, int rounds);

#endif
