#include "tests/support/expect.h"

#include "engine/server/jobs.h"

#include <poll.h>
#include <stdatomic.h>
#include <unistd.h>

struct task {
    struct job job;
    atomic_bool ran;
    int *num_done;
    int blocks_ms;
};

static void run(struct job *job)
{
    struct task *task = CONTAINER_OF(job, struct task, job);

    usleep((useconds_t)task->blocks_ms * 1000);
    task->ran = true;
}

static void done(struct job *job)
{
    ++*CONTAINER_OF(job, struct task, job)->num_done;
}

static void add(struct jobs *jobs, struct task *task, int blocks_ms, int *num_done)
{
    *task = (struct task){{.run = run, .done = done}, false, num_done, blocks_ms};
    jobs_add(jobs, &task->job);
}

static void every_job_runs_and_is_then_done_once(void **state)
{
    (void)state;
    enum { NUM_TASKS = 200 };
    static struct task tasks[NUM_TASKS];
    struct jobs *jobs;
    int num_done = 0;

    expect_ok(jobs_new(2, &jobs));
    for (int i = 0; i < NUM_TASKS; i++)
        add(jobs, &tasks[i], 0, &num_done);
    while (num_done < NUM_TASKS) {
        struct pollfd wait = {jobs_fd(jobs), POLLIN, 0};
        assert_int_equal(poll(&wait, 1, 5000), 1);
        jobs_poll(jobs);
    }
    for (int i = 0; i < NUM_TASKS; i++)
        assert_true(tasks[i].ran);
    jobs_free(jobs);
    assert_int_equal(num_done, NUM_TASKS);
}

static void a_long_job_does_not_hold_up_a_short_one(void **state)
{
    (void)state;
    struct task slow, fast;
    struct jobs *jobs;
    int num_slow = 0, num_fast = 0;

    expect_ok(jobs_new(2, &jobs));
    add(jobs, &slow, 300, &num_slow);
    add(jobs, &fast, 0, &num_fast);
    struct pollfd wait = {jobs_fd(jobs), POLLIN, 0};
    assert_int_equal(poll(&wait, 1, 5000), 1);
    jobs_poll(jobs);
    assert_int_equal(num_fast, 1);
    assert_int_equal(num_slow, 0);
    jobs_free(jobs);
    assert_int_equal(num_slow, 1);
}

static void jobs_that_never_ran_are_done_at_the_end(void **state)
{
    (void)state;
    struct task tasks[5];
    struct jobs *jobs;
    int num_done = 0;

    expect_ok(jobs_new(1, &jobs));
    for (int i = 0; i < 5; i++)
        add(jobs, &tasks[i], 50, &num_done);
    jobs_free(jobs);
    assert_int_equal(num_done, 5);
    assert_false(tasks[4].ran);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_job_runs_and_is_then_done_once),
    cmocka_unit_test(a_long_job_does_not_hold_up_a_short_one),
    cmocka_unit_test(jobs_that_never_ran_are_done_at_the_end),
};
TEST_MAIN(tests)
