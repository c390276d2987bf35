/*
 * Sums among ranks by NCCL, or in each other's memory: each rank is a process with a GPU. NCCL's library is that
 * of TANDEM_TEST_NCCL, an emulated one, beside the emulated GPUs of TANDEM_TEST_CUDA_MODULE; where these are real,
 * NCCL is as well, and only those tests run that one GPU is enough for.
 */
#include "tests/support/expect.h"

#include "kernels/kernels.h"

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

/* ---- recorded ------------------------------------------------------------------------------------ */

/* A sum that is recorded, of `count` floats at x. */
static enum status sum_aligned(struct rank *self, float *x, int64_t count)
{
    TRY(comm_align(self->comm));
    TRY(comm_all_reduce_f32_disjoint(self->comm, x, count));
    return comm_align(self->comm);
}

static enum status record(struct rank *self, float *x, int64_t count, struct device_recording **out)
{
    TRY(comm_align(self->comm));
    TRY(device_record(self->dev));
    TRY(sum_aligned(self, x, count));
    return device_end_record(self->dev, out);
}

static enum status replay(struct rank *self, struct device_recording *recording)
{
    TRY(comm_align(self->comm));
    return device_replay(self->dev, recording);
}

/* In each round some ranks replay what the others launch. Before some there is a sum that is not recorded. */
static enum status play_rounds(struct rank *self, float *x, float *host, int64_t count,
                               struct device_recording *recording)
{
    for (int round = 0; round < ROUNDS; round++) {
        if (round % 3 == 1)
            TRY(comm_all_reduce_f32_disjoint(self->comm, x, 100));
        for (int64_t i = 0; i < count; i++)
            host[i] = (i + round) % self->world == self->rank ? (float)(i + 1000000 * round + 1) : 0;
        TRY(device_write(self->dev, x, host, count * 4));
        if ((round + self->rank) % 3 == 0)
            TRY(sum_aligned(self, x, count));
        else
            TRY(replay(self, recording));
        TRY(device_read(self->dev, host, x, count * 4));
        for (int64_t i = 0; i < count; i++)
            if (host[i] != (float)(i + 1000000 * round + 1))
                return fail(ERR_INTERNAL, "round %d: number %d of %d is %f", round, (int)i, (int)count, host[i]);
    }
    return OK;
}

/* Of one exchange, and of two. */
static int replay_sums(struct rank *self)
{
    if (open_comm(self) != OK || !comm_can_record(self->comm))
        return 1;
    for (int exchanges = 1; exchanges <= 2; exchanges++) {
        int64_t count = 1000 + (exchanges - 1) * 2 * comm_sum_max(self->comm);
        AUTO_MEM float *host = mem_new_array(float, count);
        struct device_recording *recording = NULL;
        void *x;
        enum status status = device_alloc(self->dev, count * 4, "numbers", &x);

        if (status == OK)
            status = record(self, x, count, &recording);
        if (status == OK)
            status = play_rounds(self, x, host, count, recording);
        if (status != OK)
            return 2;
        device_recording_free(self->dev, recording);
        device_free(self->dev, x, count * 4);
    }
    return 0;
}

static void sums_may_be_replayed_beside_ranks_that_launch_them(void **state)
{
    (void)state;
    is_one_host = true;
    for (int32_t world = 2; world <= 4; world++)
        play(world, "ipc", MEET_MS, replay_sums);
    is_one_host = false;
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

    if (open_comm(self) != OK || device_alloc(self->dev, 400, "numbers", &x) != OK ||
        record(self, x, 100, &recording) != OK || replay(self, recording) != OK ||
        device_read(self->dev, &number, x, sizeof number) != OK)
        return 1;
    if (self->rank == 2) {
        atomic_fetch_add(&board->stage, 1);
        raise(SIGKILL);
    }
    pthread_create(&thread, NULL, abort_later, self->comm);
    if (replay(self, recording) != OK || replay(self, recording) != OK)
        return 2;
    while (comm_waits_for(self->comm) != 2)
        usleep(1000);
    atomic_fetch_add(&board->stage, 1);
    status = device_read(self->dev, &number, x, sizeof number);
    pthread_join(thread, NULL);
    if (status != OK || comm_check(self->comm) != ERR_ABORTED || replay(self, recording) != ERR_ABORTED)
        return 3;
    device_recording_free(self->dev, recording);
    device_free(self->dev, x, 400);
    return comm_waits_for(self->comm) == -1 ? 0 : 4;
}

static void a_replay_that_waits_for_the_dead_ends_when_it_is_told_to(void **state)
{
    pid_t pids[3];
    int status;

    (void)state;
    is_one_host = true;
    create_host(3);
    atomic_store(&board->stage, 0);
    for (int32_t rank = 0; rank < 3; rank++)
        pids[rank] = start_rank(rank, 3, "ipc", MEET_MS, replay_beside_the_dead);
    for (int32_t rank = 0; rank < 3; rank++) {
        waitpid(pids[rank], &status, 0);
        assert_int_equal(status, rank == 2 ? SIGKILL : 0);
    }
    close(comm_fd);
    is_one_host = false;
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
    cmocka_unit_test(sums_may_be_replayed_beside_ranks_that_launch_them),
    cmocka_unit_test(a_replay_that_waits_for_the_dead_ends_when_it_is_told_to),
    cmocka_unit_test(who_is_told_to_stop_goes_on_with_another_rank),
    cmocka_unit_test(who_waits_leads_to_the_one_that_has_not_come),
    cmocka_unit_test(a_failure_of_nccl_is_told_and_lets_all_go),
    cmocka_unit_test(what_can_not_be_is_a_sentence_of_every_rank),
    cmocka_unit_test(ranks_of_one_gpu_are_refused),
    cmocka_unit_test(what_can_not_be_goes_through_the_hosts),
};

static const struct CMUnitTest tests_of_one_gpu[] = {
    cmocka_unit_test(the_bits_of_one_rank_come_to_all),
    cmocka_unit_test(sums_may_be_replayed_beside_ranks_that_launch_them),
    cmocka_unit_test(a_replay_that_waits_for_the_dead_ends_when_it_is_told_to),
    cmocka_unit_test(one_rank_alone_adds_up),
    cmocka_unit_test(ranks_of_one_gpu_are_refused),
};

int main(void)
{
    if (!getenv("TANDEM_TEST_CUDA_MODULE")) {
        puts("1..0 # SKIP TANDEM_TEST_CUDA_MODULE names no module for GPUs");
        return 0;
    }
    if (!getenv("TANDEM_TEST_NCCL") && !dlopen("libnccl.so.2", RTLD_LAZY)) {
        printf("1..0 # SKIP there is no NCCL: %s\n", dlerror());
        return 0;
    }
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!getenv("TANDEM_TEST_NCCL")) {
        setenv("CUDA_VISIBLE_DEVICES", "0", 1);
        return cmocka_run_group_tests(tests_of_one_gpu, NULL, NULL);
    }
    setenv("EMULATED_CUDA_DEVICES", "4", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
