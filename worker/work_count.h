/*
 * work_count: how many pieces of work the device thread has done. A heartbeat tells it, so that the engine
 * knows a rank that hangs from one whose step is long: what is counted takes a part of a layer, or a stage of
 * sampling, never a whole step.
 *
 * Thread: the device thread adds, any reads.
 */
#ifndef WORKER_WORK_COUNT_H
#define WORKER_WORK_COUNT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct work_count {
    _Atomic int64_t num_done;
};

/* NULL: nobody asks. There is one writer, so no locked instruction is needed. */
static inline void work_count_add(struct work_count *count)
{
    if (count)
        atomic_store_explicit(
            &count->num_done,
            atomic_load_explicit(&count->num_done, memory_order_relaxed) + 1,
            memory_order_relaxed);
}

static inline int64_t work_count_read(const struct work_count *count)
{
    return atomic_load_explicit(&count->num_done, memory_order_relaxed);
}

#endif
