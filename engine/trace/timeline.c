#include "engine/trace/timeline.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Microseconds; a year of them, and no rounding to speak of. */
static const double MAX_US = 3.2e13;

/* What is known of a thread while the file is read. */
struct draft {
    struct timeline_thread thread;
    size_t num_taken; /* of its spans */
};

struct reader {
    struct timeline *out;
    struct draft *drafts; /* [num_drafts] */
    size_t num_drafts;
    const char **names; /* [num_names] */
    size_t num_names;
    const json_t *events;
};

static void reader_close(struct reader *reader)
{
    mem_free(reader->drafts);
}

/* ---- events ---------------------------------------------------------------------------------- */

static const char *text_of(const json_t *event, const char *key)
{
    const char *text = json_string_value(json_object_get(event, key));

    return text ? text : "";
}

static enum status number_of(const json_t *event, const char *key, double least, double most,
                             double *out)
{
    const json_t *value = json_object_get(event, key);

    *out = json_number_value(value);
    if (!json_is_number(value) || !(*out >= least && *out <= most))
        return fail(ERR_CORRUPT, "\"%s\" is missing, or is no number from %.15g to %.15g", key,
                    least, most);
    return OK;
}

static enum status id_of(const json_t *event, const char *key, int64_t *out)
{
    const json_t *value = json_object_get(event, key);

    if (value && !json_is_integer(value))
        return fail(ERR_CORRUPT, "\"%s\" is no integer", key);
    *out = json_integer_value(value);
    return OK;
}

/* The thread that an event is about; a new one where it is the first. */
static enum status find_draft(struct reader *reader, const json_t *event, struct draft **out)
{
    int64_t pid, tid;

    TRY(id_of(event, "pid", &pid));
    TRY(id_of(event, "tid", &tid));
    for (size_t i = reader->num_drafts; i-- > 0;)
        if (reader->drafts[i].thread.pid == pid && reader->drafts[i].thread.tid == tid) {
            *out = &reader->drafts[i];
            return OK;
        }
    if (reader->num_drafts == TIMELINE_MAX_THREADS)
        return fail(ERR_CORRUPT, "there are more than %d threads", TIMELINE_MAX_THREADS);
    *out = &reader->drafts[reader->num_drafts++];
    **out = (struct draft){.thread = {.pid = pid, .tid = tid}};
    return OK;
}

static enum status find_name(struct reader *reader, const char *name, int32_t *out)
{
    for (size_t i = 0; i < reader->num_names; i++)
        if (strcmp(reader->names[i], name) == 0) {
            *out = (int32_t)i;
            return OK;
        }
    if (reader->num_names == TIMELINE_MAX_NAMES)
        return fail(ERR_CORRUPT, "spans have more than %d names", TIMELINE_MAX_NAMES);
    reader->names[reader->num_names] = arena_strndup(&reader->out->arena, name, strlen(name));
    *out = (int32_t)reader->num_names++;
    return OK;
}

/* ---- names: "M" ------------------------------------------------------------------------------ */

static enum status read_name(struct reader *reader, const json_t *event)
{
    const char *kind = text_of(event, "name");
    const char *name = text_of(json_object_get(event, "args"), "name");
    bool is_thread = strcmp(kind, "thread_name") == 0;
    struct draft *draft;
    int64_t pid;

    if (!is_thread && strcmp(kind, "process_name") != 0)
        return OK;
    name = arena_strndup(&reader->out->arena, name, strlen(name));
    if (is_thread) {
        TRY(find_draft(reader, event, &draft));
        draft->thread.name = name;
        return OK;
    }
    TRY(id_of(event, "pid", &pid));
    for (size_t i = 0; i < reader->num_drafts; i++)
        if (reader->drafts[i].thread.pid == pid)
            reader->drafts[i].thread.process = name;
    return OK;
}

/* ---- spans: "X" ------------------------------------------------------------------------------ */

static bool is_span(const json_t *event)
{
    return strcmp(text_of(event, "ph"), "X") == 0;
}

static enum status read_span(struct reader *reader, const json_t *event, struct timeline_span *out)
{
    const json_t *step = json_object_get(json_object_get(event, "args"), "step");
    double begin_us, length_us;

    TRY(number_of(event, "ts", 0, MAX_US, &begin_us));
    TRY(number_of(event, "dur", 0, MAX_US, &length_us));
    TRY(find_name(reader, text_of(event, "name"), &out->name));
    out->begin_ns = (int64_t)llround(begin_us * 1e3);
    out->end_ns = out->begin_ns + (int64_t)llround(length_us * 1e3);
    out->step = json_is_integer(step) ? json_integer_value(step) : TIMELINE_NO_STEP;
    return OK;
}

/* ---- passes over the events ------------------------------------------------------------------ */

/* Finds the threads, and how many spans each has. */
static enum status count_event(struct reader *reader, const json_t *event)
{
    struct draft *draft;

    if (!json_is_object(event))
        return fail(ERR_CORRUPT, "is no object");
    if (!is_span(event))
        return OK;
    TRY(find_draft(reader, event, &draft));
    draft->thread.num_spans++;
    reader->out->num_spans++;
    return OK;
}

static enum status take_event(struct reader *reader, const json_t *event)
{
    struct draft *draft;

    if (strcmp(text_of(event, "ph"), "M") == 0)
        return read_name(reader, event);
    if (!is_span(event))
        return OK;
    TRY(find_draft(reader, event, &draft));
    return read_span(reader, event,
                     (struct timeline_span *)draft->thread.spans + draft->num_taken++);
}

static enum status for_each_event(struct reader *reader,
                                  enum status (*visit)(struct reader *reader, const json_t *event))
{
    for (size_t i = 0; i < json_array_size(reader->events); i++) {
        enum status status = visit(reader, json_array_get(reader->events, i));

        if (status != OK)
            return fail(status, "event %zu: %s", i, fail_text());
    }
    return OK;
}

static void give_rooms(struct reader *reader)
{
    struct timeline *out = reader->out;
    struct timeline_span *spans = arena_alloc(&out->arena, out->num_spans * sizeof *spans);

    out->spans = spans;
    for (size_t i = 0; i < reader->num_drafts; i++) {
        reader->drafts[i].thread.spans = spans;
        spans += reader->drafts[i].thread.num_spans;
    }
}

/* ---- order ----------------------------------------------------------------------------------- */

static int compare_spans(const void *a, const void *b)
{
    const struct timeline_span *left = a, *right = b;

    if (left->begin_ns != right->begin_ns)
        return left->begin_ns < right->begin_ns ? -1 : 1;
    return (left->end_ns > right->end_ns) - (left->end_ns < right->end_ns);
}

/* Numbers within names count as numbers: "worker.10" comes behind "worker.9". */
static int compare_names(const char *a, const char *b)
{
    int order = strverscmp(a, b);

    return order < 0 ? -1 : order > 0;
}

static int compare_threads(const void *a, const void *b)
{
    const struct timeline_thread *left = a, *right = b;
    int order = compare_names(left->process, right->process);

    if (order == 0)
        order = (left->pid > right->pid) - (left->pid < right->pid);
    if (order == 0) /* what feeds the device stands above it */
        order = (strcmp(left->name, "device") == 0) - (strcmp(right->name, "device") == 0);
    if (order == 0)
        order = compare_names(left->name, right->name);
    return order ? order : (left->tid > right->tid) - (left->tid < right->tid);
}

static const char *number_name(struct arena *arena, const char *kind, int64_t number)
{
    char text[40];

    snprintf(text, sizeof text, "%s %" PRId64, kind, number);
    return arena_strndup(arena, text, strlen(text));
}

/* Threads without a span are left out. */
static void settle(struct reader *reader)
{
    struct timeline *out = reader->out;
    struct timeline_thread *threads =
        arena_alloc(&out->arena, reader->num_drafts * sizeof *threads);

    out->threads = threads;
    for (size_t i = 0; i < reader->num_drafts; i++) {
        struct timeline_thread *thread = &reader->drafts[i].thread;

        if (thread->num_spans == 0)
            continue;
        if (!thread->process)
            thread->process = number_name(&out->arena, "process", thread->pid);
        if (!thread->name)
            thread->name = number_name(&out->arena, "thread", thread->tid);
        qsort((void *)thread->spans, thread->num_spans, sizeof *thread->spans, compare_spans);
        threads[out->num_threads++] = *thread;
    }
    if (out->num_threads > 0)
        qsort(threads, out->num_threads, sizeof *threads, compare_threads);
    out->names = reader->names;
    out->num_names = reader->num_names;
}

/* ---- the file -------------------------------------------------------------------------------- */

static enum status load(const char *path, json_t **out)
{
    FILE *f = fopen(path, "re");
    struct stat stat;
    json_error_t error;

    if (!f)
        return fail(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%m");
    if (fstat(fileno(f), &stat) != 0 || !S_ISREG(stat.st_mode) ||
        stat.st_size > TIMELINE_MAX_BYTES) {
        fclose(f);
        return fail(ERR_CORRUPT, "is no file of %d bytes at most", TIMELINE_MAX_BYTES);
    }
    *out = json_loadf(f, 0, &error);
    fclose(f);
    if (!*out)
        return fail(ERR_CORRUPT, "line %d, column %d: %s", error.line, error.column, error.text);
    return OK;
}

static enum status read_events(const json_t *root, struct timeline *out)
{
    AUTO_CLOSE(reader) struct reader reader = {.out = out};

    /* Both of Chrome's forms: an object with the list in it, or the list alone. */
    reader.events = json_is_array(root) ? root : json_object_get(root, "traceEvents");
    if (!json_is_array(reader.events))
        return fail(ERR_CORRUPT, "is no trace: there is no list \"traceEvents\"");
    reader.drafts = mem_new_array(struct draft, TIMELINE_MAX_THREADS);
    reader.names = arena_alloc(&out->arena, TIMELINE_MAX_NAMES * sizeof *reader.names);
    TRY(for_each_event(&reader, count_event));
    give_rooms(&reader);
    TRY(for_each_event(&reader, take_event));
    settle(&reader);
    return OK;
}

enum status timeline_read(const char *path, struct timeline *out)
{
    AUTO_CLOSE(timeline) struct timeline timeline = {0};
    json_t *root = NULL;
    enum status status = load(path, &root);

    if (status == OK)
        status = read_events(root, &timeline);
    json_decref(root);
    if (status != OK)
        return fail_in(path, status);
    *out = timeline;
    timeline = (struct timeline){0};
    return OK;
}

void timeline_close(struct timeline *timeline)
{
    arena_close(&timeline->arena);
    *timeline = (struct timeline){0};
}

/* ---- steps ----------------------------------------------------------------------------------- */

bool timeline_is(const struct timeline *timeline, const struct timeline_span *span,
                 const char *name)
{
    return strcmp(timeline->names[span->name], name) == 0;
}

static bool is_work(const struct timeline *timeline, const struct timeline_span *span)
{
    return span->step >= 0 &&
           (timeline_is(timeline, span, "execute_model") || timeline_is(timeline, span, "sample"));
}

bool timeline_is_device(const struct timeline *timeline, const struct timeline_thread *thread)
{
    if (strcmp(thread->name, "device") != 0)
        return false;
    for (size_t i = 0; i < thread->num_spans; i++)
        if (is_work(timeline, &thread->spans[i]))
            return true;
    return false;
}

struct timeline_step *timeline_steps(const struct timeline *timeline,
                                     const struct timeline_thread *device, size_t *num_out)
{
    struct timeline_step *steps = mem_new_array(struct timeline_step, device->num_spans);
    size_t n = 0;

    for (size_t i = 0; i < device->num_spans; i++) {
        const struct timeline_span *span = &device->spans[i];

        if (!is_work(timeline, span))
            continue;
        if (n == 0 || steps[n - 1].step != span->step)
            steps[n++] = (struct timeline_step){span->step, span->begin_ns, span->end_ns, 0};
        steps[n - 1].end_ns = MAX(steps[n - 1].end_ns, span->end_ns);
        steps[n - 1].busy_ns += span->end_ns - span->begin_ns;
    }
    *num_out = n;
    return steps;
}
