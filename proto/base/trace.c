#include "proto/base/trace.h"

#include "proto/base/log.h"
#include "proto/base/memory.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_THREADS = 128, MAX_LINE = 512 };

/* Fields are atomic because trace_write reads while the thread goes on. */
struct span {
    _Atomic(const char *) name;
    _Atomic int64_t begin_ns, end_ns, arg;
};

struct ring {
    struct span *spans;
    _Atomic uint64_t num_added;
    _Atomic(const char *) thread_name;
    _Atomic long thread_id;
};

_Atomic bool trace_is_on_;
static struct ring rings[MAX_THREADS];
static _Atomic int num_rings;
static uint64_t ring_mask;
static _Atomic int64_t started_ns;
static _Thread_local struct ring *my_ring;
static _Thread_local const char *my_name;

enum status trace_start(int32_t spans_per_thread)
{
    uint64_t num_spans = 64;
    void *spans;

    ASSERT(!trace_is_on(), "tracing is on");
    atomic_store_explicit(&started_ns, clock_now_ns(), memory_order_relaxed);
    if (rings[0].spans) {
        atomic_store_explicit(&trace_is_on_, true, memory_order_release);
        return OK;
    }
    while (num_spans < (uint64_t)spans_per_thread)
        num_spans *= 2;
    /* Pages that no thread writes to stay virtual. */
    TRY(mem_map(MAX_THREADS * num_spans * sizeof(struct span), "the trace", &spans));
    for (size_t i = 0; i < MAX_THREADS; i++)
        rings[i].spans = (struct span *)spans + i * num_spans;
    ring_mask = num_spans - 1;
    atomic_store_explicit(&trace_is_on_, true, memory_order_release);
    return OK;
}

void trace_stop(void)
{
    atomic_store_explicit(&trace_is_on_, false, memory_order_release);
}

/* This thread's ring, taken at its first span; NULL when there are more threads than rings. */
static struct ring *take_ring(void)
{
    if (!my_ring) {
        int i = atomic_fetch_add(&num_rings, 1);

        if (i >= MAX_THREADS)
            return NULL;
        my_ring = &rings[i];
        atomic_store(&my_ring->thread_id, syscall(SYS_gettid));
        atomic_store(&my_ring->thread_name, my_name);
    }
    return my_ring;
}

void trace_name_thread(const char *name)
{
    my_name = name;
    /* The first thread's is the name of the process, too. */
    if (getpid() != (pid_t)syscall(SYS_gettid))
        pthread_setname_np(pthread_self(), name);
    if (my_ring)
        atomic_store(&my_ring->thread_name, name);
}

/* Ordered, so that a reader that saw any part of a span sees the count that came before it. */
#define STORE(place, value) atomic_store_explicit(&(place), (value), memory_order_release)
#define LOAD(place)         atomic_load_explicit(&(place), memory_order_acquire)

static void add(struct ring *ring, const char *name, int64_t begin_ns, int64_t end_ns, int64_t arg)
{
    uint64_t at = LOAD(ring->num_added);
    struct span *span = &ring->spans[at & ring_mask];

    STORE(span->name, name);
    STORE(span->begin_ns, begin_ns);
    STORE(span->end_ns, end_ns);
    STORE(span->arg, arg);
    STORE(ring->num_added, at + 1);
}

/* Seen on: then everything that trace_start did is seen, too. */
static bool sees_on(void)
{
    return atomic_load_explicit(&trace_is_on_, memory_order_acquire);
}

void trace_add(const char *name, int64_t begin_ns, int64_t end_ns, int64_t arg)
{
    struct ring *ring = sees_on() ? take_ring() : NULL;

    if (ring)
        add(ring, name, begin_ns, end_ns, arg);
}

/* Threads have numbers; what is a row and no thread has one that none can have. */
enum { FIRST_ROW_ID = 1 << 24 };

static struct ring *find_row(const char *row_name)
{
    int n = MIN(atomic_load(&num_rings), MAX_THREADS);

    for (int i = 0; i < n; i++)
        if (LOAD(rings[i].thread_id) >= FIRST_ROW_ID && LOAD(rings[i].thread_name) == row_name)
            return &rings[i];
    n = atomic_fetch_add(&num_rings, 1);
    if (n >= MAX_THREADS)
        return NULL;
    atomic_store(&rings[n].thread_name, row_name);
    atomic_store(&rings[n].thread_id, FIRST_ROW_ID + n);
    return &rings[n];
}

void trace_add_to(const char *row_name, const char *name, int64_t begin_ns, int64_t end_ns,
                  int64_t arg)
{
    struct ring *ring = sees_on() ? find_row(row_name) : NULL;

    if (ring)
        add(ring, name, begin_ns, end_ns, arg);
}

/* ---- files ---------------------------------------------------------------------------------- */

/* One event a line, so that trace_merge can tell them apart. */
static void write_name(FILE *out, const char *what, const char *name, long thread_id)
{
    fprintf(out, "{\"ph\":\"M\",\"name\":\"%s\",\"pid\":%d,\"tid\":%ld,\"args\":{\"name\":\"%s\"}},\n",
            what, getpid(), thread_id, name);
}

static void write_ring(FILE *out, struct ring *ring)
{
    long thread_id = LOAD(ring->thread_id);
    const char *thread_name = LOAD(ring->thread_name);
    uint64_t end = LOAD(ring->num_added);
    uint64_t begin = end > ring_mask ? end - ring_mask - 1 : 0;
    int64_t oldest_ns = atomic_load_explicit(&started_ns, memory_order_relaxed);

    if (thread_name)
        write_name(out, "thread_name", thread_name, thread_id);
    for (uint64_t i = begin; i < end; i++) {
        struct span *span = &ring->spans[i & ring_mask];
        const char *name = LOAD(span->name);
        int64_t begin_ns = LOAD(span->begin_ns), end_ns = LOAD(span->end_ns), arg = LOAD(span->arg);

        /* Overwritten while we read? The slot that comes next may be half written. */
        if (LOAD(ring->num_added) >= i + ring_mask + 1 || begin_ns < oldest_ns)
            continue;
        fprintf(out,
                "{\"ph\":\"X\",\"name\":\"%s\",\"pid\":%d,\"tid\":%ld,\"ts\":%.3f,\"dur\":%.3f,"
                "\"args\":{\"step\":%" PRId64 "}},\n",
                name, getpid(), thread_id, (double)begin_ns / 1e3,
                (double)(end_ns - begin_ns) / 1e3, arg);
    }
}

static FILE *begin_file(const char *path)
{
    FILE *out = fopen(path, "we");

    if (out)
        fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", out);
    return out;
}

/* An event without a comma ends the list. */
static enum status end_file(FILE *out, const char *path)
{
    fputs("{\"ph\":\"M\",\"name\":\"end\",\"pid\":0}\n]}\n", out);

    bool failed = ferror(out);

    if (fclose(out) != 0 || failed)
        return fail(ERR_IO, "trace file %s cannot be written: %m", path);
    return OK;
}

enum status trace_write(const char *path, const char *process_name)
{
    FILE *out = begin_file(path);

    if (!out)
        return fail(ERR_IO, "trace file %s cannot be opened: %m", path);
    write_name(out, "process_name", process_name, 0);
    for (int i = 0; i < MIN(atomic_load(&num_rings), (int)MAX_THREADS); i++)
        write_ring(out, &rings[i]);
    return end_file(out, path);
}

static void copy_events(FILE *out, FILE *part)
{
    char line[MAX_LINE];

    while (fgets(line, sizeof line, part)) {
        size_t size = strlen(line);

        if (size > 2 && strcmp(line + size - 3, "},\n") == 0)
            fputs(line, out);
    }
}

enum status trace_merge(const char *const *parts, int num_parts, const char *path)
{
    FILE *out = begin_file(path);

    if (!out)
        return fail(ERR_IO, "trace file %s cannot be opened: %m", path);
    for (int i = 0; i < num_parts; i++) {
        FILE *part = fopen(parts[i], "re");

        if (!part) {
            log_warn("the trace lacks %s: %m", parts[i]);
            continue;
        }
        copy_events(out, part);
        fclose(part);
    }
    return end_file(out, path);
}
