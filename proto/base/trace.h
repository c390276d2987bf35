/*
 * trace: what every thread did when, for Perfetto (ui.perfetto.dev) or chrome://tracing.
 *
 * A span is a name, a begin, an end and one number (the step). Spans go into a
 * ring per thread that was set aside at the start, so tracing takes no lock and
 * no memory, and keeps the last spans of each thread. All processes of a host
 * share one clock: each writes its part, trace_merge makes one file of them.
 *
 *     int64_t begin = trace_begin();
 *     …
 *     trace_end("execute_model", begin, step);
 *
 * When off, a span costs one relaxed load and a comparison.
 *
 * Thread: any.
 */
#ifndef PROTO_BASE_TRACE_H
#define PROTO_BASE_TRACE_H

#include "proto/base/clock.h"
#include "proto/base/status.h"

#include <stdatomic.h>

/* What engine and workers keep of each thread: minutes of steps. */
enum { TRACE_SPANS = 1 << 17 };

/* Turns tracing on for this process. `spans_per_thread` is rounded up to a power of two; the first call
 * decides. One after trace_stop begins anew: spans that began before are not written any more. The calls
 * of these two come from one thread, or one after the other. */
MUST_USE enum status trace_start(int32_t spans_per_thread);
/* What was gathered can be written still. */
void trace_stop(void);
/* The name of this thread, for its row and for the system; `name` must outlive the process. */
void trace_name_thread(const char *name);

extern _Atomic bool trace_is_on_;
static inline bool trace_is_on(void)
{
    return atomic_load_explicit(&trace_is_on_, memory_order_relaxed);
}

void trace_add(const char *name, int64_t begin_ns, int64_t end_ns, int64_t arg);
/* In a row of its own: of what others did whose spans this process knows. One thread at a time adds to a
 * row; its spans must not overlap. row_name is a literal, and names the row. */
void trace_add_to(const char *row_name, const char *name, int64_t begin_ns, int64_t end_ns,
                  int64_t arg);

/* Now, or 0 when off. */
static inline int64_t trace_begin(void)
{
    return trace_is_on() ? clock_now_ns() : 0;
}
/* `name` must be a literal of letters; nothing is kept of a span that began while off. */
static inline void trace_end(const char *name, int64_t begin_ns, int64_t arg)
{
    if (begin_ns)
        trace_add(name, begin_ns, clock_now_ns(), arg);
}

/* This process's part: "worker.1" and its spans so far. Threads may go on meanwhile. A complete
 * trace file by itself. */
MUST_USE enum status trace_write(const char *path, const char *process_name);
/* One file of several parts. A part that is missing (its process was killed) is left out with a
 * warning. */
MUST_USE enum status trace_merge(const char *const *parts, int num_parts, const char *path);

#endif
