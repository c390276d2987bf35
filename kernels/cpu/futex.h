/*
 * futex: waiting for a 32-bit word to change: a bounded spin, then the kernel.
 *
 * Thread: any.
 */
#ifndef KERNELS_CPU_FUTEX_H
#define KERNELS_CPU_FUTEX_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* About 50 microseconds of spinning: longer than a kernel of a running step, shorter than anybody
 * would notice. */
enum { FUTEX_SPINS = 1000 };

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
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
