#include "kernels/comm.h"
#include "kernels/device.h"

#include "proto/base/memory.h"

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

bool comm_is_aborted(const struct comm *comm)
{
    return comm && comm->ops->is_aborted(comm);
}

int32_t comm_waits_for(const struct comm *comm)
{
    if (comm && comm->ops->waits_for)
        return comm->ops->waits_for(comm);
    return comm ? atomic_load_explicit(&comm->awaited, memory_order_relaxed) - 1 : -1;
}

void comm_add_parts(const struct comm_parts *parts, int64_t count, double *out)
{
    memcpy(out, parts->parts[0], (size_t)count * sizeof *out);
    for (int32_t p = 1; p < parts->num_parts; p++)
        for (int64_t i = 0; i < count; i++)
            out[i] += parts->parts[p][i];
}

enum status comm_open_device(struct device *dev, struct comm *host, int32_t rank, bool is_one_host, struct comm **out)
{
    enum status status = ERR_UNSUPPORTED;

    if (is_one_host && dev->ops->open_comm)
        status = dev->ops->open_comm(dev, host, rank, out);
    return status == ERR_UNSUPPORTED ? comm_open_staged(dev, host, out) : status;
}

enum status comm_all_reduce_f64(struct comm *comm, double *x, int64_t count)
{
    struct comm_parts sum;

    if (is_alone(comm))
        return OK;
    if (comm->ops->all_reduce_f64)
        return comm->ops->all_reduce_f64(comm, x, count);
    for (int64_t piece; count > 0; count -= piece, x += piece) {
        piece = MIN(count, comm->sum_max);
        memcpy(comm_sum_buffer(comm), x, (size_t)piece * sizeof *x);
        TRY(comm_sum(comm, piece, &sum));
        comm_add_parts(&sum, piece, x);
    }
    return OK;
}

enum status comm_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    return is_alone(comm) ? OK : comm->ops->all_reduce_f32_disjoint(comm, x, count);
}

double *comm_sum_buffer(struct comm *comm)
{
    return comm->ops->sum_buffer(comm);
}

int64_t comm_sum_max(const struct comm *comm)
{
    return comm->sum_max;
}

enum status comm_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    ASSERT(count >= 0 && count <= comm->sum_max, "%lld doubles of %lld", (long long)count,
           (long long)comm->sum_max);
    return comm->ops->sum(comm, count, out);
}

void *comm_shared(const struct comm *comm)
{
    return comm->shared;
}

enum status comm_barrier(struct comm *comm)
{
    return comm->ops->barrier(comm);
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
