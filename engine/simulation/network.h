/*
 * network: the wire between an engine and simulated ranks, and whether their processes live.
 *
 * The engine's end is a struct channel. Frames take time, arrive in order on each way, and meet the
 * faults that are planned. Time goes on in channel_poll alone.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_NETWORK_H
#define ENGINE_SIMULATION_NETWORK_H

#include "engine/simulation/agenda.h"
#include "engine/simulation/faults.h"
#include "proto/wire/messages.h"

struct network;

enum { NETWORK_MAX_RANKS = 4 };

struct network_options {
    struct agenda *agenda; /* borrowed, with the next */
    struct fault_plan *faults;
    uint64_t seed; /* of what takes how long */
    uint32_t epoch;
    int32_t world;
    int64_t latency_max_ns; /* of a frame */
    /* A frame has arrived at a rank that is up. */
    void (*hear)(void *user, int32_t rank, const struct frame *frame);
    void *user;
};

struct network *network_new(const struct network_options *options);
/* All that is under way is gone. */
void network_free(struct network *network); /* NULL is fine */

/* Borrowed: channel_free does nothing. */
struct channel *network_channel(struct network *network);
/* What that channel's poll takes for the end of a rank's process; nobody else knows it. */
int network_pidfd(int32_t rank);

/* The rank's process lives, and runs. */
bool network_is_up(const struct network *network, int32_t rank);
/* The rank tells the engine. */
void network_tell(struct network *network, int32_t rank, const struct message_type *type,
                  int64_t step, const void *body);
/* It tells why it fails, and ends a moment later. */
void network_fail_rank(struct network *network, int32_t rank, enum status status, const char *text);

/* true, once: FAULT_CALL_FAILS is due. */
bool network_fails_call(struct network *network);

#endif
