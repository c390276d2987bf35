/* Sums among ranks of one host whose GPUs reach each other's memory, or that share one: the module's exchanges. */
#include "kernels/cuda/host.h"

#include "kernels/comm.h"

#include "proto/base/log.h"
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

static void ipc_abort(struct comm *comm)
{
    cuda_module()->exchange_abort(ipc_of(comm)->exchange);
    comm_abort(ipc_of(comm)->host);
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

static enum status check_abort(const struct comm *comm)
{
    return ipc_is_aborted(comm) ? fail(ERR_ABORTED, "another rank is gone") : OK;
}

static enum status ipc_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    const char *error;

    TRY(check_abort(comm));
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
    TRY(check_abort(comm));
    *out = (struct comm_parts){cuda_module()->exchange_sum(ipc_of(comm)->exchange), comm->world};
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
    .barrier = ipc_barrier,
    .all_gather = ipc_all_gather,
};

/* What a rank tells the others: how far it has come. */
struct word {
    bool is_well;
    char handle[CUDA_HANDLE_BYTES];
};

/* Are all ranks well? Every rank calls this, whatever has become of it. words: [world] */
static enum status tell_all(struct comm_ipc *ipc, const struct word *own, struct word *words, bool *are_well_out)
{
    int32_t world = ipc->comm.world;
    AUTO_MEM int64_t *bytes = mem_new_array(int64_t, world);

    TRY(comm_all_gather(ipc->host, own, sizeof *own, sizeof *own, words, bytes));
    *are_well_out = true;
    for (int32_t rank = 0; rank < world; rank++)
        *are_well_out &= words[rank].is_well;
    return OK;
}

static enum status meet(struct comm_ipc *ipc, struct device *dev, int32_t rank)
{
    const struct cuda_module *module = cuda_module();
    int32_t world = ipc->comm.world;
    AUTO_MEM struct word *words = mem_new_array(struct word, world);
    AUTO_MEM char *handles = mem_new_array(char, world * CUDA_HANDLE_BYTES);
    struct word own = {0};
    const char *error = module->exchange_open(cuda_state_of(dev), world, rank, ipc->comm.sum_max, own.handle,
                                              &ipc->exchange);
    bool are_well;

    own.is_well = !error;
    TRY(tell_all(ipc, &own, words, &are_well));
    if (are_well) {
        for (int32_t i = 0; i < world; i++)
            memcpy(handles + i * CUDA_HANDLE_BYTES, words[i].handle, CUDA_HANDLE_BYTES);
        error = module->exchange_connect(ipc->exchange, handles);
        own.is_well = !error;
        TRY(tell_all(ipc, &own, words, &are_well));
    }
    if (are_well)
        return OK;
    log_warn("the ranks' GPUs don't reach each other's memory, so their sums go through the host: %s",
             error ? error : "another rank says so");
    return fail(ERR_UNSUPPORTED, "no CUDA IPC");
}

enum status comm_ipc_open(struct device *dev, struct comm *host, int32_t rank, struct comm **out)
{
    struct comm_ipc *ipc = mem_new(struct comm_ipc);
    enum status status;

    ipc->comm = (struct comm){.ops = &ipc_ops, .world = host->world, .sum_max = comm_sum_max(host)};
    ipc->host = host;
    status = meet(ipc, dev, rank);
    if (status != OK) {
        ipc_close(&ipc->comm);
        return status;
    }
    *out = &ipc->comm;
    return OK;
}
