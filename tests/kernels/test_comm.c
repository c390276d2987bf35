#include "tests/support/expect.h"

#include "tests/support/comm_promises.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 300 };

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
    expect_ok(comm_create(comm_path(), world, PROMISE_BUFFER_BYTES, PROMISE_SHARED_BYTES));
}

/* What every rank does; the result says whether all was as it should be. */
static bool run_rank(int32_t rank, int32_t world)
{
    struct comm *comm;
    bool good;

    if (comm_open(comm_path(), rank, world, &comm) != OK)
        return false;
    good = comm_keeps_its_promises(comm, rank, world, ROUNDS);
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

static void *sum_as_rank_2(void *comm)
{
    double x = 1;

    return (void *)(intptr_t)comm_all_reduce_f64(comm, &x, 1);
}

static void one_that_waits_says_for_whom(void **state)
{
    struct comm *waiting, *others[2];
    pthread_t thread;
    void *status;
    double x = 1;

    (void)state;
    create(3);
    expect_ok(comm_open(comm_path(), 2, 3, &waiting));
    for (int32_t rank = 0; rank < 2; rank++)
        expect_ok(comm_open(comm_path(), rank, 3, &others[rank]));
    assert_int_equal(comm_waits_for(NULL), -1);
    assert_int_equal(comm_waits_for(waiting), -1);
    pthread_create(&thread, NULL, sum_as_rank_2, waiting);
    while (comm_waits_for(waiting) != 0)
        usleep(100);
    comm_abort(others[1]);
    pthread_join(thread, &status);
    assert_int_equal((intptr_t)status, ERR_ABORTED);
    assert_int_equal(comm_waits_for(waiting), -1);
    expect_fails(comm_all_reduce_f64(others[0], &x, 1), ERR_ABORTED, "told to stop");
    comm_close(waiting);
    comm_close(others[0]);
    comm_close(others[1]);
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
    cmocka_unit_test(one_that_waits_says_for_whom),
    cmocka_unit_test(a_file_that_does_not_fit_is_refused),
};
TEST_MAIN(tests)
