/* Sums of parts that lie in devices with memory of their own: through the hosts, by whatever comm these have. */
#include "kernels/comm.h"

#include "proto/base/memory.h"

struct staged {
    struct comm comm;
    struct device *dev;
    struct comm *host;
    double *part, *sum;       /* the device's: [sum_max], of this rank and of all */
    const double *parts[1];   /* sum */
    double *added;            /* the host's: [sum_max] */
};

static struct staged *staged_of(const struct comm *comm)
{
    return CONTAINER_OF(comm, struct staged, comm);
}

static void staged_close(struct comm *comm)
{
    struct staged *staged = staged_of(comm);
    int64_t bytes = comm->sum_max * (int64_t)sizeof(double);

    device_free(staged->dev, staged->part, bytes);
    device_free(staged->dev, staged->sum, bytes);
    mem_free(staged->added);
    mem_free(staged);
}

static void staged_abort(struct comm *comm)
{
    comm_abort(staged_of(comm)->host);
}

static bool staged_is_aborted(const struct comm *comm)
{
    return comm_is_aborted(staged_of(comm)->host);
}

static int32_t staged_waits_for(const struct comm *comm)
{
    return comm_waits_for(staged_of(comm)->host);
}

static enum status staged_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    struct staged *staged = staged_of(comm);
    float *host = (float *)staged->added;
    int64_t most = 2 * comm->sum_max;

    for (int64_t at = 0; at < count; at += most) {
        int64_t n = MIN(most, count - at), bytes = n * (int64_t)sizeof(float);

        TRY(device_read(staged->dev, host, x + at, bytes));
        TRY(comm_all_reduce_f32_disjoint(staged->host, host, n));
        TRY(device_write(staged->dev, x + at, host, bytes));
    }
    return OK;
}

static double *staged_sum_buffer(struct comm *comm)
{
    return staged_of(comm)->part;
}

/* Added up here, so that one array goes back and not one a rank. */
static enum status staged_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    struct staged *staged = staged_of(comm);
    int64_t bytes = count * (int64_t)sizeof(double);
    struct comm_parts parts;

    TRY(device_read(staged->dev, comm_sum_buffer(staged->host), staged->part, bytes));
    TRY(comm_sum(staged->host, count, &parts));
    comm_add_parts(&parts, count, staged->added);
    TRY(device_write(staged->dev, staged->sum, staged->added, bytes));
    staged->parts[0] = staged->sum;
    *out = (struct comm_parts){staged->parts, 1};
    return OK;
}

static enum status staged_barrier(struct comm *comm)
{
    return comm_barrier(staged_of(comm)->host);
}

static enum status staged_all_gather(struct comm *comm, const void *data, int64_t bytes, int64_t stride, void *out,
                                     int64_t *bytes_out)
{
    return comm_all_gather(staged_of(comm)->host, data, bytes, stride, out, bytes_out);
}

static const struct comm_ops staged_ops = {
    .close = staged_close,
    .abort = staged_abort,
    .is_aborted = staged_is_aborted,
    .waits_for = staged_waits_for,
    .all_reduce_f32_disjoint = staged_all_reduce_f32_disjoint,
    .sum_buffer = staged_sum_buffer,
    .sum = staged_sum,
    .barrier = staged_barrier,
    .all_gather = staged_all_gather,
};

static enum status alloc(struct staged *staged, double **out)
{
    void *p;

    TRY(device_alloc(staged->dev, staged->comm.sum_max * (int64_t)sizeof(double), "sums among ranks", &p));
    *out = p;
    return OK;
}

enum status comm_open_staged(struct device *dev, struct comm *host, struct comm **out)
{
    struct staged *staged = mem_new(struct staged);
    enum status status;

    staged->comm = (struct comm){.ops = &staged_ops, .world = host->world, .sum_max = comm_sum_max(host)};
    staged->dev = dev;
    staged->host = host;
    staged->added = mem_new_array(double, staged->comm.sum_max);
    status = alloc(staged, &staged->part);
    if (status == OK)
        status = alloc(staged, &staged->sum);
    if (status != OK) {
        staged_close(&staged->comm);
        return status;
    }
    *out = &staged->comm;
    return OK;
}
