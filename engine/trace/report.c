#include "engine/trace/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- numbers --------------------------------------------------------------------------------- */

struct numbers {
    int64_t *values;
    size_t count;
};

static int compare_numbers(const void *a, const void *b)
{
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;

    return (left > right) - (left < right);
}

/* The value that this share of them does not exceed, in microseconds. */
static double quantile_us(struct numbers *numbers, double share)
{
    size_t at;

    if (numbers->count == 0)
        return 0;
    qsort(numbers->values, numbers->count, sizeof *numbers->values, compare_numbers);
    at = (size_t)(share * (double)numbers->count);
    return (double)numbers->values[MIN(at, numbers->count - 1)] / 1e3;
}

/* ---- devices --------------------------------------------------------------------------------- */

/* A device and its steps. */
struct lane {
    const struct timeline_thread *thread;
    struct timeline_step *steps;
    size_t num_steps;
};

struct work {
    const struct timeline *timeline;
    struct lane *lanes; /* [num_lanes] the devices, in order */
    size_t num_lanes;
    int64_t *numbers; /* as many as there are spans */
};

static void work_open(const struct timeline *timeline, struct work *out)
{
    *out = (struct work){
        .timeline = timeline,
        .lanes = mem_new_array(struct lane, timeline->num_threads),
        .numbers = mem_new_array(int64_t, timeline->num_spans),
    };
    for (size_t i = 0; i < timeline->num_threads; i++) {
        const struct timeline_thread *thread = &timeline->threads[i];
        struct lane *lane = &out->lanes[out->num_lanes];

        if (!timeline_is_device(timeline, thread))
            continue;
        lane->thread = thread;
        lane->steps = timeline_steps(timeline, thread, &lane->num_steps);
        out->num_lanes++;
    }
}

static void work_close(struct work *work)
{
    for (size_t i = 0; i < work->num_lanes; i++)
        mem_free(work->lanes[i].steps);
    mem_free(work->lanes);
    mem_free(work->numbers);
}

/* How long the device did nothing for step i: since the step before ended, and within it. */
static int64_t idle_ns(const struct lane *lane, size_t i)
{
    const struct timeline_step *step = &lane->steps[i];
    int64_t within = step->end_ns - step->begin_ns - step->busy_ns;
    int64_t between = i > 0 ? step->begin_ns - lane->steps[i - 1].end_ns : 0;

    return MAX(within, (int64_t)0) + MAX(between, (int64_t)0);
}

static const struct timeline_step *find_step(const struct lane *lane, int64_t number)
{
    size_t low = 0, high = lane->num_steps;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (lane->steps[middle].step < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low < lane->num_steps && lane->steps[low].step == number ? &lane->steps[low] : NULL;
}

static double lateness_us(const struct work *work, const struct lane *lane)
{
    struct numbers late = {work->numbers, 0};

    for (size_t i = 0; i < lane->num_steps; i++) {
        int64_t first_ns = lane->steps[i].begin_ns;

        for (size_t other = 0; other < work->num_lanes; other++) {
            const struct timeline_step *step = find_step(&work->lanes[other], lane->steps[i].step);

            if (step)
                first_ns = MIN(first_ns, step->begin_ns);
        }
        late.values[late.count++] = lane->steps[i].begin_ns - first_ns;
    }
    return quantile_us(&late, 0.5);
}

static struct report_device describe_device(const struct work *work, const struct lane *lane)
{
    struct numbers idle = {work->numbers, 0};
    int64_t busy_ns = 0, length_ns;
    struct report_device device = {.process = lane->thread->process, .num_steps = lane->num_steps};

    for (size_t i = 0; i < lane->num_steps; i++) {
        busy_ns += lane->steps[i].busy_ns;
        idle.values[idle.count++] = idle_ns(lane, i);
    }
    device.idle_us_p50 = quantile_us(&idle, 0.5);
    device.idle_us_p99 = quantile_us(&idle, 0.99);
    device.idle_us_max = quantile_us(&idle, 1);
    for (size_t i = 0; i < lane->num_steps; i++)
        idle.values[i] = lane->steps[i].end_ns - lane->steps[i].begin_ns;
    device.step_ms_p50 = quantile_us(&idle, 0.5) / 1e3;
    device.late_us_p50 = lateness_us(work, lane);
    length_ns = lane->steps[lane->num_steps - 1].end_ns - lane->steps[0].begin_ns;
    device.length_ms = (double)length_ns / 1e6;
    device.busy_pct = length_ns > 0 ? 100 * (double)busy_ns / (double)length_ns : 100;
    return device;
}

/* ---- verbs ----------------------------------------------------------------------------------- */

/* Whose device an engine's or a rank's work could hide behind: its own, else the first. */
static const struct lane *device_beside(const struct work *work,
                                        const struct timeline_thread *thread)
{
    for (size_t i = 0; i < work->num_lanes; i++)
        if (work->lanes[i].thread->pid == thread->pid)
            return &work->lanes[i];
    return work->num_lanes > 0 ? &work->lanes[0] : NULL;
}

/* How much of a span's time that device was busy; spans come in order, `at` moves on with them. */
static int64_t hidden_ns(const struct work *work, const struct lane *lane,
                         const struct timeline_span *span, size_t *at)
{
    const struct timeline_thread *device = lane->thread;
    int64_t hidden = 0;

    while (*at < device->num_spans && device->spans[*at].end_ns <= span->begin_ns)
        ++*at;
    for (size_t i = *at; i < device->num_spans && device->spans[i].begin_ns < span->end_ns; i++) {
        const struct timeline_span *busy = &device->spans[i];

        if (timeline_is(work->timeline, busy, "execute_model") ||
            timeline_is(work->timeline, busy, "sample")) {
            int64_t from_ns = MAX(busy->begin_ns, span->begin_ns);
            int64_t to_ns = MIN(busy->end_ns, span->end_ns);

            hidden += MAX(to_ns - from_ns, (int64_t)0);
        }
    }
    return hidden;
}

/* The spans of one name on one thread; none: count 0. */
static struct report_verb describe_verb(const struct work *work,
                                        const struct timeline_thread *thread, int32_t name)
{
    const struct lane *lane = device_beside(work, thread);
    struct report_verb verb = {
        .process = thread->process, .thread = thread->name, .name = work->timeline->names[name]};
    struct numbers lengths = {work->numbers, 0};
    int64_t total = 0, hidden = 0;
    size_t at = 0;

    for (size_t i = 0; i < thread->num_spans; i++) {
        const struct timeline_span *span = &thread->spans[i];

        if (span->name != name || span->step < 0)
            continue;
        lengths.values[lengths.count++] = span->end_ns - span->begin_ns;
        total += span->end_ns - span->begin_ns;
        hidden += lane ? hidden_ns(work, lane, span, &at) : 0;
    }
    verb.count = lengths.count;
    verb.us_p50 = quantile_us(&lengths, 0.5);
    verb.us_p99 = quantile_us(&lengths, 0.99);
    verb.hidden_pct = total > 0 ? 100 * (double)hidden / (double)total : 0;
    return verb;
}

static void describe_verbs(const struct work *work, struct report *report)
{
    const struct timeline *timeline = work->timeline;

    report->verbs = mem_new_array(struct report_verb, timeline->num_threads * timeline->num_names);
    for (size_t t = 0; t < timeline->num_threads; t++) {
        if (strcmp(timeline->threads[t].name, "device") == 0)
            continue;
        for (size_t name = 0; name < timeline->num_names; name++) {
            struct report_verb verb = describe_verb(work, &timeline->threads[t], (int32_t)name);

            if (verb.count > 0)
                report->verbs[report->num_verbs++] = verb;
        }
    }
}

/* ---- the longest gap ------------------------------------------------------------------------- */

/* What ended last before the device went on, on a thread that could have made it wait: the
 * engine's, or another of its own process. */
static void find_cause(const struct work *work, int64_t begin_ns, int64_t end_ns,
                       struct report_gap *gap)
{
    const struct timeline_thread *device = work->lanes[0].thread;
    int64_t last_ns = begin_ns;

    for (size_t t = 0; t < work->timeline->num_threads; t++) {
        const struct timeline_thread *thread = &work->timeline->threads[t];

        if (thread == device ||
            (thread->pid != device->pid && t > 0 && thread->pid != work->timeline->threads[0].pid))
            continue;
        for (size_t i = 0; i < thread->num_spans; i++) {
            const struct timeline_span *span = &thread->spans[i];

            if (span->end_ns <= last_ns || span->end_ns > end_ns)
                continue;
            last_ns = span->end_ns;
            gap->process = thread->process;
            gap->thread = thread->name;
            gap->name = work->timeline->names[span->name];
            gap->before_us = (double)(end_ns - last_ns) / 1e3;
        }
    }
}

static void describe_gap(const struct work *work, struct report_gap *gap)
{
    const struct lane *lane = &work->lanes[0];
    int64_t longest = 0;
    size_t at = 0;

    gap->step = TIMELINE_NO_STEP;
    for (size_t i = 1; i < lane->num_steps; i++)
        if (idle_ns(lane, i) > longest) {
            longest = idle_ns(lane, i);
            at = i;
        }
    if (longest == 0)
        return;
    gap->step = lane->steps[at].step;
    gap->us = (double)longest / 1e3;
    find_cause(work, lane->steps[at - 1].end_ns, lane->steps[at].end_ns, gap);
    /* Between steps the device went on where this one begins. */
    if (lane->steps[at].begin_ns > lane->steps[at - 1].end_ns)
        find_cause(work, lane->steps[at - 1].end_ns, lane->steps[at].begin_ns, gap);
}

/* ---- the whole ------------------------------------------------------------------------------- */

void report_make(const struct timeline *timeline, struct report *out)
{
    AUTO_CLOSE(work) struct work work = {0};

    work_open(timeline, &work);
    *out = (struct report){
        .devices = mem_new_array(struct report_device, work.num_lanes),
        .num_devices = work.num_lanes,
        .gap.step = TIMELINE_NO_STEP,
        .num_threads = timeline->num_threads,
        .num_spans = timeline->num_spans,
    };
    for (size_t i = 0; i < work.num_lanes; i++)
        out->devices[i] = describe_device(&work, &work.lanes[i]);
    describe_verbs(&work, out);
    if (work.num_lanes > 0)
        describe_gap(&work, &out->gap);
}

void report_close(struct report *report)
{
    mem_free(report->devices);
    mem_free(report->verbs);
    *report = (struct report){0};
}

/* ---- telling --------------------------------------------------------------------------------- */

static void print_devices(const struct report *report, struct bytes *out)
{
    bytes_printf(out, "%-12s %7s %10s %8s %10s %12s %12s %12s %10s\n", "device", "steps", "ms",
                 "busy %", "step ms", "idle us p50", "idle us p99", "idle us max", "late us");
    for (size_t i = 0; i < report->num_devices; i++) {
        const struct report_device *device = &report->devices[i];

        bytes_printf(out, "%-12s %7zu %10.1f %8.2f %10.3f %12.1f %12.1f %12.1f %10.1f\n",
                     device->process, device->num_steps, device->length_ms, device->busy_pct,
                     device->step_ms_p50, device->idle_us_p50, device->idle_us_p99,
                     device->idle_us_max, device->late_us_p50);
    }
}

static void print_verbs(const struct report *report, struct bytes *out)
{
    bytes_printf(out, "\n%-12s %-8s %-20s %7s %10s %10s %10s\n", "process", "thread", "work",
                 "times", "us p50", "us p99", "hidden %");
    for (size_t i = 0; i < report->num_verbs; i++) {
        const struct report_verb *verb = &report->verbs[i];

        bytes_printf(out, "%-12s %-8s %-20s %7zu %10.1f %10.1f %10.1f\n", verb->process,
                     verb->thread, verb->name, verb->count, verb->us_p50, verb->us_p99,
                     verb->hidden_pct);
    }
    bytes_printf(out, "hidden: of its time, while a device computed\n");
}

static void print_gap(const struct report_gap *gap, struct bytes *out)
{
    if (gap->step == TIMELINE_NO_STEP) {
        bytes_printf(out, "\nthe first device never waited\n");
        return;
    }
    bytes_printf(out, "\nlongest wait: %.1f us for step %" PRId64, gap->us, gap->step);
    if (gap->name)
        bytes_printf(out, ", until %s of %s %s, %.1f us before it went on", gap->name, gap->process,
                     gap->thread, gap->before_us);
    bytes_printf(out, "\n");
}

void report_print(const struct report *report, struct bytes *out)
{
    bytes_printf(out, "%zu spans of %zu threads\n\n", report->num_spans, report->num_threads);
    if (report->num_devices == 0)
        bytes_printf(out, "no device has worked in this trace\n");
    else
        print_devices(report, out);
    if (report->num_verbs > 0)
        print_verbs(report, out);
    if (report->num_devices > 0)
        print_gap(&report->gap, out);
}

static json_t *device_json(const struct report_device *device)
{
    return json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "process", device->process,
                     "steps", (json_int_t)device->num_steps, "ms", device->length_ms, "busy_pct",
                     device->busy_pct, "step_ms_p50", device->step_ms_p50, "idle_us_p50",
                     device->idle_us_p50, "idle_us_p99", device->idle_us_p99, "idle_us_max",
                     device->idle_us_max, "late_us_p50", device->late_us_p50);
}

static json_t *verb_json(const struct report_verb *verb)
{
    return json_pack("{s:s, s:s, s:s, s:I, s:f, s:f, s:f}", "process", verb->process, "thread",
                     verb->thread, "name", verb->name, "count", (json_int_t)verb->count, "us_p50",
                     verb->us_p50, "us_p99", verb->us_p99, "hidden_pct", verb->hidden_pct);
}

static json_t *gap_json(const struct report_gap *gap)
{
    json_t *json;

    if (gap->step == TIMELINE_NO_STEP)
        return json_null();
    json = json_pack("{s:I, s:f, s:f}", "step", (json_int_t)gap->step, "us", gap->us, "before_us",
                     gap->before_us);
    json_object_set_new(json, "until",
                        gap->name ? json_pack("{s:s, s:s, s:s}", "process", gap->process, "thread",
                                              gap->thread, "name", gap->name)
                                  : json_null());
    return json;
}

json_t *report_to_json(const struct report *report)
{
    json_t *devices = json_array(), *verbs = json_array();

    for (size_t i = 0; i < report->num_devices; i++)
        json_array_append_new(devices, device_json(&report->devices[i]));
    for (size_t i = 0; i < report->num_verbs; i++)
        json_array_append_new(verbs, verb_json(&report->verbs[i]));
    return json_pack("{s:I, s:I, s:o, s:o, s:o}", "spans", (json_int_t)report->num_spans, "threads",
                     (json_int_t)report->num_threads, "devices", devices, "work", verbs,
                     "longest_wait", gap_json(&report->gap));
}
