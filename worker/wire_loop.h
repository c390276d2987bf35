/*
 * wire_loop: a rank in a process of its own: the engine's messages in, answers out.
 *
 * It receives, decodes and stages, and never waits for the device: what the device thread has to
 * tell comes through a mailbox that is polled beside the socket. Every 500 ms it sends a heartbeat that says
 * which step the device is in, so that the engine can tell a hang from a long step.
 *
 * Thread: the process's first, for as long as it lives.
 */
#ifndef WORKER_WIRE_LOOP_H
#define WORKER_WIRE_LOOP_H

#include "proto/wire/curve.h"

#include <stdint.h>

struct worker_main_options {
    const char *engine;        /* ipc://PATH, tcp://HOST:PORT, or file:PATH of a file that will hold one of them */
    const struct token *token; /* for tcp; NULL: there is none */
    int64_t join_timeout_ms;   /* for how long it looks for an engine that is not there yet */
    int32_t rank, world;
    int32_t local_rank, local_world; /* among the ranks of this host, which share its cores */
    const char *comm_address; /* tcp://IP:0, where other hosts' ranks reach this one; NULL: where the engine does */
};

/*
 * Joins, loads, and serves steps until the engine says SHUTDOWN (OK) or is gone (ERR_CLOSED). When another rank
 * is lost the engine says WELCOME once more, to a new set of ranks: this one keeps its weights, and starts over with
 * everything else. Any other failure has been told to the engine where that was possible.
 */
MUST_USE enum status worker_main(const struct worker_main_options *options);

#endif
