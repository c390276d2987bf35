/*
 * comm: what the comms of every kind begin with; for the files of this room.
 *
 * Thread: see kernels.h.
 */
#ifndef KERNELS_COMM_H
#define KERNELS_COMM_H

#include "kernels/kernels.h"

#include <stdatomic.h>

/* Called where there are at least two ranks. */
struct comm_ops {
    bool ends_for_all; /* an abort is known to every rank when the call returns */
    void (*close)(struct comm *comm);
    void (*abort)(struct comm *comm);
    bool (*is_aborted)(const struct comm *comm);
    enum status (*check)(const struct comm *comm); /* NULL: all that ends it is an abort */
    int32_t (*waits_for)(const struct comm *comm); /* NULL: it is `awaited` */
    enum status (*all_reduce_f64)(struct comm *comm, double *x, int64_t count); /* NULL: it is made of sums */
    enum status (*all_reduce_f32_disjoint)(struct comm *comm, float *x, int64_t count);
    double *(*sum_buffer)(struct comm *comm);
    enum status (*sum)(struct comm *comm, int64_t count, struct comm_parts *out);
    enum status (*align)(struct comm *comm); /* NULL: its sums can't be recorded */
    void (*replayed)(struct comm *comm);     /* NULL: nothing to do when a recording was launched */
    enum status (*gather_columns)(struct comm *comm, const struct comm_columns *columns);
    enum status (*barrier)(struct comm *comm);
    enum status (*all_gather)(struct comm *comm, const void *data, int64_t bytes, int64_t stride,
                              void *out, int64_t *bytes_out);
};

struct comm {
    const struct comm_ops *ops;
    int32_t world;
    int64_t sum_max; /* doubles */
    int64_t columns_max; /* floats that a rank's share of columns may have; 0: these are not put together */
    void *shared;    /* NULL: none */
    _Atomic int32_t awaited; /* 1 + the rank that this one waits for; 0: none */
};

/* Adds the parts of a sum in their order. out: [count] */
void comm_add_parts(const struct comm_parts *parts, int64_t count, double *out);

/* Of numbers that one rank has: x's bits where the part's are all zero, which are +0, and the other way round. */
void comm_add_disjoint(float *x, const float *part, int64_t count);

/*
 * A stage of meeting, that every rank calls whatever has become of it. error: why this one can't go on, NULL: it
 * can. Then all[rank * bytes] is what each told. ERR_UNSUPPORTED, for all alike: some rank can't, and why.
 */
MUST_USE enum status comm_tell(struct comm *host, const char *error, const void *data, int64_t bytes, void *all);

/* Through the hosts: see comm_open_device. */
MUST_USE enum status comm_open_staged(struct device *dev, struct comm *host, struct comm **out);

#endif
