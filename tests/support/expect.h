/*
 * expect: what every test program includes: cmocka, in the order that it needs.
 */
#ifndef TESTS_SUPPORT_EXPECT_H
#define TESTS_SUPPORT_EXPECT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* cmocka calls its own macro fail(); the name is ours (proto/base/status.h). */
#undef fail
#undef fail_msg
#define fail_msg(...)                                                                              \
    do {                                                                                           \
        print_error(__VA_ARGS__);                                                                  \
        print_error("\n");                                                                         \
        _fail(__FILE__, __LINE__);                                                                 \
    } while (0)

#include "proto/base/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A call that must succeed: on failure its sentence is shown. */
#define expect_ok(expression)                                                                      \
    do {                                                                                           \
        enum status expect_status_ = (expression);                                                 \
        if (expect_status_ != OK)                                                                  \
            fail_msg("%s: %s: %s", #expression, status_name(expect_status_), fail_text());         \
    } while (0)

/* A call that must be refused with this status, and a sentence that holds `part`. */
#define expect_fails(expression, status_wanted, part)                                              \
    do {                                                                                           \
        enum status expect_status_ = (expression);                                                 \
        assert_string_equal(status_name(expect_status_), status_name(status_wanted));              \
        if (!strstr(fail_text(), (part)))                                                          \
            fail_msg("\"%s\" lacks \"%s\"", fail_text(), (part));                                  \
    } while (0)

/* Declares the table of tests and main(). */
#define TEST_MAIN(tests) \
    int main(void)                                                                                 \
    {                                                                                              \
        return cmocka_run_group_tests(tests, NULL, NULL);                                          \
    }

/* The same for tests of real weights, in the folder that TANDEM_TEST_MODELS names; without it the
 * program is skipped whole, since meson takes the "not ok" of cmocka's skip() for a failure. */
#define TEST_MAIN_WITH_MODELS(tests)                                                               \
    int main(void)                                                                                 \
    {                                                                                              \
        if (!getenv("TANDEM_TEST_MODELS")) {                                                       \
            puts("1..0 # SKIP TANDEM_TEST_MODELS names no folder of weights");                     \
            return 0;                                                                              \
        }                                                                                          \
        return cmocka_run_group_tests(tests, NULL, NULL);                                          \
    }

/* Does the environment name a module that drives GPUs, or emulated ones? If not, says that the program is skipped
 * whole. */
static inline bool has_gpus(void)
{
    if (getenv("TANDEM_TEST_CUDA_MODULE"))
        return true;
    puts("1..0 # SKIP TANDEM_TEST_CUDA_MODULE names no module for GPUs");
    return false;
}

#endif
