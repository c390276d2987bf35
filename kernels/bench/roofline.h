/*
 * roofline: how fast each kernel is on the shapes of real models, beside what this machine allows.
 *
 * A kernel moves bytes and does operations; the least time for both, by the limits of the same run
 * (limits.h), over the time it took is its share. Bytes are those of its arrays, once each: what caches
 * hold is moved faster, so a share of small arrays may exceed 1. Matrices, and the KV of requests that
 * decode, are copies taken in turn, 96 MiB in all, so that they come from memory as in a decode step.
 *
 * A time is the best of several runs, for other programs may share the machine; of one thread its CPU
 * time, of more the time on the wall.
 *
 * Thread: one, which is thread 0 of the devices.
 */
#ifndef KERNELS_BENCH_ROOFLINE_H
#define KERNELS_BENCH_ROOFLINE_H

#include "kernels/bench/limits.h"

struct roofline_limits { /* a limit that is not known is 0 */
    const char *isa;
    int32_t threads;
    double read_gb_s, barrier_us;
    struct arithmetic_limits gop_s;
};

struct roofline_figure {
    const char *kernel; /* its name in struct kernels */
    const char *shape;  /* the model, and what of it: "smollm2 down" */
    const char *type;   /* of the weights, or of the KV cache; NULL: there are none */
    const char *isa;
    int32_t threads;
    int32_t rows;
    int32_t n, k;             /* of the matrix; 0: there is none */
    int32_t requests, length; /* of attention: rows are each one's last of `length` tokens; else 0 */
    double us;
    double gb_s, gop_s; /* what it moved and did in that time; 0: no arithmetic worth counting */
    double share;       /* of the limit that binds; 0: that one is not known */
    const char *bound;  /* which: "memory", "int8", "float", "bfloat16" */
};

struct roofline_options {
    const char *isa;     /* NULL: the best there is */
    int32_t num_threads; /* the most: measured are one and these */
    const char *kernel;  /* this one alone; NULL: all */
    int32_t run_ms;      /* of each figure, at least */
    void (*on_limits)(void *user, const struct roofline_limits *limits);
    void (*on_figure)(void *user, const struct roofline_figure *figure);
    void *user;
};

/* Tells the limits of one thread and of all, then every figure. Failures: as device_open; ERR_NO_MEMORY;
 * ERR_NOT_FOUND: no kernel has that name. */
MUST_USE enum status roofline_measure(const struct roofline_options *options);

#endif
