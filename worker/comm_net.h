/*
 * comm_net: sums across ranks of several hosts, through a mesh of tcp connections with CURVE.
 *
 * Every rank listens, tells its endpoint (the engine passes them on), and joins: it connects to each rank
 * below its own and waits for each above. What comes out is a comm like any other (kernels/kernels.h):
 * parts are added in rank order, so the bits are those of comm_shm; comm_shared is NULL.
 *
 * Only peers that hold the job's key come in, and only those of the same session and epoch are
 * listened to: a rank left over from an earlier epoch is told so. A rank that dies, or whose host cannot be
 * reached any more, is found by the end of its connection or by ZeroMQ's heartbeat within 2 s: ERR_CLOSED, by
 * name, from the exchange that waits for it and from every later one. After a failure the comm is of no
 * more use; ranks that meet anew listen anew.
 *
 * Thread: the one that called comm_net_listen, or one that took over from it; comm_net_abort and
 * comm_abort by any.
 */
#ifndef WORKER_COMM_NET_H
#define WORKER_COMM_NET_H

#include "kernels/kernels.h"
#include "proto/wire/curve.h"

struct comm_net;

/* bind_address: tcp://IP:0, one interface's; every rank of a job has the same `keys`, which are copied.
 * ERR_INVALID: no address, or one of all interfaces, which nobody could connect to. ERR_NOT_FOUND, ERR_IO: see tcp_listen.
 * Once its ranks have joined nobody else is let in any more, so that strangers cost nothing. */
MUST_USE enum status comm_net_listen(const char *bind_address, const struct curve_pair *keys,
                                     struct comm_net **out);
/* tcp://IP:PORT; as long as it lives. */
const char *comm_net_endpoint(const struct comm_net *net);

/* Who meets: the same for all ranks but for `rank`. */
struct comm_net_group {
    int32_t rank, world;
    uint64_t session;             /* of the job */
    int32_t epoch;                /* how often its ranks have met */
    const char *const *endpoints; /* [world] */
    int64_t buffer_bytes;         /* of one rank's contribution to one exchange; see comm_create */
};

/*
 * Returns when all ranks are there. The listener is then part of the comm, and comm_close frees both; when
 * it fails, what is left to do with the listener is to free it. ERR_TIMEOUT names who is missing; ERR_MISMATCH:
 * another rank refuses, for the reason given; ERR_CLOSED: a rank has died or cannot be reached.
 */
MUST_USE enum status comm_net_join(struct comm_net *net, const struct comm_net_group *group,
                                   int64_t deadline_ns, struct comm **out);
/* Whoever waits returns ERR_ABORTED, as does every later call; the other ranks are told. Any thread, before,
 * during and after the join. */
void comm_net_abort(struct comm_net *net);
/* From now on an abort of `other` is one of this comm, whose rank looks every 50 ms while it waits; `other` must
 * outlive it. NULL: no more. */
void comm_net_heed(struct comm *comm, const struct comm *other);
void comm_net_free(struct comm_net *net); /* NULL is fine */
DEFINE_AUTO_FREE(comm_net)

#endif
