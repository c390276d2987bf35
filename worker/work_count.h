/*
 * work_count: how many pieces of work the device thread has done. A heartbeat tells it, so that the engine
 * knows a rank that hangs from one whose step is long: what is counted takes a part of a layer, or a stage of
 * sampling, never a whole step.
 *
 * Thread: the device thread adds, any reads.
 */
#ifndef WORKER_WORK_COUNT_H
#define WORKER_WORK_COUNT_H

#include "proto/wire/pass_counts.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct work_count {
    _Atomic int64_t num_done;
    _Atomic int64_t num_recorded_first, num_recorded_later; /* see pass_counts */
    _Atomic int64_t num_replayed, num_launched;
};

/* There is one writer, so no locked instruction is needed. */
static inline void count_one(_Atomic int64_t *count)
{
    atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + 1, memory_order_relaxed);
}

/* NULL: nobody asks. */
static inline void work_count_add(struct work_count *count)
{
    if (count)
        count_one(&count->num_done);
}

#define work_count_pass(count, member) \
    do { \
        if (count) \
            count_one(&(count)->member); \
    } while (0)

static inline int64_t work_count_read(const struct work_count *count)
{
    return atomic_load_explicit(&count->num_done, memory_order_relaxed);
}

static inline struct pass_counts work_count_passes(const struct work_count *count)
{
    return (struct pass_counts){
        .recorded_first = atomic_load_explicit(&count->num_recorded_first, memory_order_relaxed),
        .recorded_later = atomic_load_explicit(&count->num_recorded_later, memory_order_relaxed),
        .replayed = atomic_load_explicit(&count->num_replayed, memory_order_relaxed),
        .launched = atomic_load_explicit(&count->num_launched, memory_order_relaxed),
    };
}

#endif
