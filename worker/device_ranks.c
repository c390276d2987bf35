#include "worker/state.h"

#include "proto/base/clock.h"
#include "worker/comm_hosts.h"
#include "worker/comm_mpi.h"
#include "worker/comm_net.h"

/* One rank's share of an exchange at most; longer sums go in pieces. */
enum { MIN_COMM_BYTES = 1 << 20 };
/* The engine tells all ranks at once. NCCL looks for networks, and for the ways between all GPUs. */
enum { MEET_TIMEOUT_MS = 2000, NCCL_TIMEOUT_MS = 60000 };

struct model_comm_bytes worker_comm_bytes(const struct worker *worker)
{
    return model_comm_bytes(model_file_config(worker->file), worker->options.max_batched_tokens);
}

int64_t worker_comm_buffer_bytes(const struct worker *worker)
{
    return MAX(worker_comm_bytes(worker).buffer, (int64_t)MIN_COMM_BYTES);
}

/* This rank's place among `count` of its own: those of its host, or the first ranks of all hosts. */
struct place {
    int32_t place, count;
};

static struct place find_local(const struct worker_options *options, const int32_t *hosts)
{
    struct place found = {0};

    for (int32_t rank = 0; rank < options->world; rank++) {
        found.place += rank < options->rank && hosts[rank] == hosts[options->rank];
        found.count += hosts[rank] == hosts[options->rank];
    }
    return found;
}

/* endpoints: [world], of the first ranks alone. */
static struct place find_host(const struct worker_options *options,
                              const struct worker_meeting *meeting, const char **endpoints)
{
    struct place found = {0};

    for (int32_t rank = 0; rank < options->world; rank++) {
        if (meeting->hosts[rank] != rank)
            continue;
        found.place += rank < options->rank;
        endpoints[found.count++] = meeting->endpoints ? meeting->endpoints[rank] : NULL;
    }
    return found;
}

/* Among the hosts, of which this rank is the first of one; takes the net. */
static enum status join_hosts(const struct worker *worker, const struct worker_meeting *meeting,
                              struct comm_net *net, struct place host, const char *const *endpoints,
                              struct comm **out)
{
    AUTO_FREE(comm_net) struct comm_net *taken = net;

    if (!net)
        return fail(ERR_MISMATCH, "rank %d is the first of one of %d hosts, and does not listen",
                    worker->options.rank, host.count);
    TRY(comm_net_join(net,
                      &(struct comm_net_group){.rank = host.place,
                                               .world = host.count,
                                               .session = meeting->session,
                                               .epoch = meeting->epoch,
                                               .endpoints = endpoints,
                                               .buffer_bytes = worker_comm_buffer_bytes(worker)},
                      clock_deadline_ns(MEET_TIMEOUT_MS), out));
    taken = NULL; /* the comm's now */
    return OK;
}

static enum status open_comms(const struct worker *worker, const struct worker_meeting *meeting,
                              struct comm **local, struct comm **net)
{
    const struct worker_options *options = &worker->options;
    AUTO_FREE(comm_net) struct comm_net *listener = meeting->net;
    AUTO_MEM const char **endpoints = mem_new_array(const char *, (size_t)options->world);
    struct place place = find_local(options, meeting->hosts),
                 host = find_host(options, meeting, endpoints);

    if (place.count > 1)
        TRY(comm_open(meeting->path, place.place, place.count, local));
    if (place.place == 0 && host.count > 1)
        TRY(join_hosts(worker, meeting, give(listener), host, endpoints, net));
    return OK;
}

static enum status open_comm(struct worker *worker, const struct worker_meeting *meeting)
{
    const struct worker_options *options = &worker->options;
    struct comm *local = NULL, *net = NULL;
    enum status status;
    int32_t num_local;

    if (options->sim) {
        comm_net_free(meeting->net);
        return comm_open_sim(worker->device, options->world, &worker->comm);
    }
    if (meeting->over_mpi)
        return comm_mpi_open(worker_comm_buffer_bytes(worker), clock_deadline_ns(MEET_TIMEOUT_MS), &worker->comm);
    num_local = find_local(options, meeting->hosts).count;
    status = open_comms(worker, meeting, &local, &net);
    if (status == OK && num_local > 1 && num_local < options->world)
        status = comm_hosts_new(&(struct comm_hosts_group){.rank = options->rank,
                                                           .world = options->world,
                                                           .hosts = meeting->hosts,
                                                           .buffer_bytes = worker_comm_buffer_bytes(worker)},
                                local, net, &worker->comm);
    else if (status == OK)
        worker->comm = local ? local : net;
    if (status != OK) {
        comm_close(net);
        comm_close(local);
    }
    return status;
}

static bool is_on_one_host(const struct worker *worker, const struct worker_meeting *meeting)
{
    return !meeting->over_mpi && find_local(&worker->options, meeting->hosts).count == worker->options.world;
}

static enum status open_device_comm(struct worker *worker, const struct worker_meeting *meeting)
{
    const struct worker_options *options = &worker->options;

    atomic_store(&worker->meeting_comm, worker->comm);
    if (atomic_load(&worker->gives_up_meeting))
        return fail(ERR_ABORTED, "the ranks meet anew");
    return comm_open_device(worker->device, worker->comm,
                            &(struct comm_device_options){.rank = options->rank,
                                                          .is_one_host = is_on_one_host(worker, meeting),
                                                          .by = options->device_comm,
                                                          .nccl = options->nccl,
                                                          .timeout_ms = NCCL_TIMEOUT_MS},
                            &worker->device_comm);
}

struct comm *worker_layers_comm(const struct worker *worker)
{
    return worker->device_comm ? worker->device_comm : worker->comm;
}

void worker_connect_model(struct worker *worker)
{
    model_connect(worker->model, worker_layers_comm(worker));
}

enum status worker_connect_ranks(struct worker *worker, const struct command *command)
{
    if (worker->options.world > 1)
        TRY(open_comm(worker, &command->meeting));
    if (worker->comm && device_has_own_memory(worker->device))
        TRY(open_device_comm(worker, &command->meeting));
    worker_connect_model(worker);
    worker_make_sampler(worker);
    return OK;
}

void worker_disconnect_ranks(struct worker *worker)
{
    worker_drop_sampler(worker);
    if (worker->model)
        model_connect(worker->model, NULL);
    atomic_store(&worker->meeting_comm, NULL);
    comm_close(give(worker->device_comm));
    comm_close(give(worker->comm));
}
