#include "tests/support/expect.h"

#include "kernels/cpu/team.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 4, ROUNDS = 3000 };

struct round {
    int number;
    int seen[MAX_THREADS]; /* each thread writes its own, unlocked */
};

static void note_round(void *args, int32_t thread)
{
    struct round *round = args;

    round->seen[thread] = round->number;
}

static void every_thread_has_done_its_part_when_team_run_returns(void **state)
{
    (void)state;
    for (int32_t n = 1; n <= MAX_THREADS; n++) {
        struct round round = {0};
        struct team *team;

        expect_ok(team_new(n, &team));
        assert_int_equal(team_num_threads(team), n);
        for (round.number = 1; round.number <= ROUNDS; round.number++) {
            if (round.number % 500 == 0)
                usleep(2000); /* long enough for all to park */
            team_run(team, note_round, &round);
            for (int i = 0; i < n; i++)
                assert_int_equal(round.seen[i], round.number);
        }
        team_free(team);
    }
}

static void note_blocked(void *args, int32_t thread)
{
    struct round *round = args;
    sigset_t blocked;

    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    round->seen[thread] = sigismember(&blocked, SIGTERM) + 2 * sigismember(&blocked, SIGBUS);
}

static void members_leave_signals_to_others_but_for_their_own_faults(void **state)
{
    struct round round = {0};
    struct team *team;

    (void)state;
    expect_ok(team_new(2, &team));
    team_run(team, note_blocked, &round);
    assert_int_equal(round.seen[0], 0);
    assert_int_equal(round.seen[1], 1);
    team_free(team);
}

/* The caller finishes long before the others, and parks too. */
static void work_late(void *args, int32_t thread)
{
    if (thread) {
        usleep(5000);
        note_round(args, thread);
    }
}

static void the_caller_waits_for_late_threads(void **state)
{
    struct round round = {.number = 1};
    struct team *team;

    (void)state;
    expect_ok(team_new(3, &team));
    team_run(team, work_late, &round);
    assert_int_equal(round.seen[1], 1);
    assert_int_equal(round.seen[2], 1);
    team_free(team);
}

static void an_idle_team_uses_no_processor(void **state)
{
    struct round round = {.number = 1};
    struct team *team;

    (void)state;
    expect_ok(team_new(MAX_THREADS, &team));
    team_run(team, note_round, &round);
    usleep(20000); /* they park */

    clock_t before = clock();

    usleep(300000);
    assert_true(clock() - before < CLOCKS_PER_SEC / 100);
    team_free(team);
}

static void note_cpu(void *args, int32_t thread)
{
    struct round *round = args;

    round->seen[thread] = sched_getcpu();
}

static void bound_threads_run_where_they_are_bound(void **state)
{
    cpu_set_t ours, sets[MAX_THREADS];
    struct round round = {0};
    struct team *team;
    int cpu = 0;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof ours, &ours), 0);
    expect_ok(team_new(MAX_THREADS, &team));
    for (int i = 0; i < MAX_THREADS; i++) { /* in turn, over those that we may use */
        do
            cpu = (cpu + 1) % CPU_SETSIZE;
        while (!CPU_ISSET(cpu, &ours));
        CPU_ZERO(&sets[i]);
        CPU_SET(cpu, &sets[i]);
    }
    expect_ok(team_bind(team, sets));
    team_run(team, note_cpu, &round);
    for (int i = 0; i < MAX_THREADS; i++)
        assert_true(CPU_ISSET(round.seen[i], &sets[i]));
    CPU_ZERO(&sets[1]);
    expect_fails(team_bind(team, sets), ERR_IO, "thread 2 of 4 cannot be bound");
    team_free(team);
    assert_int_equal(sched_setaffinity(0, sizeof ours, &ours), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_thread_has_done_its_part_when_team_run_returns),
    cmocka_unit_test(members_leave_signals_to_others_but_for_their_own_faults),
    cmocka_unit_test(the_caller_waits_for_late_threads),
    cmocka_unit_test(bound_threads_run_where_they_are_bound),
    cmocka_unit_test(an_idle_team_uses_no_processor),
};
TEST_MAIN(tests)
