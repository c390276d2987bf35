/*
 * limits: what this machine does at most, to hold kernels and models against.
 *
 * Each is the best of several runs, for whatever else the machine does only ever takes time away. The
 * threads are those of a team that is started for it.
 *
 * Thread: any; it computes on the caller's too.
 */
#ifndef KERNELS_BENCH_LIMITS_H
#define KERNELS_BENCH_LIMITS_H

#include "proto/base/status.h"

#include <stdint.h>

/* What times are taken of: the CPU time of one thread, the caller; of more the time on the wall. */
int64_t limit_clock_ns(int32_t num_threads);

/* 1e9 bytes a second that the threads read together, each its share of an array of 512 MiB (a quarter of
 * the free memory where that is less): more than caches hold. ERR_NO_MEMORY, ERR_IO: no threads. */
MUST_USE enum status limit_read_gb_s(int32_t num_threads, double *gb_s_out);

/* The same of the first GPU and its memory. module: see device_options; failures as device_open. */
MUST_USE enum status limit_gpu_read_gb_s(const char *module, double *gb_s_out);

/* Microseconds until all threads have begun and ended an operation in which there is nothing to do: what
 * a kernel that runs on several threads can't go below. 1 thread: 0. */
MUST_USE enum status limit_barrier_us(int32_t num_threads, double *us_out);

/* 1e9 operations a second (a multiplication and its addition are two) of all threads, on registers alone,
 * with the instructions that this ISA's kernels use: int8 dot products (vpdpbusd; vpmaddubsw and
 * vpaddw; pmaddwd and paddd of int16), float multiply-add, and that of bfloat16 (vdpbf16ps; as floats). 0: of
 * this ISA nothing is known. */
struct arithmetic_limits {
    double int8, floats, bfloat16;
};
MUST_USE enum status limit_arithmetic_gop_s(const char *isa, int32_t num_threads, struct arithmetic_limits *out);

/* The instruction set that kernels run with when this one is asked for (NULL: the best there is). */
const char *limit_isa(const char *wanted);

#endif
