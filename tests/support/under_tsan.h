/*
 * under_tsan: what a test with runs of several numbers of threads and instruction sets leaves out where races alone
 * are looked for.
 */
#ifndef TESTS_SUPPORT_UNDER_TSAN_H
#define TESTS_SUPPORT_UNDER_TSAN_H

/* A race takes two threads: TSan would find none where there is one. And who writes what when is the same in every
 * instruction set. */
#if defined(__SANITIZE_THREAD__)
enum { FEWEST_THREADS = 2, MOST_ISAS = 1 };
#else
enum { FEWEST_THREADS = 1, MOST_ISAS = 100 };
#endif

#endif
