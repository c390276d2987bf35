/*
 * worker: one rank. The door of this room.
 *
 * A worker owns a device, a model's shard and the KV cache of this rank. It has two threads on
 * purpose: the caller's ("wire", or core under uniproc), which stages inputs and never waits for the
 * device, and its own "device" thread, which runs kernels and never parses a message. Between them are
 * two staging slots (step & 1) and two mailboxes.
 *
 *   prepare_inputs(N+1)  stages while the kernels of step N run
 *   execute_model(N)     lets the device thread run the forward pass of the staged step
 *   sample(N)            lets it mask and sample; the answer can then be collected
 *
 * Thread: every call from one thread (the wire thread), but for worker_output_fd.
 */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include "proto/base/memory.h"
#include "proto/config/injected_fault.h"
#include "proto/model/model_file.h"
#include "proto/model/sim.h"
#include "proto/wire/messages.h"

struct worker;

struct worker_options {
    int32_t rank, world;
    int32_t local_rank, local_world; /* among those that share this host's cores; world 0: all do */
    int32_t num_threads;        /* of the device, its own thread included */
    bool inexact_sums;          /* world 1: see model_options */
    bool binds_threads;         /* where proto/base/cpus.h has places for them; never the wire thread */
    const char *isa;            /* NULL: the best there is */
    const struct sim_device *sim; /* borrowed: a device that only takes time, like this; NULL: the CPU */
    struct injected_fault fault; /* zeroed: none */
    int32_t max_num_seqs;
    int32_t max_batched_tokens;
    int32_t max_model_len;
    /* Called on the device thread while it loads; may be NULL. */
    void (*progress)(void *user, double fraction);
    void *user;
};

/* What a loaded worker tells the engine. */
struct worker_memory {
    int64_t weight_bytes;
    int64_t step_weight_bytes; /* that every step reads */
    int64_t workspace_bytes;
    int64_t kv_block_bytes;
    int64_t available_bytes; /* of this host, after loading */
    int32_t first_token, num_tokens; /* whose masks it wants: see grammar_output_slice */
};

/* Starts the device thread, which begins to load. `model` is borrowed until the worker is freed. */
MUST_USE enum status worker_new(const struct worker_options *options,
                                const struct model_file *model, struct worker **out);
void worker_free(struct worker *worker); /* NULL is fine; waits for the step that runs */
DEFINE_AUTO_FREE(worker)

/* Readable while there is something to collect: a load that ended, an answer, a fault. */
int worker_output_fd(const struct worker *worker);

/* Waits until the weights are loaded; the failure is the device thread's. */
MUST_USE enum status worker_wait_loaded(struct worker *worker, struct worker_memory *memory_out);
/* true: worker_wait_loaded has returned OK. */
bool worker_is_loaded(const struct worker *worker);
/* Sets up a file that the ranks of this host are to share, of the size that they need. */
MUST_USE enum status worker_create_shared(const struct worker *worker, const char *path);
/* Meets the other ranks at a file that one of them has set up: where world is more than 1, once loaded and
 * once after each reset. */
MUST_USE enum status worker_connect(struct worker *worker, const char *path);
/* Or through a mesh of connections: takes `net`, which listens; group->buffer_bytes is filled in here. */
struct comm_net;
struct comm_net_group;
MUST_USE enum status worker_connect_net(struct worker *worker, struct comm_net *net,
                                        const struct comm_net_group *group);
/* Sizes the KV cache before the first step. Once more with the same number is fine: its contents are worth
 * nothing after a reset, its memory is. */
MUST_USE enum status worker_initialize_kv_cache(struct worker *worker, int32_t num_blocks);
/*
 * The other ranks are gone, or as good as that: gives up the steps in hand, forgets every request, and leaves the
 * memory that it shares with them. The weights stay. ERR_TIMEOUT: the device does not come back.
 */
MUST_USE enum status worker_reset(struct worker *worker);

/* true: an answer is to be collected before this step can be prepared: its staging slot is still that of
 * an earlier one, or it gives to another request what the step before has not left yet. */
bool worker_awaits_collect(const struct worker *worker, int64_t step,
                           const struct scheduler_output *plan);

/*
 * Stages a step. The plan is checked against this worker's state and limits (slots, blocks,
 * positions, tokens): ERR_MISMATCH says what did not fit and leaves the worker as it was.
 * Copies what it needs.
 */
MUST_USE enum status worker_prepare_inputs(struct worker *worker, int64_t step,
                                           const struct scheduler_output *plan);
/* ERR_MISMATCH: that step is not the one staged next. */
MUST_USE enum status worker_execute_model(struct worker *worker, int64_t step);
/* grammar: NULL, or the masks of rows that need one, of this rank's slice of the vocabulary;
 * copied. ERR_MISMATCH likewise, and when a row that was announced to need a mask has none, or that
 * of another position. */
MUST_USE enum status worker_sample(struct worker *worker, int64_t step,
                                   const struct grammar_output *grammar);

/* The next answer, in order of steps. Without `wait`: NULL when none is ready. It lives until the
 * step after the next is sampled. A failed step is a status: the rank's cause. */
MUST_USE enum status worker_collect(struct worker *worker, bool wait, int64_t *step_out,
                                    const struct model_runner_output **output_out);

/* Wakes and fails whatever waits for other ranks. */
void worker_abort(struct worker *worker);

/* Where the device thread is. */
struct worker_progress {
    int64_t step; /* on the device now; -1: none */
    int64_t ns_in_step;
    int64_t num_done;  /* pieces of work, at least one for each layer that it loads or runs */
    int32_t waits_for; /* the rank without which it can't go on; -1: none */
};
struct worker_progress worker_progress(const struct worker *worker); /* alone: any thread */

#endif
