/*
 * comm_hosts: sums across ranks of which some share a host: within a host through shared memory, between
 * hosts by one rank of each, its leader.
 *
 * So a sum crosses the network once a host, not once a rank. It is added up in another order than comm_shm's:
 * the same bits wherever sums are exact (kernels/kernels.h). comm_sum gives what is added up already, as one
 * part; comm_shared is NULL, since not all ranks would see it.
 *
 * Thread: the one that opened it; comm_abort by any.
 */
#ifndef WORKER_COMM_HOSTS_H
#define WORKER_COMM_HOSTS_H

#include "kernels/kernels.h"

/* What comm_create of the ranks of one host needs as its shared_bytes, where `world` is that of all hosts. */
int64_t comm_hosts_shared_bytes(int32_t world, int64_t buffer_bytes);

struct comm_hosts_group {
    int32_t rank, world;
    const int32_t *hosts; /* [world]: the host of each rank, in any order and by any number; copied */
    int64_t buffer_bytes; /* of `local` and `net` */
};

/*
 * local: the comm_shm of this host's ranks, in the order of their ranks, with comm_hosts_shared_bytes; NULL: this
 * rank is its host's only one. net: a comm_net among the first ranks of all hosts, in the order of these; NULL for
 * other ranks, or where there is one host. Takes both. ERR_INVALID: they do not fit the group, and stay the
 * caller's.
 */
MUST_USE enum status comm_hosts_new(const struct comm_hosts_group *group, struct comm *local,
                                    struct comm *net, struct comm **out);

#endif
