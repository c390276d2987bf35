/*
 * wide: WIDE functions are compiled for wide vectors too; the program takes what the machine has
 * when it starts. Their bits are the same everywhere: whole numbers, and additions and
 * multiplications that are not fused (the build sees to that).
 *
 * Not under sanitizers, which do not like the choice, since it comes before they do.
 *
 * Thread: any (no state).
 */
#ifndef WORKER_WIDE_H
#define WORKER_WIDE_H

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&      \
    !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

#endif
