/* Sums among ranks of one host whose GPUs reach each other's memory, or that share one: the module's exchanges. */
#include "kernels/cuda/host.h"

#include "kernels/comm.h"

#include "proto/base/memory.h"

#include <string.h>

struct comm_ipc {
    struct comm comm;
    struct comm *host;
    struct cuda_exchange *exchange;
};

static struct comm_ipc *ipc_of(const struct comm *comm)
{
    return CONTAINER_OF(comm, struct comm_ipc, comm);
}

static void ipc_close(struct comm *comm)
{
    cuda_module()->exchange_close(ipc_of(comm)->exchange);
    mem_free(ipc_of(comm));
}

/* The hosts' first: a rank that has found what GPUs made of sums that were ended finds these ended. */
static void ipc_abort(struct comm *comm)
{
    comm_abort(ipc_of(comm)->host);
    cuda_module()->exchange_abort(ipc_of(comm)->exchange);
}

static bool ipc_is_aborted(const struct comm *comm)
{
    return comm_is_aborted(ipc_of(comm)->host);
}

static int32_t ipc_waits_for(const struct comm *comm)
{
    int32_t rank = cuda_module()->exchange_waits_for(ipc_of(comm)->exchange);

    return rank >= 0 ? rank : comm_waits_for(ipc_of(comm)->host);
}

static enum status ipc_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    const char *error;

    TRY(comm_check(comm));
    error = cuda_module()->exchange_add_disjoint(ipc_of(comm)->exchange, x, count);
    return error ? fail(ERR_INTERNAL, "the GPU: %s", error) : OK;
}

static double *ipc_sum_buffer(struct comm *comm)
{
    return cuda_module()->exchange_buffer(ipc_of(comm)->exchange);
}

static enum status ipc_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    (void)count;
    TRY(comm_check(comm));
    *out = (struct comm_parts){cuda_module()->exchange_sum(ipc_of(comm)->exchange), comm->world};
    return OK;
}

static enum status ipc_gather_columns(struct comm *comm, const struct comm_columns *columns)
{
    const char *error;

    TRY(comm_check(comm));
    error = cuda_module()->exchange_gather(ipc_of(comm)->exchange, columns);
    return error ? fail(ERR_INTERNAL, "the GPU: %s", error) : OK;
}

static enum status ipc_align(struct comm *comm)
{
    TRY(comm_check(comm));
    cuda_module()->exchange_align(ipc_of(comm)->exchange);
    return OK;
}

static enum status ipc_barrier(struct comm *comm)
{
    return comm_barrier(ipc_of(comm)->host);
}

static enum status ipc_all_gather(struct comm *comm, const void *data, int64_t bytes, int64_t stride, void *out,
                                  int64_t *bytes_out)
{
    return comm_all_gather(ipc_of(comm)->host, data, bytes, stride, out, bytes_out);
}

static const struct comm_ops ipc_ops = {
    .close = ipc_close,
    .abort = ipc_abort,
    .is_aborted = ipc_is_aborted,
    .waits_for = ipc_waits_for,
    .all_reduce_f32_disjoint = ipc_all_reduce_f32_disjoint,
    .sum_buffer = ipc_sum_buffer,
    .sum = ipc_sum,
    .align = ipc_align,
    .gather_columns = ipc_gather_columns,
    .barrier = ipc_barrier,
    .all_gather = ipc_all_gather,
};

static enum status meet(struct comm_ipc *ipc, struct device *dev, int32_t rank)
{
    const struct cuda_module *module = cuda_module();
    int32_t world = ipc->comm.world;
    AUTO_MEM char *handles = mem_new_array(char, world * CUDA_HANDLE_BYTES);
    char handle[CUDA_HANDLE_BYTES] = {0};
    const char *error = module->exchange_open(cuda_state_of(dev), world, rank, ipc->comm.sum_max, handle,
                                              &ipc->exchange);

    TRY(comm_tell(ipc->host, error, handle, sizeof handle, handles));
    return comm_tell(ipc->host, module->exchange_connect(ipc->exchange, handles), NULL, 0, NULL);
}

enum status comm_ipc_open(struct device *dev, struct comm *host, const struct comm_device_options *options,
                          struct comm **out)
{
    struct comm_ipc *ipc;
    enum status status;

    if (!options->is_one_host)
        return fail(ERR_UNSUPPORTED, "they are on several hosts");
    ipc = mem_new(struct comm_ipc);
    ipc->comm = (struct comm){.ops = &ipc_ops, .world = host->world, .sum_max = comm_sum_max(host)};
    ipc->host = host;
    /* Where tokens come from what is put together no host's exchange follows, which would fail with a rank. Each
     * rank's share lies where its part of a sum does. */
    if (host->ops->ends_for_all)
        ipc->comm.columns_max = ipc->comm.sum_max * (int64_t)(sizeof(double) / sizeof(float));
    status = meet(ipc, dev, options->rank);
    if (status != OK) {
        ipc_close(&ipc->comm);
        return status;
    }
    *out = &ipc->comm;
    return OK;
}
