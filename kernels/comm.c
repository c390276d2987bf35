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

enum status comm_all_gather(struct comm *comm, const void *data, int64_t bytes, int64_t stride,
                            void *out, int64_t *bytes_out)
{
    ASSERT(bytes >= 0 && bytes <= stride, "%lld bytes of %lld", (long long)bytes,
           (long long)stride);
    if (!is_alone(comm))
        return comm->ops->all_gather(comm, data, bytes, stride, out, bytes_out);
    if (bytes > 0)
        memcpy(out, data, (size_t)bytes);
    bytes_out[0] = bytes;
    return OK;
}
