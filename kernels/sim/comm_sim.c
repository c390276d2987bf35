#include "kernels/comm.h"
#include "kernels/sim/sim.h"

#include "proto/base/memory.h"

struct comm_sim {
    struct comm comm;
    struct device *dev;
};

/* A real device's activations are 16 bits wide, whatever our arrays would be. */
enum { VALUE_BYTES = 2 };

static struct device *dev_of(struct comm *comm)
{
    return CONTAINER_OF(comm, struct comm_sim, comm)->dev;
}

static void sim_close(struct comm *comm)
{
    mem_free(CONTAINER_OF(comm, struct comm_sim, comm));
}

static void sim_abort(struct comm *comm)
{
    (void)comm; /* nobody waits */
}

static bool sim_is_aborted(const struct comm *comm)
{
    (void)comm;
    return false;
}

/* A ring sends each value twice: once to add it up, once to tell the sum. */
static enum status sim_all_reduce_f64(struct comm *comm, double *x, int64_t count)
{
    (void)x;
    sim_exchange(dev_of(comm), comm->world, 2, (double)count * VALUE_BYTES);
    return OK;
}

static double *sim_sum_buffer(struct comm *comm)
{
    (void)comm; /* kernels write nothing */
    return NULL;
}

/* As a device that sums by itself: one part is left to add. */
static enum status sim_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    static const double *const part = NULL;

    *out = (struct comm_parts){&part, 1};
    return sim_all_reduce_f64(comm, NULL, count);
}

static enum status sim_barrier(struct comm *comm)
{
    (void)comm; /* ranks are not coupled */
    return OK;
}

static enum status sim_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    (void)x;
    sim_exchange(dev_of(comm), comm->world, 2, (double)count * VALUE_BYTES);
    return OK;
}

/* Nobody knows what the others would have told: as much as this rank. */
static enum status sim_all_gather(struct comm *comm, const void *data, int64_t bytes,
                                  int64_t stride, void *out, int64_t *bytes_out)
{
    (void)data;
    (void)stride;
    (void)out;
    (void)bytes_out;
    sim_exchange(dev_of(comm), comm->world, 1, (double)bytes * comm->world);
    return OK;
}

static const struct comm_ops sim_comm_ops = {
    .close = sim_close,
    .abort = sim_abort,
    .is_aborted = sim_is_aborted,
    .all_reduce_f64 = sim_all_reduce_f64,
    .all_reduce_f32_disjoint = sim_all_reduce_f32_disjoint,
    .sum_buffer = sim_sum_buffer,
    .sum = sim_sum,
    .barrier = sim_barrier,
    .all_gather = sim_all_gather,
};

enum status comm_open_sim(struct device *dev, int32_t world, struct comm **out)
{
    struct comm_sim *sim = mem_new(struct comm_sim);

    sim->comm = (struct comm){.ops = &sim_comm_ops, .world = world, .sum_max = INT64_MAX};
    sim->dev = dev;
    *out = &sim->comm;
    return OK;
}
