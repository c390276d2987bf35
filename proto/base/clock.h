/*
 * clock: CLOCK_MONOTONIC in nanoseconds, the same in every process of this host.
 * Thread: any.
 */
#ifndef PROTO_BASE_CLOCK_H
#define PROTO_BASE_CLOCK_H

#include <stdint.h>

int64_t clock_now_ns(void);
/* For simulations: from now on this thread's clock_now_ns is *now_ns; NULL: the machine's again. */
void clock_simulate(const int64_t *now_ns);

static inline double clock_ms(int64_t ns)
{
    return (double)ns / 1e6;
}
/* A deadline `ms` from now; a negative `ms` means never. */
int64_t clock_deadline_ns(int64_t ms);
/* Whole milliseconds until `deadline_ns`, rounded up, 0 when past, -1 for never: poll()'s words. */
int clock_left_ms(int64_t deadline_ns);
/* The same to the nanosecond, for ppoll(): written to `room`; NULL for never. */
struct timespec;
const struct timespec *clock_left(int64_t deadline_ns, struct timespec *room);

#endif
