/*
 * futex: waiting for a 32-bit word to change: a bounded spin, then the kernel.
 *
 * Thread: any.
 */
#ifndef KERNELS_CPU_FUTEX_H
#define KERNELS_CPU_FUTEX_H

#include "proto/base/clock.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* How long to spin: longer than what threads of a running step wait for each other, sampling and what lies between
 * two steps included, since waking one costs 0.1 ms; shorter than anybody would notice. */
enum { SPIN_NS = 200 * 1000 };

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

struct spin {
    int64_t end_ns;
    uint32_t pauses;
};

/* Pauses, and says whether to go on. A zeroed spin begins. How long a pause takes differs tenfold among CPUs. */
static inline bool spin(struct spin *spin)
{
    enum { PAUSES_A_LOOK = 64 };

    cpu_relax();
    if (++spin->pauses % PAUSES_A_LOOK != 0)
        return true;
    if (spin->end_ns == 0)
        spin->end_ns = clock_now_ns() + SPIN_NS;
    return clock_now_ns() < spin->end_ns;
}

/* Sleeps while *word == value; may return early. `timeout` NULL: for ever. */
static inline void futex_wait(_Atomic uint32_t *word, uint32_t value, bool shared,
                              const struct timespec *timeout)
{
    syscall(SYS_futex, word, FUTEX_WAIT | (shared ? 0 : FUTEX_PRIVATE_FLAG), value, timeout, NULL, 0);
}

static inline void futex_wake_all(_Atomic uint32_t *word, bool shared)
{
    syscall(SYS_futex, word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), INT32_MAX, NULL, NULL, 0);
}

#endif
