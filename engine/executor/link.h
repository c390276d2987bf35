/*
 * link: the engine's end of the wire to its ranks: send to all, hear them, notice who is missing.
 *
 * What linked executors (linked.h) are made of.
 *
 * Thread: the opener's until open returns, then core's; link_workers: any.
 */
#ifndef ENGINE_EXECUTOR_LINK_H
#define ENGINE_EXECUTOR_LINK_H

#include "engine/executor/executor.h"
#include "proto/wire/rendezvous.h"

#include <pthread.h>

struct link_rank {
    int pidfd; /* readable when the process has ended; -1: not ours to watch */
    int64_t heard_ns;
    struct heartbeat heartbeat; /* the last */
    int64_t moved_ns;           /* since when its device is where the heartbeat says */
    int64_t replied;            /* the call that it replied to last */
    _Atomic int32_t restarts; /* link_workers reads it */
    bool is_lost;
    bool is_to_be_replaced; /* and has not been yet */
    char waiting[CHANNEL_MAX_NAME + 1]; /* a process that wants its place before we knew that it is free: its name */
    struct frame *hello;                /* and what it said; NULL: there is none */
};

enum { LINK_NO_RANK = -2 };

struct link {
    struct channel *channel;
    struct rendezvous rendezvous;
    uint32_t epoch;
    int32_t world;
    struct link_rank *ranks; /* [world] */
    pthread_mutex_t lock;    /* of what link_workers reads */
    int32_t failed_rank;     /* of the last failure; -1: it was no rank's alone; LINK_NO_RANK: none has failed, one has
                              * refused a call */
    int32_t num_disconnects; /* that were heard of */
    bool is_gathering;       /* whoever comes may be let in at once */
    bool is_past_hope;       /* a rank is known to hang: nobody is looked for */
    int64_t looked_ns;       /* when we looked for who is missing last */
    int32_t num_notices;     /* how often we are yet to look whose the last was */
    bool is_late;            /* ranks had not joined, or not loaded, when their time was over: no fault of those that had */
    bool waits_for_others;   /* ranks are started elsewhere: one that is refused, or lost before READY, is no failure */
    const char *way_in;      /* what their command line says: "--engine ADDRESS --token FILE"; borrowed */
    bool (*is_given_up)(void *user); /* see struct executor; may be NULL */
    void *user;
    int32_t step_tokens[2]; /* of the steps in flight, by step & 1 */
    double small_step_ns;   /* the longest that a step of few tokens has taken, by its device's clock; 0: none yet */
    double bulk_token_ns;   /* the most that a token of a step of many has taken; 0: none yet */
    char peer[CHANNEL_MAX_NAME + 1]; /* whose message was heard last */
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

/* Lets every rank join and load: HELLO, WELCOME with these settings, READY. progress: as of executor_options. */
MUST_USE enum status link_gather(struct link *link, executor_progress_fn *progress, void *user,
                                 const char *settings, int64_t deadline_ns);

/* A set of ranks under a new epoch. Those that have joined are to be welcomed. */
void link_begin(struct link *link, uint32_t epoch);
/* The rank's process has ended, or is as good as that: another may join. */
void link_lose(struct link *link, int32_t rank);
/* Asks a process to go, for good, or so that whoever started it starts another: it may not hear it. */
void link_dismiss(struct link *link, const char *peer);
void link_give_up(struct link *link, const char *peer);
/* Ranks that have joined, and can be sent to. */
int32_t link_num_connected(struct link *link);
/* Tells those that have joined that the set is a new one. One that can't be told is lost. */
MUST_USE enum status link_welcome(struct link *link, const char *settings);

/* Calls a procedure on ranks [first_rank, end_rank) and waits for all replies. replies_out: a JSON array of them;
 * NULL: they bring nothing. The first refusal is returned, when all have replied; refused_out: it was one. */
MUST_USE enum status link_call(struct link *link, int32_t first_rank, int32_t end_rank,
                               const char *name, const char *args, int64_t deadline_ns,
                               struct bytes *replies_out, bool *refused_out);
MUST_USE enum status link_call_all(struct link *link, const char *name, const char *args,
                                   int64_t deadline_ns);

/* See engine_workers. */
int32_t link_workers(struct link *link, struct engine_worker *out, int32_t capacity);

/* So that a rank that hangs can be told from one that has much to do. */
void link_note_step(struct link *link, int64_t step, int32_t num_tokens);

/* Rank 0's answer to a step; valid until the next collect. */
MUST_USE enum status link_collect(struct link *link, int64_t step, int64_t deadline_ns,
                                  const struct model_runner_output **output_out);

#endif
