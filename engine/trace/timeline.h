/*
 * timeline: a trace file, read: what every thread of every process did when.
 *
 * The file is Chrome's and Perfetto's JSON as proto/base/trace.h writes it, and whatever else keeps
 * to it: complete events ("X") and names ("M"); other events are passed over. It is from outside,
 * so hostile until checked.
 *
 * Thread: any; a timeline is frozen once it is read.
 */
#ifndef ENGINE_TRACE_TIMELINE_H
#define ENGINE_TRACE_TIMELINE_H

#include "proto/base/memory.h"

enum {
    TIMELINE_MAX_BYTES = 1 << 30,
    TIMELINE_MAX_THREADS = 4096,
    TIMELINE_MAX_NAMES = 4096,
    TIMELINE_NO_STEP = -1,
};

struct timeline_span {
    int64_t begin_ns, end_ns; /* begin <= end */
    int64_t step;             /* TIMELINE_NO_STEP: it belongs to none */
    int32_t name;             /* of names */
};

struct timeline_thread {
    int64_t pid, tid;
    const char *process,
        *name; /* "worker.1", "device"; their numbers where the file does not say */
    const struct timeline_span *spans; /* [num_spans] by begin */
    size_t num_spans;
};

struct timeline {
    const struct timeline_thread
        *threads; /* [num_threads] engine first, then ranks; "device" last */
    size_t num_threads;
    const struct timeline_span *spans; /* [num_spans] of all threads */
    size_t num_spans;
    const char *const *names; /* [num_names] of spans */
    size_t num_names;
    struct arena arena;
};

/* ERR_NOT_FOUND, ERR_IO; ERR_CORRUPT names the path, and the line and column or the number of the
 * event that does not fit. */
MUST_USE enum status timeline_read(const char *path, struct timeline *out);
void timeline_close(struct timeline *timeline);

bool timeline_is(const struct timeline *timeline, const struct timeline_span *span,
                 const char *name);

/* A device runs steps: its thread is called so, and has some. */
bool timeline_is_device(const struct timeline *timeline, const struct timeline_thread *thread);

/* One step on one device: from the begin of execute_model to the end of sample. */
struct timeline_step {
    int64_t step;
    int64_t begin_ns, end_ns;
    int64_t busy_ns; /* of it: the spans of its verbs */
};

/* Those of a device, in order; the caller frees them. */
struct timeline_step *timeline_steps(const struct timeline *timeline,
                                     const struct timeline_thread *device, size_t *num_out);

#endif
