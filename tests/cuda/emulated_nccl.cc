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

/* What a rank has in memory that all share. */
struct lane {
    uint32_t is_there;
    uint32_t told; /* exchanges so far */
    struct cudaUUID_t gpu;
    char parts[2][PIECE_BYTES]; /* in turn */
};

struct group {
    struct lane lanes[MAX_RANKS];
};

/* What an id holds. */
struct place {
    pid_t process;
    int fd;
};

struct sum {
    ncclComm_t comm;
    const void *from;
    void *to;
    size_t count;
    ncclDataType_t type;
    bool ends;
};

enum state { MEETS, READY, BEGUN, LAUNCHED };

struct ncclComm {
    int rank, world;
    struct group *group;
    enum state state;
    struct sum sum; /* BEGUN: to be given to */
    cudaStream_t stream;
    uint32_t num_sums, fails_at;
    int is_in_call;
    ncclResult_t error;     /* atomic */
    bool is_aborted;        /* atomic */
    int users;              /* atomic: sums on the stream, and 1 until it is aborted */
    void *memory;           /* the device's; NULL: none */
    uint32_t num_exchanges; /* the stream's */
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

static void drop(ncclComm_t comm)
{
    if (__atomic_sub_fetch(&comm->users, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    munmap(comm->group, sizeof *comm->group);
    free(comm);
}

/* ---- sums, on the stream --------------------------------------------------------------------- */

static bool is_aborted(const struct ncclComm *comm)
{
    return __atomic_load_n(&comm->is_aborted, __ATOMIC_ACQUIRE);
}

/* Until the rank has told of this exchange. false: aborted. */
static bool await(const struct ncclComm *comm, int rank)
{
    const struct timespec at_most = {0, 5 * 1000 * 1000};
    uint32_t *told = &comm->group->lanes[rank].told;

    for (;;) {
        uint32_t now = __atomic_load_n(told, __ATOMIC_ACQUIRE);

        if ((int32_t)(now - comm->num_exchanges) >= 0)
            return true;
        if (is_aborted(comm))
            return false;
        syscall(SYS_futex, told, FUTEX_WAIT, now, &at_most, NULL, 0);
    }
}

template <typename T> static void add(void *to, const char *part, size_t bytes)
{
    T *sums = (T *)to;

    for (size_t i = 0; i < bytes / sizeof(T); i++)
        sums[i] += ((const T *)part)[i];
}

static bool exchange(struct ncclComm *comm, const char *from, char *to, size_t bytes, ncclDataType_t type)
{
    struct lane *own = &comm->group->lanes[comm->rank];
    uint32_t which = ++comm->num_exchanges & 1;

    memcpy(own->parts[which], from, bytes);
    __atomic_store_n(&own->told, comm->num_exchanges, __ATOMIC_RELEASE);
    syscall(SYS_futex, &own->told, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    memmove(to, from, bytes);
    for (int i = 1; i < comm->world; i++) {
        int rank = (comm->rank + i) % comm->world;

        if (!await(comm, rank))
            return false;
        if (type == ncclDouble)
            add<double>(to, comm->group->lanes[rank].parts[which], bytes);
        else
            add<uint32_t>(to, comm->group->lanes[rank].parts[which], bytes);
    }
    return true;
}

static size_t bytes_of(const struct sum *sum)
{
    return sum->count * (sum->type == ncclDouble ? sizeof(double) : sizeof(uint32_t));
}

static void run_sum(void *argument)
{
    const struct sum *sum = (const struct sum *)argument;
    struct ncclComm *comm = sum->comm;
    size_t bytes = bytes_of(sum);

    if (!sum->ends) {
        __atomic_store_n(&comm->error, ncclRemoteError, __ATOMIC_RELEASE);
        while (!is_aborted(comm))
            usleep(1000);
    }
    for (size_t at = 0; at < bytes && !is_aborted(comm); at += PIECE_BYTES)
        if (!exchange(comm, (const char *)sum->from + at, (char *)sum->to + at,
                      min(bytes - at, (size_t)PIECE_BYTES), sum->type))
            break;
    if (is_aborted(comm))
        memset(sum->to, JUNK, bytes);
    drop(comm);
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
        __atomic_add_fetch(&comm->users, 1, __ATOMIC_RELAXED);
        if (cuda->call(comm->stream, run_sum, &comm->sum, sizeof comm->sum) != cudaSuccess) {
            drop(comm);
            return refuse(ncclUnhandledCudaError, "a kernel was not launched");
        }
        comm->state = LAUNCHED;
        *error = ncclInProgress;
        break;
    case LAUNCHED:
        comm->state = READY;
    }
    return ncclSuccess;
}

DOOR ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                                ncclComm_t comm, cudaStream_t stream)
{
    struct in_call one(comm);

    if (comm->state != READY)
        return refuse(ncclInvalidUsage, "a sum is begun while something goes on");
    comm->sum = {comm, from, to, count, type, ++comm->num_sums != comm->fails_at};
    comm->stream = stream;
    if ((type != ncclDouble && type != ncclUint32) || op != ncclSum ||
        !cuda->is_reachable(from, bytes_of(&comm->sum)) || !cuda->is_reachable(to, bytes_of(&comm->sum)))
        return refuse(ncclInvalidArgument, "a sum that is not emulated, or not of device memory");
    comm->state = BEGUN;
    return ncclInProgress;
}

DOOR ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    void *memory = comm->memory;

    {
        struct in_call one(comm);

        __atomic_store_n(&comm->is_aborted, true, __ATOMIC_RELEASE);
    }
    drop(comm);
    cuda->free(memory);
    return ncclSuccess;
}
