#include "tests/support/expect.h"

#include "proto/config/injected_fault.h"

static void a_fault_strikes_once_at_its_place(void **state)
{
    struct injected_fault fault;

    (void)state;
    expect_ok(injected_fault_parse("step=12,rank=1,verb=sample,kind=error", &fault));
    expect_ok(injected_fault_strike(&fault, 0, 12, FAULT_IN_SAMPLE));
    expect_ok(injected_fault_strike(&fault, 1, 11, FAULT_IN_SAMPLE));
    expect_ok(injected_fault_strike(&fault, 1, 12, FAULT_IN_EXECUTE_MODEL));
    expect_fails(injected_fault_strike(&fault, 1, 12, FAULT_IN_SAMPLE), ERR_INTERNAL,
                 "sample of step 12 fails by order of --inject-fault");
    expect_ok(injected_fault_parse("kind=error,step=0", &fault));
    expect_fails(injected_fault_strike(&fault, 0, 0, FAULT_IN_EXECUTE_MODEL), ERR_INTERNAL,
                 "execute_model of step 0");
    expect_ok(injected_fault_parse(NULL, &fault));
    expect_ok(injected_fault_strike(&fault, 0, -1, FAULT_IN_EXECUTE_MODEL));
}

static void an_order_that_does_not_fit_is_refused(void **state)
{
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"", "needs a step and a kind"},
        {"step=1", "needs a step and a kind"},
        {"kind=error", "needs a step and a kind"},
        {"step", "'step' is not of the form key=value"},
        {"step=-1,kind=error", "step is '-1'; it must be 0 to"},
        {"step=1x,kind=error", "step is '1x'"},
        {"step=99999999999999999999,kind=error", "step is '99999999999999999999'"},
        {"step=1,rank=70000,kind=error", "rank is '70000'; it must be 0 to 65535"},
        {"step=1,kind=fire", "kind is 'fire'; it must be error, exit or hang"},
        {"step=1,kind=error,verb=schedule", "verb is 'schedule'; it must be prepare_inputs"},
        {"step=1,kind=error,when=now", "'when' is unknown; use step, rank, verb and kind"},
    };
    struct injected_fault fault;

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        expect_fails(injected_fault_parse(rows[i].text, &fault), ERR_INVALID, rows[i].sentence);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_fault_strikes_once_at_its_place),
    cmocka_unit_test(an_order_that_does_not_fit_is_refused),
};
TEST_MAIN(tests)
