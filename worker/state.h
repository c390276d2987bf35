/*
 * state: a worker to its own files, which are one class in five pieces. Two threads meet in it:
 *
 *   worker.c        wire: life, and the verbs of a step
 *   changes.c       wire: sleep, wake-up, and weights of another file
 *   device_loop.c   device: loads, obeys commands, and makes the changes
 *   device_step.c   device: runs steps and answers them when the device has finished
 *   device_ranks.c  device: how this rank reaches the others
 *
 * What crosses goes through the two mailboxes, or is atomic; each member says whose it is.
 */
#ifndef WORKER_STATE_H
#define WORKER_STATE_H

#include "worker/worker.h"

#include "kernels/kernels.h"
#include "proto/base/mailbox.h"
#include "worker/device_draw.h"
#include "worker/input_batch.h"
#include "worker/models/model.h"
#include "worker/prompt_logprobs.h"
#include "worker/reload.h"
#include "worker/sampler.h"

#include <pthread.h>
#include <stdatomic.h>

enum { NUM_STEPS = 2 }; /* staged or running at a time: slot step & 1 */

enum verb {
    VERB_CONNECT,
    VERB_INITIALIZE_KV_CACHE,
    VERB_EXECUTE_MODEL,
    VERB_SAMPLE,
    VERB_RESET,
    VERB_SLEEP,
    VERB_WAKE_UP,
    VERB_SWAP_WEIGHTS,
    VERB_DROP_WEIGHTS,
    VERB_STOP
};

/* From the wire thread to the device thread. */
struct command {
    struct mail mail;
    enum verb verb;
    int64_t step;
    int32_t num_blocks; /* VERB_INITIALIZE_KV_CACHE */
    int32_t sleep_level; /* VERB_SLEEP */
    struct worker_meeting meeting; /* VERB_CONNECT; it owns net, the rest is in worker.meeting */
};

/* From the device thread to the wire thread: what a command came to. */
struct answer {
    struct mail mail;
    int64_t step; /* -1: of all but steps */
    enum status status;
    char text[1024]; /* of a failure */
    struct arena arena;
    struct model_runner_output output;
};

/* Where the device is in a step. Its answer is not to be given before the end. */
struct step_marks {
    int64_t step;
    struct device_mark begin, executed, sample_begin, end;
};

/* Where a step is, as the wire thread sees it: calls that come out of order are refused. */
enum step_phase { PHASE_EMPTY, PHASE_PREPARED, PHASE_EXECUTING, PHASE_SAMPLING };

struct step_slot {
    enum step_phase phase;
    struct command execute, sample;
    struct answer answer;
    struct step_marks marks; /* the device thread's */
    bool is_drawn_there; /* on the device, which has its tokens until it has passed marks.end */
    struct arena grammar_arena;
    const uint32_t **bitmasks; /* [max_num_seqs] by sample: NULL where none is due */
};

/* Where weights come from. */
struct origin {
    const struct model_file *file;
    struct model_file *owned; /* the same, unless it is the caller's */
    uint64_t fingerprint;
};

struct worker {
    struct worker_options options;
    const struct model_file *file; /* the words and the shape */
    pthread_t thread;
    bool thread_runs;
    _Atomic bool is_given_up; /* what is being loaded is nobody's any more */
    struct mailbox commands, answers;
    struct mail stopped; /* the device thread's last word */
    struct command connect, initialize, reset, stop;
    struct answer setup;
    struct answer met; /* what connecting came to */
    struct arena meeting;
    bool is_connecting;
    enum status met_status; /* the last time */
    _Atomic bool gives_up_meeting;
    struct command change; /* sleep, wake-up, swap or drop */
    struct answer changed;
    bool is_changing; /* it is on its way */
    struct reload *reload; /* NULL: nothing is being loaded */
    enum status change_status; /* what the last change came to */
    struct worker_weights weights;
    char refusal[1024];
    bool is_loaded, is_connected;
    int64_t next_step; /* the one prepare_inputs may name; -1: any */
    struct step_slot steps[NUM_STEPS];
    struct worker_memory memory; /* the device thread's until the load is answered */
    int64_t available_bytes;     /* likewise, until the meeting is */

    struct input_batch *batch; /* see there for what belongs to whom */

    /* the device thread's */
    struct device *device;
    struct comm *comm; /* of the hosts; the wire thread may abort it while it is connected */
    _Atomic(struct comm *) meeting_comm; /* the same, for the wire thread to abort while ranks meet */
    struct comm *device_comm; /* over it, of what lies in devices with memory of their own; NULL: they share the host's */
    struct model *model; /* NULL: asleep without weights */
    struct model *spare; /* beside it; NULL: none */
    struct origin origin, spare_origin; /* the wire thread's while nothing changes */
    int64_t undropped_bytes; /* of origin.file, from its start: what was read of them is to be given back */
    struct sampler *sampler; /* NULL: the device draws without logits */
    struct prompt_logprobs *prompt_logprobs;
    struct device_draw *device_draw; /* NULL: the sampler draws all */
    int32_t *slots;                  /* [max_num_seqs]: scratch */
    struct device_mirror logits; /* float: [max_num_seqs, tokens of this rank's shard] */
    struct sampler_row *rows;          /* [max_num_seqs] */
    struct sampler_result *results;    /* [max_num_seqs] */
    struct answer *pending[NUM_STEPS]; /* launched, in order of steps, and not answered */
    int32_t num_pending;
    struct step_marks late[NUM_STEPS]; /* answered before their end, and their times not told, the oldest first */
    int32_t num_late;
    int64_t last_end_ns; /* of the device's last step; 0: it has had none */
    bool has_failed;

    _Atomic int64_t device_step, device_since_ns; /* for the heartbeat */
    struct {
        _Atomic int64_t weights_bytes, kv_cache_bytes, workspace_bytes, free_bytes, total_bytes;
    } held; /* likewise */
    struct work_count work;
};

/* ---- worker.c, wire thread --------------------------------------------------------------------- */

void worker_command(struct worker *worker, struct command *command);
/* true: it was what a change came to, or the ranks' meeting. */
bool worker_take_change(struct worker *worker, struct mail *mail);

/* ---- changes.c, wire thread ----------------------------------------------------------------------- */

void worker_end_change(struct worker *worker);
void worker_end_reload(struct worker *worker);

/* ---- device_loop.c ------------------------------------------------------------------------------- */

void *worker_device_loop(void *worker); /* the device thread */
/* Device thread. A status that is not OK is the rank's failure: no step is run until a reset. */
void worker_reply(struct worker *worker, struct answer *answer, int64_t step, enum status status);
struct model_options worker_model_options(struct worker *worker);           /* any thread, like those below */
int32_t worker_cublaslt_rows(const struct worker_options *options);
void worker_count_model(const struct model *model, struct memory_held *held); /* NULL: nothing; each adds its own */

/* ---- device_step.c, device thread --------------------------------------------------------------- */

/* What tokens are drawn from, and, on the device, by what; after the model has been loaded. */
enum status worker_open_drawing(struct worker *worker);
void worker_close_drawing(struct worker *worker);
/* What knows of requests and of the other ranks; they come and go with these. */
void worker_make_sampler(struct worker *worker);
void worker_drop_sampler(struct worker *worker);
/* Runs the step, or launches it where the device runs behind. */
void worker_run_step(struct worker *worker, const struct command *command);
/* Gives the answers of steps that the device has finished; says when to look for the next one. */
int64_t worker_answer_steps(struct worker *worker);

/* ---- device_ranks.c, device thread -------------------------------------------------------------- */

/* Whatever reaches the other ranks, or knows of requests. */
enum status worker_connect_ranks(struct worker *worker, const struct command *command);
void worker_disconnect_ranks(struct worker *worker);
/* After the model has become another. */
void worker_connect_model(struct worker *worker);
/* By which the model's sums go; who aborts it, or asks it whom it waits for, means that of the hosts too. NULL: there is
 * one rank. */
struct comm *worker_layers_comm(const struct worker *worker);
struct model_comm_bytes worker_comm_bytes(const struct worker *worker); /* any thread, like that below */
int64_t worker_comm_buffer_bytes(const struct worker *worker);

#endif
