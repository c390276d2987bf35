/*
 * Every call is: put together within the host, between the leaders, and told within the host, through memory
 * that its ranks share. What lies there is read before a rank's next exchange, which the leader's next
 * writing waits for: so one place is enough.
 *
 * A leader that fails aborts its host's comm, or the others would wait for it.
 */
#include "worker/comm_hosts.h"

#include "kernels/comm.h"
#include "proto/base/memory.h"
#include "worker/comm_net.h"

#include <string.h>

/* Of a gather, what one rank puts into one round: the number of all its bytes, and some of them. */
enum { PIECE_BYTES = 1 << 16, SLOT = sizeof(int64_t) + PIECE_BYTES };

struct comm_hosts {
    struct comm comm;
    struct comm *local, *net;
    int32_t host; /* this rank's, in starts */
    int32_t num_hosts, num_local, most_local; /* ranks: of this host, of the host with most */
    int32_t *ranks;  /* [world]: those of a host side by side, hosts by their first rank */
    int32_t *starts; /* [num_hosts + 1]: of hosts, in ranks */
    char *shared;    /* of the host; where there is one rank, its own */
    char *own;       /* [SLOT] */
    char *gathered;  /* [num_local, SLOT]: of this host */
    char *packed;    /* the same, without gaps */
    char *all;       /* [num_hosts, most_local * SLOT]: a leader's, every host's packed */
    int64_t *bytes;  /* [MAX(num_hosts, num_local)]: of what was gathered last */
    const double *part;
};

static const struct comm_ops hosts_ops;

static struct comm_hosts *of(struct comm *comm)
{
    return CONTAINER_OF(comm, struct comm_hosts, comm);
}

int64_t comm_hosts_shared_bytes(int32_t world, int64_t buffer_bytes)
{
    return MAX(buffer_bytes, (int64_t)world * SLOT);
}

/* ---- open and close -------------------------------------------------------------------------- */

static void hosts_close(struct comm *comm)
{
    struct comm_hosts *hosts = of(comm);

    if (!hosts->local)
        mem_free(hosts->shared);
    comm_close(hosts->net);
    comm_close(hosts->local);
    mem_free(hosts->ranks);
    mem_free(hosts->starts);
    mem_free(hosts->own);
    mem_free(hosts->gathered);
    mem_free(hosts->packed);
    mem_free(hosts->all);
    mem_free(hosts->bytes);
    mem_free(hosts);
}

static void hosts_abort(struct comm *comm)
{
    comm_abort(of(comm)->local);
    comm_abort(of(comm)->net);
}

static bool hosts_is_aborted(const struct comm *comm)
{
    const struct comm_hosts *hosts = of((struct comm *)comm);

    return comm_is_aborted(hosts->local) || comm_is_aborted(hosts->net);
}

static int32_t hosts_waits_for(const struct comm *comm)
{
    const struct comm_hosts *hosts = of((struct comm *)comm);
    int32_t host = comm_waits_for(hosts->net), place = comm_waits_for(hosts->local);

    if (host >= 0)
        return hosts->ranks[hosts->starts[host]];
    return place >= 0 ? hosts->ranks[hosts->starts[hosts->host] + place] : -1;
}

/* Sorts the ranks by hosts; returns the number of this rank's host. */
static int32_t sort_ranks(struct comm_hosts *hosts, const struct comm_hosts_group *group)
{
    int32_t num_sorted = 0, own = -1;

    hosts->ranks = mem_new_array(int32_t, group->world);
    hosts->starts = mem_new_array(int32_t, group->world + 1);
    for (int32_t first = 0; first < group->world; first++) {
        int32_t host = group->hosts[first], before = 0;

        while (group->hosts[before] != host)
            before++;
        if (before < first)
            continue; /* of a host that has been sorted */
        if (host == group->hosts[group->rank])
            own = hosts->num_hosts;
        for (int32_t r = first; r < group->world; r++)
            if (group->hosts[r] == host)
                hosts->ranks[num_sorted++] = r;
        hosts->starts[++hosts->num_hosts] = num_sorted;
        hosts->most_local = MAX(hosts->most_local, num_sorted - hosts->starts[hosts->num_hosts - 1]);
    }
    hosts->num_local = hosts->starts[own + 1] - hosts->starts[own];
    return own;
}

static enum status check_comms(const struct comm_hosts *hosts, const struct comm_hosts_group *group,
                               int32_t host, const struct comm *local, const struct comm *net)
{
    bool leads = hosts->ranks[hosts->starts[host]] == group->rank;
    int32_t num_local = local ? local->world : 1, num_hosts = net ? net->world : 1;

    if (num_local != hosts->num_local)
        return fail(ERR_INVALID, "host %d has %d ranks, its comm is for %d", group->hosts[group->rank],
                    hosts->num_local, num_local);
    if (num_hosts != (leads ? hosts->num_hosts : 1))
        return fail(ERR_INVALID, "rank %d %s one of %d hosts, its comm between hosts is for %d",
                    group->rank, leads ? "leads" : "does not lead", hosts->num_hosts, num_hosts);
    if (local && !local->shared)
        return fail(ERR_INVALID, "the ranks of host %d share no memory", group->hosts[group->rank]);
    return OK;
}

enum status comm_hosts_new(const struct comm_hosts_group *group, struct comm *local,
                           struct comm *net, struct comm **out)
{
    struct comm_hosts *hosts = mem_new(struct comm_hosts);
    int32_t host = sort_ranks(hosts, group);
    enum status status = check_comms(hosts, group, host, local, net);
    int64_t most = group->buffer_bytes / (int64_t)sizeof(double);

    if (status != OK) {
        hosts_close(&hosts->comm);
        return status;
    }
    hosts->comm = (struct comm){.ops = &hosts_ops, .world = group->world};
    hosts->comm.sum_max = MIN(most, local ? local->sum_max : most);
    hosts->comm.sum_max = MIN(hosts->comm.sum_max, net ? net->sum_max : most);
    hosts->host = host;
    hosts->local = local;
    hosts->net = net;
    hosts->shared = local ? local->shared
                          : mem_alloc((size_t)comm_hosts_shared_bytes(group->world, group->buffer_bytes));
    hosts->own = mem_alloc(SLOT);
    hosts->gathered = mem_array((size_t)hosts->num_local, SLOT);
    hosts->bytes = mem_new_array(int64_t, MAX(hosts->num_local, hosts->num_hosts));
    if (net) {
        hosts->packed = mem_array((size_t)hosts->num_local, SLOT);
        hosts->all = mem_array((size_t)hosts->num_hosts * (size_t)hosts->most_local, SLOT);
    }
    if (net && local)
        comm_net_heed(net, local);
    *out = &hosts->comm;
    return OK;
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* A leader has failed, and with it its host. */
static enum status lead(struct comm_hosts *hosts, enum status status)
{
    if (status != OK)
        comm_abort(hosts->local);
    return status;
}

/* A host has failed; a leader passes on that all are to stop. */
static enum status within(struct comm_hosts *hosts, enum status status)
{
    return status == ERR_ABORTED && hosts->net ? comm_barrier(hosts->net) : status;
}

/* What a leader has put into the host's memory is there for all of it to read. */
static enum status tell(struct comm_hosts *hosts)
{
    return hosts->local ? within(hosts, comm_barrier(hosts->local)) : OK;
}

static double *hosts_sum_buffer(struct comm *comm)
{
    struct comm_hosts *hosts = of(comm);

    return comm_sum_buffer(hosts->local ? hosts->local : hosts->net);
}

static enum status hosts_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    struct comm_hosts *hosts = of(comm);
    struct comm_parts parts;

    if (!hosts->local)
        return comm_sum(hosts->net, count, out);
    TRY(within(hosts, comm_sum(hosts->local, count, &parts)));
    if (hosts->num_hosts == 1) {
        *out = parts;
        return OK;
    }
    if (hosts->net) {
        comm_add_parts(&parts, count, comm_sum_buffer(hosts->net));
        TRY(lead(hosts, comm_sum(hosts->net, count, &parts)));
        comm_add_parts(&parts, count, (double *)hosts->shared);
    }
    TRY(tell(hosts));
    hosts->part = (const double *)hosts->shared;
    *out = (struct comm_parts){&hosts->part, 1};
    return OK;
}

static enum status hosts_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    struct comm_hosts *hosts = of(comm);

    for (int64_t piece; count > 0; count -= piece, x += piece) {
        size_t bytes;

        piece = MIN(count, comm->sum_max);
        bytes = (size_t)piece * sizeof *x;
        TRY(within(hosts, comm_all_reduce_f32_disjoint(hosts->local, x, piece)));
        if (hosts->net) {
            TRY(lead(hosts, comm_all_reduce_f32_disjoint(hosts->net, x, piece)));
            memcpy(hosts->shared, x, bytes);
        }
        TRY(tell(hosts));
        if (hosts->num_hosts > 1)
            memcpy(x, hosts->shared, bytes);
    }
    return OK;
}

static enum status hosts_barrier(struct comm *comm)
{
    struct comm_hosts *hosts = of(comm);

    TRY(tell(hosts));
    if (hosts->net)
        TRY(lead(hosts, comm_barrier(hosts->net)));
    return tell(hosts);
}

/* ---- gather ---------------------------------------------------------------------------------- */

static int64_t piece_bytes(int64_t total, int64_t at)
{
    return MAX(MIN(total - at, (int64_t)PIECE_BYTES), (int64_t)0);
}

/* A rank's total and piece, from `from` to its slot; how many bytes that were, of at most `bytes`. */
static enum status take_slot(int32_t rank, int64_t at, int64_t stride, const char *from, int64_t bytes,
                             char *slot, int64_t *bytes_out)
{
    int64_t total = -1;

    if (bytes >= (int64_t)sizeof total)
        memcpy(&total, from, sizeof total);
    if (total < 0 || total > stride)
        return fail(ERR_MISMATCH, "rank %d tells %lld bytes, at most %lld were agreed on", rank,
                    (long long)total, (long long)stride);
    *bytes_out = (int64_t)sizeof total + piece_bytes(total, at);
    if (*bytes_out > bytes)
        return fail(ERR_MISMATCH, "rank %d's piece from %lld on has %lld bytes, %lld came", rank,
                    (long long)at, (long long)*bytes_out, (long long)bytes);
    memcpy(slot, from, (size_t)*bytes_out);
    return OK;
}

/* Every host's pieces, to slots that all ranks of this one see. */
static enum status share_all(struct comm_hosts *hosts, int64_t at, int64_t stride)
{
    int64_t size = 0, host_stride = (int64_t)hosts->most_local * SLOT;

    for (int32_t l = 0; l < hosts->num_local; l++) {
        memcpy(hosts->packed + size, hosts->gathered + (int64_t)l * SLOT, (size_t)hosts->bytes[l]);
        size += hosts->bytes[l];
    }
    TRY(comm_all_gather(hosts->net, hosts->packed, size, host_stride, hosts->all, hosts->bytes));
    for (int32_t h = 0; h < hosts->num_hosts; h++) {
        const char *from = hosts->all + h * host_stride;
        int64_t left = hosts->bytes[h], n;

        for (int32_t i = hosts->starts[h]; i < hosts->starts[h + 1]; i++, from += n, left -= n)
            TRY(take_slot(hosts->ranks[i], at, stride, from, left,
                          hosts->shared + (int64_t)hosts->ranks[i] * SLOT, &n));
        if (left != 0)
            return fail(ERR_MISMATCH, "host %d of %d tells %lld bytes too many", h,
                        hosts->num_hosts, (long long)left);
    }
    return OK;
}

/* A round: own is this rank's piece of `bytes` bytes; then shared holds everybody's. */
static enum status gather_round(struct comm_hosts *hosts, int64_t at, int64_t bytes, int64_t stride)
{
    TRY(within(hosts, comm_all_gather(hosts->local, hosts->own, bytes, SLOT, hosts->gathered,
                                      hosts->bytes)));
    if (hosts->net)
        TRY(lead(hosts, share_all(hosts, at, stride)));
    return tell(hosts);
}

static enum status hosts_all_gather(struct comm *comm, const void *data, int64_t bytes,
                                    int64_t stride, void *out, int64_t *bytes_out)
{
    struct comm_hosts *hosts = of(comm);
    int64_t most = bytes; /* that any rank has, once all have told */

    if (hosts->num_hosts == 1)
        return comm_all_gather(hosts->local, data, bytes, stride, out, bytes_out);
    for (int64_t at = 0; at == 0 || at < most; at += PIECE_BYTES) {
        int64_t n = piece_bytes(bytes, at);

        memcpy(hosts->own, &bytes, sizeof bytes);
        if (n > 0)
            memcpy(hosts->own + sizeof bytes, (const char *)data + at, (size_t)n);
        TRY(gather_round(hosts, at, (int64_t)sizeof bytes + n, stride));
        for (int32_t r = 0; r < comm->world; r++) {
            const char *slot = hosts->shared + (int64_t)r * SLOT;

            memcpy(&bytes_out[r], slot, sizeof *bytes_out);
            most = MAX(most, bytes_out[r]);
            n = piece_bytes(bytes_out[r], at);
            if (n > 0)
                memcpy((char *)out + r * stride + at, slot + sizeof bytes, (size_t)n);
        }
    }
    return OK;
}

static const struct comm_ops hosts_ops = {
    .close = hosts_close,
    .abort = hosts_abort,
    .is_aborted = hosts_is_aborted,
    .waits_for = hosts_waits_for,
    .all_reduce_f32_disjoint = hosts_all_reduce_f32_disjoint,
    .sum_buffer = hosts_sum_buffer,
    .sum = hosts_sum,
    .barrier = hosts_barrier,
    .all_gather = hosts_all_gather,
};
