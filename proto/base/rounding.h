/*
 * rounding: quotients and sizes, rounded up.
 *
 * n is 0 or more; by and multiple are 1 or more. C++ reads it too.
 *
 * Thread: any.
 */
#ifndef PROTO_BASE_ROUNDING_H
#define PROTO_BASE_ROUNDING_H

#include <stdint.h>

/* The least number of parts of `by` that hold n. Nothing overflows. */
static inline int32_t divide_up(int32_t n, int32_t by)
{
    return n / by + (n % by > 0);
}

static inline int64_t divide_up_64(int64_t n, int64_t by)
{
    return n / by + (n % by > 0);
}

/* The least multiple that is not below n, which must fit. */
static inline int64_t round_up(int64_t n, int64_t multiple)
{
    return divide_up_64(n, multiple) * multiple;
}

#endif
