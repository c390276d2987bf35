/*
 * Sums among ranks by NCCL, or in each other's memory: each rank is a process with a GPU. NCCL's library is that
 * of TANDEM_TEST_NCCL, an emulated one, beside the emulated GPUs of TANDEM_TEST_CUDA_MODULE; where these are real,
 * NCCL is as well, and only those tests run that one GPU is enough for.
 */
#include "tests/support/expect.h"

#include "kernels/comm.h"

#include "proto/base/memory.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BUFFER_BYTES = 100000, ROUNDS = 12, MEET_MS = 20000 };

struct rank {
    int32_t rank, world;
    const char *by;
    int64_t meet_ms;
    struct device *dev;
    struct comm *host, *comm;
};

/* What a rank does; 0: all was as it should be. */
typedef int scene_fn(struct rank *self);

/* Shared by all ranks of all scenes. */
static struct {
    _Atomic int32_t stage;
} *board;

static int comm_fd;
static bool is_one_host;

static void create_host(int32_t world)
{
    char path[32];

    comm_fd = memfd_create("comm", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", comm_fd);
    expect_ok(comm_create(path, world, BUFFER_BYTES, 0));
}

static enum status open_host(struct rank *self)
{
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", comm_fd);
    return comm_open(path, self->rank, self->world, &self->host);
}

static enum status open_comm(struct rank *self)
{
    return comm_open_device(self->dev, self->host,
                            &(struct comm_device_options){.rank = self->rank,
                                                          .is_one_host = is_one_host,
                                                          .by = self->by,
                                                          .nccl = getenv("TANDEM_TEST_NCCL"),
                                                          .timeout_ms = self->meet_ms},
                            &self->comm);
}

static int run_rank(struct rank *self, scene_fn *scene)
{
    struct device_options device = {.name = "cuda", .num_threads = 1, .ordinal = self->rank,
                                    .module = getenv("TANDEM_TEST_CUDA_MODULE")};
    int result = 100;

    if (device_open(&device, &self->dev) == OK && open_host(self) == OK)
        result = scene(self);
    if (result != 0)
        fprintf(stderr, "# rank %d of %d: %d: %s\n", self->rank, self->world, result, fail_text());
    comm_close(self->comm);
    comm_close(self->host);
    device_close(self->dev);
    return result;
}

static pid_t start_rank(int32_t rank, int32_t world, const char *by, int64_t meet_ms, scene_fn *scene)
{
    pid_t pid = fork();

    if (pid == 0) {
        alarm(100);
        _exit(run_rank(&(struct rank){.rank = rank, .world = world, .by = by, .meet_ms = meet_ms}, scene));
    }
    return pid;
}

static void play(int32_t world, const char *by, int64_t meet_ms, scene_fn *scene)
{
    create_host(world);
    atomic_store(&board->stage, 0);
    for (int32_t rank = 0; rank < world; rank++)
        start_rank(rank, world, by, meet_ms, scene);
    for (int32_t rank = 0; rank < world; rank++) {
        int status;

        wait(&status);
        assert_int_equal(status, 0);
    }
    close(comm_fd);
}

/* With what NCCL, or the GPUs, meet. */
static void play_with(const char *name, const char *value, int32_t world, const char *by, int64_t meet_ms,
                      scene_fn *scene)
{
    AUTO_MEM char *before = getenv(name) ? mem_strdup(getenv(name)) : NULL;

    setenv(name, value, 1);
    play(world, by, meet_ms, scene);
    if (before)
        setenv(name, before, 1);
    else
        unsetenv(name);
}

/* ---- sums ---------------------------------------------------------------------------------------- */

/* On the exact grid, and of very different sizes: sums that were rounded would depend on their order. */
static double value_of(int32_t rank, int round, int64_t i)
{
    static const double scales[] = {EXACT_GRID, 1, 1 << 20, -EXACT_GRID * 3, -(1 << 20)};

    return scales[(rank + round + i) % 5] * (double)((rank + 1) * 31 + i % 29);
}

static bool adds_up(struct rank *self, int round, int64_t count)
{
    AUTO_MEM double *x = mem_new_array(double, count);
    struct comm_parts sum;
    bool good;

    for (int64_t i = 0; i < count; i++)
        x[i] = value_of(self->rank, round, i);
    if (device_write(self->dev, comm_sum_buffer(self->comm), x, count * 8) != OK ||
        comm_sum(self->comm, count, &sum) != OK)
        return false;
    good = sum.num_parts == 1 && device_read(self->dev, x, sum.parts[0], count * 8) == OK;
    for (int64_t i = 0; i < count; i++) {
        double all = 0;

        for (int32_t rank = 0; rank < self->world; rank++)
            all += value_of(rank, round, i);
        good &= x[i] == all;
    }
    return good;
}

/* Bits of floats that a sum of floats might not keep. */
static uint32_t bits(int64_t i)
{
    static const uint32_t special[] = {0x80000000 /* -0 */, 1 /* subnormal */, 0x807fffff, 0x7fc12345 /* NaN */,
                                       0x3f800000};

    return i % 7 < 5 ? special[i % 7] : (uint32_t)i * 2654435761u;
}

static bool moves_bits(struct rank *self, int64_t count)
{
    AUTO_MEM uint32_t *x = mem_new_array(uint32_t, count);
    void *device;
    bool good;

    for (int64_t i = 0; i < count; i++)
        x[i] = i % self->world == self->rank ? bits(i) : 0;
    if (device_alloc(self->dev, count * 4, "numbers", &device) != OK)
        return false;
    good = device_write(self->dev, device, x, count * 4) == OK &&
           comm_all_reduce_f32_disjoint(self->comm, device, count) == OK &&
           device_read(self->dev, x, device, count * 4) == OK;
    for (int64_t i = 0; i < count; i++)
        good &= x[i] == bits(i);
    device_free(self->dev, device, count * 4);
    return good;
}

static int add_up(struct rank *self)
{
    if (open_comm(self) != OK)
        return 1;
    for (int round = 0; round < ROUNDS; round++) {
        int32_t told[8], own = self->rank + round;
        int64_t bytes[8];

        if (!adds_up(self, round, round == 0 ? comm_sum_max(self->comm) : 1 + round * 977) ||
            !moves_bits(self, 1 + round * 3001))
            return 2;
        if (comm_all_gather(self->comm, &own, sizeof own, sizeof own, told, bytes) != OK ||
            comm_barrier(self->comm) != OK)
            return 3;
        for (int32_t rank = 0; rank < self->world; rank++)
            if (told[rank] != rank + round)
                return 4;
    }
    return comm_check(self->comm) == OK && comm_waits_for(self->comm) == -1 ? 0 : 5;
}

static void sums_are_the_same_bits_on_every_rank(void **state)
{
    (void)state;
    for (int32_t world = 2; world <= 4; world++)
        play(world, "nccl", MEET_MS, add_up);
}

static void one_rank_alone_adds_up(void **state)
{
    (void)state;
    play(1, "nccl", MEET_MS, add_up);
}

static int move_bits(struct rank *self)
{
    return open_comm(self) == OK && moves_bits(self, 1000) && moves_bits(self, 2 * comm_sum_max(self->comm) + 3) ? 0
                                                                                                               : 1;
}

static void the_bits_of_one_rank_come_to_all(void **state)
{
    (void)state;
    is_one_host = true;
    play(3, "ipc", MEET_MS, move_bits);
    play(3, "host", MEET_MS, move_bits);
    is_one_host = false;
}

/* ---- columns ------------------------------------------------------------------------------------- */

enum { MAX_WORLD = 4 };

/* Of rank 0 many, of rank 1 none, of the others some. */
static void deal_columns(int32_t world, int32_t first[static MAX_WORLD + 1])
{
    static const int32_t widths[MAX_WORLD] = {977, 0, 3, 128};

    first[0] = 0;
    for (int32_t rank = 0; rank < world; rank++)
        first[rank + 1] = first[rank] + widths[rank];
}

static uint32_t column_bits(int round, int32_t row, int32_t column)
{
    return bits(column + 1000 * row) ^ (uint32_t)round << 8;
}

/* The device's: [rows, a rank's columns], and [rows, all]. */
struct columns {
    int32_t first[MAX_WORLD + 1], rows;
    void *own, *out;
};

static int32_t num_own(const struct rank *self, const struct columns *columns)
{
    return columns->first[self->rank + 1] - columns->first[self->rank];
}

static int64_t own_bytes(const struct rank *self, const struct columns *columns)
{
    return (int64_t)columns->rows * num_own(self, columns) * 4;
}

static int64_t out_bytes(const struct rank *self, const struct columns *columns)
{
    return (int64_t)columns->rows * columns->first[self->world] * 4;
}

static enum status open_columns(const struct rank *self, struct columns *out)
{
    deal_columns(self->world, out->first);
    out->rows = comm_columns_max(self->comm, out->first);
    if (out->rows < 2)
        return fail(ERR_INTERNAL, "room for %d rows", out->rows);
    out->rows = MIN(out->rows, 30);
    TRY(device_alloc(self->dev, own_bytes(self, out), "columns", &out->own));
    return device_alloc(self->dev, out_bytes(self, out), "all columns", &out->out);
}

static void close_columns(const struct rank *self, const struct columns *columns)
{
    device_free(self->dev, columns->own, own_bytes(self, columns));
    device_free(self->dev, columns->out, out_bytes(self, columns));
}

static enum status gather(const struct rank *self, const struct columns *columns)
{
    return comm_gather_columns(self->comm, &(struct comm_columns){.rows = columns->rows,
                                                                  .first = columns->first,
                                                                  .own = columns->own,
                                                                  .out = columns->out});
}

static enum status write_own(const struct rank *self, const struct columns *columns, int round)
{
    int32_t width = num_own(self, columns);
    AUTO_MEM uint32_t *own = mem_new_array(uint32_t, (int64_t)columns->rows * width + 1);

    for (int32_t row = 0; row < columns->rows; row++)
        for (int32_t i = 0; i < width; i++)
            own[row * width + i] = column_bits(round, row, columns->first[self->rank] + i);
    return device_write(self->dev, columns->own, own, own_bytes(self, columns));
}

static enum status check_out(const struct rank *self, const struct columns *columns, int round)
{
    int32_t width = columns->first[self->world];
    AUTO_MEM uint32_t *out = mem_new_array(uint32_t, (int64_t)columns->rows * width);

    TRY(device_read(self->dev, out, columns->out, out_bytes(self, columns)));
    TRY(comm_check(self->comm));
    for (int32_t row = 0; row < columns->rows; row++)
        for (int32_t i = 0; i < width; i++)
            if (out[row * width + i] != column_bits(round, row, i))
                return fail(ERR_INTERNAL, "round %d: row %d, column %d is %x", round, row, i, out[row * width + i]);
    return OK;
}

static enum status play_columns(struct rank *self)
{
    struct columns columns;

    TRY(open_comm(self));
    TRY(open_columns(self, &columns));
    for (int round = 0; round < ROUNDS; round++) {
        TRY(write_own(self, &columns, round));
        TRY(gather(self, &columns));
        TRY(check_out(self, &columns, round));
        if (round % 3 == 0 && !moves_bits(self, 100))
            return fail(ERR_INTERNAL, "a sum in round %d", round);
    }
    close_columns(self, &columns);
    return OK;
}

static int put_together(struct rank *self)
{
    return play_columns(self) == OK ? 0 : 1;
}

static void columns_of_all_ranks_are_put_together(void **state)
{
    (void)state;
    is_one_host = true;
    for (int32_t world = 2; world <= MAX_WORLD; world++) {
        play(world, "ipc", MEET_MS, put_together);
        play(world, "nccl", MEET_MS, put_together);
    }
    is_one_host = false;
}

/* ---- a host that is slow to hear of an abort ---- */

static struct comm_ops deaf_ops;
static _Atomic bool is_told;

static void abort_deaf(struct comm *comm)
{
    (void)comm;
    atomic_store(&is_told, true);
}

static bool is_deaf_aborted(const struct comm *comm)
{
    (void)comm;
    return atomic_load(&is_told);
}

/* Rank 1 comes and aborts; rank 0 has what NCCL makes of that, and nobody has told its host. Rank 2 never comes. */
static int take_what_the_aborted_sends(struct rank *self)
{
    struct columns columns;

    if (open_comm(self) != OK || open_columns(self, &columns) != OK || write_own(self, &columns, 0) != OK)
        return 1;
    deaf_ops = *self->host->ops;
    deaf_ops.abort = abort_deaf;
    deaf_ops.is_aborted = is_deaf_aborted;
    self->host->ops = &deaf_ops;
    if (self->rank == 1) {
        if (gather(self, &columns) != OK)
            return 2;
        comm_abort(self->comm);
        if (check_out(self, &columns, 0) != ERR_ABORTED)
            return 3;
        atomic_store(&board->stage, 1);
    }
    while (atomic_load(&board->stage) < (self->rank == 0 ? 1 : 2))
        usleep(1000);
    if (self->rank == 0 && (gather(self, &columns) != OK || check_out(self, &columns, 0) != ERR_ABORTED ||
                            is_told || gather(self, &columns) != ERR_ABORTED))
        return 4;
    atomic_store(&board->stage, 2);
    close_columns(self, &columns);
    return 0;
}

static void columns_of_an_aborted_rank_are_not_believed(void **state)
{
    (void)state;
    play(2, "nccl", MEET_MS, take_what_the_aborted_sends);
    play(3, "nccl", MEET_MS, take_what_the_aborted_sends);
}

/* ---- recorded ------------------------------------------------------------------------------------ */

/* A recording of sums of `count` floats at x, twice what is there. */
static enum status record(struct rank *self, float *x, int64_t count, int sums, struct device_recording **out)
{
    enum status status = OK, ended;

    TRY(comm_record(self->comm, self->dev));
    for (int i = 0; i < sums && status == OK; i++)
        status = comm_all_reduce_f32_disjoint(self->comm, x, count);
    ended = comm_end_record(self->comm, self->dev, out);
    return status == OK ? ended : status;
}

/* In each round another one of the recordings, or a sum that is not recorded. */
static enum status play_rounds(struct rank *self, float *x, float *host, int64_t count,
                               struct device_recording *const recordings[2])
{
    for (int round = 0; round < ROUNDS; round++) {
        int64_t some = round % 2 ? count / 3 : count;

        for (int64_t i = 0; i < some; i++)
            host[i] = (i + round) % self->world == self->rank ? (float)(i + 1000000 * round + 1) : 0;
        TRY(device_write(self->dev, x, host, some * 4));
        if (round % 3 == 2)
            TRY(comm_all_reduce_f32_disjoint(self->comm, x, some));
        else
            TRY(comm_replay(self->comm, self->dev, recordings[round % 2]));
        TRY(device_read(self->dev, host, x, some * 4));
        TRY(comm_check(self->comm));
        for (int64_t i = 0; i < some; i++)
            if (host[i] != (float)(i + 1000000 * round + 1))
                return fail(ERR_INTERNAL, "round %d: number %d of %d is %f", round, (int)i, (int)some, host[i]);
    }
    return OK;
}

/* Of one exchange or two of the device's, if they go in pieces there. */
static enum status play_replays(struct rank *self, int64_t count)
{
    AUTO_MEM float *host = mem_new_array(float, count);
    struct device_recording *recordings[2] = {NULL};
    void *x;

    TRY(device_alloc(self->dev, count * 4, "numbers", &x));
    TRY(record(self, x, count, 1, &recordings[0]));
    TRY(record(self, x, count / 3, 1, &recordings[1]));
    TRY(play_rounds(self, x, host, count, recordings));
    device_recording_free(self->dev, recordings[0]);
    device_recording_free(self->dev, recordings[1]);
    device_free(self->dev, x, count * 4);
    return OK;
}

static int replay_sums(struct rank *self)
{
    if (open_comm(self) != OK || !comm_can_record(self->comm))
        return 1;
    if (play_replays(self, 1000) != OK || play_replays(self, 1000 + 2 * comm_sum_max(self->comm)) != OK)
        return 2;
    return moves_bits(self, 1000) ? 0 : 3;
}

static void sums_may_be_replayed(void **state)
{
    (void)state;
    is_one_host = true;
    for (int32_t world = 2; world <= 4; world++)
        play(world, "ipc", MEET_MS, replay_sums);
    is_one_host = false;
}

static void sums_by_nccl_may_be_replayed(void **state)
{
    (void)state;
    for (int32_t world = 2; world <= 4; world++)
        play(world, "nccl", MEET_MS, replay_sums);
}

/* Nobody looks after a stream that is recorded, or the recording would be lost; so `watch` is given time to. */
static int record_slowly(struct rank *self)
{
    struct device_recording *recording = NULL;
    enum status status;
    float number = 0;
    void *x;

    if (open_comm(self) != OK || device_alloc(self->dev, 400, "numbers", &x) != OK ||
        comm_record(self->comm, self->dev) != OK)
        return 1;
    usleep(100 * 1000);
    status = comm_all_reduce_f32_disjoint(self->comm, x, 100);
    usleep(100 * 1000);
    if (comm_end_record(self->comm, self->dev, &recording) != OK || status != OK)
        return 2;
    if (comm_replay(self->comm, self->dev, recording) != OK ||
        device_read(self->dev, &number, x, sizeof number) != OK || comm_check(self->comm) != OK)
        return 3;
    device_recording_free(self->dev, recording);
    device_free(self->dev, x, 400);
    return 0;
}

static void who_watches_does_not_disturb_a_recording(void **state)
{
    (void)state;
    play(2, "nccl", MEET_MS, record_slowly);
}

/* One rank alone, as on a machine with one GPU. */
static int replay_alone(struct rank *self)
{
    struct device_recording *recording = NULL;
    double x = 0, sum = 0;
    struct comm_parts parts;
    enum status status;

    if (play_columns(self) != OK || comm_record(self->comm, self->dev) != OK)
        return 1;
    status = comm_sum(self->comm, 1, &parts);
    if (comm_end_record(self->comm, self->dev, &recording) != OK || status != OK)
        return 2;
    for (int round = 0; round < ROUNDS; round++) {
        x = value_of(0, round, 1);
        if (device_write(self->dev, comm_sum_buffer(self->comm), &x, sizeof x) != OK ||
            comm_replay(self->comm, self->dev, recording) != OK ||
            device_read(self->dev, &sum, parts.parts[0], sizeof sum) != OK || sum != x)
            return 3;
    }
    device_recording_free(self->dev, recording);
    return 0;
}

static void one_rank_alone_replays(void **state)
{
    (void)state;
    play(1, "nccl", MEET_MS, replay_alone);
}

static int agree(struct rank *self)
{
    bool all;

    if (open_comm(self) != OK)
        return 1;
    for (int32_t one = 0; one <= self->world; one++)
        if (comm_agree(self->comm, self->rank != one, &all) != OK || all != (one == self->world))
            return 2;
    return comm_agree(NULL, true, &all) == OK && all && comm_agree(NULL, false, &all) == OK && !all ? 0 : 3;
}

static void ranks_agree_where_none_objects(void **state)
{
    (void)state;
    play(3, "nccl", MEET_MS, agree);
}

/* Of two recordings rank 1 takes the wrong one, or launches what the other replays. NCCL may do anything then; its
 * double says so, and ends. */
static int be_at_odds(struct rank *self)
{
    struct device_recording *recordings[2] = {NULL};
    bool is_wrong = self->rank == 1;
    float number;
    void *x;

    if (open_comm(self) != OK || device_alloc(self->dev, 400, "numbers", &x) != OK ||
        record(self, x, 100, 1, &recordings[0]) != OK || record(self, x, 100, 1, &recordings[1]) != OK)
        return 1;
    if (is_wrong && atomic_load(&board->stage) == 0 ? comm_all_reduce_f32_disjoint(self->comm, x, 100) != OK
                                                    : comm_replay(self->comm, self->dev, recordings[is_wrong]) != OK)
        return 2;
    (void)!device_read(self->dev, &number, x, sizeof number);
    return 3;
}

static void ranks_that_are_at_odds_are_found_out(void **state)
{
    (void)state;
    for (int way = 0; way < 2; way++) {
        bool has_aborted = false;
        pid_t pids[2];

        create_host(2);
        atomic_store(&board->stage, way);
        for (int32_t rank = 0; rank < 2; rank++)
            pids[rank] = start_rank(rank, 2, "nccl", MEET_MS, be_at_odds);
        for (int32_t rank = 0; rank < 2; rank++) {
            int status;
            pid_t pid = wait(&status);

            has_aborted |= WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
            kill(pids[pid == pids[0]], SIGKILL); /* the other may wait for it */
        }
        assert_true(has_aborted);
        close(comm_fd);
    }
}

/* ---- who is awaited, and who ends it ------------------------------------------------------------- */

static void *abort_later(void *comm)
{
    while (atomic_load(&board->stage) < 3)
        usleep(1000);
    comm_abort(comm);
    return NULL;
}

/* Rank 2 ends in the place of its sum: the others' streams wait, and go on when they are told to stop. */
static int wait_for_the_dead(struct rank *self)
{
    pthread_t thread;
    enum status status;
    double x;
    struct comm_parts sum;

    if (open_comm(self) != OK)
        return 1;
    if (self->rank == 2) {
        while (atomic_load(&board->stage) < 2)
            usleep(1000);
        atomic_store(&board->stage, 3);
        raise(SIGKILL);
    }
    pthread_create(&thread, NULL, abort_later, self->comm);
    if (comm_sum(self->comm, 10, &sum) != OK)
        return 2;
    atomic_fetch_add(&board->stage, 1);
    status = device_read(self->dev, &x, sum.parts[0], sizeof x);
    pthread_join(thread, NULL);
    if (status != OK || comm_check(self->comm) != ERR_ABORTED || !comm_is_aborted(self->comm))
        return 3;
    if (comm_sum(self->comm, 10, &sum) != ERR_ABORTED || comm_barrier(self->comm) != ERR_ABORTED)
        return 4;
    atomic_fetch_add(&board->stage, 1);
    while (atomic_load(&board->stage) < 6)
        usleep(1000);
    /* A new set of ranks, of which these two are the old ones. */
    comm_close(give(self->comm));
    comm_close(give(self->host));
    comm_fd++;
    return open_host(self) == OK ? add_up(self) : 5;
}

/* The same where the sum is one that is replayed: a rank whose device hangs in it says for whom it waits. */
static int replay_beside_the_dead(struct rank *self)
{
    struct device_recording *recording = NULL;
    pthread_t thread;
    enum status status;
    float number;
    void *x;

    /* By NCCL each waits for its next, as far as it knows. */
    int32_t wanted = strcmp(self->by, "nccl") == 0 ? self->rank + 1 : 2;

    if (open_comm(self) != OK || device_alloc(self->dev, 400, "numbers", &x) != OK ||
        record(self, x, 100, 3, &recording) != OK || comm_replay(self->comm, self->dev, recording) != OK ||
        device_read(self->dev, &number, x, sizeof number) != OK || comm_waits_for(self->comm) != -1)
        return 1;
    if (self->rank == 2) {
        atomic_fetch_add(&board->stage, 1);
        raise(SIGKILL);
    }
    pthread_create(&thread, NULL, abort_later, self->comm);
    if (comm_replay(self->comm, self->dev, recording) != OK || comm_replay(self->comm, self->dev, recording) != OK)
        return 2;
    while (comm_waits_for(self->comm) != wanted)
        usleep(1000);
    atomic_fetch_add(&board->stage, 1);
    status = device_read(self->dev, &number, x, sizeof number);
    pthread_join(thread, NULL);
    if (status != OK || comm_check(self->comm) != ERR_ABORTED ||
        comm_replay(self->comm, self->dev, recording) != ERR_ABORTED)
        return 3;
    device_recording_free(self->dev, recording);
    device_free(self->dev, x, 400);
    return comm_waits_for(self->comm) == -1 ? 0 : 4;
}

/* The last of the ranks does, and the others come to a good end. */
static void play_beside_one_that_dies(int32_t world, const char *by, scene_fn *scene)
{
    pid_t pids[MAX_WORLD];
    int status;

    create_host(world);
    atomic_store(&board->stage, 0);
    for (int32_t rank = 0; rank < world; rank++)
        pids[rank] = start_rank(rank, world, by, MEET_MS, scene);
    for (int32_t rank = 0; rank < world; rank++) {
        waitpid(pids[rank], &status, 0);
        assert_int_equal(status, rank == world - 1 ? SIGKILL : 0);
    }
    close(comm_fd);
}

static void replay_beside_one_that_dies(const char *by)
{
    is_one_host = true;
    play_beside_one_that_dies(3, by, replay_beside_the_dead);
    is_one_host = false;
}

static void a_replay_that_waits_for_the_dead_ends_when_it_is_told_to(void **state)
{
    (void)state;
    replay_beside_one_that_dies("ipc");
}

static void so_does_one_by_nccl(void **state)
{
    (void)state;
    replay_beside_one_that_dies("nccl");
}

/* When the other has come to where it is to hear of it. */
static void tell_hosts_and_die(struct rank *self)
{
    while (atomic_load(&board->stage) == 0)
        usleep(1000);
    comm_abort(self->host);
    raise(SIGKILL);
}

/* Of two ranks one has told the hosts, and dies; `watch` of the other, which had nothing to look after for long, hears
 * it while the stream is in a replay. */
static int hear_of_it_in_a_replay(struct rank *self)
{
    struct device_recording *recording = NULL;
    float number;
    void *x;

    if (open_comm(self) != OK || device_alloc(self->dev, 400, "numbers", &x) != OK ||
        record(self, x, 100, 1, &recording) != OK || comm_replay(self->comm, self->dev, recording) != OK ||
        device_read(self->dev, &number, x, sizeof number) != OK)
        return 1;
    if (self->rank == 1)
        tell_hosts_and_die(self);
    usleep(100 * 1000);
    if (comm_replay(self->comm, self->dev, recording) != OK)
        return 2;
    atomic_store(&board->stage, 1);
    if (device_read(self->dev, &number, x, sizeof number) != OK || comm_check(self->comm) != ERR_ABORTED)
        return 3;
    device_recording_free(self->dev, recording);
    device_free(self->dev, x, 400);
    return 0;
}

/* The same while sums are launched, and a recording is there that NCCL waits for before its abort is over. */
static int hear_of_it_in_a_launch(struct rank *self)
{
    struct device_recording *recording = NULL;
    struct comm_parts sum;
    enum status status;
    void *x;

    if (open_comm(self) != OK || device_alloc(self->dev, 400, "numbers", &x) != OK ||
        record(self, x, 100, 1, &recording) != OK)
        return 1;
    if (self->rank == 1)
        tell_hosts_and_die(self);
    do {
        status = comm_sum(self->comm, 10, &sum);
        atomic_store(&board->stage, 1);
    } while (status == OK);
    if (status != ERR_ABORTED)
        return 2;
    device_recording_free(self->dev, recording);
    device_free(self->dev, x, 400);
    return 0;
}

static void an_abort_is_heard_of_whatever_a_rank_is_at(void **state)
{
    (void)state;
    play_beside_one_that_dies(2, "nccl", hear_of_it_in_a_replay);
    play_beside_one_that_dies(2, "nccl", hear_of_it_in_a_launch);
}

static void who_is_told_to_stop_goes_on_with_another_rank(void **state)
{
    pid_t pids[3];
    int status, old_fd, next_fd;

    (void)state;
    /* Both files of the hosts' are there before ranks are, side by side. */
    create_host(3);
    old_fd = comm_fd;
    create_host(3);
    next_fd = comm_fd;
    assert_int_equal(next_fd, old_fd + 1);
    comm_fd = old_fd;
    atomic_store(&board->stage, 0);
    for (int32_t rank = 0; rank < 3; rank++)
        pids[rank] = start_rank(rank, 3, "nccl", MEET_MS, wait_for_the_dead);
    waitpid(pids[2], &status, 0);
    assert_true(WIFSIGNALED(status));
    while (atomic_load(&board->stage) < 5)
        usleep(1000);
    comm_fd = next_fd;
    pids[2] = start_rank(2, 3, "nccl", MEET_MS, add_up);
    atomic_store(&board->stage, 6);
    for (int32_t rank = 0; rank < 3; rank++) {
        waitpid(pids[rank], &status, 0);
        assert_int_equal(status, 0);
    }
    close(old_fd);
    close(next_fd);
}

/* Ranks 0 and 1 have come to a sum, rank 2 has not. */
static int say_for_whom(struct rank *self)
{
    struct comm_parts sum;
    double x;
    int32_t wanted = self->rank == 2 ? -1 : self->rank + 1;

    if (open_comm(self) != OK)
        return 1;
    if (self->rank < 2 && comm_sum(self->comm, 10, &sum) != OK)
        return 2;
    while (comm_waits_for(self->comm) != wanted)
        usleep(1000);
    atomic_fetch_add(&board->stage, 1);
    while (atomic_load(&board->stage) < 3)
        usleep(1000);
    if (self->rank == 2 && comm_sum(self->comm, 10, &sum) != OK)
        return 3;
    if (device_read(self->dev, &x, sum.parts[0], sizeof x) != OK)
        return 4;
    return comm_waits_for(self->comm) == -1 ? 0 : 5;
}

static void who_waits_leads_to_the_one_that_has_not_come(void **state)
{
    (void)state;
    play(3, "nccl", MEET_MS, say_for_whom);
}

/* Nobody aborts: NCCL says that it has failed. */
static int meet_an_error(struct rank *self)
{
    struct comm_parts sum;
    double x;
    enum status status = OK;

    if (open_comm(self) != OK)
        return 1;
    while (status == OK) {
        status = comm_sum(self->comm, 10, &sum);
        if (status == OK && device_read(self->dev, &x, sum.parts[0], sizeof x) != OK)
            return 2;
        if (status == OK)
            status = comm_check(self->comm);
    }
    if (self->rank != 1)
        return status == ERR_ABORTED ? 0 : 3;
    return status == ERR_CLOSED && strstr(fail_text(), "remote process exited") ? 0 : 4;
}

static void a_failure_of_nccl_is_told_and_lets_all_go(void **state)
{
    (void)state;
    play_with("EMULATED_NCCL_FAULT", "async:40@1", 3, "nccl", MEET_MS, meet_an_error);
}

/* ---- refusals ------------------------------------------------------------------------------------ */

static const char *wanted;

static int be_refused(struct rank *self)
{
    return open_comm(self) == ERR_UNSUPPORTED && strstr(fail_text(), wanted) ? 0 : 1;
}

static void what_can_not_be_is_a_sentence_of_every_rank(void **state)
{
    static const struct {
        const char *fault, *wanted;
        int64_t meet_ms;
    } rows[] = {
        {"version@1", "nccl: rank 0 has NCCL 2.28.9 and rank 1 has 2.28.8: give all ranks the same", MEET_MS},
        {"never@0", ": NCCL: the ranks have not met in 0.3 s", 300},
        {"init", "rank 0: NCCL: meeting the other ranks: unhandled system error", MEET_MS},
        /* The others hear of it, and do not wait for one who never comes. */
        {"init@1", "rank 1: NCCL: meeting the other ranks: unhandled system error", MEET_MS},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        wanted = rows[i].wanted;
        play_with("EMULATED_NCCL_FAULT", rows[i].fault, 2, "nccl", rows[i].meet_ms, be_refused);
    }
    wanted = "rank 0: NCCL is not found: /nowhere/libnccl.so.2: ";
    play_with("TANDEM_TEST_NCCL", "/nowhere/libnccl.so.2", 2, "nccl", MEET_MS, be_refused);
    wanted = "can't be ipc: they are on several hosts";
    play(2, "ipc", MEET_MS, be_refused);
}

static void ranks_of_one_gpu_are_refused(void **state)
{
    (void)state;
    wanted = "ranks 0 and 1 share a GPU";
    play_with("EMULATED_CUDA_DEVICES", "1", 2, "nccl", MEET_MS, be_refused);
}

/* Where nothing is asked for, the hosts add up. */
static int go_through_hosts(struct rank *self)
{
    return open_comm(self) == OK && adds_up(self, 1, 100) ? 0 : 1;
}

static void what_can_not_be_goes_through_the_hosts(void **state)
{
    (void)state;
    play_with("EMULATED_NCCL_FAULT", "version@1", 2, "auto", MEET_MS, go_through_hosts);
    play_with("EMULATED_NCCL_FAULT", "never@1", 2, NULL, 300, go_through_hosts);
}

/* ---- all ----------------------------------------------------------------------------------------- */

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(sums_are_the_same_bits_on_every_rank),
    cmocka_unit_test(one_rank_alone_adds_up),
    cmocka_unit_test(the_bits_of_one_rank_come_to_all),
    cmocka_unit_test(columns_of_all_ranks_are_put_together),
    cmocka_unit_test(columns_of_an_aborted_rank_are_not_believed),
    cmocka_unit_test(sums_may_be_replayed),
    cmocka_unit_test(sums_by_nccl_may_be_replayed),
    cmocka_unit_test(who_watches_does_not_disturb_a_recording),
    cmocka_unit_test(one_rank_alone_replays),
    cmocka_unit_test(ranks_agree_where_none_objects),
    cmocka_unit_test(ranks_that_are_at_odds_are_found_out),
    cmocka_unit_test(a_replay_that_waits_for_the_dead_ends_when_it_is_told_to),
    cmocka_unit_test(so_does_one_by_nccl),
    cmocka_unit_test(an_abort_is_heard_of_whatever_a_rank_is_at),
    cmocka_unit_test(who_is_told_to_stop_goes_on_with_another_rank),
    cmocka_unit_test(who_waits_leads_to_the_one_that_has_not_come),
    cmocka_unit_test(a_failure_of_nccl_is_told_and_lets_all_go),
    cmocka_unit_test(what_can_not_be_is_a_sentence_of_every_rank),
    cmocka_unit_test(ranks_of_one_gpu_are_refused),
    cmocka_unit_test(what_can_not_be_goes_through_the_hosts),
};

static const struct CMUnitTest tests_of_one_gpu[] = {
    cmocka_unit_test(the_bits_of_one_rank_come_to_all),
    cmocka_unit_test(sums_may_be_replayed),
    cmocka_unit_test(a_replay_that_waits_for_the_dead_ends_when_it_is_told_to),
    cmocka_unit_test(one_rank_alone_adds_up),
    cmocka_unit_test(one_rank_alone_replays),
    cmocka_unit_test(ranks_of_one_gpu_are_refused),
};

static const struct CMUnitTest tests_without_nccl[] = {
    cmocka_unit_test(the_bits_of_one_rank_come_to_all),
    cmocka_unit_test(sums_may_be_replayed),
    cmocka_unit_test(a_replay_that_waits_for_the_dead_ends_when_it_is_told_to),
};

int main(void)
{
    if (!has_gpus())
        return 0;
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!getenv("TANDEM_TEST_NCCL")) {
        setenv("CUDA_VISIBLE_DEVICES", "0", 1);
        if (!dlopen("libnccl.so.2", RTLD_LAZY)) {
            printf("# its tests are skipped, as there is no NCCL: %s\n", dlerror());
            return cmocka_run_group_tests(tests_without_nccl, NULL, NULL);
        }
        return cmocka_run_group_tests(tests_of_one_gpu, NULL, NULL);
    }
    setenv("EMULATED_CUDA_DEVICES", "4", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
