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

/* ---- shares ------------------------------------------------------------------------------------- */

enum { MAX_ITEMS = 5000 };

struct items {
    int64_t count;
    uint8_t times[MAX_ITEMS]; /* each by who has taken the item, unlocked */
    _Atomic int32_t num_wrong; /* pieces */
};

static void note_items(const void *args, struct span piece, struct span share, int32_t thread)
{
    struct items *items = *(struct items *const *)args;

    for (int64_t i = piece.first; i < piece.end; i++)
        items->times[i]++;
    items->num_wrong += piece.first >= piece.end || piece.first < share.first || piece.end > share.end ||
                        share.end > items->count || thread < 0 || thread >= MAX_THREADS;
}

static void every_item_is_done_once_when_team_share_returns(void **state)
{
    static const int64_t counts[] = {0, 1, 2, 7, 63, 1000, MAX_ITEMS}, grains[] = {1, 2, 64};
    static struct items items;
    struct items *args = &items;

    (void)state;
    for (int32_t n = 1; n <= MAX_THREADS; n++) {
        struct team *team;

        expect_ok(team_new(n, &team));
        for (int round = 0; round < ROUNDS; round++) {
            memset(&items, 0, sizeof items);
            items.count = counts[round % COUNT_OF(counts)];
            if (round % 500 == 499)
                usleep(2000); /* long enough for all to park */
            team_share(team, items.count, grains[round % COUNT_OF(grains)], note_items, &args);
            for (int64_t i = 0; i < MAX_ITEMS; i++)
                assert_int_equal(items.times[i], i < items.count);
            assert_int_equal(items.num_wrong, 0);
            if (round % 7 == 0) { /* and threads that come late find their part of the other kind */
                struct round other = {.number = round + 1};

                team_run(team, note_round, &other);
                for (int i = 0; i < n; i++)
                    assert_int_equal(other.seen[i], round + 1);
            }
        }
        team_free(team);
    }
}

struct helped {
    _Atomic int64_t num_done; /* items */
    _Atomic bool has_begun;   /* thread 1 */
    _Atomic bool gave_up;
    int64_t held; /* items of thread 1's first piece */
};

static void wait_for(struct helped *helped, bool (*is_so)(struct helped *helped))
{
    for (int i = 0; i < 30000 && !is_so(helped); i++)
        usleep(1000);
    helped->gave_up |= !is_so(helped);
}

static bool has_begun(struct helped *helped)
{
    return helped->has_begun;
}

static bool are_all_others_done(struct helped *helped)
{
    return helped->num_done == MAX_ITEMS - helped->held;
}

static void do_or_hold(const void *args, struct span piece, struct span share, int32_t thread)
{
    struct helped *helped = *(struct helped *const *)args;

    (void)share;
    if (thread != 1)
        wait_for(helped, has_begun); /* else it might find nothing to do */
    if (thread == 1 && !helped->has_begun) {
        helped->held = piece.end - piece.first;
        helped->has_begun = true;
        wait_for(helped, are_all_others_done);
    }
    helped->num_done += piece.end - piece.first;
}

static void what_a_thread_has_not_begun_is_done_by_others(void **state)
{
    for (int32_t n = 2; n <= MAX_THREADS; n++) {
        struct helped helped = {0}, *args = &helped;
        struct team *team;

        (void)state;
        expect_ok(team_new(n, &team));
        team_share(team, MAX_ITEMS, 1, do_or_hold, &args);
        assert_int_equal(helped.num_done, MAX_ITEMS);
        assert_false(helped.gave_up);
        assert_true(helped.held > 0 && helped.held < MAX_ITEMS / n);
        team_free(team);
    }
}

/* ---- members ------------------------------------------------------------------------------------ */

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
    cmocka_unit_test(every_item_is_done_once_when_team_share_returns),
    cmocka_unit_test(what_a_thread_has_not_begun_is_done_by_others),
    cmocka_unit_test(members_leave_signals_to_others_but_for_their_own_faults),
    cmocka_unit_test(the_caller_waits_for_late_threads),
    cmocka_unit_test(bound_threads_run_where_they_are_bound),
    cmocka_unit_test(an_idle_team_uses_no_processor),
};
TEST_MAIN(tests)
