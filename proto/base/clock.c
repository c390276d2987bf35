#include "proto/base/clock.h"

#include "proto/base/rounding.h"

#include <limits.h>
#include <stddef.h>
#include <time.h>

static _Thread_local const int64_t *simulated_ns; /* NULL: the machine's clock */

void clock_simulate(const int64_t *now_ns)
{
    simulated_ns = now_ns;
}

int64_t clock_now_ns(void)
{
    struct timespec now;

    if (__builtin_expect(simulated_ns != NULL, 0))
        return *simulated_ns;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t clock_deadline_ns(int64_t ms)
{
    return ms < 0 ? INT64_MAX : clock_now_ns() + ms * 1000000;
}

const struct timespec *clock_left(int64_t deadline_ns, struct timespec *room)
{
    int64_t left_ns;

    if (deadline_ns == INT64_MAX)
        return NULL;
    left_ns = deadline_ns - clock_now_ns();
    left_ns = left_ns > 0 ? left_ns : 0;
    *room = (struct timespec){.tv_sec = left_ns / 1000000000, .tv_nsec = left_ns % 1000000000};
    return room;
}

int clock_left_ms(int64_t deadline_ns)
{
    if (deadline_ns == INT64_MAX)
        return -1;

    int64_t left_ns = deadline_ns - clock_now_ns();

    if (left_ns <= 0)
        return 0;
    return left_ns / 1000000 >= INT_MAX ? INT_MAX : (int)divide_up_64(left_ns, 1000000);
}
