#include "kernels/comm.h"

#include <string.h>

static bool is_alone(const struct comm *comm)
{
    return !comm || comm->world == 1;
}

void comm_close(struct comm *comm)
{
    if (comm)
        comm->ops->close(comm);
}

void comm_abort(struct comm *comm)
{
    if (comm)
        comm->ops->abort(comm);
}

enum status comm_all_reduce_f64(struct comm *comm, double *x, int64_t count)
{
    return is_alone(comm) ? OK : comm->ops->all_reduce_f64(comm, x, count);
}

enum status comm_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    return is_alone(comm) ? OK : comm->ops->all_reduce_f32_disjoint(comm, x, count);
}

enum status comm_gather_f32(struct comm *comm, const float *x, int32_t rows, const int32_t *counts,
                            float *out)
{
    if (!is_alone(comm))
        return comm->ops->gather_f32(comm, x, rows, counts, out);
    memcpy(out, x, sizeof *x * (size_t)rows * (size_t)counts[0]);
    return OK;
}
