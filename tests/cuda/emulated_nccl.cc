#include "tests/cuda/emulated_parts.h"
#include "tests/cuda/nccl.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DOOR extern "C" __attribute__((visibility("default")))

enum { MAX_RANKS = 16, PIECE_BYTES = 32 << 10 };

/* ---- what the environment says --------------------------------------------------------------- */

enum fault { NO_FAULT, VERSION, INIT, NEVER, ASYNC };

static const struct emulated_cuda_door *cuda;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_runtime()
{
    cuda = emulated_cuda("emulated_nccl");
}

/* Of the current device; number_out: behind its name, or 0. */
static enum fault fault_here(long *number_out)
{
    static const char *const names[] = {"", "version", "init", "never", "async"};
    const char *text = getenv("EMULATED_NCCL_FAULT"), *at = text ? strchr(text, '@') : NULL;
    int device = -1;

    pthread_once(&once, find_runtime);
    *number_out = 0;
    cuda->get_device(&device);
    if (!text || (at && atoi(at + 1) != device))
        return NO_FAULT;
    for (int i = 1; i <= ASYNC; i++) {
        size_t length = strlen(names[i]);

        if (strncmp(text, names[i], length) != 0 || !strchr(":@", text[length]))
            continue;
        *number_out = text[length] == ':' ? atol(text + length + 1) : 0;
        return (enum fault)i;
    }
    return NO_FAULT;
}

/* ---- ranks ----------------------------------------------------------------------------------- */

enum verb { ADD, GATHER };

/* What all ranks are to do alike. */
struct rule {
    enum verb verb;
    ncclDataType_t type;
    uint32_t recorded; /* which of the communicator's exchanges that were captured it is; 0: it was not */
    size_t count;      /* of a rank's own */
};

/* What a rank has in memory that all share. */
struct lane {
    uint32_t is_there, has_gone;
    uint32_t told; /* pieces so far */
    struct cudaUUID_t gpu;
    struct rule rules[2]; /* in turn */
    char parts[2][PIECE_BYTES];
};

struct group {
    struct lane lanes[MAX_RANKS];
};

/* What an id holds. */
struct place {
    pid_t process;
    int fd;
};

struct exchange {
    ncclComm_t comm;
    struct rule rule;
    const char *from;
    char *to;
    bool ends;
};

enum state { MEETS, READY, BEGUN, LAUNCHED };

struct ncclComm {
    int rank, world;
    struct group *group;
    enum state state;
    struct exchange exchange; /* BEGUN: to be given to */
    cudaStream_t stream;
    uint32_t num_exchanges, fails_at;
    uint32_t num_captured;
    int is_in_call;
    ncclResult_t error; /* atomic */
    bool is_aborted;    /* atomic */
    int users;          /* atomic: exchanges that streams and graphs have, and 1 until it is aborted */
    int num_recorded;   /* atomic: of these those that graphs have */
    void *memory;        /* the device's; NULL: none */
    uint32_t num_pieces; /* the stream's */
    int num_done[2];     /* likewise: by enum verb */
    int num_replayed;    /* of both */
};

static char last_error[128];

static ncclResult_t refuse(ncclResult_t result, const char *text)
{
    snprintf(last_error, sizeof last_error, "%s", text);
    return result;
}

/* One call of a communicator at a time. */
struct in_call {
    ncclComm_t comm;

    in_call(ncclComm_t its) : comm(its)
    {
        if (__atomic_exchange_n(&comm->is_in_call, 1, __ATOMIC_ACQ_REL)) {
            fprintf(stderr, "emulated_nccl: two threads are in a communicator at the same time\n");
            abort();
        }
    }

    ~in_call()
    {
        __atomic_store_n(&comm->is_in_call, 0, __ATOMIC_RELEASE);
    }
};

static void write_counts(const struct ncclComm *comm)
{
    const char *path = getenv("EMULATED_NCCL_COUNTS");
    FILE *file = path ? fopen(path, "a") : NULL;

    if (!file)
        return;
    fprintf(file, "%d %d %d %d\n", comm->rank, comm->num_done[ADD], comm->num_done[GATHER], comm->num_replayed);
    fclose(file);
}

static void drop(ncclComm_t comm)
{
    if (__atomic_sub_fetch(&comm->users, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    write_counts(comm);
    munmap(comm->group, sizeof *comm->group);
    free(comm);
}

/* ---- exchanges, on the stream ---------------------------------------------------------------- */

static bool is_aborted(const struct ncclComm *comm)
{
    return __atomic_load_n(&comm->is_aborted, __ATOMIC_ACQUIRE);
}

static bool has_gone(const struct lane *lane)
{
    return __atomic_load_n(&lane->has_gone, __ATOMIC_ACQUIRE);
}

static bool has_any_gone(const struct ncclComm *comm)
{
    for (int rank = 0; rank < comm->world; rank++)
        if (has_gone(&comm->group->lanes[rank]))
            return true;
    return false;
}

/* Until the rank has told of this piece. false: its part is junk, since this one is aborted, or another is, which then
 * sends what it has not got; one that is aborted tells its own part all the same. */
static bool await(const struct ncclComm *comm, struct lane *lane)
{
    const struct timespec at_most = {0, 5 * 1000 * 1000};

    for (;;) {
        uint32_t now = __atomic_load_n(&lane->told, __ATOMIC_ACQUIRE);

        if ((int32_t)(now - comm->num_pieces) >= 0)
            return true;
        if (is_aborted(comm) || (has_any_gone(comm) && !has_gone(lane)))
            return false;
        syscall(SYS_futex, &lane->told, FUTEX_WAIT, now, &at_most, NULL, 0);
    }
}

/* What NCCL does then is not said: it may hang, or give anything. */
static void check_rule(const struct ncclComm *comm, int rank, struct rule own, struct rule other)
{
    if (has_gone(&comm->group->lanes[rank]) || (own.verb == other.verb && own.type == other.type &&
                                                own.recorded == other.recorded && own.count == other.count))
        return;
    fprintf(stderr,
            "emulated_nccl: ranks %d and %d do not do the same: %s of %zu of type %d, recorded as %u, and %s of %zu of "
            "type %d, recorded as %u (0: launched)\n",
            comm->rank, rank, own.verb == ADD ? "a sum" : "a gather", own.count, own.type, own.recorded,
            other.verb == ADD ? "a sum" : "a gather", other.count, other.type, other.recorded);
    abort();
}

template <typename T> static void add(void *to, const char *part, size_t bytes)
{
    T *sums = (T *)to;

    for (size_t i = 0; i < bytes / sizeof(T); i++)
        sums[i] += ((const T *)part)[i];
}

static size_t bytes_of(const struct rule *rule)
{
    return rule->count * (rule->type == ncclDouble ? sizeof(double) : sizeof(uint32_t));
}

/* `bytes` at `at` of each rank's own. */
static void exchange_piece(const struct exchange *exchange, size_t at, size_t bytes)
{
    struct ncclComm *comm = exchange->comm;
    struct lane *lanes = comm->group->lanes, *own = &lanes[comm->rank];
    uint32_t which = ++comm->num_pieces & 1;
    const struct rule rule = exchange->rule;
    bool gathers = rule.verb == GATHER;
    size_t stride = gathers ? bytes_of(&rule) : 0;

    memcpy(own->parts[which], exchange->from + at, bytes);
    own->rules[which] = rule;
    __atomic_store_n(&own->told, comm->num_pieces, __ATOMIC_RELEASE);
    syscall(SYS_futex, &own->told, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    memmove(exchange->to + comm->rank * stride + at, exchange->from + at, bytes);
    for (int i = 1; i < comm->world; i++) {
        int rank = (comm->rank + i) % comm->world;
        const char *part = lanes[rank].parts[which];
        char *to = exchange->to + rank * stride + at;

        if (!await(comm, &lanes[rank])) {
            memset(to, JUNK, bytes);
            continue;
        }
        check_rule(comm, rank, rule, lanes[rank].rules[which]);
        if (gathers)
            memcpy(to, part, bytes);
        else if (rule.type == ncclDouble)
            add<double>(to, part, bytes);
        else
            add<uint32_t>(to, part, bytes);
    }
}

static void run_exchange(void *argument)
{
    const struct exchange *exchange = (const struct exchange *)argument;
    struct ncclComm *comm = exchange->comm;
    size_t bytes = bytes_of(&exchange->rule);
    size_t to_bytes = exchange->rule.verb == GATHER ? comm->world * bytes : bytes;

    if (!cuda->is_reachable(exchange->from, bytes) || !cuda->is_reachable(exchange->to, to_bytes)) {
        fprintf(stderr, "emulated_nccl: an exchange of memory that is free, in a graph?\n");
        abort();
    }
    if (!exchange->ends) {
        __atomic_store_n(&comm->error, ncclRemoteError, __ATOMIC_RELEASE);
        while (!is_aborted(comm))
            usleep(1000);
    }
    for (size_t at = 0; at < bytes; at += PIECE_BYTES)
        exchange_piece(exchange, at, min(bytes - at, (size_t)PIECE_BYTES));
    if (is_aborted(comm))
        memset(exchange->to, JUNK, to_bytes);
    comm->num_done[exchange->rule.verb]++;
    comm->num_replayed += exchange->rule.recorded > 0;
}

/* Neither a stream nor a graph has it any more. */
static void forget_exchange(void *argument)
{
    const struct exchange *exchange = (const struct exchange *)argument;

    if (exchange->rule.recorded)
        __atomic_sub_fetch(&exchange->comm->num_recorded, 1, __ATOMIC_ACQ_REL);
    drop(exchange->comm);
}

/* ---- calls ----------------------------------------------------------------------------------- */

DOOR ncclResult_t ncclGetVersion(int *version)
{
    long number;

    *version = NCCL_VERSION_CODE - (fault_here(&number) == VERSION);
    return ncclSuccess;
}

DOOR const char *ncclGetErrorString(ncclResult_t result)
{
    switch (result) {
    case ncclSuccess:
        return "no error";
    case ncclSystemError:
        return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInvalidArgument:
        return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage:
        return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError:
        return "remote process exited or there was a network error";
    case ncclInProgress:
        return "NCCL operation in progress";
    default:
        return "unknown result code";
    }
}

DOOR const char *ncclGetLastError(ncclComm_t)
{
    return last_error;
}

/* The file stays for as long as the process, for ranks that come late. */
DOOR ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    struct place place = {getpid(), memfd_create("emulated_nccl", MFD_CLOEXEC)};

    static_assert(sizeof place <= sizeof *id, "");
    if (place.fd < 0 || ftruncate(place.fd, sizeof(struct group)))
        return refuse(ncclSystemError, "no file for ranks to share");
    memset(id, 0, sizeof *id);
    memcpy(id, &place, sizeof place);
    return ncclSuccess;
}

static struct group *open_group(const ncclUniqueId *id)
{
    struct place place;
    char path[64];
    void *group;
    int fd;

    memcpy(&place, id, sizeof place);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", place.process, place.fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    group = mmap(NULL, sizeof(struct group), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return group == MAP_FAILED ? NULL : (struct group *)group;
}

DOOR ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int world, ncclUniqueId id, int rank,
                                         ncclConfig_t *config)
{
    struct cudaDeviceProp gpu;
    struct group *group;
    ncclComm_t comm;
    int device;
    static long num_meetings;
    long number;
    enum fault fault = fault_here(&number);
    const char *memory = getenv("EMULATED_NCCL_MEMORY");

    num_meetings++;
    *out = NULL;
    if (config->size < sizeof *config || config->magic != 0xcafebeef || config->blocking != 0 ||
        world > MAX_RANKS || rank < 0 || rank >= world)
        return refuse(ncclInvalidArgument, "a configuration, or a rank, that is not emulated");
    group = fault == INIT ? NULL : open_group(&id);
    if (!group)
        return refuse(ncclSystemError, "socketStartConnect: Connect to 192.0.2.1 failed : Connection refused");
    comm = (ncclComm_t)calloc(1, sizeof *comm);
    comm->rank = rank;
    comm->world = world;
    comm->group = group;
    comm->users = 1;
    comm->fails_at = fault == ASYNC ? (uint32_t)number : 0;
    cuda->get_device(&device);
    cuda->get_properties(&gpu, device);
    group->lanes[rank].gpu = gpu.uuid;
    if (fault != NEVER || (number > 0 && number != num_meetings))
        __atomic_store_n(&group->lanes[rank].is_there, 1, __ATOMIC_RELEASE);
    *out = comm;
    if (cuda->alloc(&comm->memory, memory ? strtoull(memory, NULL, 10) : 0) != cudaSuccess)
        return refuse(ncclUnhandledCudaError, "Failed to CUDA malloc");
    return ncclInProgress;
}

static ncclResult_t look_for_all(struct ncclComm *comm)
{
    const struct lane *lanes = comm->group->lanes;

    for (int rank = 0; rank < comm->world; rank++)
        if (!__atomic_load_n(&lanes[rank].is_there, __ATOMIC_ACQUIRE))
            return ncclInProgress;
    for (int rank = 0; rank < comm->world; rank++)
        for (int other = 0; other < rank; other++)
            if (memcmp(&lanes[rank].gpu, &lanes[other].gpu, sizeof lanes->gpu) == 0)
                return refuse(ncclInvalidUsage, "Duplicate GPU detected");
    comm->state = READY;
    return ncclSuccess;
}

static bool is_captured(cudaStream_t stream)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;

    cuda->is_capturing(stream, &status);
    return status != cudaStreamCaptureStatusNone;
}

DOOR ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    struct in_call one(comm);

    *error = __atomic_load_n(&comm->error, __ATOMIC_ACQUIRE);
    if (*error != ncclSuccess)
        return ncclSuccess;
    switch (comm->state) {
    case MEETS:
        *error = look_for_all(comm);
        break;
    case READY:
        break;
    case BEGUN:
        if (is_captured(comm->stream) != (comm->exchange.rule.recorded > 0))
            return refuse(ncclUnhandledCudaError, "a capture has begun or ended while something goes on");
        __atomic_add_fetch(&comm->users, 1, __ATOMIC_RELAXED);
        if (comm->exchange.rule.recorded)
            __atomic_add_fetch(&comm->num_recorded, 1, __ATOMIC_RELAXED);
        if (cuda->launch(comm->stream, run_exchange, &comm->exchange, sizeof comm->exchange, forget_exchange) !=
            cudaSuccess)
            return refuse(ncclUnhandledCudaError, "a kernel was not launched");
        comm->state = LAUNCHED;
        *error = ncclInProgress;
        break;
    case LAUNCHED:
        comm->state = READY;
    }
    return ncclSuccess;
}

static ncclResult_t begin(ncclComm_t comm, const void *from, void *to, struct rule rule, cudaStream_t stream)
{
    struct in_call one(comm);
    size_t bytes = bytes_of(&rule);

    if (comm->state != READY)
        return refuse(ncclInvalidUsage, "an exchange is begun while something goes on");
    if (!cuda->is_reachable(from, bytes) ||
        !cuda->is_reachable(to, rule.verb == GATHER ? comm->world * bytes : bytes))
        return refuse(ncclInvalidArgument, "an exchange that is not of device memory");
    if (is_captured(stream))
        rule.recorded = ++comm->num_captured;
    memset(&comm->exchange, 0, sizeof comm->exchange);
    comm->exchange.comm = comm;
    comm->exchange.rule = rule;
    comm->exchange.from = (const char *)from;
    comm->exchange.to = (char *)to;
    comm->exchange.ends = ++comm->num_exchanges != comm->fails_at;
    comm->stream = stream;
    comm->state = BEGUN;
    return ncclInProgress;
}

DOOR ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                                ncclComm_t comm, cudaStream_t stream)
{
    if ((type != ncclDouble && type != ncclUint32) || op != ncclSum)
        return refuse(ncclInvalidArgument, "a sum that is not emulated");
    return begin(comm, from, to, {ADD, type, 0, count}, stream);
}

DOOR ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
                                cudaStream_t stream)
{
    size_t bytes = count * sizeof(uint32_t);
    const char *place = (const char *)to + comm->rank * bytes;

    if (type != ncclFloat && type != ncclUint32)
        return refuse(ncclInvalidArgument, "a gather that is not emulated");
    if (from != place && (const char *)from < (const char *)to + comm->world * bytes &&
        (const char *)from + bytes > (const char *)to)
        return refuse(ncclInvalidArgument, "a gather of what lies elsewhere in its result");
    return begin(comm, from, to, {GATHER, type, 0, count}, stream);
}

/* What is on the stream ends at once; what graphs have is waited for. */
DOOR ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    void *memory = comm->memory;

    {
        struct in_call one(comm);

        __atomic_store_n(&comm->is_aborted, true, __ATOMIC_RELEASE);
        __atomic_store_n(&comm->group->lanes[comm->rank].has_gone, 1, __ATOMIC_RELEASE);
        while (__atomic_load_n(&comm->num_recorded, __ATOMIC_ACQUIRE) > 0)
            usleep(1000);
    }
    drop(comm);
    cuda->free(memory);
    return ncclSuccess;
}
