/*
 * scheduler: which tokens of which requests the next step computes.
 *
 * There is no prefill or decode phase: a request has tokens to catch up on, and each step shares one
 * token budget out, running requests first, then waiting ones in the policy's order. A long prompt
 * is computed in chunks, and while others decode in small ones (pacing.h). When KV blocks run out the last of the running requests is preempted:
 * its blocks are dropped, and it is computed again later.
 *
 * The behaviour is vLLM V1's; what differs is said where it does.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_SCHEDULER_H
#define ENGINE_CORE_SCHEDULER_H

#include "engine/core/wait_queue.h"
#include "proto/wire/messages.h"

struct scheduler;
struct output_builder;

struct scheduler_options {
    int32_t max_num_seqs;           /* running requests at most: slots of the workers */
    int32_t max_num_active_seqs;    /* of them admitted at most; 0: all */
    int32_t max_num_batched_tokens; /* tokens of a step at most */
    int32_t long_prefill_token_threshold; /* of one prompt in a step at most, unless it is alone; 0: the
                                             budget */
    bool long_prefill_token_threshold_adaptive; /* but no less than a fair share of the budget */
    double decode_slowdown; /* of a step, for prompts beside requests that decode; 0: no limit */
    double watermark; /* share of the blocks that an admission leaves free while others run */
    bool enable_prefix_caching;
    bool enable_chunked_prefill;    /* false: a prompt is computed whole or not yet */
    int32_t max_model_len;
    int32_t num_blocks;
    int32_t block_size; /* tokens of a block */
    int32_t vocab_size;
    enum scheduling_policy policy;
};

/* Those of the options that may change while requests run: each is looked at when a step is scheduled. */
struct scheduler_tuning {
    int32_t max_num_active_seqs, long_prefill_token_threshold;
    bool long_prefill_token_threshold_adaptive;
    double decode_slowdown, watermark;
};

struct scheduler *scheduler_new(const struct scheduler_options *options);
/* NULL is fine. No request may be left. */
void scheduler_free(struct scheduler *scheduler);
DEFINE_AUTO_FREE(scheduler)

/* From the next step on. */
void scheduler_retune(struct scheduler *scheduler, const struct scheduler_tuning *tuning);

/* Takes the request, which the KV cache can hold (request_check_fits); it is freed when it has
 * finished. */
void scheduler_add(struct scheduler *scheduler, struct request *request);

/* The grammar that a request awaits, or why there is none: see engine_set_grammar. Takes it. */
void scheduler_set_grammar(struct scheduler *scheduler, request_id id, struct grammar *grammar,
                           enum status status, const char *text, struct output_builder *events);

/*
 * PAUSED_NEW: what has been admitted before goes on to its end, a preempted request too; nothing
 * new is admitted. PAUSED_ALL: no token is scheduled. Requests can be added and aborted in every
 * state.
 */
enum pause_state { UNPAUSED, PAUSED_NEW, PAUSED_ALL };

void scheduler_set_pause(struct scheduler *scheduler, enum pause_state pause);
enum pause_state scheduler_pause(const struct scheduler *scheduler);
/* Every request that was ever admitted has ended: a pause of newcomers has nothing left to wait
 * for. */
bool scheduler_is_drained(const struct scheduler *scheduler);

/* A request can be scheduled, or runs. Those that await a grammar, or the end of a pause, are no
 * work. */
bool scheduler_has_work(const struct scheduler *scheduler);
int32_t scheduler_num_unfinished(const struct scheduler *scheduler);
int32_t scheduler_num_running(const struct scheduler *scheduler);
int32_t scheduler_num_waiting(const struct scheduler *scheduler);
int32_t scheduler_num_free_blocks(const struct scheduler *scheduler);

/* What the prefix cache was asked for and had, in tokens; all zero while it is off. */
struct cache_counts {
    int64_t requests, queries, hits;
};

struct scheduler_stats {
    int32_t num_running, num_waiting;
    int32_t num_deferred; /* wait for their grammars or masks; not among num_waiting */
    int64_t num_late_masks;
    int32_t num_free_blocks;
    int64_t num_preemptions;
    int64_t num_prompt_tokens; /* of admitted requests, computed or found in the prefix cache */
    struct cache_counts at_first, again; /* at first admissions, and at those after a preemption */
    int64_t recent_queries, recent_hits; /* of at_first, the last HIT_RATE_REQUESTS */
    int32_t prompt_limit; /* tokens of prompts beside those that decode, as last set; -1: none */
    int64_t decode_ns;    /* what a step that only decodes takes; 0: not known */
};

void scheduler_get_stats(const struct scheduler *scheduler, struct scheduler_stats *out);
/*
 * Forgets all cached prefixes. false: requests are running, and nothing was done. With
 * reset_running they are preempted first, and computed again in their order; the tokens that steps
 * in flight bring are dropped, and drawn again.
 */
bool scheduler_reset_prefix_cache(struct scheduler *scheduler, bool reset_running);

/* Builds the plan of the next step in the arena, and counts its tokens as computed. At most two steps
 * may be in flight, a plan without rows is not one; the arena is to live until its step is back. */
void scheduler_schedule(struct scheduler *scheduler, struct arena *arena,
                        struct scheduler_output *plan_out);

/* How many rows of the plan, which is the newest in flight, need a mask to be sampled. */
int32_t scheduler_num_masks(const struct scheduler_output *plan);

/* Would scheduler_grammar_bitmask have them all? */
bool scheduler_masks_are_ready(const struct scheduler *scheduler,
                               const struct scheduler_output *plan);

/* Their masks, in the plan's arena. It must be the only step in flight: a mask depends on the tokens of
 * all steps before. A row whose mask is not there may draw nothing, and its request is set aside until
 * it is (scheduler_recall); one whose grammar has failed ends. */
void scheduler_grammar_bitmask(struct scheduler *scheduler, const struct scheduler_output *plan,
                               struct arena *arena, struct grammar_output *out,
                               struct output_builder *events);

/* When the masks of that step were filled: from the begin of the first to the end of the last, as far as
 * that was elsewhere; end 0: none was. */
void scheduler_fill_times(const struct scheduler *scheduler, const struct scheduler_output *plan,
                          int64_t *begin_ns_out, int64_t *end_ns_out);

/* Requests that were set aside, and whose masks have come, wait to be admitted again. */
void scheduler_recall(struct scheduler *scheduler);

/* What the oldest step in flight took, before scheduler_update_from_output: prompts are paced by it. */
void scheduler_observe(struct scheduler *scheduler, int64_t took_ns);

/* The oldest step in flight came back: its tokens join their requests; requests that end are freed;
 * events go to `events`. ERR_MISMATCH: the answer does not fit the plan; nothing was changed. */
MUST_USE enum status scheduler_update_from_output(struct scheduler *scheduler,
                                                  const struct scheduler_output *plan,
                                                  const struct model_runner_output *output,
                                                  struct output_builder *events);

/* Ends a request with FINISH_ABORT; what a step in flight brings for it is dropped. An unknown id is
 * fine. */
void scheduler_abort(struct scheduler *scheduler, request_id id, struct output_builder *events);

/* Ends every request: with FINISH_ABORT for ERR_ABORTED, else with FINISH_ERROR and these words. */
void scheduler_end_all(struct scheduler *scheduler, enum status status, const char *text,
                       struct output_builder *events);

/*
 * What the workers knew before the steps in flight, as the plan of a step that computes just that: a row for
 * each request that these steps name and that is not new in them. plans: [num_plans], oldest first, as
 * many as are in flight. Pointers live in the arena, or in the requests.
 */
void scheduler_describe_in_flight(const struct scheduler *scheduler,
                                  const struct scheduler_output *const *plans, int32_t num_plans,
                                  struct arena *arena, struct scheduler_output *out);
int32_t scheduler_num_in_flight(const struct scheduler *scheduler);

/* The steps in flight will not come back: their ranks are gone. Before scheduler_end_all. */
void scheduler_forget_in_flight(struct scheduler *scheduler);
/* The ranks have lost every request and all KV, steps in flight included: requests are computed again from
 * their first token, in their order, and keep what they have said. */
void scheduler_start_over(struct scheduler *scheduler);

/* Walks everything and asserts that it agrees; core calls it when idle. */
void scheduler_check(const struct scheduler *scheduler);

#endif
