/*
 * core: the thread that runs the steps, and the six verbs of one.
 *
 *   schedule -> prepare_inputs -> execute_model -> grammar_bitmask -> sample -> update_from_output
 *
 * It hears the front through one mailbox, and answers through another. A step that fails, on any
 * side, is printed in full (step_log). Then the ranks that failed are replaced, and every request is computed again
 * from its first token: it keeps what it has said, and says what it would have said. Where there is no replacing
 * them, every request gets an error, and the engine has failed.
 *
 * Thread: core_new, core_start, core_add, core_set_grammar, core_abort and core_free by the front;
 * everything else happens on core's own. A core that is never started has no thread: the front takes
 * its turns, one by one (simulations, tests).
 */
#ifndef ENGINE_CORE_CORE_H
#define ENGINE_CORE_CORE_H

#include "engine/core/output_builder.h"
#include "engine/core/scheduler.h"
#include "engine/executor/executor.h"

struct core;

struct vocabulary; /* proto/model/model_file.h */

struct core_options {
    const struct config *config;
    struct executor *executor;
    struct mailbox *outputs; /* of output_node; borrowed */
    int32_t vocab_size;
    int grammar_fd; /* an eventfd that whoever fills masks writes to; borrowed; -1: none does */
    int32_t mask_patience_ms; /* so long does a step wait for masks that are being filled */
    const struct vocabulary *vocabulary; /* that other weights must have too; borrowed; NULL: any */
};

/* Takes the executor, which is freed on core's thread; on failure it stays the caller's. */
MUST_USE enum status core_new(const struct core_options *options, struct core **out);
/* Starts its thread. */
MUST_USE enum status core_start(struct core *core);
/* Without a thread: obeys the orders that have come, and runs one step. false: there was none to run. */
bool core_turn(struct core *core);
/* Without a thread, after a turn without a step: parks until there is an order. */
void core_wait(struct core *core);
/* Between two turns: asserts that all that is known of requests and blocks agrees. */
void core_check(const struct core *core);
/* Aborts what is left and waits for the thread. NULL is fine. */
void core_free(struct core *core);
DEFINE_AUTO_FREE(core)

/* Takes the request; ERR_FULL: it stays the caller's. */
MUST_USE enum status core_add(struct core *core, struct request *request);
/* See engine_set_grammar. */
void core_set_grammar(struct core *core, request_id id, struct grammar *grammar,
                      enum status status, const char *text);
void core_abort(struct core *core, request_id id);

/* See engine_pause and those behind it. */
MUST_USE enum status core_pause(struct core *core, enum pause_mode mode, bool clear_cache,
                                engine_listener *listener, void *user);
MUST_USE enum status core_resume(struct core *core, engine_listener *listener, void *user);
MUST_USE enum status core_reset_prefix_cache(struct core *core, bool reset_running,
                                             engine_listener *listener, void *user);

/* See engine_retune. */
MUST_USE enum status core_retune(struct core *core, const struct scheduler_tuning *tuning,
                                 engine_listener *listener, void *user);

/* See engine_restart_worker, engine_call_workers and engine_reload_weights. */
MUST_USE enum status core_restart_worker(struct core *core, int32_t rank, engine_listener *listener,
                                         void *user);
MUST_USE enum status core_call_workers(struct core *core, const char *name, const char *args,
                                       engine_listener *listener, void *user);
MUST_USE enum status core_reload_weights(struct core *core, const char *path,
                                         engine_listener *listener, void *user);

/* Snapshots; any thread. */
int32_t core_workers(const struct core *core, struct engine_worker *out, int32_t capacity);
void core_stats(const struct core *core, struct engine_stats *out);

#endif
