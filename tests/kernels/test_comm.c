#include "tests/support/expect.h"

#include "kernels/kernels.h"
#include "proto/base/memory.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 300, BUFFER_BYTES = 4096, SHARED_BYTES = 1000, COUNT = 700 /* more than one buffer */, STRIDE = 10000 };

static int comm_fd;

static const char *comm_path(void)
{
    static _Thread_local char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", comm_fd);
    return path;
}

static void create(int32_t world)
{
    comm_fd = memfd_create("comm", 0);
    expect_ok(comm_create(comm_path(), world, BUFFER_BYTES, SHARED_BYTES));
}

/* A value on the exact grid that rank, round and place decide. */
static double value(int32_t rank, int round, int i)
{
    return (double)((rank + 1) * 7919 + round * 31 - i * 3) * EXACT_GRID;
}

/* What a rank tells the others in a round: nothing, a little, or more than a buffer holds. */
static int64_t bytes_of(int32_t rank, int round)
{
    return (rank + round) % 3 == 2 ? STRIDE - rank : (rank + round) % 3 * (100 + round);
}

static char byte_of(int32_t rank, int round, int64_t i)
{
    return (char)(rank * 31 + round + i * 7);
}

/* Every rank's part, where it was written. */
static bool sums_in_place_are_right(struct comm *comm, int32_t rank, int round, int32_t world)
{
    int64_t count = comm_sum_max(comm);
    struct comm_parts sum;
    bool good = count == BUFFER_BYTES / sizeof(double);

    for (int64_t i = 0; i < count; i++)
        comm_sum_buffer(comm)[i] = value(rank, round, (int)i);
    if (comm_sum(comm, count, &sum) != OK)
        return false;
    good &= sum.num_parts == world;
    for (int32_t r = 0; r < sum.num_parts; r++)
        for (int64_t i = 0; i < count; i++)
            good &= sum.parts[r][i] == value(r, round, (int)i);
    return good;
}

/* Ranks write each its own place between two barriers, and read all after the second. */
static bool ranks_see_shared_memory(struct comm *comm, int32_t rank, int round, int32_t world)
{
    int32_t *shared = comm_shared(comm);
    bool good = true;

    if (comm_barrier(comm) != OK)
        return false;
    shared[SHARED_BYTES / 4 - 1 - rank] = rank + round;
    if (comm_barrier(comm) != OK)
        return false;
    for (int32_t r = 0; r < world; r++)
        good &= shared[SHARED_BYTES / 4 - 1 - r] == r + round;
    return good;
}

/* What every rank does; the result says whether all was as it should be. */
static bool run_rank(int32_t rank, int32_t world)
{
    AUTO_MEM double *sums = mem_new_array(double, COUNT);
    AUTO_MEM float *disjoint = mem_new_array(float, COUNT);
    AUTO_MEM char *told = mem_new_array(char, STRIDE);
    AUTO_MEM char *gathered = mem_new_array(char, STRIDE * 16);
    int64_t told_bytes[16];
    struct comm *comm;
    bool good = true;

    if (comm_open(comm_path(), rank, world, &comm) != OK)
        return false;
    for (int round = 0; round < ROUNDS && good; round++) {
        for (int i = 0; i < COUNT; i++) {
            sums[i] = value(rank, round, i);
            disjoint[i] = i % world == rank ? (float)(i + round) : 0;
        }
        for (int64_t i = 0; i < bytes_of(rank, round); i++)
            told[i] = byte_of(rank, round, i);
        if (comm_all_reduce_f64(comm, sums, COUNT) != OK ||
            comm_all_reduce_f32_disjoint(comm, disjoint, COUNT) != OK ||
            comm_all_gather(comm, told, bytes_of(rank, round), STRIDE, gathered, told_bytes) != OK)
            return false;
        for (int i = 0; i < COUNT; i++) {
            double sum = 0;

            for (int32_t r = world; r-- > 0;)
                sum += value(r, round, i);
            good &= sums[i] == sum && disjoint[i] == (float)(i + round);
        }
        good &= sums_in_place_are_right(comm, rank, round, world) &&
                ranks_see_shared_memory(comm, rank, round, world);
        for (int32_t r = 0; r < world; r++) {
            good &= told_bytes[r] == bytes_of(r, round);
            for (int64_t i = 0; i < told_bytes[r]; i++)
                good &= gathered[r * STRIDE + i] == byte_of(r, round, i);
        }
        if (round % 7 == rank)
            usleep(100);
    }
    comm_close(comm);
    return good;
}

static void every_rank_gets_the_same_sums(void **state)
{
    (void)state;
    for (int32_t world = 1; world <= 5; world++) {
        create(world);
        for (int32_t rank = 0; rank < world; rank++)
            if (fork() == 0)
                _exit(run_rank(rank, world) ? 0 : 1);
        for (int32_t rank = 0; rank < world; rank++) {
            int status;

            wait(&status);
            assert_int_equal(status, 0);
        }
        close(comm_fd);
    }
}

static void *run_thread(void *rank)
{
    return (void *)(intptr_t)run_rank((int32_t)(intptr_t)rank, 2);
}

static void ranks_may_be_threads(void **state)
{
    (void)state;
    pthread_t threads[2];
    void *good;

    create(2);
    for (intptr_t rank = 0; rank < 2; rank++)
        pthread_create(&threads[rank], NULL, run_thread, (void *)rank);
    for (int rank = 0; rank < 2; rank++) {
        pthread_join(threads[rank], &good);
        assert_non_null(good);
    }
    close(comm_fd);
}

static void an_abort_frees_who_waits_for_a_dead_rank(void **state)
{
    (void)state;
    struct comm *comm;
    double x = 1;
    pid_t waiting;
    int status;

    create(3);
    waiting = fork();
    if (waiting == 0) {
        if (comm_open(comm_path(), 0, 3, &comm) != OK)
            _exit(1);
        _exit(comm_all_reduce_f64(comm, &x, 1) == ERR_ABORTED ? 0 : 2);
    }
    usleep(20000); /* rank 1 takes part and dies, rank 2 was never there */
    expect_ok(comm_open(comm_path(), 1, 3, &comm));
    comm_abort(comm);
    waitpid(waiting, &status, 0);
    assert_int_equal(status, 0);
    expect_fails(comm_all_reduce_f64(comm, &x, 1), ERR_ABORTED, "told to stop");
    comm_close(comm);
    close(comm_fd);
}

static void a_file_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    struct comm *comm;

    expect_fails(comm_open("/nonexistent/comm", 0, 2, &comm), ERR_NOT_FOUND, "/nonexistent/comm");
    comm_fd = memfd_create("comm", 0);
    expect_fails(comm_open(comm_path(), 0, 2, &comm), ERR_NOT_FOUND, "not set up yet");
    close(comm_fd);
    create(3);
    expect_fails(comm_open(comm_path(), 0, 2, &comm), ERR_MISMATCH, "is for 3 ranks, not 2");
    assert_int_equal(ftruncate(comm_fd, 8192), 0);
    expect_fails(comm_open(comm_path(), 0, 3, &comm), ERR_CORRUPT, "8192 bytes do not hold");
    close(comm_fd);
    expect_fails(comm_create("/tmp/never", 0, 4096, 0), ERR_INVALID, "0 ranks");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_rank_gets_the_same_sums),
    cmocka_unit_test(ranks_may_be_threads),
    cmocka_unit_test(an_abort_frees_who_waits_for_a_dead_rank),
    cmocka_unit_test(a_file_that_does_not_fit_is_refused),
};
TEST_MAIN(tests)
