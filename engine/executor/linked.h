/*
 * linked: what executors whose ranks are behind a link have in common: all but starting and
 * stopping them.
 *
 * Thread: the opener's until open returns, then core's.
 */
#ifndef ENGINE_EXECUTOR_LINKED_H
#define ENGINE_EXECUTOR_LINKED_H

#include "engine/executor/link.h"

struct linked_executor {
    struct executor executor;
    struct link link;
    struct flight_recorder *recorder; /* of the link */
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

#endif
