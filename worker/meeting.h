/*
 * meeting: the engine's calls by which a set of ranks meets, from this rank's side.
 *
 *   create_shared {"num_ranks"} -> {"path", "inode"}    the first rank of a host, where it has several
 *   open_shared {"hosts", "memory"}                     all, before they connect: can each reach its host's memory?
 *   listen -> "tcp://IP:PORT"                           all, where there are several hosts
 *   connect {"session", "hosts", "endpoints"} -> {"free_bytes"}  all: see worker_available_bytes
 *   connect {"mpi": true} -> {"free_bytes"}             all, and none of the others: by MPI
 *
 * "hosts" names for each rank the first one on its host; "memory" and "endpoints" have an entry for each rank:
 * what it has replied. The memory has no name, so it ends with its users; its inode tells it from what
 * the same path means to a process that sees other process ids.
 *
 * Thread: the wire thread.
 */
#ifndef WORKER_MEETING_H
#define WORKER_MEETING_H

#include "worker/wire_loop.h"
#include "worker/worker.h"

#include <jansson.h>

struct meeting {
    struct comm_net *net; /* listens, until the ranks meet */
    int shared_fd;        /* this host's memory, until the ranks have met; -1: none */
};

/* A failure is the reply to the call; ERR_MISMATCH: the arguments are not what is expected. */
MUST_USE enum status meeting_create_shared(struct meeting *meeting, const struct worker *worker,
                                           const json_t *args, struct bytes *reply);
MUST_USE enum status meeting_open_shared(struct meeting *meeting,
                                         const struct worker_main_options *options,
                                         const json_t *args);
/* engine: the endpoint where it was found. */
MUST_USE enum status meeting_listen(struct meeting *meeting,
                                    const struct worker_main_options *options, const char *engine,
                                    struct bytes *reply);
/* Begins to: see worker_connect_begin. The memory is to be there until meeting_end, when that is over. */
MUST_USE enum status meeting_begin(struct meeting *meeting, const struct worker_main_options *options,
                                   struct worker *worker, int32_t epoch, const json_t *args);
void meeting_end(struct meeting *meeting);
void meeting_close(struct meeting *meeting);

#endif
