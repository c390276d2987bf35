#include "tests/support/expect.h"

#include "engine/admission.h"
#include "proto/base/clock.h"

static int64_t now_ns;

static void pass(double seconds)
{
    now_ns += (int64_t)(seconds * 1e9);
}

static int begin(void **state)
{
    (void)state;
    now_ns = 1000;
    clock_simulate(&now_ns);
    return 0;
}

static int end(void **state)
{
    (void)state;
    clock_simulate(NULL);
    return 0;
}

static struct admission of_requests(int64_t most)
{
    struct admission admission = {0};

    admission.queues[LIMIT_QUEUED_REQS].most = most;
    return admission;
}

static void enter(struct admission *admission, int n)
{
    for (int i = 0; i < n; i++)
        admission_enter(admission, 10);
}

/* One ends every `each_s`, and another takes its place. */
static void run(struct admission *admission, int n, double each_s)
{
    for (int i = 0; i < n; i++) {
        pass(each_s);
        admission_leave(admission, LIMIT_QUEUED_REQS, 1);
        enter(admission, 1);
    }
}

static int32_t refused(struct admission *admission)
{
    assert_false(admission_has_room(admission));
    assert_int_equal(admission_check(admission, 1), ERR_FULL);
    return admission->retry_after_s;
}

static void without_limits_there_is_always_room(void **state)
{
    struct admission admission = {0};

    (void)state;
    enter(&admission, 100000);
    assert_true(admission_has_room(&admission));
    expect_ok(admission_check(&admission, 100000));
    assert_int_equal(admission.num_rejections[LIMIT_QUEUED_REQS], 0);
}

static void looking_for_room_counts_nothing(void **state)
{
    struct admission admission = of_requests(1);

    (void)state;
    enter(&admission, 1);
    assert_false(admission_has_room(&admission));
    assert_int_equal(admission.num_rejections[LIMIT_QUEUED_REQS], 0);
    (void)refused(&admission);
    assert_int_equal(admission.num_rejections[LIMIT_QUEUED_REQS], 1);
}

static void a_client_is_told_when_one_has_left(void **state)
{
    struct admission admission = of_requests(8);

    (void)state;
    enter(&admission, 8);
    run(&admission, 10, 3);
    assert_int_equal(refused(&admission), 3);
}

static void clients_are_not_told_to_come_for_one_place(void **state)
{
    struct admission admission = of_requests(8);

    (void)state;
    enter(&admission, 8);
    run(&admission, 20, 2);
    assert_int_equal(refused(&admission), 2);
    assert_int_equal(refused(&admission), 4);
    assert_int_equal(refused(&admission), 6);
    pass(2); /* the first may come now: the next one waits for the fourth place, still */
    admission_leave(&admission, LIMIT_QUEUED_REQS, 1);
    enter(&admission, 1);
    assert_int_equal(refused(&admission), 6);
}

static void nobody_waits_longer_than_all_that_is_inside_takes(void **state)
{
    struct admission admission = of_requests(4);
    int32_t longest = 0;

    (void)state;
    enter(&admission, 4);
    run(&admission, 20, 2);
    for (int i = 0; i < 1000; i++)
        longest = MAX(longest, refused(&admission));
    assert_int_equal(longest, 8);
}

static void a_fast_queue_says_a_second_and_a_stuck_one_minutes(void **state)
{
    struct admission admission = of_requests(8);

    (void)state;
    enter(&admission, 8);
    assert_int_equal(refused(&admission), 1); /* nothing is known */
    run(&admission, 1000, 0.01);
    assert_int_equal(refused(&admission), 1);
    pass(1000000);
    assert_int_equal(refused(&admission), 600);
}

static void time_without_requests_does_not_count(void **state)
{
    struct admission admission = of_requests(2);

    (void)state;
    enter(&admission, 2);
    run(&admission, 10, 1);
    admission_leave(&admission, LIMIT_QUEUED_REQS, 2);
    pass(3600);
    enter(&admission, 2);
    assert_int_equal(refused(&admission), 1);
}

static void tokens_are_measured_in_tokens(void **state)
{
    struct admission admission = {0};

    (void)state;
    admission.queues[LIMIT_QUEUED_TOKENS].most = 1000;
    admission_enter(&admission, 3000);
    admission_enter(&admission, 2000);
    assert_int_equal(admission_check(&admission, 1), ERR_FULL);
    pass(3);
    admission_leave(&admission, LIMIT_QUEUED_TOKENS, 3000); /* a thousand a second */
    assert_int_equal(admission_check(&admission, 1), ERR_FULL);
    assert_int_equal(admission.retry_after_s, 2); /* 1001 are to leave */
    admission_leave(&admission, LIMIT_QUEUED_TOKENS, 2000);
    expect_ok(admission_check(&admission, 1));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(without_limits_there_is_always_room, begin, end),
    cmocka_unit_test_setup_teardown(looking_for_room_counts_nothing, begin, end),
    cmocka_unit_test_setup_teardown(a_client_is_told_when_one_has_left, begin, end),
    cmocka_unit_test_setup_teardown(clients_are_not_told_to_come_for_one_place, begin, end),
    cmocka_unit_test_setup_teardown(nobody_waits_longer_than_all_that_is_inside_takes, begin, end),
    cmocka_unit_test_setup_teardown(a_fast_queue_says_a_second_and_a_stuck_one_minutes, begin, end),
    cmocka_unit_test_setup_teardown(time_without_requests_does_not_count, begin, end),
    cmocka_unit_test_setup_teardown(tokens_are_measured_in_tokens, begin, end),
};
TEST_MAIN(tests)
