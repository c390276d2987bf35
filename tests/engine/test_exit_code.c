#include "tests/support/expect.h"

#include "engine/cmd/exit_code.h"

static void only_what_went_well_is_zero(void **state)
{
    (void)state;
    assert_int_equal(exit_code_of(OK), 0);
    for (enum status status = OK + 1; status < NUM_STATUS; status++)
        assert_true(exit_code_of(status) > 0 && exit_code_of(status) < EXIT_SIGNAL);
    assert_int_equal(exit_code_of(ERR_INVALID), 2);
    assert_int_equal(exit_code_of(ERR_CLOSED), 69);
    assert_int_equal(exit_code_of(ERR_TIMEOUT), 124);
}

static void a_child_s_end_is_passed_on(void **state)
{
    (void)state;
    assert_int_equal(exit_code_of_child(3 << 8), 3); /* exit(3) */
    assert_int_equal(exit_code_of_child(9), 137);    /* SIGKILL */
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(only_what_went_well_is_zero),
    cmocka_unit_test(a_child_s_end_is_passed_on),
};
TEST_MAIN(tests)
