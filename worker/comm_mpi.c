/*
 * Every call is a number of exchanges, as in comm_net: in exchange n each rank sends every other one a frame, and
 * waits until all have theirs and it has all of them. A rank writes its next frame while its last is still read: so it has
 * two. The others' are overwritten in the next exchange alone.
 */
#include "worker/comm_mpi.h"

#include "kernels/comm.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/memory.h"
#include "proto/base/module.h"
#include "worker/mpi/module.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LINE = 64,
    SPIN_NS = 200 * 1000, /* MPI has no wait that leaves the core to others: after so long we nap */
    NAP_US = 50,
    LEAVE_MS = 1000, /* for the others to leave too */
};

enum kind { KIND_MEET, KIND_SUM, KIND_DISJOINT, KIND_BARRIER, KIND_GATHER, KIND_LEAVE };
static const char *const kind_names[] = {"a meeting", "a sum", "a disjoint sum", "a barrier", "a gather", "a leave"};

/* What a rank sends. */
struct frame {
    uint32_t exchange, kind;
    int64_t bytes;
    _Alignas(LINE) char data[];
};

struct comm_mpi {
    struct comm comm;
    int32_t rank;
    int64_t buffer_bytes;
    uint32_t exchange; /* the last */
    void *memory;      /* [world + 1, frame and its buffer_bytes]: by rank, and at the end our second */
    size_t memory_bytes;
    void **frames;        /* [world]: of the last exchange */
    int64_t *frame_bytes; /* [world]: as they came */
    const double **parts; /* [world]: of the last sum */
    _Atomic bool is_aborted;
    bool is_broken; /* an exchange has failed: MPI may still write to our memory */
};

static const struct comm_ops mpi_ops;

/* Of this process, which joins MPI once. */
static struct {
    const struct mpi_module *module;
    int32_t rank, world;
    bool has_met;
} mpi;

static struct comm_mpi *of(struct comm *comm)
{
    return CONTAINER_OF(comm, struct comm_mpi, comm);
}

/* ---- start ----------------------------------------------------------------------------------- */

static enum status open_module(const char *path, const struct mpi_module **out)
{
    const void *table;
    enum status status = module_open(path, TANDEM_MPI, sizeof(struct mpi_module), &table);

    if (status == ERR_MISSING)
        return fail(ERR_INVALID, "--comm mpi wants tandem_mpi.so beside the program, which is built where there is "
                                 "Open MPI: %s", fail_text());
    if (status != OK)
        return fail(ERR_INVALID, "%s", fail_text());
    *out = table;
    return OK;
}

/* MPI starts when all processes of mpirun do, and would wait for an engine among them for ever. */
static enum status check_launcher(int32_t world)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");

    if (!size)
        return fail(ERR_INVALID, "--comm mpi is for ranks that Open MPI's mpirun starts, and this one was started otherwise");
    if (atoi(size) != world)
        return fail(ERR_MISMATCH, "mpirun has started %.10s processes, and the engine has %d ranks: with --comm mpi "
                                  "one mpirun starts all ranks and nothing else", size, world);
    return OK;
}

enum status comm_mpi_start(const char *path, int32_t rank, int32_t world)
{
    const struct mpi_module *module;
    const char *error;

    TRY(open_module(path, &module));
    TRY(check_launcher(world));
    error = module->start(&mpi.rank, &mpi.world);
    if (error)
        return fail(ERR_IO, "rank %d does not get into MPI: %s", rank, error);
    if (mpi.rank != rank || mpi.world != world)
        return fail(ERR_MISMATCH, "rank %d of %d is rank %d of %d to MPI", rank, world, mpi.rank, mpi.world);
    mpi.module = module;
    return OK;
}

/* ---- exchanges ------------------------------------------------------------------------------- */

/* Of exchange n. */
static struct frame *own_frame(const struct comm_mpi *comm, uint32_t exchange)
{
    size_t place = (size_t)(exchange & 1 ? comm->comm.world : comm->rank);

    return (struct frame *)((char *)comm->memory +
                            place * (sizeof(struct frame) + (size_t)comm->buffer_bytes));
}

static const struct frame *frame_of(const struct comm_mpi *comm, int32_t rank)
{
    return comm->frames[rank];
}

/* Where this rank's part of the next exchange goes. */
static char *next_data(const struct comm_mpi *comm)
{
    return own_frame(comm, comm->exchange + 1)->data;
}

static enum status wait_for_all(struct comm_mpi *comm, int64_t deadline_ns, bool heeds_abort)
{
    int64_t now_ns, spin_until_ns = clock_now_ns() + SPIN_NS;
    const char *error;
    int32_t missing;

    while (!(error = mpi.module->look(comm->frame_bytes, &missing)) && missing >= 0) {
        if (heeds_abort && atomic_load_explicit(&comm->is_aborted, memory_order_relaxed))
            return fail(ERR_ABORTED, "rank %d waited for rank %d, and was told to stop", comm->rank, missing);
        atomic_store_explicit(&comm->comm.awaited, 1 + missing, memory_order_relaxed);
        now_ns = clock_now_ns();
        if (now_ns >= deadline_ns)
            return fail(ERR_TIMEOUT, "rank %d waited in vain for rank %d, by MPI", comm->rank, missing);
        if (now_ns < spin_until_ns)
            sched_yield(); /* to a rank that shares our core */
        else
            usleep(NAP_US);
    }
    atomic_store_explicit(&comm->comm.awaited, 0, memory_order_relaxed);
    return error ? fail(ERR_CLOSED, "rank %d: MPI: %s", comm->rank, error) : OK;
}

/* Does everybody do what we do? A sum of so many bytes is one for all. */
static enum status check_frames(const struct comm_mpi *comm, const struct frame *own)
{
    for (int32_t r = 0; r < comm->comm.world; r++) {
        const struct frame *frame = frame_of(comm, r);
        int64_t bytes = comm->frame_bytes[r] - (int64_t)sizeof *frame;

        if (r == comm->rank)
            continue;
        if (bytes < 0 || bytes != frame->bytes || frame->kind >= COUNT_OF(kind_names))
            return fail(ERR_MISMATCH, "rank %d sends %lld bytes that are no frame", r,
                        (long long)comm->frame_bytes[r]);
        if (frame->kind == KIND_LEAVE && own->kind != KIND_LEAVE)
            return fail(ERR_ABORTED, "rank %d has left", r);
        if (frame->exchange != own->exchange || frame->kind != own->kind ||
            (frame->bytes != own->bytes && own->kind != KIND_GATHER))
            return fail(ERR_MISMATCH, "rank %d has %s of %lld bytes in exchange %u, rank %d %s of %lld in %u", r,
                        kind_names[frame->kind], (long long)frame->bytes, frame->exchange, comm->rank,
                        kind_names[own->kind], (long long)own->bytes, own->exchange);
    }
    return OK;
}

static enum status begin(struct comm_mpi *comm, struct frame *own)
{
    const char *error;

    comm->frames[comm->rank] = own;
    error = mpi.module->begin(own, (int32_t)((int64_t)sizeof *own + own->bytes), comm->frames,
                              (int32_t)((int64_t)sizeof *own + comm->buffer_bytes));
    return error ? fail(ERR_CLOSED, "rank %d: MPI: %s", comm->rank, error) : OK;
}

/* Sends `bytes` bytes of next_data and waits for everybody's. */
static enum status post_until(struct comm_mpi *comm, enum kind kind, int64_t bytes, int64_t deadline_ns)
{
    struct frame *own = own_frame(comm, comm->exchange + 1);
    enum status status;

    if (comm->is_broken || (kind != KIND_LEAVE && atomic_load(&comm->is_aborted)))
        return fail(ERR_ABORTED, "rank %d was told to stop", comm->rank);
    own->exchange = ++comm->exchange;
    own->kind = kind;
    own->bytes = bytes;
    status = begin(comm, own);
    if (status == OK)
        status = wait_for_all(comm, deadline_ns, kind != KIND_LEAVE);
    if (status == OK)
        status = check_frames(comm, own);
    comm->is_broken |= status != OK;
    return status;
}

static enum status post(struct comm_mpi *comm, enum kind kind, int64_t bytes)
{
    return post_until(comm, kind, bytes, clock_deadline_ns(-1));
}

/* ---- open and close -------------------------------------------------------------------------- */

static void mpi_close(struct comm *opened)
{
    struct comm_mpi *comm = of(opened);
    const char *error;

    if (!comm->is_broken && post_until(comm, KIND_LEAVE, 0, clock_deadline_ns(LEAVE_MS)) == OK) {
        error = mpi.module->finish();
        if (error)
            log_debug("rank %d leaves MPI: %s", comm->rank, error);
    }
    /* Else this process ends without having left MPI, on which mpirun ends the others. */
    if (!comm->is_broken)
        mem_unmap(comm->memory, comm->memory_bytes);
    mem_free(comm->frames);
    mem_free(comm->frame_bytes);
    mem_free(comm->parts);
    mem_free(comm);
}

static void mpi_abort(struct comm *comm)
{
    atomic_store(&of(comm)->is_aborted, true);
}

static bool mpi_is_aborted(const struct comm *comm)
{
    return atomic_load(&of((struct comm *)comm)->is_aborted);
}

static enum status make(int64_t buffer_bytes, struct comm_mpi **out)
{
    size_t world = (size_t)mpi.world, stride;
    struct comm_mpi *comm;
    void *memory;

    buffer_bytes = (buffer_bytes + LINE - 1) & ~(int64_t)(LINE - 1);
    if (buffer_bytes < LINE || buffer_bytes > INT32_MAX - 2 * LINE)
        return fail(ERR_INVALID, "ranks that exchange %lld bytes at a time, MPI sends 2 GB at most",
                    (long long)buffer_bytes);
    stride = sizeof(struct frame) + (size_t)buffer_bytes;
    TRY(mem_map((world + 1) * stride, "what ranks exchange", &memory));
    comm = mem_new(struct comm_mpi);
    *comm = (struct comm_mpi){
        .comm = {.ops = &mpi_ops, .world = mpi.world, .sum_max = buffer_bytes / (int64_t)sizeof(double)},
        .rank = mpi.rank,
        .buffer_bytes = buffer_bytes,
        .memory = memory,
        .memory_bytes = (world + 1) * stride,
        .frames = mem_new_array(void *, world),
        .frame_bytes = mem_new_array(int64_t, world),
        .parts = mem_new_array(const double *, world),
    };
    for (size_t r = 0; r < world; r++)
        comm->frames[r] = (char *)memory + r * stride;
    *out = comm;
    return OK;
}

/* They agree on how much fits into an exchange. */
static enum status meet(struct comm_mpi *comm, int64_t deadline_ns)
{
    int64_t told;

    memcpy(next_data(comm), &comm->buffer_bytes, sizeof comm->buffer_bytes);
    TRY(post_until(comm, KIND_MEET, sizeof comm->buffer_bytes, deadline_ns));
    for (int32_t r = 0; r < comm->comm.world; r++) {
        memcpy(&told, frame_of(comm, r)->data, sizeof told);
        if (told != comm->buffer_bytes)
            return fail(ERR_MISMATCH, "rank %d exchanges %lld bytes at a time, rank %d %lld", r, (long long)told,
                        comm->rank, (long long)comm->buffer_bytes);
    }
    return OK;
}

enum status comm_mpi_open(int64_t buffer_bytes, int64_t deadline_ns, struct comm **out)
{
    struct comm_mpi *comm;
    enum status status;

    if (!mpi.module || mpi.has_met)
        return fail(ERR_MISMATCH, mpi.has_met ? "ranks meet once by MPI: another process is to take this one's place"
                                              : "ranks are to meet by MPI, and this one has not joined it");
    TRY(make(buffer_bytes, &comm));
    mpi.has_met = true;
    status = meet(comm, deadline_ns);
    if (status == OK) {
        *out = &comm->comm;
        return OK;
    }
    comm->is_broken = true;
    mpi_close(&comm->comm);
    return status;
}

/* ---- sums ------------------------------------------------------------------------------------ */

static double *mpi_sum_buffer(struct comm *comm)
{
    return (double *)next_data(of(comm));
}

static enum status mpi_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    TRY(post(of(comm), KIND_SUM, count * (int64_t)sizeof(double)));
    for (int32_t r = 0; r < comm->world; r++)
        of(comm)->parts[r] = (const double *)frame_of(of(comm), r)->data;
    *out = (struct comm_parts){of(comm)->parts, comm->world};
    return OK;
}

static enum status mpi_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    for (int64_t piece; count > 0; count -= piece, x += piece) {
        piece = MIN(count, of(comm)->buffer_bytes / (int64_t)sizeof *x);
        memcpy(next_data(of(comm)), x, (size_t)piece * sizeof *x);
        TRY(post(of(comm), KIND_DISJOINT, piece * (int64_t)sizeof *x));
        memcpy(x, frame_of(of(comm), 0)->data, (size_t)piece * sizeof *x);
        for (int32_t r = 1; r < comm->world; r++)
            comm_add_disjoint(x, (const float *)frame_of(of(comm), r)->data, piece);
    }
    return OK;
}

static enum status mpi_barrier(struct comm *comm)
{
    return post(of(comm), KIND_BARRIER, 0);
}

/* Of `total` bytes, those that go into the exchange that begins at `at`. */
static int64_t piece_bytes(const struct comm_mpi *comm, int64_t total, int64_t at)
{
    return MAX(MIN(total - at, comm->buffer_bytes - (int64_t)sizeof total), (int64_t)0);
}

static enum status take_piece(const struct comm_mpi *comm, int32_t r, int64_t at, int64_t stride, void *out,
                              int64_t *total_out)
{
    const struct frame *frame = frame_of(comm, r);
    int64_t total = -1, bytes;

    if (frame->bytes >= (int64_t)sizeof total)
        memcpy(&total, frame->data, sizeof total);
    bytes = piece_bytes(comm, total, at);
    if (total < 0 || total > stride || frame->bytes != (int64_t)sizeof total + bytes)
        return fail(ERR_MISMATCH, "rank %d tells %lld of %lld bytes, at most %lld were agreed on", r,
                    (long long)frame->bytes, (long long)total, (long long)stride);
    if (bytes > 0)
        memcpy((char *)out + r * stride + at, frame->data + sizeof total, (size_t)bytes);
    *total_out = total;
    return OK;
}

static enum status mpi_all_gather(struct comm *comm, const void *data, int64_t bytes, int64_t stride, void *out,
                                  int64_t *bytes_out)
{
    int64_t most = bytes; /* that any rank has, once all have told */

    for (int64_t at = 0; at == 0 || at < most; at += of(comm)->buffer_bytes - (int64_t)sizeof bytes) {
        int64_t n = piece_bytes(of(comm), bytes, at);
        char *own = next_data(of(comm));

        memcpy(own, &bytes, sizeof bytes);
        if (n > 0)
            memcpy(own + sizeof bytes, (const char *)data + at, (size_t)n);
        TRY(post(of(comm), KIND_GATHER, (int64_t)sizeof bytes + n));
        for (int32_t r = 0; r < comm->world; r++) {
            TRY(take_piece(of(comm), r, at, stride, out, &bytes_out[r]));
            most = MAX(most, bytes_out[r]);
        }
    }
    return OK;
}

static const struct comm_ops mpi_ops = {
    .close = mpi_close,
    .abort = mpi_abort,
    .is_aborted = mpi_is_aborted,
    .all_reduce_f32_disjoint = mpi_all_reduce_f32_disjoint,
    .sum_buffer = mpi_sum_buffer,
    .sum = mpi_sum,
    .barrier = mpi_barrier,
    .all_gather = mpi_all_gather,
};
