/*
 * report: what a timeline says of the overlap: how busy the devices were, how long they waited
 * between steps and for what, and which of the engine's and the wire's work ran meanwhile.
 *
 * Thread: any.
 */
#ifndef ENGINE_TRACE_REPORT_H
#define ENGINE_TRACE_REPORT_H

#include "engine/trace/timeline.h"

#include <jansson.h>

/* One device, over the time from its first step to its last. */
struct report_device {
    const char *process;
    size_t num_steps;
    double length_ms, busy_pct;
    double step_ms_p50; /* begin to end of a step */
    double idle_us_p50, idle_us_p99,
        idle_us_max;    /* of a step: since the one before, and within it */
    double late_us_p50; /* its begin of a step behind that of the earliest device */
};

/* Work beside the devices, by the name of its spans. */
struct report_verb {
    const char *process, *thread, *name;
    size_t count;
    double us_p50, us_p99;
    double hidden_pct; /* of its time: the process's own device, or for the engine the first, was
                          busy */
};

/* The longest wait of the first device. */
struct report_gap {
    int64_t step; /* that it waited for; TIMELINE_NO_STEP: it never waited */
    double us;
    const char *process, *thread,
        *name;        /* of the span that ended last before it went on; NULL: none */
    double before_us; /* from that span's end to the device's going on */
};

struct report {
    struct report_device *devices; /* [num_devices] */
    size_t num_devices;
    struct report_verb *verbs; /* [num_verbs] those that have steps */
    size_t num_verbs;
    struct report_gap gap;
    size_t num_threads, num_spans;
};

/* Names are the timeline's, which is to outlive the report. */
void report_make(const struct timeline *timeline, struct report *out);
void report_close(struct report *report);

void report_print(const struct report *report, struct bytes *out);
json_t *report_to_json(const struct report *report);

#endif
