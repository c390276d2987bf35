/*
 * comm_shm: sums across the ranks of one host, through memory that they share.
 *
 * Every call is a number of exchanges. In exchange n each rank copies its contribution into its
 * buffer n & 1, posts n, and waits until all have posted n; then it may read every rank's buffer.
 * Two buffers are enough: a rank posts n only after it has read what exchange n - 1 brought, so
 * when all have posted n, nobody reads buffer (n + 1) & 1 any more.
 */
#include "kernels/comm.h"

#include "kernels/cpu/futex.h"
#include "proto/base/memory.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_WORLD = 1024, LINE = 64 };

static const int64_t MAX_BYTES = (int64_t)1 << 33;

static const uint64_t MAGIC = 0x316d6d6f636e6174; /* "tancomm1" */

/* One rank's place. Written by that rank, but for num_waiting. */
struct lane {
    _Alignas(
        LINE) _Atomic uint32_t posted; /* the last exchange; also the futex that others wait on */
    _Atomic uint32_t num_waiting;
};

struct shared {
    _Atomic uint64_t magic; /* set last: the rest is in place */
    int32_t world;
    int64_t buffer_bytes, memory_bytes;
    _Atomic uint32_t is_aborted;
    struct lane lanes[]; /* [world], then the buffers: [world][2][buffer_bytes], then comm_shared's memory */
};

struct comm_shm {
    struct comm comm;
    int32_t rank;
    int64_t buffer_bytes;
    struct shared *shared;
    size_t shared_bytes;
    uint32_t exchange; /* the last one */
    bool spins;
    const double *parts[MAX_WORLD]; /* of the last sum */
};

static size_t buffers_offset(int32_t world)
{
    return (sizeof(struct shared) + sizeof(struct lane) * (size_t)world + 4095) & ~(size_t)4095;
}

static size_t memory_offset(int32_t world, int64_t buffer_bytes)
{
    return buffers_offset(world) + (size_t)world * 2 * (size_t)buffer_bytes;
}

static void *buffer_of(const struct comm_shm *shm, int32_t rank, uint32_t exchange)
{
    size_t index = (size_t)rank * 2 + (exchange & 1);

    return (char *)shm->shared + buffers_offset(shm->comm.world) +
           index * (size_t)shm->buffer_bytes;
}

static const struct comm_ops shm_ops;

static struct comm_shm *of(struct comm *comm)
{
    return CONTAINER_OF(comm, struct comm_shm, comm);
}

/* ---- open and close ------------------------------------------------------------------------- */

static enum status map_file(int fd, size_t bytes, const char *path, struct shared **out)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (p == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "%s: %zu bytes to share between the ranks: %m", path, bytes);
    *out = p;
    return OK;
}

enum status comm_create(const char *path, int32_t world, int64_t buffer_bytes, int64_t shared_bytes)
{
    struct shared *shared;
    size_t bytes;

    if (world < 1 || world > MAX_WORLD || buffer_bytes < LINE || buffer_bytes > MAX_BYTES ||
        shared_bytes < 0 || shared_bytes > MAX_BYTES)
        return fail(ERR_INVALID, "%d ranks that exchange %lld bytes and share %lld", world,
                    (long long)buffer_bytes, (long long)shared_bytes);
    buffer_bytes = (buffer_bytes + 4095) & ~(int64_t)4095;
    bytes = memory_offset(world, buffer_bytes) + (size_t)shared_bytes;

    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0)
        return fail(ERR_IO, "%s: %m", path);

    enum status status = ftruncate(fd, (off_t)bytes) == 0 ? map_file(fd, bytes, path, &shared)
                                                          : fail(ERR_IO, "%s: %m", path);

    close(fd);
    TRY(status);
    shared->world = world;
    shared->buffer_bytes = buffer_bytes;
    shared->memory_bytes = shared_bytes;
    atomic_store(&shared->magic, MAGIC);
    munmap(shared, bytes);
    return OK;
}

/* Is what lies there, of `size` bytes, what comm_create made for so many ranks? */
static enum status check_shared(const struct shared *shared, size_t size, int32_t world,
                                const char *path)
{
    if (size < sizeof *shared || atomic_load(&shared->magic) != MAGIC)
        return fail(ERR_NOT_FOUND, "%s is not set up yet", path);
    if (shared->world != world)
        return fail(ERR_MISMATCH, "%s is for %d ranks, not %d", path, shared->world, world);
    if (shared->buffer_bytes < LINE || shared->buffer_bytes > 2 * MAX_BYTES ||
        shared->memory_bytes < 0 || shared->memory_bytes > MAX_BYTES ||
        memory_offset(world, shared->buffer_bytes) + (size_t)shared->memory_bytes != size)
        return fail(ERR_CORRUPT, "%s: %zu bytes do not hold 2 buffers of %lld for %d ranks and %lld",
                    path, size, (long long)shared->buffer_bytes, world,
                    (long long)shared->memory_bytes);
    return OK;
}

/* That this process may use: its first thread's mask, as the caller may be bound to a core of its own. */
static int32_t count_processors(void)
{
    cpu_set_t mask;

    return sched_getaffinity(getpid(), sizeof mask, &mask) == 0
               ? CPU_COUNT(&mask)
               : (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
}

enum status comm_open(const char *path, int32_t rank, int32_t world, struct comm **out)
{
    struct shared *shared = NULL;
    struct stat stat;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    enum status status;

    ASSERT(rank >= 0 && rank < world && world <= MAX_WORLD);
    if (fd < 0)
        return fail(ERR_NOT_FOUND, "%s: %m", path);
    if (fstat(fd, &stat) != 0 || stat.st_size < (off_t)sizeof *shared)
        status = fail(ERR_NOT_FOUND, "%s is not set up yet", path);
    else
        status = map_file(fd, (size_t)stat.st_size, path, &shared);
    close(fd);
    TRY(status);

    status = check_shared(shared, (size_t)stat.st_size, world, path);
    if (status != OK) {
        munmap(shared, (size_t)stat.st_size);
        return status;
    }

    struct comm_shm *shm = mem_new(struct comm_shm);

    *shm = (struct comm_shm){
        .comm = {.ops = &shm_ops,
                 .world = world,
                 .sum_max = shared->buffer_bytes / (int64_t)sizeof(double),
                 .shared = shared->memory_bytes
                               ? (char *)shared + memory_offset(world, shared->buffer_bytes)
                               : NULL},
        .rank = rank,
        .buffer_bytes = shared->buffer_bytes,
        .shared = shared,
        .shared_bytes = (size_t)stat.st_size,
        /* A rank that spins takes the core that another rank needs to catch up. */
        .spins = world <= count_processors(),
    };
    *out = &shm->comm;
    return OK;
}

static void shm_close(struct comm *comm)
{
    struct comm_shm *shm = of(comm);

    munmap(shm->shared, shm->shared_bytes);
    mem_free(shm);
}

/* ---- waiting -------------------------------------------------------------------------------- */

static void shm_abort(struct comm *comm)
{
    struct comm_shm *shm = of(comm);

    atomic_store(&shm->shared->is_aborted, 1);
    for (int32_t rank = 0; rank < shm->comm.world; rank++)
        futex_wake_all(&shm->shared->lanes[rank].posted, true);
}

static bool shm_is_aborted(const struct comm *comm)
{
    return atomic_load(&of((struct comm *)comm)->shared->is_aborted);
}

/* Exchange numbers wrap: a rank is at most one exchange away from another. */
static bool has_posted(const struct lane *lane, uint32_t exchange)
{
    return (int32_t)(atomic_load_explicit(&lane->posted, memory_order_acquire) - exchange) >= 0;
}

static enum status wait_for(struct comm_shm *shm, int32_t rank)
{
    /* An abort can come between our look and the kernel's: so not for ever. */
    const struct timespec at_most = {.tv_nsec = 50 * 1000 * 1000};
    struct lane *lane = &shm->shared->lanes[rank];

    struct spin so_far = {0};

    do
        if (has_posted(lane, shm->exchange))
            return OK;
    while (shm->spins && spin(&so_far));
    atomic_store_explicit(&shm->comm.awaited, 1 + rank, memory_order_relaxed);
    atomic_fetch_add(&lane->num_waiting, 1);
    for (;;) {
        uint32_t posted = atomic_load(&lane->posted);

        if ((int32_t)(posted - shm->exchange) >= 0 || atomic_load(&shm->shared->is_aborted))
            break;
        futex_wait(&lane->posted, posted, true, &at_most);
    }
    atomic_fetch_sub(&lane->num_waiting, 1);
    atomic_store_explicit(&shm->comm.awaited, 0, memory_order_relaxed);
    if (!has_posted(lane, shm->exchange))
        return fail(ERR_ABORTED, "rank %d waited for rank %d, and was told to stop", shm->rank,
                    rank);
    return OK;
}

/* Posts what this rank has put into its next buffer and waits for everybody's. */
static enum status post(struct comm_shm *shm)
{
    struct lane *lane = &shm->shared->lanes[shm->rank];

    if (atomic_load_explicit(&shm->shared->is_aborted, memory_order_relaxed))
        return fail(ERR_ABORTED, "rank %d was told to stop", shm->rank);
    shm->exchange++;
    atomic_store(&lane->posted, shm->exchange);
    if (atomic_load(&lane->num_waiting) > 0)
        futex_wake_all(&lane->posted, true);
    for (int32_t rank = 0; rank < shm->comm.world; rank++)
        if (rank != shm->rank)
            TRY(wait_for(shm, rank));
    return OK;
}

/* Posts this rank's `bytes` bytes and waits for everybody's. */
static enum status exchange(struct comm_shm *shm, const void *data, size_t bytes)
{
    ASSERT(bytes <= (size_t)shm->buffer_bytes);
    memcpy(buffer_of(shm, shm->rank, shm->exchange + 1), data, bytes);
    return post(shm);
}

/* ---- sums ----------------------------------------------------------------------------------- */

static double *shm_sum_buffer(struct comm *comm)
{
    struct comm_shm *shm = of(comm);

    return buffer_of(shm, shm->rank, shm->exchange + 1);
}

static enum status shm_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    struct comm_shm *shm = of(comm);

    (void)count; /* they are there already */
    TRY(post(shm));
    for (int32_t rank = 0; rank < comm->world; rank++)
        shm->parts[rank] = buffer_of(shm, rank, shm->exchange);
    *out = (struct comm_parts){shm->parts, comm->world};
    return OK;
}

static enum status shm_barrier(struct comm *comm)
{
    return post(of(comm));
}

static enum status shm_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    struct comm_shm *shm = of(comm);

    for (int64_t piece, max = shm->buffer_bytes / (int64_t)sizeof *x; count > 0; count -= piece) {
        piece = MIN(count, max);
        TRY(exchange(shm, x, (size_t)piece * sizeof *x));
        memcpy(x, buffer_of(shm, 0, shm->exchange), (size_t)piece * sizeof *x);
        for (int32_t rank = 1; rank < shm->comm.world; rank++)
            comm_add_disjoint(x, buffer_of(shm, rank, shm->exchange), piece);
        x += piece;
    }
    return OK;
}

/* What a rank puts into its buffer: how many bytes it has in all, and a piece of them. */
struct piece {
    int64_t total;
    char data[];
};

/* The piece of `total` bytes that begins at `at`: none when they have all been told. */
static int64_t piece_bytes(const struct comm_shm *shm, int64_t total, int64_t at)
{
    return MAX(MIN(total - at, shm->buffer_bytes - (int64_t)sizeof(struct piece)), (int64_t)0);
}

static enum status shm_all_gather(struct comm *comm, const void *data, int64_t bytes,
                                  int64_t stride, void *out, int64_t *bytes_out)
{
    struct comm_shm *shm = of(comm);
    int64_t most = bytes; /* that any rank has, once all have told */

    for (int64_t at = 0; at == 0 || at < most;
         at += shm->buffer_bytes - (int64_t)sizeof(struct piece)) {
        struct piece *own = buffer_of(shm, shm->rank, shm->exchange + 1);
        int64_t n = piece_bytes(shm, bytes, at);

        own->total = bytes;
        if (n > 0)
            memcpy(own->data, (const char *)data + at, (size_t)n);
        TRY(post(shm));
        for (int32_t rank = 0; rank < shm->comm.world; rank++) {
            const struct piece *piece = buffer_of(shm, rank, shm->exchange);

            int64_t total = piece->total;

            if (total < 0 || total > stride)
                return fail(ERR_MISMATCH, "rank %d tells %lld bytes, at most %lld were agreed on",
                            rank, (long long)total, (long long)stride);
            bytes_out[rank] = total;
            most = MAX(most, total);
            n = piece_bytes(shm, total, at);
            if (n > 0)
                memcpy((char *)out + rank * stride + at, piece->data, (size_t)n);
        }
    }
    return OK;
}

static const struct comm_ops shm_ops = {
    .ends_for_all = true,
    .close = shm_close,
    .abort = shm_abort,
    .is_aborted = shm_is_aborted,
    .all_reduce_f32_disjoint = shm_all_reduce_f32_disjoint,
    .sum_buffer = shm_sum_buffer,
    .sum = shm_sum,
    .barrier = shm_barrier,
    .all_gather = shm_all_gather,
};
