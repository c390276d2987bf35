/*
 * agenda: the time of a simulation, and what is still to happen in it.
 *
 * Time stands still while code runs, and goes on to the next event when everybody waits.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_AGENDA_H
#define ENGINE_SIMULATION_AGENDA_H

#include "proto/wire/channel.h"

struct event {
    int64_t at_ns;
    int64_t
        number; /* the agenda's; those of one time happen in the order in which they were added */
    void (*happen)(void *owner, const struct event *event);
    void *owner;
    int32_t who;         /* the owner's: a rank, a client */
    struct frame *frame; /* owned by the event; NULL: none */
};

struct agenda {
    int64_t now_ns;
    int64_t num_added, num_happened;
    struct event *heap; /* [num_events] the parent of i, (i - 1) / 2, is not later */
    int32_t num_events, capacity;
};

void agenda_close(struct agenda *agenda);

/* Takes event->frame; the time is not in the past. */
void agenda_add(struct agenda *agenda, const struct event *event);
/* INT64_MAX: nothing will. */
int64_t agenda_next_ns(const struct agenda *agenda);
/* Goes to the next event, lets it happen, and says whose it was. There must be one. */
const void *agenda_step(struct agenda *agenda);
/* The owner's events don't happen any more. */
void agenda_forget(struct agenda *agenda, const void *owner);

#endif
