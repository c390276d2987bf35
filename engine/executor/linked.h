/*
 * linked: what executors whose ranks are behind a link have in common: all but starting and
 * stopping them.
 *
 * A set of ranks is made whole again by replacing those that failed: the others keep their weights, and meet the new
 * ones under the next epoch, in new shared memory.
 *
 * Thread: the opener's until open returns, then core's; linked_workers: any.
 */
#ifndef ENGINE_EXECUTOR_LINKED_H
#define ENGINE_EXECUTOR_LINKED_H

#include "engine/executor/link.h"
#include "engine/executor/meeting.h"

struct linked_executor;

/* How an executor comes by its ranks. */
struct rank_source {
    /* Ends what is left of the rank's process, which was known to the channel as `peer` ("": it had not joined), and
     * starts another, where that is its business. */
    enum status (*replace)(struct linked_executor *linked, int32_t rank, const char *peer);
    /* How the ranks are to meet, where there are several: fills in all, hosts_out ([world]) as options_out->hosts. NULL:
     * all are on one host. */
    enum status (*plan_meeting)(struct linked_executor *linked, int32_t *hosts_out,
                                struct meeting_options *options_out);
};

struct linked_executor {
    struct executor executor;
    struct link link;
    struct flight_recorder *recorder; /* of the link */
    const struct rank_source *source; /* NULL: ranks need no meeting, and are never replaced */
    char *settings;                   /* as every rank gets them */
    char *spare_model;                /* path of the weights beside those in use; NULL: none were loaded */
    bool lacks_weights;               /* the ranks sleep without them: they can't go on with a new one */
    int32_t max_restarts;             /* within */
    int64_t restart_window_ns;
    int64_t *restarts_ns;             /* [max_restarts] when the last were, a ring */
    int64_t num_restarts;
    int64_t join_timeout_ms;
};

static inline struct linked_executor *linked_of(struct executor *executor)
{
    return CONTAINER_OF(executor, struct linked_executor, executor);
}

/* Takes the channel, which listens. executor.info has the number of ranks. */
void linked_open(struct linked_executor *linked, struct channel *channel, uint32_t epoch,
                 const struct config *config);
/* One that is zeroed is fine. */
void linked_close(struct linked_executor *linked);

/* Lets the ranks that were started join and load, and sizes their KV cache. executor.info has the
 * model's length. */
MUST_USE enum status linked_gather(struct linked_executor *linked,
                                   const struct executor_options *options);

/* The verbs, for the row. */
enum status linked_prepare_inputs(struct executor *executor, int64_t step,
                                  const struct scheduler_output *plan);
enum status linked_execute_model(struct executor *executor, int64_t step);
enum status linked_sample(struct executor *executor, int64_t step,
                          const struct grammar_output *grammar);
enum status linked_collect(struct executor *executor, int64_t step,
                           const struct model_runner_output **output_out);
enum status linked_wait(struct executor *executor, int fd);
enum status linked_call(struct executor *executor, const char *name, const char *args,
                        struct bytes *replies_out, bool *refused_out);
enum status linked_recover(struct executor *executor, int32_t rank);
int32_t linked_workers(struct executor *executor, struct engine_worker *out, int32_t capacity);

#endif
