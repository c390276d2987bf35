/*
 * link: the engine's end of the wire to its ranks: send to all, hear them, notice who is missing.
 *
 * What linked executors (linked.h) are made of.
 *
 * Thread: the opener's until open returns, then core's.
 */
#ifndef ENGINE_EXECUTOR_LINK_H
#define ENGINE_EXECUTOR_LINK_H

#include "engine/executor/executor.h"
#include "proto/wire/rendezvous.h"

struct link_rank {
    int pidfd; /* readable when the process has ended; -1: not ours to watch */
    int64_t heard_ns;
    struct heartbeat heartbeat; /* the last */
    int64_t replied;            /* the call that it replied to last */
};

struct link {
    struct channel *channel;
    struct rendezvous rendezvous;
    uint32_t epoch;
    int32_t world;
    struct link_rank *ranks; /* [world] */
    struct pollfd *poll_fds;
    struct arena arena;  /* of the message heard last */
    struct arena output; /* of the answer collected last */
    struct arena masks;  /* of one rank's, while they are sent */
    int64_t num_calls;
    struct flight_recorder *recorder; /* borrowed; NULL: none */
};

/* Takes the channel, which listens. */
void link_open(struct channel *channel, int32_t world, uint32_t epoch, struct link *out);
void link_close(struct link *link);

/* One encode, one send to each rank, those behind one that is gone too. The failure names the
 * first. */
MUST_USE enum status link_send_all(struct link *link, const struct message_type *type, int64_t step,
                                   const void *body);

/* SAMPLE to all, each with its slice of the masks, which are of the whole vocabulary; NULL: no row
 * needs one. Those behind a rank that is gone don't get it. */
MUST_USE enum status link_sample(struct link *link, int64_t step,
                                 const struct grammar_output *grammar);

/*
 * Waits for the next message of any rank. message_out->type is NULL when `fd` (-1: none) became
 * readable instead. Heartbeats are noted here. A fault, a process that ended, a rank that has been
 * silent for too long and a passed deadline are failures: the sentence names the rank.
 */
MUST_USE enum status link_hear(struct link *link, int fd, int64_t deadline_ns,
                               struct message *message_out, int32_t *rank_out);

/* Lets every rank join and load: HELLO, WELCOME with these settings, READY. */
MUST_USE enum status link_gather(struct link *link, const struct executor_options *options,
                                 const char *settings, int64_t deadline_ns);

/* Calls a procedure on every rank and waits for all replies. The first failure is returned. */
MUST_USE enum status link_call_all(struct link *link, const char *name, const char *args,
                                   int64_t deadline_ns);

/* Rank 0's answer to a step; valid until the next collect. */
MUST_USE enum status link_collect(struct link *link, int64_t step, int64_t deadline_ns,
                                  const struct model_runner_output **output_out);

#endif
