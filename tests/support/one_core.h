/*
 * one_core: a thread's affinity mask cut down to one core, for tests of what follows it.
 */
#ifndef TESTS_SUPPORT_ONE_CORE_H
#define TESTS_SUPPORT_ONE_CORE_H

#include <sched.h>

/* Leaves this thread the first of its cores, and returns its number; the mask as it was goes to *before_out,
 * for sched_setaffinity. */
static inline int keep_one_core(cpu_set_t *before_out)
{
    cpu_set_t one;
    int first = 0;

    assert_int_equal(sched_getaffinity(0, sizeof *before_out, before_out), 0);
    while (!CPU_ISSET(first, before_out))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    return first;
}

#endif
