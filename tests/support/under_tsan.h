/*
 * fewest_threads: of how many threads a run is to be where a test has runs of several numbers.
 */
#ifndef TESTS_SUPPORT_FEWEST_THREADS_H
#define TESTS_SUPPORT_FEWEST_THREADS_H

/* A race takes two threads: TSan would find none where there is one. */
#if defined(__SANITIZE_THREAD__)
enum { FEWEST_THREADS = 2 };
#else
enum { FEWEST_THREADS = 1 };
#endif

#endif
