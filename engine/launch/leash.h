/*
 * leash: the two pipes between the launcher and one agent, from either side.
 *
 * Writing never waits: what the pipe does not take stays here until it does. What one side may have on its
 * way to the other is bounded by TAKEN and INPUT_TAKEN, so this does not grow.
 *
 * Thread: the owner.
 */
#ifndef ENGINE_LAUNCH_LEASH_H
#define ENGINE_LAUNCH_LEASH_H

#include "engine/launch/parcel.h"

/* A beat each BEAT_MS; a side that has heard nothing for SILENCE_MS takes the other for lost. Time in which it
 * was not there to hear, as its machine was paused or its core another's, is no silence of the other's. */
enum { BEAT_MS = 500, SILENCE_MS = 1700 };

struct leash {
    int in_fd, out_fd; /* -1: closed; may be the same */
    bool is_agent;     /* which side is ours */
    struct parcel_reader reader;
    struct bytes outgoing;
    size_t sent; /* bytes of outgoing that have gone */
    int64_t heard_ns, beat_ns;
    int64_t looked_ns; /* when leash_beat last looked for silence; 0: never */
};

/* Takes the descriptors, and makes them not wait. */
void leash_open(struct leash *leash, int in_fd, int out_fd, bool is_agent);
void leash_close(struct leash *leash);
/* Nobody is there any more: what is sent from now on is thrown away. */
void leash_drop(struct leash *leash);
static inline bool leash_is_open(const struct leash *leash)
{
    return leash->in_fd >= 0;
}

void leash_send(struct leash *leash, const struct parcel *parcel);
/* Writes what the pipe takes. ERR_CLOSED: nobody reads. */
MUST_USE enum status leash_flush(struct leash *leash);
static inline bool leash_has_more_to_send(const struct leash *leash)
{
    return leash->outgoing.size > 0;
}
/* Reads what there is. ERR_CLOSED: the other side has ended. */
MUST_USE enum status leash_fill(struct leash *leash);
/* As parcel_reader_next. */
MUST_USE enum status leash_next(struct leash *leash, struct parcel *out, bool *found_out);

/* When it next has to beat, or is silent for too long, whichever is first. */
int64_t leash_deadline_ns(const struct leash *leash);
/* Beats if it is time. ERR_TIMEOUT: nothing was heard for SILENCE_MS. */
MUST_USE enum status leash_beat(struct leash *leash);

#endif
