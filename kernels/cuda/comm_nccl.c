/*
 * Sums among ranks by NCCL: on any hosts, each with a GPU of its own. What is small goes through the hosts.
 *
 * A stream that waits for a rank that is gone would wait for ever: NCCL knows of none, until it is told. So a
 * thread, `watch`, looks after the stream while it has something to do. It tells NCCL to stop when this rank is
 * told to, by comm_abort or by what the hosts have heard, or when NCCL has failed by itself. Then what the stream
 * does goes on, with numbers that are worth nothing: the hosts' exchanges, without which no token is drawn, have
 * been ended before, and columns that are put together are vouched for (nccl.cu). A set of ranks that is made whole
 * again meets anew: NCCL could shrink the old one, but not replace a rank.
 *
 * NCCL's abort returns when all graphs are gone that have its kernels: they end at once, but it is the caller who
 * frees recordings, when its calls have failed. So `watch` aborts without the lock, which these calls want.
 */
#include "kernels/cuda/host.h"

#include "kernels/comm.h"
#include "kernels/cpu/futex.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    LOOK_MS = 20,          /* between two looks of `watch` */
    SETTLE_NS = 50 * 1000, /* between two looks of who waits for longer than SPIN_NS */
    TELL_NS = 500 * 1000,  /* until ranks that meet tell each other again how far they are */
    WARM_UP_FACTOR = 16,   /* between the sizes of sums that are tried first */
    COLUMNS_MAX = 1 << 20, /* of a rank; the device has room for those of all */
};

struct comm_nccl {
    struct comm comm;
    struct comm *host;
    int32_t rank;
    int64_t meet_ms, meet_by_ns;
    const double *parts[1];
    pthread_t watch;
    bool has_watch;
    _Atomic bool is_stopped; /* told to, or failed */
    _Atomic bool has_failed; /* and then this is why: */
    char failure[512];

    pthread_mutex_t lock; /* of all below, and of calls of the module's table until is_stopped */
    pthread_cond_t wake;
    struct cuda_nccl *nccl;
    bool is_parked, is_closing;
};

static struct comm_nccl *nccl_of(const struct comm *comm)
{
    return CONTAINER_OF(comm, struct comm_nccl, comm);
}

static const struct cuda_nccl_table *table(void)
{
    return cuda_module()->nccl;
}

/* ---- to stop ------------------------------------------------------------------------------------- */

/* Locked. */
static void fail_with(struct comm_nccl *self, const char *failure)
{
    if (atomic_load(&self->is_stopped))
        return;
    snprintf(self->failure, sizeof self->failure, "%s", failure);
    atomic_store(&self->has_failed, true);
    atomic_store(&self->is_stopped, true);
    pthread_cond_signal(&self->wake);
}

/* Waits for nobody: `watch` aborts, which takes its time. One that is parked has nothing to abort. */
static void nccl_abort(struct comm *comm)
{
    struct comm_nccl *self = nccl_of(comm);

    comm_abort(self->host);
    atomic_store(&self->is_stopped, true);
    pthread_cond_signal(&self->wake);
}

static bool nccl_is_aborted(const struct comm *comm)
{
    const struct comm_nccl *self = nccl_of(comm);

    return atomic_load(&self->is_stopped) || comm_is_aborted(self->host);
}

/* NCCL fails where another rank has ended, which the engine is to find out: so it is no failure of this one's. */
static enum status nccl_check(const struct comm *comm)
{
    const struct comm_nccl *self = nccl_of(comm);

    if (atomic_load(&self->has_failed))
        return fail(ERR_CLOSED, "sums among the ranks' GPUs: %s", self->failure);
    return nccl_is_aborted(comm) || table()->is_doubtful(self->nccl) ? fail(ERR_ABORTED, "another rank is gone") : OK;
}

static void *watch(void *user)
{
    struct comm_nccl *self = user;

    pthread_mutex_lock(&self->lock);
    while (!self->is_closing && !atomic_load(&self->is_stopped)) {
        int64_t look_ns = clock_deadline_ns(LOOK_MS);
        const struct timespec look = {.tv_sec = look_ns / 1000000000, .tv_nsec = look_ns % 1000000000};
        bool is_over;
        const char *error = table()->poll(self->nccl, &is_over);

        self->is_parked = !error && is_over && table()->is_idle(self->nccl);
        if (error)
            fail_with(self, error);
        else if (comm_is_aborted(self->host))
            atomic_store(&self->is_stopped, true);
        else if (self->is_parked)
            pthread_cond_wait(&self->wake, &self->lock);
        else
            pthread_cond_timedwait(&self->wake, &self->lock, &look);
    }
    pthread_mutex_unlock(&self->lock); /* who takes it from here on finds that it is stopped */
    if (!atomic_load(&self->is_stopped))
        return NULL;
    if (atomic_load(&self->has_failed))
        log_warn("sums among the ranks' GPUs: %s", self->failure);
    /* First, so that nobody takes what the stream has then for a sum. */
    comm_abort(self->host);
    table()->abort(self->nccl);
    return NULL;
}

static enum status start_watch(struct comm_nccl *self)
{
    pthread_condattr_t monotonic;
    int error;

    pthread_mutex_init(&self->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&self->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    error = pthread_create(&self->watch, NULL, watch, self);
    self->has_watch = error == 0;
    return error ? fail(ERR_IO, "no thread to watch sums among ranks: %s", strerror(error)) : OK;
}

static void nccl_close(struct comm *comm)
{
    struct comm_nccl *self = nccl_of(comm);

    if (self->has_watch) {
        pthread_mutex_lock(&self->lock);
        self->is_closing = true;
        pthread_cond_signal(&self->wake);
        pthread_mutex_unlock(&self->lock);
        pthread_join(self->watch, NULL);
        pthread_cond_destroy(&self->wake);
        pthread_mutex_destroy(&self->lock);
    }
    if (self->nccl)
        table()->close(self->nccl);
    mem_free(self);
}

/* Only who has come to the sum that all wait for says that it waits for the next. So whoever follows this from rank
 * to rank comes to one that has not, if there is any. */
static int32_t nccl_waits_for(const struct comm *comm)
{
    const struct comm_nccl *self = nccl_of(comm);
    bool waits = !atomic_load(&self->is_stopped) && table()->waits(self->nccl);
    return waits ? (self->rank + 1) % comm->world : comm_waits_for(self->host);
}

/* ---- exchanges ----------------------------------------------------------------------------------- */

static void sleep_ns(int64_t ns)
{
    nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

/* Until what was begun has its place on the stream: what is launched next would come before it. */
static enum status settle(struct comm_nccl *self, const char *error)
{
    for (struct spin so_far = {0};;) {
        bool is_over = false;

        pthread_mutex_lock(&self->lock);
        if (!error && !atomic_load(&self->is_stopped))
            error = table()->poll(self->nccl, &is_over);
        if (error)
            fail_with(self, error);
        if (self->is_parked)
            pthread_cond_signal(&self->wake);
        pthread_mutex_unlock(&self->lock);
        TRY(nccl_check(&self->comm));
        if (is_over)
            return OK;
        if (!spin(&so_far))
            sleep_ns(SETTLE_NS);
    }
}

/* Locks where that is OK: NCCL is there to begin something. */
static enum status lock_to_begin(struct comm_nccl *self)
{
    TRY(nccl_check(&self->comm));
    pthread_mutex_lock(&self->lock);
    if (!atomic_load(&self->is_stopped))
        return OK;
    pthread_mutex_unlock(&self->lock);
    return nccl_check(&self->comm);
}

static enum status nccl_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    struct comm_nccl *self = nccl_of(comm);
    const char *error;

    TRY(lock_to_begin(self));
    error = table()->add_disjoint(self->nccl, x, count);
    pthread_mutex_unlock(&self->lock);
    return settle(self, error);
}

static double *nccl_sum_buffer(struct comm *comm)
{
    return table()->buffer(nccl_of(comm)->nccl);
}

static enum status nccl_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    struct comm_nccl *self = nccl_of(comm);
    const char *error;

    TRY(lock_to_begin(self));
    error = table()->sum(self->nccl, count, &self->parts[0]);
    pthread_mutex_unlock(&self->lock);
    *out = (struct comm_parts){self->parts, 1};
    return settle(self, error);
}

static enum status nccl_gather_columns(struct comm *comm, const struct comm_columns *columns)
{
    struct comm_nccl *self = nccl_of(comm);
    const char *error;

    TRY(lock_to_begin(self));
    error = table()->gather_columns(self->nccl, columns);
    pthread_mutex_unlock(&self->lock);
    TRY(settle(self, error));
    TRY(lock_to_begin(self));
    error = table()->vouch_for_columns(self->nccl, columns);
    pthread_mutex_unlock(&self->lock);
    TRY(settle(self, error));
    table()->check_columns(self->nccl);
    return OK;
}

/* The stream has come to nothing that the host would have to know. */
static enum status nccl_align(struct comm *comm)
{
    return nccl_check(comm);
}

/* What is replayed has its place on the stream: `watch` is to look after it. */
static void nccl_replayed(struct comm *comm)
{
    struct comm_nccl *self = nccl_of(comm);

    pthread_mutex_lock(&self->lock);
    if (self->is_parked)
        pthread_cond_signal(&self->wake);
    pthread_mutex_unlock(&self->lock);
}

static enum status nccl_barrier(struct comm *comm)
{
    return comm_barrier(nccl_of(comm)->host);
}

static enum status nccl_all_gather(struct comm *comm, const void *data, int64_t bytes, int64_t stride, void *out,
                                   int64_t *bytes_out)
{
    return comm_all_gather(nccl_of(comm)->host, data, bytes, stride, out, bytes_out);
}

static const struct comm_ops nccl_ops = {
    .close = nccl_close,
    .abort = nccl_abort,
    .is_aborted = nccl_is_aborted,
    .check = nccl_check,
    .waits_for = nccl_waits_for,
    .all_reduce_f32_disjoint = nccl_all_reduce_f32_disjoint,
    .sum_buffer = nccl_sum_buffer,
    .sum = nccl_sum,
    .align = nccl_align,
    .replayed = nccl_replayed,
    .gather_columns = nccl_gather_columns,
    .barrier = nccl_barrier,
    .all_gather = nccl_all_gather,
};

/* ---- to meet ------------------------------------------------------------------------------------- */

/* What ranks tell each other before they try. */
struct place {
    int32_t version; /* of NCCL */
    char gpu[CUDA_UUID_BYTES];
};

static void write_version(int32_t version, char out[static 32])
{
    snprintf(out, 32, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

/* The same for all ranks. places: [world] */
static enum status check_places(const struct place *places, int32_t world)
{
    for (int32_t rank = 1; rank < world; rank++) {
        char first[32], other[32];

        if (places[rank].version == places[0].version)
            continue;
        write_version(places[0].version, first);
        write_version(places[rank].version, other);
        return fail(ERR_UNSUPPORTED, "rank 0 has NCCL %s and rank %d has %s: give all ranks the same, or say "
                                     "--device-comm host", first, rank, other);
    }
    for (int32_t rank = 0; rank < world; rank++)
        for (int32_t other = 0; other < rank; other++)
            if (memcmp(places[rank].gpu, places[other].gpu, CUDA_UUID_BYTES) == 0)
                return fail(ERR_UNSUPPORTED, "ranks %d and %d share a GPU, which NCCL refuses: there are to be "
                                             "as many GPUs as ranks", other, rank);
    return OK;
}

/*
 * Until all ranks' streams have done what was begun. A rank that waits in NCCL does not hear that another one has
 * failed: so all tell each other through the hosts how far they are, and where one fails all do, with its sentence.
 */
static enum status finish(struct comm_nccl *self, const char *error)
{
    int32_t world = self->comm.world, num_over = 0;
    AUTO_MEM bool *all = mem_new_array(bool, world);
    char late[128];

    snprintf(late, sizeof late, "NCCL: the ranks have not met in %.1f s: NCCL_DEBUG=INFO has it say more",
             (double)self->meet_ms / 1e3);
    for (bool is_over = false;; sleep_ns(TELL_NS)) {
        if (!error)
            error = table()->poll(self->nccl, &is_over);
        is_over = !error && is_over && table()->is_idle(self->nccl);
        if (!error && !is_over && clock_now_ns() >= self->meet_by_ns)
            error = late;
        TRY(comm_tell(self->host, error, &is_over, sizeof is_over, all));
        for (int32_t rank = num_over = 0; rank < world; rank++)
            num_over += all[rank];
        if (num_over == world)
            return OK;
    }
}

/* Sums of many sizes, and columns: what NCCL sets up for each of them is there before a step. */
static enum status warm_up(struct comm_nccl *self)
{
    int64_t most = self->comm.sum_max;
    float *x = (float *)table()->buffer(self->nccl);
    AUTO_MEM int32_t *first = mem_new_array(int32_t, self->comm.world + 1);
    struct comm_columns columns = {.rows = 1, .first = first, .own = x};

    for (int64_t count = 1;; count = MIN(count * WARM_UP_FACTOR, most)) {
        TRY(finish(self, table()->sum(self->nccl, count, &self->parts[0])));
        TRY(finish(self, table()->add_disjoint(self->nccl, x, count)));
        if (count == most)
            break;
    }
    most = self->comm.columns_max;
    for (int64_t count = 1;; count = MIN(count * WARM_UP_FACTOR, most)) {
        for (int32_t rank = 0; rank <= self->comm.world; rank++)
            first[rank] = rank * (int32_t)count;
        TRY(finish(self, table()->gather_columns(self->nccl, &columns)));
        if (count == most)
            break;
    }
    columns.rows = 0; /* nobody wants any of these */
    return finish(self, table()->vouch_for_columns(self->nccl, &columns));
}

/* Meets the others. A failure is the same for all ranks. */
static enum status meet(struct comm_nccl *self, struct device *dev, const char *id)
{
    const struct cuda_nccl_ranks ranks = {self->comm.world, self->rank, self->comm.sum_max, self->comm.columns_max};

    TRY(finish(self, table()->begin(cuda_state_of(dev), &ranks, id, &self->nccl)));
    return warm_up(self);
}

static enum status open_nccl(struct comm_nccl *self, struct device *dev, const struct comm_device_options *options)
{
    int32_t world = self->comm.world;
    AUTO_MEM struct place *places = mem_new_array(struct place, world);
    AUTO_MEM char *ids = mem_new_array(char, world * CUDA_NCCL_ID_BYTES);
    struct place own = {0};
    char id[CUDA_NCCL_ID_BYTES] = {0}, version[32];
    const char *error = "tandem_cuda.so was built where there is no nccl.h, and knows no NCCL";
    enum status status;

    if (table()->load)
        error = table()->load(options->nccl, &own.version);
    memcpy(own.gpu, cuda_uuid_of(dev), sizeof own.gpu);
    TRY(comm_tell(self->host, error, &own, sizeof own, places));
    TRY(check_places(places, world));
    error = self->rank == 0 ? table()->make_id(id) : NULL;
    TRY(comm_tell(self->host, error, id, sizeof id, ids));
    TRY(meet(self, dev, ids));
    status = start_watch(self);
    TRY(comm_tell(self->host, status == OK ? NULL : fail_text(), NULL, 0, NULL));
    write_version(own.version, version);
    if (self->rank == 0)
        log_info("sums among the ranks' GPUs go by NCCL %s%s", version,
                 options->is_one_host ? "" : ", which does not encrypt what it sends");
    return OK;
}

enum status comm_nccl_open(struct device *dev, struct comm *host, const struct comm_device_options *options,
                           struct comm **out)
{
    struct comm_nccl *self = mem_new(struct comm_nccl);
    enum status status;

    self->comm = (struct comm){.ops = &nccl_ops, .world = host->world, .sum_max = comm_sum_max(host)};
    self->comm.columns_max = MIN(self->comm.sum_max * (int64_t)(sizeof(double) / sizeof(float)), (int64_t)COLUMNS_MAX);
    self->host = host;
    self->rank = options->rank;
    self->meet_ms = options->timeout_ms;
    self->meet_by_ns = clock_deadline_ns(options->timeout_ms);
    status = open_nccl(self, dev, options);
    if (status != OK) {
        nccl_close(&self->comm);
        return status;
    }
    *out = &self->comm;
    return OK;
}
