#include "tests/cuda/emulated_parts.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)   ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif

enum { MAX_DEVICES = 16 };
static const size_t PEERS_BYTES = (size_t)64 << 30; /* of addresses, for what other processes lend */

/* ---- what the environment says --------------------------------------------------------------- */

enum fault { NO_FAULT, NO_DEVICE, NO_DRIVER, OLD_DRIVER, NO_MEMORY, NO_IPC, LAUNCH, NO_GRAPH };

/* What blocks may have of shared memory, if they ask for it. */
struct card {
    int major, minor, shared_bytes;
};

static const struct card cards[] = {
    {8, 0, 163 << 10}, {8, 6, 99 << 10}, {8, 9, 99 << 10}, {9, 0, 227 << 10}, {10, 0, 227 << 10},
};

static struct {
    enum fault fault;
    int64_t fault_number;
    int fault_device; /* -1: any */
    struct emulated_turns turns;
    int num_devices;
    const struct card *cards[MAX_DEVICES];
    size_t memory_bytes; /* of a device */
    bool open;           /* the host may touch it */
    bool is_synchronous;
    useconds_t late_us;
} settings;

static int64_t number_from(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);

    return text && *text ? strtoll(text, NULL, 10) : otherwise;
}

void emulated_cuda_order(const char *order)
{
    settings.turns.seed = order ? strtoull(order, NULL, 10) : 0;
    settings.turns.order = !order || !*order            ? IN_TURN
                           : !strcmp(order, "forward")  ? FORWARD
                           : !strcmp(order, "backward") ? BACKWARD
                                                        : RANDOM;
}

static const struct card *find_card(const char *capability)
{
    int major = 0, minor = 0;

    sscanf(capability, "%d.%d", &major, &minor);
    for (const struct card &card : cards)
        if (card.major == major && card.minor == minor)
            return &card;
    fprintf(stderr, "emulated_cuda: EMULATED_CUDA_CAPABILITY: no GPU of %s is emulated\n", capability);
    abort();
}

static void read_cards()
{
    const char *text = getenv("EMULATED_CUDA_CAPABILITY");

    for (const struct card *&card : settings.cards) {
        const char *comma = text ? strchr(text, ',') : NULL;

        card = text && *text ? find_card(text) : &cards[0];
        text = comma ? comma + 1 : text;
    }
}

static void read_settings()
{
    static const char *const names[] = {"",          "no_device", "no_driver", "old_driver",
                                        "no_memory", "no_ipc",    "launch",    "no_graph"};
    const char *fault = getenv("EMULATED_CUDA_FAULT");

    for (int i = 1; fault && i <= NO_GRAPH; i++) {
        size_t length = strlen(names[i]);

        if (strncmp(fault, names[i], length) == 0 && (fault[length] == ':' || !fault[length])) {
            const char *at = strchr(fault, '@');

            settings.fault = (enum fault)i;
            settings.fault_number = fault[length] ? strtoll(fault + length + 1, NULL, 10) : 0;
            settings.fault_device = at ? atoi(at + 1) : -1;
        }
    }
    emulated_cuda_order(getenv("EMULATED_CUDA_ORDER"));
    settings.num_devices = min((int)number_from("EMULATED_CUDA_DEVICES", 2), (int)MAX_DEVICES);
    read_cards();
    settings.memory_bytes = (size_t)number_from("EMULATED_CUDA_MEMORY", 1 << 30);
    if (settings.fault == NO_MEMORY)
        settings.memory_bytes = (size_t)settings.fault_number;
    settings.open = number_from("EMULATED_CUDA_OPEN_MEMORY", 0);
    settings.is_synchronous = number_from("EMULATED_CUDA_SYNCHRONOUS", 0);
    settings.late_us = (useconds_t)number_from("EMULATED_CUDA_LATE_US", 0);
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum kind { OF_DEVICE, OF_PEER, PAGE_LOCKED, REGISTERED };

struct range {
    char *begin;
    size_t bytes;
    enum kind kind;
    int device;
    int fd;             /* what is behind it, where other processes were lent it; else -1 */
    struct range *next; /* at a higher address */
};

static struct {
    char *begin; /* devices side by side, then what peers lend */
    size_t bytes;
    size_t device_bytes; /* of addresses */
    int key;             /* by which each thread may touch it or not; -1: the CPU has none, and then */
    int users;           /* counts what is under way: 0, nobody may touch it */
    struct range *ranges;
} memory;

static struct {
    size_t used;
    cudaError_t broken; /* by a kernel, for good */
    bool reaches[MAX_DEVICES];
} devices[MAX_DEVICES];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static pid_t process;
static __thread int current_device;
static __thread int has_opened; /* memory, with its key, so many times */
static __thread cudaError_t last_error;

/* In a scope, memory's and devices' fields are this thread's. */
struct lock {
    lock()
    {
        pthread_mutex_lock(&mutex);
    }

    ~lock()
    {
        pthread_mutex_unlock(&mutex);
    }
};

/* Puts a file, or with -1 pages of zeroes, behind these addresses. In huge pages: access to them changes often. */
static bool map_pages(char *at, size_t bytes, int fd)
{
    int access = memory.key >= 0 || memory.users || settings.open ? PROT_READ | PROT_WRITE : PROT_NONE;
    int type = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

    bytes = round_up(bytes, PAGE);
    if (mmap(at, bytes, access, type | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED)
        return false;
    if (memory.key >= 0 && pkey_mprotect(at, bytes, access, memory.key))
        return false;
    madvise(at, bytes, MADV_HUGEPAGE);
    return true;
}

static void start()
{
    process = getpid();
    read_settings();
    memory.key = settings.open ? -1 : pkey_alloc(0, PKEY_DISABLE_ACCESS);
    memory.device_bytes = round_up(2 * settings.memory_bytes, PAGE) + ((size_t)1 << 30);
    memory.bytes = (size_t)settings.num_devices * memory.device_bytes + PEERS_BYTES;
    memory.begin = (char *)mmap(NULL, memory.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory.begin == MAP_FAILED || !map_pages(memory.begin, memory.bytes, -1)) {
        perror("emulated_cuda: device memory");
        abort();
    }
}

/* Between the two, this thread may touch device memory. */
static void open_memory()
{
    struct lock lock;

    if (memory.key >= 0 && has_opened++ == 0)
        pkey_set(memory.key, 0);
    if (memory.key < 0 && !settings.open && memory.users++ == 0)
        mprotect(memory.begin, memory.bytes, PROT_READ | PROT_WRITE);
}

static void close_memory()
{
    struct lock lock;

    if (memory.key >= 0 && --has_opened == 0)
        pkey_set(memory.key, PKEY_DISABLE_ACCESS);
    if (memory.key < 0 && !settings.open && --memory.users == 0)
        mprotect(memory.begin, memory.bytes, PROT_NONE);
}

bool emulated_is_device_address(const void *p)
{
    return (uintptr_t)p - (uintptr_t)memory.begin < memory.bytes;
}

/* The range that `bytes` from p on lie in, or NULL. Of no bytes: p may be its end. */
static struct range *find_range(const void *p, size_t bytes)
{
    struct lock lock;

    for (struct range *r = memory.ranges; r; r = r->next) {
        size_t offset = (size_t)((const char *)p - r->begin);

        if ((const char *)p >= r->begin && offset <= r->bytes && bytes <= r->bytes - offset)
            return r;
    }
    return NULL;
}

bool emulated_is_reachable(const void *p, size_t bytes)
{
    return find_range(p, bytes);
}

static bool is_page_locked(const void *p, size_t bytes)
{
    struct lock lock;
    const struct range *r = find_range(p, bytes);

    return r && (r->kind == PAGE_LOCKED || r->kind == REGISTERED);
}

/* Of the device memory, or of the host's, that begins here; -1: none does. */
static int device_of(const void *begin)
{
    struct lock lock;
    const struct range *r = find_range(begin, 1);

    return r && r->begin == begin ? r->device : -1;
}

static void add_range(void *begin, size_t bytes, enum kind kind)
{
    struct lock lock;
    struct range **at = &memory.ranges, *r = (struct range *)malloc(sizeof *r);

    while (*at && (*at)->begin < begin)
        at = &(*at)->next;
    *r = {(char *)begin, bytes, kind, current_device, -1, *at};
    *at = r;
}

/* False: none of the kind begins here. Device memory goes back. */
static bool remove_range(void *begin, enum kind kind)
{
    struct lock lock;

    for (struct range **at = &memory.ranges; *at; at = &(*at)->next) {
        struct range *r = *at;

        if (r->begin != begin || r->kind != kind)
            continue;
        if (kind == OF_DEVICE)
            devices[r->device].used -= r->bytes;
        if (kind == OF_DEVICE || kind == OF_PEER) {
            map_pages(r->begin, r->bytes, -1);
            ASAN_POISON_MEMORY_REGION(r->begin, r->bytes);
        }
        if (r->fd >= 0)
            close(r->fd);
        *at = r->next;
        free(r);
        return true;
    }
    return false;
}

/* Pages that it takes, and one more that nothing is in. */
static size_t space_of(size_t bytes)
{
    return round_up(bytes, PAGE) + PAGE;
}

/* The first gap for `bytes` in `size` addresses from `begin` on; NULL: there is none. */
static char *find_gap(char *begin, size_t size, size_t bytes)
{
    char *end = begin + size;

    for (struct range *r = memory.ranges; r; r = r->next) {
        if (r->begin < begin || r->begin >= end)
            continue;
        if ((size_t)(r->begin - begin) >= space_of(bytes))
            break;
        size -= (size_t)(r->begin + space_of(r->bytes) - begin);
        begin = r->begin + space_of(r->bytes);
    }
    return (size_t)(end - begin) >= space_of(bytes) ? begin : NULL;
}

/* ---- errors ---------------------------------------------------------------------------------- */

static cudaError_t note(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

static cudaError_t error_of(int device)
{
    return __atomic_load_n(&devices[device].broken, __ATOMIC_ACQUIRE);
}

/* Before anything that concerns a device. */
static cudaError_t enter()
{
    pthread_once(&once, start);
    if (getpid() != process)
        return note(cudaErrorInitializationError); /* a fork of one that used CUDA */
    if (settings.fault == NO_DRIVER || settings.fault == OLD_DRIVER)
        return note(cudaErrorInsufficientDriver);
    if (settings.fault == NO_DEVICE || settings.num_devices < 1)
        return note(cudaErrorNoDevice);
    return note(error_of(current_device));
}

#define ENTER()                                                                                                    \
    do {                                                                                                           \
        cudaError_t error_ = enter();                                                                              \
        if (error_ != cudaSuccess)                                                                                 \
            return error_;                                                                                         \
    } while (0)

#define REFUSE_IF(condition, error)                                                                                \
    do {                                                                                                           \
        if (condition)                                                                                             \
            return note(error);                                                                                    \
    } while (0)

/* ---- streams --------------------------------------------------------------------------------- */

/* That streams get somewhere. */
struct moment {
    int users;
    int num_awaited; /* streams that have yet to get there */
    int64_t ns;      /* when the last did */
};

enum verb { RUN, CALL, COPY, FILL, PASS, AWAIT };

/* Of works that call a function: of one, and all of its copies. Behind it lies their argument. */
struct __align__(16) holder
{
    int users; /* atomic */
    void (*release)(void *);
};

/* What a stream does, one after another. Behind it lie bytes of its own: a kernel's closure, an argument, or what
 * is copied. */
struct __align__(16) work
{
    enum verb verb;
    struct work *next;
    size_t own_bytes;
    struct emulated_launch launch; /* RUN */
    struct emulated_turns turns;
    bool breaks; /* the device, and does not run */
    void (*function)(void *); /* CALL */
    struct holder *holder;    /* NULL: nobody wants to know when it is over */
    void *to;    /* COPY, FILL */
    const void *from;
    size_t bytes;
    int byte;
    struct moment *moment; /* PASS, AWAIT */
};

struct works {
    struct work *first, **end;
};

/* Of a stream whose work is recorded, not done. */
struct capture {
    enum cudaStreamCaptureMode mode;
    pthread_t thread; /* that began it */
    bool is_invalid;
    struct works works;
};

struct emulated_stream {
    int device;
    bool is_blocking; /* for the default stream, and the other way round */
    bool is_closing;
    bool has_opened; /* memory, until it has no works */
    pthread_cond_t has_work;
    struct works works;
    int num_works; /* with the one that is done now */
    struct capture *capture;
    struct emulated_stream *next; /* of all */
};

struct emulated_event {
    int device;
    bool has_time;
    const struct emulated_stream *captured; /* NULL: it was last recorded where works are done */
    struct moment *moment;                  /* NULL: never recorded */
};

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t moment_passed;
    struct emulated_stream *first;
    struct emulated_stream *default_of[MAX_DEVICES];
    int num_captures;
    int64_t num_launches;
} streams = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, {}, 0, 0};

/* In a scope, streams and what hangs on them are this thread's. It may lock memory then, not the other way. */
struct streams_lock {
    streams_lock()
    {
        pthread_mutex_lock(&streams.mutex);
    }

    ~streams_lock()
    {
        pthread_mutex_unlock(&streams.mutex);
    }
};

/* Those below want streams locked, unless they say otherwise. */

static struct moment *make_moment(int num_awaited)
{
    struct moment *moment = (struct moment *)malloc(sizeof *moment);

    *moment = {1, num_awaited, 0};
    return moment;
}

static struct moment *share(struct moment *moment)
{
    moment->users++;
    return moment;
}

static void drop_moment(struct moment *moment)
{
    if (moment && --moment->users == 0)
        free(moment);
}

static void pass(struct moment *moment)
{
    if (--moment->num_awaited > 0)
        return;
    moment->ns = time_of(CLOCK_MONOTONIC);
    pthread_cond_broadcast(&streams.moment_passed);
}

static void await_moment(const struct moment *moment)
{
    while (moment->num_awaited > 0)
        pthread_cond_wait(&streams.moment_passed, &streams.mutex);
}

static char *own_bytes_of(struct work *work)
{
    return (char *)(work + 1);
}

/* own: bytes that it will have of its own. */
static struct work *make_work(enum verb verb, const void *own, size_t own_bytes)
{
    struct work *work = (struct work *)calloc(1, sizeof *work + own_bytes);

    work->verb = verb;
    work->own_bytes = own_bytes;
    if (own_bytes > 0)
        memcpy(own_bytes_of(work), own, own_bytes);
    return work;
}

static struct work *make_work_of_moment(enum verb verb, struct moment *moment)
{
    struct work *work = make_work(verb, NULL, 0);

    work->moment = share(moment);
    return work;
}

static void drop_holder(struct holder *holder)
{
    if (!holder || __atomic_sub_fetch(&holder->users, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    holder->release(holder + 1);
    free(holder);
}

static void free_work(struct work *work)
{
    drop_moment(work->moment);
    drop_holder(work->holder);
    free(work);
}

static void append(struct works *works, struct work *work)
{
    if (!works->first)
        works->end = &works->first;
    *works->end = work;
    works->end = &work->next;
}

static struct work *take_first(struct works *works)
{
    struct work *work = works->first;

    works->first = work->next;
    work->next = NULL;
    return work;
}

/* Of a graph: kernels, and copies between memory that stays where it is. */
static void append_copies(struct works *to, const struct works *works)
{
    for (struct work *w = works->first; w; w = w->next) {
        struct work *copy = make_work(w->verb, own_bytes_of(w), w->own_bytes);

        *copy = *w;
        copy->next = NULL;
        if (copy->holder)
            __atomic_add_fetch(&copy->holder->users, 1, __ATOMIC_RELAXED);
        if (copy->verb == RUN)
            copy->launch.closure = own_bytes_of(copy);
        append(to, copy);
    }
}

static void free_works(struct works *works)
{
    while (works->first)
        free_work(take_first(works));
}

/* Not locked: all of a range, of many pages. Zeroes take no memory until they are written. */
static bool forget(void *p, size_t bytes)
{
    struct lock lock;
    const struct range *r = find_range(p, bytes);

    return r && bytes > 1 << 20 && r->begin == p && r->bytes == bytes && r->kind == OF_DEVICE && r->fd < 0 &&
           madvise(p, bytes, MADV_DONTNEED) == 0;
}

/* Not locked. */
static void do_work(int device, struct work *work)
{
    if (error_of(device) != cudaSuccess)
        return;
    if (work->verb == RUN && settings.late_us > 0)
        usleep(settings.late_us);
    if (work->verb == RUN && work->breaks)
        __atomic_store_n(&devices[device].broken, cudaErrorIllegalAddress, __ATOMIC_RELEASE);
    else if (work->verb == RUN)
        emulated_run_blocks(&work->launch, work->turns);
    if (work->verb == CALL)
        work->function(own_bytes_of(work));
    if (work->verb == COPY)
        memmove(work->to, work->from, work->bytes);
    if (work->verb == FILL && (work->byte != 0 || !forget(work->to, work->bytes)))
        memset(work->to, work->byte, work->bytes);
}

static bool touches_memory(const struct work *work)
{
    return work->verb != PASS && work->verb != AWAIT;
}

static void queue(struct emulated_stream *stream, struct work *work)
{
    if (touches_memory(work) && memory.key < 0 && !stream->has_opened) {
        open_memory();
        stream->has_opened = true;
    }
    stream->num_works++;
    append(&stream->works, work);
    pthread_cond_signal(&stream->has_work);
}

/* Memory is closed again before anybody hears of it. */
static void end_work(struct emulated_stream *stream, struct work *work)
{
    if (--stream->num_works == 0 && stream->has_opened) {
        close_memory();
        stream->has_opened = false;
    }
    if (work->verb == PASS)
        pass(work->moment);
    free_work(work);
}

static void remove_stream(struct emulated_stream *stream)
{
    struct emulated_stream **at = &streams.first;

    while (*at != stream)
        at = &(*at)->next;
    *at = stream->next;
    pthread_cond_destroy(&stream->has_work);
    free(stream);
}

/* A thread. */
static void *run_stream(void *arg)
{
    struct emulated_stream *stream = (struct emulated_stream *)arg;

    if (memory.key >= 0)
        open_memory();

    struct streams_lock lock;

    for (;;) {
        while (!stream->works.first && !stream->is_closing)
            pthread_cond_wait(&stream->has_work, &streams.mutex);
        if (!stream->works.first)
            break;

        struct work *work = take_first(&stream->works);

        if (work->verb == AWAIT)
            await_moment(work->moment);
        if (touches_memory(work)) {
            pthread_mutex_unlock(&streams.mutex);
            do_work(stream->device, work);
            pthread_mutex_lock(&streams.mutex);
        }
        end_work(stream, work);
    }
    remove_stream(stream);
    return NULL;
}

/* It takes no signal but those of its own mistakes. */
static void start_thread(struct emulated_stream *stream)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    sigset_t blocked, before;
    pthread_t thread;

    sigfillset(&blocked);
    for (int signal : own)
        sigdelset(&blocked, signal);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    if (pthread_create(&thread, NULL, run_stream, stream)) {
        perror("emulated_cuda: a stream's thread");
        abort();
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_setname_np(thread, "cuda_stream");
    pthread_detach(thread);
}

static struct emulated_stream *make_stream(int device, bool is_blocking)
{
    struct emulated_stream *stream = (struct emulated_stream *)calloc(1, sizeof *stream);

    stream->device = device;
    stream->is_blocking = is_blocking;
    pthread_cond_init(&stream->has_work, NULL);
    stream->next = streams.first;
    streams.first = stream;
    if (!settings.is_synchronous)
        start_thread(stream);
    return stream;
}

static struct emulated_stream *default_stream()
{
    struct emulated_stream **at = &streams.default_of[current_device];

    if (!*at)
        *at = make_stream(current_device, true);
    return *at;
}

static struct emulated_stream *stream_of(cudaStream_t stream)
{
    return stream ? stream : default_stream();
}

/* The default stream and those that block wait for each other. */
static void queue_waits(struct emulated_stream *stream)
{
    const struct emulated_stream *by_default = streams.default_of[stream->device];

    for (struct emulated_stream *s = streams.first; s; s = s->next) {
        if (s == stream || s->device != stream->device || s->num_works == 0 || !s->is_blocking ||
            !stream->is_blocking || (s != by_default && stream != by_default))
            continue;

        struct moment *moment = make_moment(1);

        queue(s, make_work_of_moment(PASS, moment));
        queue(stream, make_work_of_moment(AWAIT, moment));
        drop_moment(moment);
    }
}

/* Takes the work. */
static void submit(struct emulated_stream *stream, struct work *work)
{
    if (work->verb == RUN) {
        work->turns = settings.turns;
        work->breaks = ++streams.num_launches == settings.fault_number && settings.fault == LAUNCH;
    }
    if (!settings.is_synchronous) {
        queue_waits(stream);
        queue(stream, work);
        return;
    }
    if (touches_memory(work)) {
        pthread_mutex_unlock(&streams.mutex); /* other threads' may run at the same time */
        open_memory();
        do_work(stream->device, work);
        close_memory();
        pthread_mutex_lock(&streams.mutex);
    }
    stream->num_works++;
    end_work(stream, work);
}

/* Of the default stream: those that it would wait for, too. */
static bool is_busy(const struct emulated_stream *stream)
{
    bool is_default = stream == streams.default_of[stream->device], is_busy = stream->num_works > 0;

    for (struct emulated_stream *s = streams.first; s && is_default; s = s->next)
        is_busy |= s->device == stream->device && s->is_blocking && s->num_works > 0;
    return is_busy;
}

/* Not locked. */
static void wait_for_stream(cudaStream_t stream)
{
    struct streams_lock lock;
    struct moment *moment;

    if (!is_busy(stream_of(stream)))
        return;
    moment = make_moment(1);
    submit(stream_of(stream), make_work_of_moment(PASS, moment));
    await_moment(moment);
    drop_moment(moment);
}

/* Not locked. */
static void wait_for_device(int device)
{
    struct streams_lock lock;
    struct moment *moment = make_moment(0);

    for (struct emulated_stream *s = streams.first; s; s = s->next) {
        if (s->device != device || s->num_works == 0)
            continue;
        moment->num_awaited++;
        queue(s, make_work_of_moment(PASS, moment));
    }
    await_moment(moment);
    drop_moment(moment);
}

/* ---- captures -------------------------------------------------------------------------------- */

static void invalidate(struct emulated_stream *stream)
{
    stream->capture->is_invalid = true;
}

/* What captures may forbid the thread. */
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

/* Does a call that does not go to a stream disturb a capture? That is no good any more then. Not locked. */
static bool disturbs_captures()
{
    struct streams_lock lock;
    bool disturbs = false;

    if (thread_mode == cudaStreamCaptureModeRelaxed)
        return false;
    for (struct emulated_stream *s = streams.first; s && streams.num_captures > 0; s = s->next) {
        const struct capture *capture = s->capture;

        if (!capture || capture->mode == cudaStreamCaptureModeRelaxed ||
            (capture->mode == cudaStreamCaptureModeThreadLocal && !pthread_equal(capture->thread, pthread_self())))
            continue;
        invalidate(s);
        disturbs = true;
    }
    return disturbs;
}

/* Is a stream of the device being captured? Its capture is no good any more then. only_blocking: a stream that is.
 * (Locked.) */
static bool disturbs_captures_of(int device, bool only_blocking)
{
    bool disturbs = false;

    for (struct emulated_stream *s = streams.first; s && streams.num_captures > 0; s = s->next) {
        if (!s->capture || s->device != device || (only_blocking && !s->is_blocking))
            continue;
        invalidate(s);
        disturbs = true;
    }
    return disturbs;
}

#define ENTER_OUTSIDE_CAPTURES()                                                                                   \
    do {                                                                                                           \
        ENTER();                                                                                                   \
        REFUSE_IF(disturbs_captures(), cudaErrorStreamCaptureUnsupported);                                         \
    } while (0)

/* May work be given to the stream, or its capture? (Locked.) */
static cudaError_t admit(struct emulated_stream *stream)
{
    if (stream == streams.default_of[stream->device] && disturbs_captures_of(stream->device, true))
        return cudaErrorStreamCaptureImplicit;
    return stream->capture && stream->capture->is_invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}

/* Takes the work, to do or to record it. Streams are not locked. */
static cudaError_t give(cudaStream_t to, struct work *work)
{
    struct streams_lock lock;
    struct emulated_stream *stream = stream_of(to);
    cudaError_t error = admit(stream);

    if (error != cudaSuccess)
        free_work(work);
    else if (stream->capture)
        append(&stream->capture->works, work);
    else
        submit(stream, work);
    return error;
}

/* Is a stream captured that a call wants the end of? Streams are not locked. */
static bool disturbs_capture(cudaStream_t stream)
{
    struct streams_lock lock;

    if (!stream || !stream->capture)
        return false;
    invalidate(stream);
    return true;
}

/* ---- launches -------------------------------------------------------------------------------- */

/* A small number, and what was in the padding behind it? */
static bool may_be_padding(uint64_t word)
{
#if __has_builtin(__builtin_clear_padding)
    (void)word;
    return false;
#else
    return (uint32_t)word >> 16 == 0;
#endif
}

/* An address of the host's, and not a number that looks like one: it is high and mapped. */
static bool is_host_address(uint64_t word)
{
    unsigned char resident;

    if (may_be_padding(word))
        return false;
    /* Below lie small numbers side by side, and what looks like one of them to ASan. */
    return word >> 48 == 0 && word >= 0x10007fff8000 && mincore((void *)(word / PAGE * PAGE), 1, &resident) == 0;
}

void emulated_check_argument(const void *kernel, int index, const void *argument, size_t bytes)
{
    const char *wrong = NULL;

    if (enter() != cudaSuccess)
        return;
    for (size_t at = 0; at + 8 <= bytes && !wrong; at += 8) {
        uint64_t word;

        memcpy(&word, (const char *)argument + at, 8);

        struct lock lock;
        const struct range *r = find_range((const void *)word, 0);

        if (!r && emulated_is_device_address((const void *)word))
            wrong = "device memory that is free";
        else if (r && r->kind == OF_DEVICE && r->device != current_device &&
                 !devices[current_device].reaches[r->device])
            wrong = "memory of a device that it cannot reach";
        else if (!r && is_host_address(word))
            wrong = "memory of the host";
        if (wrong) {
            fprintf(stderr, "emulated_cuda: ");
            emulated_print_kernel(kernel);
            fprintf(stderr, ", argument %d, byte %zu: %p is %s\n", index, at, (void *)word, wrong);
            abort();
        }
    }
}

enum { MAX_OPTED_IN = 256 };

/* Kernels that may have more shared memory than the usual. */
static struct {
    const void *kernel;
    int device, bytes;
} opted_in[MAX_OPTED_IN];
static int num_opted_in;

static int shared_of(const void *kernel)
{
    struct lock lock;
    int bytes = SHARED_BYTES;

    for (int i = 0; i < num_opted_in; i++)
        if (opted_in[i].kernel == kernel && opted_in[i].device == current_device)
            bytes = opted_in[i].bytes;
    return bytes;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    struct lock lock;
    int i = 0;

    ENTER();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    while (i < num_opted_in && (opted_in[i].kernel != kernel || opted_in[i].device != current_device))
        i++;
    REFUSE_IF(value < 0 || value > settings.cards[current_device]->shared_bytes, cudaErrorInvalidValue);
    REFUSE_IF(value % 16 != 0 || i == MAX_OPTED_IN, cudaErrorInvalidValue);
    opted_in[i].kernel = kernel;
    opted_in[i].device = current_device;
    opted_in[i].bytes = value;
    num_opted_in = max(num_opted_in, i + 1);
    return cudaSuccess;
}

static cudaError_t check_launch(const struct emulated_launch *launch, cudaStream_t stream)
{
    const struct dim3 *grid = &launch->grid;

    if (stream && stream->device != current_device)
        return cudaErrorInvalidResourceHandle;
    if (grid->x < 1 || grid->x > 0x7fffffff || grid->y < 1 || grid->y > 65535 || grid->z < 1 || grid->z > 65535)
        return cudaErrorInvalidConfiguration;
    if (launch->block.x < 1 || launch->block.x > MAX_THREADS || launch->block.y != 1 || launch->block.z != 1)
        return cudaErrorInvalidConfiguration;
    return launch->shared_bytes > (size_t)shared_of(launch->kernel) ? cudaErrorInvalidValue : cudaSuccess;
}

void emulated_enqueue(const struct emulated_launch *launch, cudaStream_t stream)
{
    struct work *work;

    if (enter() != cudaSuccess || note(check_launch(launch, stream)) != cudaSuccess)
        return;
    work = make_work(RUN, launch->closure, launch->closure_bytes);
    work->launch = *launch;
    work->launch.closure = own_bytes_of(work);
    note(give(stream, work));
}

/* ---- the runtime: devices -------------------------------------------------------------------- */

#define EMULATED_ERROR_CASE(name, number, text)                                                                    \
    case name:                                                                                                     \
        return WANTED(name, text);

const char *cudaGetErrorName(cudaError_t error)
{
#define WANTED(name, text) #name
    switch (error) {
        EMULATED_ERRORS(EMULATED_ERROR_CASE)
    }
#undef WANTED
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
#define WANTED(name, text) text
    switch (error) {
        EMULATED_ERRORS(EMULATED_ERROR_CASE)
    }
#undef WANTED
    return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError()
{
    return last_error;
}

cudaError_t cudaGetLastError()
{
    cudaError_t error = last_error;

    if (error != error_of(current_device))
        last_error = cudaSuccess;
    return error;
}

cudaError_t cudaRuntimeGetVersion(int *out)
{
    *out = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *out)
{
    pthread_once(&once, start);
    *out = settings.fault == NO_DRIVER ? 0 : settings.fault == OLD_DRIVER ? 11040 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *out)
{
    *out = 0;
    ENTER();
    *out = settings.num_devices;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int ordinal)
{
    enter();
    REFUSE_IF(ordinal < 0 || ordinal >= settings.num_devices, cudaErrorInvalidDevice);
    current_device = ordinal;
    return enter();
}

cudaError_t cudaGetDevice(int *out)
{
    ENTER();
    *out = current_device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int ordinal)
{
    const struct card *card;

    ENTER();
    REFUSE_IF(ordinal < 0 || ordinal >= settings.num_devices, cudaErrorInvalidDevice);
    card = settings.cards[ordinal];
    memset(out, 0, sizeof *out);
    strcpy(out->name, "emulated");
    memcpy(out->uuid.bytes, &ordinal, sizeof ordinal);
    out->totalGlobalMem = settings.memory_bytes;
    out->sharedMemPerBlock = SHARED_BYTES;
    out->sharedMemPerBlockOptin = (size_t)card->shared_bytes;
    out->sharedMemPerMultiprocessor = out->sharedMemPerBlockOptin + 1024;
    out->major = card->major;
    out->minor = card->minor;
    out->multiProcessorCount = 4;
    out->warpSize = LANES;
    out->maxThreadsPerBlock = MAX_THREADS;
    out->maxThreadsPerMultiProcessor = 2048;
    out->regsPerBlock = 65536;
    out->l2CacheSize = 1 << 20;
    out->memoryBusWidth = 256;
    out->unifiedAddressing = 1;
    out->pciBusID = ordinal + 1;
    return cudaSuccess;
}

#define EMULATED_ATTRIBUTE_CASE(name, number, member)                                                              \
    case name:                                                                                                     \
        *out = (int)p.member;                                                                                      \
        return cudaSuccess;

cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr attribute, int ordinal)
{
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, ordinal);

    if (error != cudaSuccess)
        return error;
    switch (attribute) {
        EMULATED_ATTRIBUTES(EMULATED_ATTRIBUTE_CASE)
    }
    return note(cudaErrorInvalidValue);
}

/* Waiting for a device would never end while works of it are recorded. */
static bool disturbs_any_capture(int device)
{
    struct streams_lock lock;

    return disturbs_captures_of(device, false);
}

cudaError_t cudaDeviceSynchronize()
{
    ENTER_OUTSIDE_CAPTURES();
    REFUSE_IF(disturbs_any_capture(current_device), cudaErrorStreamCaptureUnsupported);
    wait_for_device(current_device);
    return note(error_of(current_device));
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned)
{
    ENTER();
    REFUSE_IF(peer < 0 || peer >= settings.num_devices || peer == current_device, cudaErrorInvalidDevice);
    REFUSE_IF(devices[current_device].reaches[peer], cudaErrorPeerAccessAlreadyEnabled);
    devices[current_device].reaches[peer] = true;
    return cudaSuccess;
}

/* ---- the runtime: memory --------------------------------------------------------------------- */

cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out)
{
    struct lock lock;

    ENTER();
    *total_out = settings.memory_bytes;
    *free_out = settings.memory_bytes - devices[current_device].used;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    enum { SPOILT_BYTES = 8 << 20 };
    char *p = NULL;

    ENTER_OUTSIDE_CAPTURES();
    *out = NULL;
    if (bytes == 0)
        return cudaSuccess;

    struct lock lock;

    if (bytes <= settings.memory_bytes - devices[current_device].used)
        p = find_gap(memory.begin + (size_t)current_device * memory.device_bytes, memory.device_bytes, bytes);
    REFUSE_IF(!p, cudaErrorMemoryAllocation);
    add_range(p, bytes, OF_DEVICE);
    devices[current_device].used += bytes;
    ASAN_UNPOISON_MEMORY_REGION(p, bytes);
    ASAN_POISON_MEMORY_REGION(p + bytes, space_of(bytes) - bytes);
    open_memory();
    memset(p, JUNK, min(bytes, (size_t)SPOILT_BYTES));
    close_memory();
    *out = p;
    return cudaSuccess;
}

/* What GPUs do before memory goes; what they do with it has been done. */
static void wait_for_users(const void *p)
{
    int device = p ? device_of(p) : -1;

    if (device >= 0)
        wait_for_device(device);
}

cudaError_t cudaFree(void *p)
{
    ENTER_OUTSIDE_CAPTURES();
    wait_for_users(p);
    REFUSE_IF(p && !remove_range(p, OF_DEVICE), cudaErrorInvalidValue);
    return note(error_of(current_device));
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    ENTER_OUTSIDE_CAPTURES();
    *out = NULL;
    if (bytes == 0)
        return cudaSuccess;
    REFUSE_IF(posix_memalign(out, PAGE, bytes) != 0, cudaErrorMemoryAllocation);
    memset(*out, JUNK, bytes);
    add_range(*out, bytes, PAGE_LOCKED);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    return cudaMallocHost(out, bytes);
}

cudaError_t cudaFreeHost(void *p)
{
    ENTER_OUTSIDE_CAPTURES();
    wait_for_users(p);
    REFUSE_IF(p && !remove_range(p, PAGE_LOCKED), cudaErrorInvalidValue);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    ENTER();
    REFUSE_IF(!p || bytes == 0, cudaErrorInvalidValue);
    REFUSE_IF(find_range(p, 1), cudaErrorHostMemoryAlreadyRegistered);
    add_range(p, bytes, REGISTERED);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    ENTER_OUTSIDE_CAPTURES();
    wait_for_users(p);
    REFUSE_IF(!remove_range(p, REGISTERED), cudaErrorHostMemoryNotRegistered);
    return cudaSuccess;
}

/* Memory of a device, all of it allocated; or of the host. */
static bool fits(const void *p, size_t bytes, bool of_device)
{
    return emulated_is_device_address(p) == of_device && (!of_device || find_range(p, bytes));
}

/* What is not page-locked has been read when this returns, or written. waits: and the copy is over, but where CUDA
 * says that cudaMemcpy may return before. */
static cudaError_t copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream,
                        bool waits)
{
    bool to_device, from_device, is_staged;
    struct work *work;

    if (bytes == 0)
        return cudaSuccess;
    if (kind == cudaMemcpyDefault)
        kind = (enum cudaMemcpyKind)(emulated_is_device_address(to) + 2 * emulated_is_device_address(from));
    to_device = kind & 1;
    from_device = kind & 2;
    REFUSE_IF(!fits(to, bytes, to_device) || !fits(from, bytes, from_device), cudaErrorInvalidValue);
    is_staged = !from_device && !is_page_locked(from, bytes);
    if (to_device)
        waits = waits && !from_device && !is_staged;
    else
        waits = waits || !from_device || !is_page_locked(to, bytes);
    REFUSE_IF((is_staged || waits) && disturbs_capture(stream), cudaErrorStreamCaptureUnsupported);

    work = make_work(COPY, from, is_staged ? bytes : 0);
    work->to = to;
    work->from = is_staged ? own_bytes_of(work) : from;
    work->bytes = bytes;

    cudaError_t error = give(stream, work);

    if (error == cudaSuccess && waits)
        wait_for_stream(stream);
    return note(error == cudaSuccess ? error_of(current_device) : error);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    ENTER_OUTSIDE_CAPTURES();
    return copy(to, from, bytes, kind, NULL, true);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ENTER();
    return copy(to, from, bytes, kind, stream, false);
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t stream)
{
    struct work *work;

    ENTER();
    if (bytes == 0)
        return cudaSuccess;
    REFUSE_IF(!fits(p, bytes, true), cudaErrorInvalidValue);
    work = make_work(FILL, NULL, 0);
    work->to = p;
    work->byte = byte;
    work->bytes = bytes;
    return note(give(stream, work));
}

/* (As the real one, it does not wait.) */
cudaError_t cudaMemset(void *p, int byte, size_t bytes)
{
    return cudaMemsetAsync(p, byte, bytes, NULL);
}

/* What a cudaIpcMemHandle_t holds. */
struct lent {
    pid_t process;
    int fd;
    size_t bytes;
};

/* Moves what is in a range to a file, which others can open. */
static bool make_lendable(struct range *r)
{
    int fd = memfd_create("emulated_cuda", MFD_CLOEXEC);
    size_t done = 0;

    open_memory();
    for (ssize_t n; done < r->bytes && (n = write(fd, r->begin + done, r->bytes - done)) > 0;)
        done += (size_t)n;
    close_memory();
    if (done < r->bytes || ftruncate(fd, (off_t)round_up(r->bytes, PAGE)) || !map_pages(r->begin, r->bytes, fd)) {
        close(fd);
        return false;
    }
    r->fd = fd;
    return true;
}

cudaError_t cudaIpcGetMemHandle(struct cudaIpcMemHandle_t *out, void *p)
{
    ENTER();
    wait_for_users(p); /* what it has moves */

    struct lock lock;
    struct range *r = find_range(p, 1);

    REFUSE_IF(!r || r->kind != OF_DEVICE || r->begin != p, cudaErrorInvalidValue);
    REFUSE_IF(r->fd < 0 && !make_lendable(r), cudaErrorMemoryAllocation);

    struct lent lent = {process, r->fd, r->bytes};

    static_assert(sizeof lent <= sizeof *out, "");
    memset(out, 0, sizeof *out);
    memcpy(out, &lent, sizeof lent);
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **out, struct cudaIpcMemHandle_t handle, unsigned flags)
{
    struct lock lock;
    struct lent lent;
    char path[64], *p;
    int fd;

    ENTER();
    memcpy(&lent, &handle, sizeof lent);
    REFUSE_IF(flags != cudaIpcMemLazyEnablePeerAccess, cudaErrorInvalidValue);
    REFUSE_IF(settings.fault == NO_IPC, cudaErrorNotSupported);
    REFUSE_IF(lent.process == process, cudaErrorDeviceUninitialized);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", lent.process, lent.fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    REFUSE_IF(fd < 0, cudaErrorInvalidResourceHandle);
    p = find_gap(memory.begin + memory.bytes - PEERS_BYTES, PEERS_BYTES, lent.bytes);
    if (p && !map_pages(p, lent.bytes, fd))
        p = NULL;
    close(fd);
    REFUSE_IF(!p, cudaErrorMemoryAllocation);
    add_range(p, lent.bytes, OF_PEER);
    ASAN_UNPOISON_MEMORY_REGION(p, lent.bytes);
    ASAN_POISON_MEMORY_REGION(p + lent.bytes, space_of(lent.bytes) - lent.bytes);
    *out = p;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *p)
{
    ENTER();
    wait_for_users(p);
    REFUSE_IF(!remove_range(p, OF_PEER), cudaErrorInvalidValue);
    return cudaSuccess;
}

/* ---- the runtime: streams and events --------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    ENTER();

    struct streams_lock lock;

    *out = make_stream(current_device, !(flags & cudaStreamNonBlocking));
    return cudaSuccess;
}

static void end_capture(struct emulated_stream *stream)
{
    free_works(&stream->capture->works);
    free(stream->capture);
    stream->capture = NULL;
    streams.num_captures--;
}

/* Its works are done first, and nobody waits for that. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaError_t error = enter();

    if (error == cudaErrorInitializationError)
        return error;
    REFUSE_IF(!stream, cudaErrorInvalidResourceHandle);

    struct streams_lock lock;

    if (stream->capture)
        end_capture(stream);
    stream->is_closing = true;
    if (settings.is_synchronous)
        remove_stream(stream);
    else
        pthread_cond_signal(&stream->has_work);
    return error;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    ENTER_OUTSIDE_CAPTURES();
    REFUSE_IF(disturbs_capture(stream), cudaErrorStreamCaptureUnsupported);
    wait_for_stream(stream);
    return note(error_of(stream ? stream->device : current_device));
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    ENTER_OUTSIDE_CAPTURES();
    REFUSE_IF(disturbs_capture(stream), cudaErrorStreamCaptureUnsupported);

    struct streams_lock lock;
    struct emulated_stream *asked = stream_of(stream);

    REFUSE_IF(error_of(asked->device) != cudaSuccess, error_of(asked->device));
    return note(is_busy(asked) ? cudaErrorNotReady : cudaSuccess); /* no error, and yet cudaGetLastError tells it */
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    ENTER();
    *out = (cudaEvent_t)calloc(1, sizeof **out);
    (*out)->device = current_device;
    (*out)->has_time = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    cudaError_t error = enter();

    if (error == cudaErrorInitializationError)
        return error;
    REFUSE_IF(!event, cudaErrorInvalidResourceHandle);

    struct streams_lock lock;

    drop_moment(event->moment);
    free(event);
    return error;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    ENTER();

    struct streams_lock lock;
    struct emulated_stream *to = stream_of(stream);

    REFUSE_IF(to->device != event->device, cudaErrorInvalidResourceHandle);
    REFUSE_IF(admit(to) != cudaSuccess, admit(to));
    drop_moment(event->moment);
    event->moment = NULL;
    event->captured = to->capture ? to : NULL;
    if (to->capture)
        return cudaSuccess;
    event->moment = make_moment(1);
    submit(to, make_work_of_moment(PASS, event->moment));
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    ENTER();

    struct streams_lock lock;
    struct emulated_stream *waiting = stream_of(stream);

    REFUSE_IF(admit(waiting) != cudaSuccess, admit(waiting));
    if (event->captured && event->captured == waiting)
        return cudaSuccess; /* in its capture, one thing follows another */
    REFUSE_IF(event->captured, cudaErrorNotSupported);
    if (waiting->capture) {
        invalidate(waiting);
        return note(cudaErrorStreamCaptureIsolation);
    }
    if (event->moment && event->moment->num_awaited > 0)
        submit(waiting, make_work_of_moment(AWAIT, event->moment));
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    ENTER_OUTSIDE_CAPTURES();

    struct streams_lock lock;

    REFUSE_IF(event->captured, cudaErrorCapturedEvent);
    REFUSE_IF(error_of(event->device) != cudaSuccess, error_of(event->device));
    return note(event->moment && event->moment->num_awaited > 0 ? cudaErrorNotReady : cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    ENTER_OUTSIDE_CAPTURES();

    struct streams_lock lock;

    REFUSE_IF(event->captured, cudaErrorCapturedEvent);
    if (event->moment) {
        struct moment *moment = share(event->moment); /* it may be recorded again meanwhile */

        await_moment(moment);
        drop_moment(moment);
    }
    return note(error_of(event->device));
}

cudaError_t cudaEventElapsedTime(float *ms_out, cudaEvent_t start, cudaEvent_t end)
{
    ENTER();

    struct streams_lock lock;
    const struct moment *from = start->moment, *to = end->moment;

    REFUSE_IF(start->captured || end->captured, cudaErrorCapturedEvent);
    REFUSE_IF(!from || !to || !start->has_time || !end->has_time, cudaErrorInvalidResourceHandle);
    if (from->num_awaited > 0 || to->num_awaited > 0)
        return note(cudaErrorNotReady);
    *ms_out = (float)(to->ns - from->ns) * 1e-6f;
    return cudaSuccess;
}

/* ---- the runtime: graphs --------------------------------------------------------------------- */

/* What a stream was given while it was captured, in that order. */
struct emulated_graph {
    int device;
    struct works works;
};

struct emulated_graph_exec {
    int device;
    struct works works;
    struct moment *last; /* end of a launch; NULL: there was none */
};

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    ENTER();
    REFUSE_IF(!stream, cudaErrorStreamCaptureUnsupported);

    struct streams_lock lock;

    REFUSE_IF(stream->capture, cudaErrorIllegalState);
    stream->capture = (struct capture *)calloc(1, sizeof *stream->capture);
    stream->capture->mode = mode;
    stream->capture->thread = pthread_self();
    streams.num_captures++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    *out = NULL;
    ENTER();

    struct streams_lock lock;
    bool is_invalid;

    REFUSE_IF(!stream || !stream->capture, cudaErrorIllegalState);
    REFUSE_IF(stream->capture->mode != cudaStreamCaptureModeRelaxed &&
                  !pthread_equal(stream->capture->thread, pthread_self()),
              cudaErrorStreamCaptureWrongThread);
    is_invalid = stream->capture->is_invalid;
    if (!is_invalid) {
        *out = (cudaGraph_t)malloc(sizeof **out);
        **out = {stream->device, stream->capture->works};
        stream->capture->works.first = NULL;
    }
    end_capture(stream);
    return note(is_invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    enum cudaStreamCaptureMode old = thread_mode;

    thread_mode = *mode;
    *mode = old;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out)
{
    ENTER();

    struct streams_lock lock;

    *out = !stream || !stream->capture   ? cudaStreamCaptureStatusNone
           : stream->capture->is_invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    static int64_t num_graphs;

    *out = NULL;
    ENTER();
    REFUSE_IF(!graph, cudaErrorInvalidValue);
    REFUSE_IF(settings.fault == NO_GRAPH && (settings.fault_device < 0 || settings.fault_device == graph->device) &&
                  num_graphs++ >= settings.fault_number,
              cudaErrorMemoryAllocation);
    *out = (cudaGraphExec_t)calloc(1, sizeof **out);
    (*out)->device = graph->device;
    append_copies(&(*out)->works, &graph->works);
    return cudaSuccess;
}

/* What a kernel would be given that has been freed since. */
static void check_closure(const struct emulated_launch *launch)
{
    for (size_t at = 0; at + 8 <= launch->closure_bytes; at += 8) {
        void *p;

        memcpy(&p, (const char *)launch->closure + at, 8);
        if (!emulated_is_device_address(p) || may_be_padding((uintptr_t)p) || find_range(p, 0))
            continue;
        fprintf(stderr, "emulated_cuda: ");
        emulated_print_kernel(launch->kernel);
        fprintf(stderr, ", in a graph: %p is device memory that is free\n", p);
        abort();
    }
}

static bool are_in_memory(const struct works *works)
{
    for (const struct work *w = works->first; w; w = w->next) {
        if (w->verb == RUN)
            check_closure(&w->launch);
        if ((w->verb == COPY || w->verb == FILL) && !find_range(w->to, w->bytes))
            return false;
        if (w->verb == COPY && !find_range(w->from, w->bytes))
            return false;
    }
    return true;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    struct works works = {};

    ENTER();
    REFUSE_IF(!are_in_memory(&graph->works), cudaErrorInvalidValue);

    struct streams_lock lock;
    struct emulated_stream *to = stream_of(stream);

    REFUSE_IF(to->device != graph->device, cudaErrorInvalidValue);
    REFUSE_IF(admit(to) != cudaSuccess, admit(to));
    if (to->capture) {
        append_copies(&to->capture->works, &graph->works);
        return cudaSuccess;
    }
    append_copies(&works, &graph->works);
    if (graph->last)
        submit(to, make_work_of_moment(AWAIT, graph->last)); /* one launch at a time */
    while (works.first)
        submit(to, take_first(&works));
    drop_moment(graph->last);
    graph->last = make_moment(1);
    submit(to, make_work_of_moment(PASS, graph->last));
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    cudaError_t error = enter();

    REFUSE_IF(!graph, cudaErrorInvalidValue);

    struct streams_lock lock;

    free_works(&graph->works);
    drop_moment(graph->last);
    free(graph);
    return error;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    cudaError_t error = enter();

    REFUSE_IF(!graph, cudaErrorInvalidValue);

    struct streams_lock lock;

    free_works(&graph->works);
    free(graph);
    return error;
}

/* ---- the door -------------------------------------------------------------------------------- */

static struct holder *make_holder(const void *argument, size_t bytes, void (*release)(void *))
{
    struct holder *holder = (struct holder *)malloc(sizeof *holder + bytes);

    *holder = {1, release};
    memcpy(holder + 1, argument, bytes);
    return holder;
}

static cudaError_t launch_call(cudaStream_t stream, void (*function)(void *), const void *argument, size_t bytes,
                               void (*release)(void *))
{
    struct work *work = make_work(CALL, argument, bytes);
    cudaError_t error = enter();

    work->function = function;
    if (release)
        work->holder = make_holder(argument, bytes, release);
    if (error == cudaSuccess)
        return note(give(stream, work));
    free_work(work);
    return error;
}

static cudaError_t load_code()
{
    ENTER_OUTSIDE_CAPTURES();
    return cudaSuccess;
}

extern "C" {
extern const struct emulated_cuda_door emulated_cuda_door __attribute__((visibility("default")));

const struct emulated_cuda_door emulated_cuda_door = {cudaGetDevice, cudaGetDeviceProperties, emulated_is_reachable,
                                                      launch_call, cudaStreamIsCapturing, load_code, cudaMalloc,
                                                      cudaFree};
}
