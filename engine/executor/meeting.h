/*
 * meeting: lets a set of ranks meet, that has joined and loaded: those of one host through memory, hosts by the first
 * rank of each (worker/meeting.h has the calls).
 *
 * Thread: the link's.
 */
#ifndef ENGINE_EXECUTOR_MEETING_H
#define ENGINE_EXECUTOR_MEETING_H

#include "engine/executor/link.h"

struct meeting_options {
    uint64_t session;     /* of the ranks' exchanges */
    const int32_t *hosts; /* [world]: of each rank, the first rank on its host */
    bool over_mpi;        /* all by MPI, which knows hosts itself; the rest is nothing */
    bool may_do_without;  /* where the ranks of a host can't share memory, all meet over tcp, with a warning */
};

/* A failure is as link_call's. What each rank then has left for KV goes to its rank_info's ready.free_bytes; -1: it
 * does not say. */
MUST_USE enum status meeting_hold(struct link *link, const struct meeting_options *options,
                                  int64_t deadline_ns);

#endif
