/*
 * signals: threads of a device take none, those are the business of the process's main thread. A fault of their own
 * they must take, for blocked it kills the process before anybody can say what it was.
 *
 * Thread: any.
 */
#ifndef KERNELS_CPU_SIGNALS_H
#define KERNELS_CPU_SIGNALS_H

#include <signal.h>
#include <stddef.h>

/* What the threads have that are started from here on, until *before is set again. */
static inline void signals_block(sigset_t *before)
{
    static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL};
    sigset_t all;

    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

#endif
