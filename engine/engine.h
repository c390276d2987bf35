/*
 * engine: prompts in, tokens out. The door for programs (generate, serve, bench).
 *
 * An engine owns the core thread (scheduler and the six verbs of a step) and an executor, which
 * owns the ranks. It speaks tokens: text, JSON and HTTP are its callers' business.
 *
 * Thread: one thread calls submit, abort and poll (the front); engine_stats may be called by any.
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "proto/base/memory.h"
#include "proto/model/kv_type.h"
#include "proto/wire/memory_held.h"
#include "proto/wire/pass_counts.h"
#include "proto/wire/sampling_params.h"

#include <stdint.h>

typedef int32_t token_id;
typedef int64_t request_id; /* from 1 up, in the order of submission */

struct config; /* proto/config/config.h */
struct engine;
struct grammar; /* engine/grammar/grammar.h */
struct model_file;

/* PHASE_RECOVERING: ranks are being replaced; what is inside waits, and goes on. */
enum engine_phase {
    PHASE_STARTING,
    PHASE_LOADING,
    PHASE_READY,
    PHASE_RECOVERING,
    PHASE_DRAINING,
    PHASE_FAILED
};
const char *engine_phase_name(enum engine_phase phase); /* "starting", "loading", … */

/*
 * Starts the ranks and waits until all are READY. `model` is borrowed until engine_free.
 * progress (may be NULL) is told each phase in words ("rank 1: load 62 %"), on the calling thread.
 * Failures: whatever a rank met, with the rank's number in the sentence.
 */
MUST_USE enum status engine_new(const struct config *config, const struct model_file *model,
                                void (*progress)(void *user, const char *words, double fraction),
                                void *user, struct engine **out);
/* Aborts what is left, stops the ranks and waits for them. NULL is fine. */
void engine_free(struct engine *engine);
DEFINE_AUTO_FREE(engine)

/* ---- in --------------------------------------------------------------------------------------- */

struct submission {
    const char *name;         /* the client's id, for logs and dumps; copied; may be NULL */
    const token_id *prompt;   /* copied */
    int32_t num_prompt;
    const struct sampling_params *params; /* copied; max_tokens < 1: as many as fit */
    const char *cache_salt;   /* prefixes are shared with requests of the same salt alone; copied;
                                 NULL: none */
    int32_t priority;         /* lower first under --scheduling-policy priority */
    /* Ids that end the generation besides params->stop_token_ids: the model's EOS and EOT.
     * Ignored under ignore_eos. Borrowed: the tokenizer's own list. */
    const token_id *eos_ids;
    int32_t num_eos_ids;
    struct grammar *grammar; /* what the output is to follow; NULL: anything. Taken with the request */
    bool awaits_grammar;     /* it is being compiled: the request waits, without holding up others, until
                                engine_set_grammar brings it */
};

/*
 * Queues a request. Refused at once, with the numbers: ERR_INVALID (empty prompt, token out of the
 * vocabulary, prompt longer than max_model_len - 1, a sampling parameter out of range, more than the
 * KV cache could ever hold), ERR_FULL (a million orders wait), ERR_CLOSED (the engine is draining). One
 * that a failing engine can take no more ends with FINISH_ERROR.
 */
MUST_USE enum status engine_submit(struct engine *engine, const struct submission *submission,
                                   request_id *id_out);
/* Takes the grammar that a request awaits. With a status other than OK the request ends with FINISH_ERROR,
 * that status and these words. An id that awaits none is fine: it may be aborted. Any thread. */
void engine_set_grammar(struct engine *engine, request_id id, struct grammar *grammar,
                        enum status status, const char *text);
/* Ends a request: its last event has FINISH_ABORT. An unknown or finished id is fine. */
void engine_abort(struct engine *engine, request_id id);
/* An eventfd for those who fill masks elsewhere: what is written to it has core look whether the masks
 * that it waits for are there. Any thread; owned by the engine. */
int engine_grammar_fd(const struct engine *engine);
/* Is there room for n more? ERR_FULL: --max-num-queued-reqs of them are unfinished, or prompts of
 * --max-num-queued-tokens wait for their first tokens. engine_submit does not ask: a client's
 * request is n of ours, all or none. */
MUST_USE enum status engine_check_admission(struct engine *engine, int32_t n);
/* Would it find room for one more? Nothing is counted. */
bool engine_has_room(const struct engine *engine);
/* Behind an ERR_FULL of engine_check_admission: the seconds, from 1 up, after which there should be room for
 * that request, by how fast others have ended of late. */
int32_t engine_retry_after_s(const struct engine *engine);
/* Refuses new requests from now on, for good; those inside go on. */
void engine_drain(struct engine *engine);

/* ---- orders ------------------------------------------------------------------------------------ */

/*
 * An order is carried out between two steps and answered once, by engine_poll, behind every event
 * that came before; at the latest by engine_free, with ERR_CLOSED. One that is refused at once (it
 * returns something else than OK) is not answered. `text` says why the status is not OK; an order that brings
 * something has it there when it is.
 */
typedef void engine_listener(void *user, enum status status, const char *text);

/*
 * No new request is admitted until engine_resume; those that come meanwhile wait. What is inside:
 * PAUSE_ABORT ends all of it, PAUSE_WAIT lets end what runs, PAUSE_KEEP freezes it where it is.
 * Answered when no step is in flight and, for PAUSE_WAIT, nothing runs any more; ERR_ABORTED: it
 * was resumed before.
 * clear_cache: forget all prefixes then; PAUSE_KEEP keeps them, they are its requests'.
 */
enum pause_mode { PAUSE_ABORT, PAUSE_WAIT, PAUSE_KEEP, NUM_PAUSE_MODES };
/* "abort", "wait", "keep". ERR_INVALID: no such mode; the sentence names them. */
MUST_USE enum status pause_mode_parse(const char *text, enum pause_mode *out);

MUST_USE enum status engine_pause(struct engine *engine, enum pause_mode mode, bool clear_cache,
                                  engine_listener *listener, void *user);
/* Goes on. An engine that is not paused is fine, unless it drains: ERR_CLOSED, that is not taken back. */
MUST_USE enum status engine_resume(struct engine *engine, engine_listener *listener, void *user);
/* Any thread. */
bool engine_is_paused(const struct engine *engine);

/* Forgets all prefixes. ERR_FULL: requests run, and nothing was done; with reset_running they are
 * computed again from their first token, in their order, and keep what they have said. */
MUST_USE enum status engine_reset_prefix_cache(struct engine *engine, bool reset_running,
                                               engine_listener *listener, void *user);

/* Takes over those settings of `config`, read by now, whose rows are live (proto/config/option.h). */
MUST_USE enum status engine_retune(struct engine *engine, const struct config *config,
                                   engine_listener *listener, void *user);

/* ---- ranks -------------------------------------------------------------------------------------- */

enum worker_state { WORKER_STARTING, WORKER_LOADING, WORKER_READY, WORKER_LOST };
const char *worker_state_name(enum worker_state state); /* "starting", "loading", "ready", "lost" */

struct engine_worker {
    int32_t rank;
    int32_t pid; /* on its host; 0: not known yet */
    char host[64];
    enum worker_state state;
    uint32_t epoch;      /* of the set of ranks: from 1 up */
    int32_t restarts;    /* how often another process took its place */
    int64_t step;        /* that its device works on; -1: none */
    int64_t ms_in_step;  /* as it said last */
    int64_t ms_since_heard;
    struct memory_held memory; /* likewise */
    struct pass_counts passes; /* likewise, of this process */
};

/* Writes at most `capacity` of them, and returns how many ranks there are. Any thread; never waits for a step. */
int32_t engine_workers(const struct engine *engine, struct engine_worker *out, int32_t capacity);
/* Ends this rank's process and puts another in its place; streams go on. ERR_UNSUPPORTED: this executor's
 * ranks can't be replaced; ERR_NOT_FOUND: no such rank. */
MUST_USE enum status engine_restart_worker(struct engine *engine, int32_t rank,
                                           engine_listener *listener, void *user);
/* Calls a procedure on every rank, between two steps. args: a JSON object. The text of the answer is a JSON array of
 * their replies, in the order of ranks; or why the first that refused did so. Requests that the ranks have lost by it are
 * computed again from their first token, and keep what they have said. */
MUST_USE enum status engine_call_workers(struct engine *engine, const char *name, const char *args,
                                         engine_listener *listener, void *user);
/*
 * Other weights of the same shape and vocabulary: the engine compares the words, and then every rank loads the file,
 * of this path on its host, beside those in use while streams go on; then all take them at once, and every request is computed again with them from its first
 * token. The old ones stay beside, for engine_call_workers of reload_weights {"phase": "rollback"}, until the next
 * reload or {"phase": "drop"}. The text of the answer is {"fingerprint", "version"}, as engine_stats has them. One
 * rank that can't load them is enough for none to take them. ERR_INVALID: the path is not UTF-8.
 */
MUST_USE enum status engine_reload_weights(struct engine *engine, const char *path,
                                           engine_listener *listener, void *user);

/* ---- out --------------------------------------------------------------------------------------- */

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_ABORT, FINISH_ERROR };
const char *finish_reason_name(enum finish_reason reason); /* "stop", "length", "abort", "error" */

struct top_logprob {
    token_id token;
    float logprob;
};

struct token_logprobs { /* of one token, from the raw logits as vLLM's default */
    float logprob;      /* of the token that was sampled, or that the prompt has */
    int32_t rank;       /* 1: it was the most likely */
    int32_t num_top;
    const struct top_logprob *top; /* [num_top], most likely first */
};

struct engine_event { /* what one step brought one request */
    request_id id;
    int32_t num_tokens; /* 0 or more new tokens */
    const token_id *tokens;
    const struct token_logprobs *logprobs; /* [num_tokens], or NULL when not asked for */
    /* [num_prompt_tokens - 1], of the prompt's tokens from the second on: with the first token, where they
     * were asked for, else NULL. */
    const struct token_logprobs *prompt_logprobs;
    enum finish_reason finish;
    token_id stop_token;    /* FINISH_STOP: the id that ended it (also the last of tokens), else -1 */
    bool grammar_is_complete; /* these tokens end with the stop token that the grammar allowed */
    enum status error;      /* FINISH_ERROR: why, with its sentence */
    const char *error_text;
    int32_t num_prompt_tokens;
    int32_t num_output_tokens; /* so far, these included */
    int32_t num_cached_tokens; /* of the prompt, found in the prefix cache */
    int64_t queued_ns, scheduled_ns, now_ns; /* CLOCK_MONOTONIC: submitted, first scheduled, this event */
};

/* All events of one step. Everything it points to lives until engine_output_free. */
struct engine_output {
    int32_t num_events;
    const struct engine_event *events;
};

/* Readable while there is output to poll. Owned by the engine. */
int engine_fd(const struct engine *engine);
/* The oldest output not yet taken, or NULL. The caller frees it. Every request gets exactly one
 * event with finish != FINISH_NONE, also when the engine fails. */
struct engine_output *engine_poll(struct engine *engine);
void engine_output_free(struct engine_output *output); /* NULL is fine */

/* ---- about -------------------------------------------------------------------------------------- */

/* capacity: for room; deferred: for something of its own, a grammar. */
enum waiting_reason { WAITING_CAPACITY, WAITING_DEFERRED, NUM_WAITING_REASONS };

enum admission_limit { LIMIT_QUEUED_REQS, LIMIT_QUEUED_TOKENS, NUM_ADMISSION_LIMITS };

/* Steps by the tokens scheduled in them: at most 1, 8, 16, 32, ... 16384, and more. */
enum { NUM_STEP_SIZES = 14 };
static inline int32_t step_size_bound(int32_t i) /* the last has none */
{
    return i == 0 ? 1 : 4 << i;
}

struct engine_stats {
    enum engine_phase phase;
    enum status failure_status; /* PHASE_FAILED: what it was */
    char failure[256];          /* its sentence; in other phases why ranks had to be replaced last, "": they never had */
    int32_t num_ranks, num_ranks_alive; /* alive: WORKER_READY */
    int32_t num_running;
    int32_t num_waiting; /* those whose grammar is not there yet included */
    int32_t num_waiting_by_reason[NUM_WAITING_REASONS];
    int32_t num_kv_blocks, num_kv_blocks_used;
    enum kv_type kv_type;
    int64_t kv_token_bytes; /* of all ranks together */
    int32_t max_model_len;
    bool is_paused;
    bool is_asleep; /* by the call of that name: requests wait for wake_up */
    char fingerprint[17];    /* of the weights in use */
    int64_t weights_version; /* how often others took their place */
    int64_t num_steps;
    int64_t progress_ns; /* CLOCK_MONOTONIC: when a step ended last, or when there was nothing to do */
    int64_t num_recoveries; /* of the set of ranks, with */
    int64_t recovery_ns;    /* what the last took: from the failure until ranks were ready */
    int64_t recovery_sum_ns; /* what all took together */
    int64_t num_preemptions;
    int32_t prompt_limit; /* tokens of prompts in a step beside those that decode; -1: none */
    int64_t decode_ns;    /* what a step that only decodes takes; 0: not known */
    int64_t num_late_masks;     /* for which steps did not wait: the request came back later */
    int64_t prompt_tokens;      /* computed or found in the prefix cache */
    int64_t generation_tokens;
    int64_t prefix_cache_queries, prefix_cache_hits; /* tokens; of preempted requests once */
    int64_t recent_prefix_cache_queries, recent_prefix_cache_hits; /* of the last 1000 requests */
    int64_t admission_rejections[NUM_ADMISSION_LIMITS]; /* by engine_check_admission */
    int64_t finished[FINISH_ERROR + 1];              /* requests, by reason */
    int64_t iteration_tokens_sum;                    /* tokens scheduled, over all steps */
    int64_t steps_by_size[NUM_STEP_SIZES];
};

void engine_stats(const struct engine *engine, struct engine_stats *out);
int32_t engine_max_model_len(const struct engine *engine);

/* Bytes of all ranks together, as they hold them. */
struct engine_memory {
    int64_t weight_bytes;
    int64_t step_weight_bytes; /* of which every step reads all */
    int64_t kv_block_bytes;    /* of a KV block, over all layers */
};
void engine_memory(const struct engine *engine, struct engine_memory *out);

#endif
