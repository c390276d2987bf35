/*
 * executor: the ranks behind one interface with several lives.
 *
 *   uniproc      one rank on a thread of this process
 *   multiproc    a process for each rank on this host, over ZeroMQ
 *   distributed  ranks that others start, on any host, over ZeroMQ with keys
 *
 * prepare_inputs, execute_model and sample only send; collect waits for the answer. So a caller may
 * have a step prepared while another runs: the future of the original is those two calls.
 *
 * Any failure of these calls means that the step, and with it the set of ranks, has failed: the
 * sentence names the rank and the cause. recover makes the set whole again, where that is possible; its ranks then know
 * no request and no KV.
 *
 * Thread: core only.
 */
#ifndef ENGINE_EXECUTOR_EXECUTOR_H
#define ENGINE_EXECUTOR_EXECUTOR_H

#include "engine/engine.h"
#include "engine/executor/flight_recorder.h"
#include "proto/config/config.h"
#include "proto/model/model_file.h"
#include "proto/wire/messages.h"

struct executor;

typedef void executor_progress_fn(void *user, const char *words, double fraction);

struct executor_options {
    const struct config *config; /* borrowed while the executor lives */
    const struct model_file *model;
    executor_progress_fn *progress; /* NULL is fine; called while the ranks start, by the opener */
    void *user;
};

/* What the ranks can do, once they are ready. */
struct executor_info {
    int32_t num_ranks;
    int32_t num_kv_blocks;
    int32_t max_model_len;
    struct engine_memory memory;
    char fingerprint[17]; /* of the weights, as its ranks tell it */
};

struct executor_ops {
    const char *name;
    const char *doc;
    /* Starts the ranks, waits until all have loaded, and sizes the KV cache. */
    enum status (*open)(const struct executor_options *options, struct executor **out);
    enum status (*prepare_inputs)(struct executor *executor, int64_t step,
                                  const struct scheduler_output *plan);
    enum status (*execute_model)(struct executor *executor, int64_t step);
    enum status (*sample)(struct executor *executor, int64_t step,
                          const struct grammar_output *grammar); /* NULL: no row needs a mask */
    /* Waits for rank 0's answer to `step`, watching every rank. It lives until the next collect. */
    enum status (*collect)(struct executor *executor, int64_t step,
                           const struct model_runner_output **output_out);
    /* Waits until `fd` is readable; meanwhile hears the ranks, so that one that dies while the
     * engine is idle is noticed too. */
    enum status (*wait)(struct executor *executor, int fd);
    /*
     * Calls a procedure on every rank, while no step is in flight; args: JSON. replies_out gets a JSON array of their
     * replies, in the order of ranks. A rank that refuses: its sentence, and `refused_out` is set; any other failure
     * is one of the set of ranks.
     */
    enum status (*call)(struct executor *executor, const char *name, const char *args,
                        struct bytes *replies_out, bool *refused_out);
    /*
     * After a failure: replaces the ranks that failed, and `rank` (-1: none besides), and lets all meet anew under the
     * next epoch, with as many KV blocks as before. Failing, it says why there is no hope. NULL: ranks can't be
     * replaced.
     */
    enum status (*recover)(struct executor *executor, int32_t rank);
    /* See engine_workers: any thread, never waits. */
    int32_t (*workers)(struct executor *executor, struct engine_worker *out, int32_t capacity);
    void (*free)(struct executor *executor);
};

struct executor {
    const struct executor_ops *ops;
    struct executor_info info;
    const struct flight_recorder *wire; /* its last messages; NULL: it has no wire, or keeps none */
    /* Asked now and then while recover waits for ranks: true ends the wait. NULL: never. */
    bool (*is_given_up)(void *user);
    void *user;
};

/* The row for --executor; without one: uniproc for one rank, else multiproc. */
MUST_USE enum status executor_choose(const struct config *config, const struct executor_ops **out);

MUST_USE enum status executor_open(const struct executor_options *options, struct executor **out);

static inline void executor_free(struct executor *executor)
{
    if (executor)
        executor->ops->free(executor);
}
DEFINE_AUTO_FREE(executor)

MUST_USE static inline enum status executor_prepare_inputs(struct executor *executor, int64_t step,
                                                           const struct scheduler_output *plan)
{
    return executor->ops->prepare_inputs(executor, step, plan);
}

MUST_USE static inline enum status executor_execute_model(struct executor *executor, int64_t step)
{
    return executor->ops->execute_model(executor, step);
}

MUST_USE static inline enum status executor_sample(struct executor *executor, int64_t step,
                                                   const struct grammar_output *grammar)
{
    return executor->ops->sample(executor, step, grammar);
}

MUST_USE static inline enum status executor_collect(struct executor *executor, int64_t step,
                                                    const struct model_runner_output **output_out)
{
    return executor->ops->collect(executor, step, output_out);
}

MUST_USE static inline enum status executor_wait(struct executor *executor, int fd)
{
    return executor->ops->wait(executor, fd);
}

/* ---- what the lives share (executor.c) ---------------------------------------------------------- */

/*
 * How many KV blocks each rank gets: --num-gpu-blocks-override, or --kv-cache-memory, or half of the
 * memory that is free, at most 4 GiB. ERR_NO_MEMORY when not even one request of max_model_len fits:
 * says how much is needed and which flag helps.
 */
MUST_USE enum status executor_plan_kv(const struct config *config, int32_t max_model_len,
                                      int32_t num_ranks, int64_t kv_block_bytes_max,
                                      int64_t available_bytes, int32_t *num_blocks_out);

/* Threads of each rank: --threads, or the cores that this process may use divided by the ranks. */
int32_t executor_threads(const struct config *config);

/* --max-model-len against what the model was trained for. */
MUST_USE enum status executor_max_model_len(const struct config *config,
                                            const struct model_config *model, int32_t *out);

extern const struct executor_ops executor_uniproc, executor_multiproc, executor_distributed;

#endif
