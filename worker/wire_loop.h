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

#include "proto/base/status.h"

#include <stdint.h>

struct worker_main_options {
    const char *engine; /* endpoint to join */
    int32_t rank, world;
};

/*
 * Joins, loads, and serves steps until the engine says SHUTDOWN (OK) or is gone (ERR_CLOSED). When another rank
 * is lost the engine says WELCOME once more, to a new set of ranks: this one keeps its weights, and starts over with
 * everything else. Any other failure has been told to the engine where that was possible.
 */
MUST_USE enum status worker_main(const struct worker_main_options *options);

#endif
