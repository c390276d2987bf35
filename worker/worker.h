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
#include "proto/model/kv_type.h"
#include "proto/model/model_file.h"
#include "proto/model/sim.h"
#include "proto/wire/messages.h"
#include "worker/work_count.h"

struct config;
struct worker;

struct worker_options {
    int32_t rank, world;
    int32_t local_rank, local_world; /* among those that share this host's cores; world 0: all do */
    int32_t num_threads;        /* of the device, its own thread included */
    bool inexact_sums;          /* world 1: see model_options */
    bool records_nothing;       /* see model_options */
    bool over_mpi;              /* ranks will meet by MPI: they join it before they load, as it takes its time */
    bool binds_threads;         /* where proto/base/cpus.h has places for them; never the wire thread */
    const char *isa;            /* NULL: the best there is */
    const char *device;         /* "cpu", "cuda", or "auto": cuda if it can be had; NULL: cpu */
    const char *cuda_module;    /* see device_options; NULL: beside the program */
    const char *device_comm, *nccl; /* see comm_device_options; NULL: auto, and as the system finds it */
    bool batch_varies;          /* a row's bits may depend on its batch: GPUs multiply by cuBLASLt */
    const char *cublaslt;       /* see device_options; NULL: as the system finds it */
    const struct sim_device *sim; /* borrowed: a device that only takes time, like this; NULL: the CPU */
    struct injected_fault fault; /* zeroed: none */
    enum kv_type kv_type;
    int32_t max_num_seqs;
    int32_t max_batched_tokens;
    int32_t max_model_len;
    /* Called on the device thread while it loads; may be NULL. */
    void (*progress)(void *user, double fraction);
    void *user;
};

/* What a config says of any rank, and zeros for the rest: which one it is, its threads, how ranks meet. *sim takes the
 * device of --sim and is borrowed by *out, as the config's texts are. ERR_INVALID, and those of sim_file_read. */
MUST_USE enum status worker_options_read(const struct config *config, struct sim_device *sim,
                                         struct worker_options *out);

/* What a loaded worker tells the engine. */
struct worker_memory {
    int64_t weight_bytes;
    int64_t step_weight_bytes; /* that every step reads */
    int64_t workspace_bytes;
    int64_t kv_block_bytes;
    int64_t available_bytes; /* for KV, after loading; where ranks meet, worker_available_bytes counts */
    int32_t first_token, num_tokens; /* whose masks it wants: see grammar_output_slice */
};

/* Starts the device thread, which begins to load. `model` is borrowed until the worker is freed. */
MUST_USE enum status worker_new(const struct worker_options *options,
                                const struct model_file *model, struct worker **out);
void worker_free(struct worker *worker); /* NULL is fine; waits for the step that runs */
DEFINE_AUTO_FREE(worker)
/* Aborts, gives up a load, and ends the device thread. false: it has not come back in time, and never may: then the
 * worker and all that it borrows stay, in use by it, for as long as the process lives. */
MUST_USE bool worker_stop(struct worker *worker);

/* Readable while there is something to collect: a load that ended, an answer, a fault. */
int worker_output_fd(const struct worker *worker);

/* Waits until the weights are loaded; the failure is the device thread's. */
MUST_USE enum status worker_wait_loaded(struct worker *worker, struct worker_memory *memory_out);
/* true: worker_wait_loaded has returned OK. */
bool worker_is_loaded(const struct worker *worker);
/* Sets up a file that `num_ranks` ranks of this host are to share, of the size that they need. */
MUST_USE enum status worker_create_shared(const struct worker *worker, int32_t num_ranks,
                                          const char *path);

/* How the ranks of a set reach each other: those of one host through memory, hosts by one rank of each. */
struct comm_net;
struct worker_meeting {
    const int32_t *hosts; /* [world]: of each rank, the first rank on its host */
    bool over_mpi;        /* all by MPI, see comm_mpi.h: the rest is nothing */
    const char *path;     /* what worker_create_shared made for this host's ranks; NULL: there is one */
    struct comm_net *net; /* listens; taken; used by a host's first rank where there are several hosts; may be NULL else */
    uint64_t session;     /* of the mesh: see comm_net.h */
    int32_t epoch;
    const char *const *endpoints; /* [world] */
};
/* Begins to meet the other ranks: where world is more than 1, once loaded and once after each reset. */
MUST_USE enum status worker_connect_begin(struct worker *worker, const struct worker_meeting *meeting);
/* Is it over, if need be after waiting? The failure is the meeting's, then. */
MUST_USE enum status worker_connect_end(struct worker *worker, bool wait, bool *is_over_out);
/*
 * For KV, as measured when the ranks had met. All have loaded then, so a GPU that several share holds all but KV;
 * and NCCL has added up and gathered arrays of all sizes, so it has taken what it keeps of the device, and nobody needs
 * to guess how much that is. After a reset it is what is left beside the KV cache.
 */
int64_t worker_available_bytes(const struct worker *worker);
/* Both. */
MUST_USE enum status worker_connect(struct worker *worker, const struct worker_meeting *meeting);
/* Sizes the KV cache before the first step, and records passes: see model_record. Once more with the same number is
 * fine, and due when the ranks have met anew: the cache's contents are worth nothing after a reset, its memory
 * is. */
MUST_USE enum status worker_initialize_kv_cache(struct worker *worker, int32_t num_blocks);
/*
 * The other ranks are gone, or as good as that: gives up the steps in hand, forgets every request, and leaves the
 * memory that it shares with them. The weights stay. ERR_TIMEOUT: the device does not come back.
 */
MUST_USE enum status worker_reset(struct worker *worker);

/* ---- memory and weights, between steps ----------------------------------------------------------- */

/*
 * Each of these begins a change, one at a time; worker_finish tells what it came to. They are refused with
 * ERR_MISMATCH while a step is in hand or another change goes on, and steps are refused until it is over.
 *
 * Sleep, and any exchange of weights, loses every request and all KV: the engine starts them over. Asleep at level 1
 * the KV cache's memory is given back, at level 2 that of the weights too; no step runs until it is awake.
 */
MUST_USE enum status worker_sleep(struct worker *worker, int32_t level); /* ERR_INVALID: neither 1 nor 2 */
/* Weights come from the file that they came from: ERR_CORRUPT when that is another now. Awake: nothing to do. */
MUST_USE enum status worker_wake_up(struct worker *worker);
/* Loads the weights of another file beside those in use. Steps may go on meanwhile: it is the one change that
 * does not keep them out. Refusals: see reload_end; nothing has changed then. */
MUST_USE enum status worker_load_weights(struct worker *worker, const char *path);
/* Those that were loaded take the place of those in use, which are kept; and back. ERR_MISMATCH: there are none,
 * or their fingerprint is not this one (NULL: any). */
MUST_USE enum status worker_swap_weights(struct worker *worker, const char *fingerprint);
MUST_USE enum status worker_roll_weights_back(struct worker *worker);
/* Frees those that are not in use; none is fine. */
MUST_USE enum status worker_drop_weights(struct worker *worker);
/* Is the change over, if need be after waiting? The failure is the change's, then. */
MUST_USE enum status worker_finish(struct worker *worker, bool wait, bool *is_over_out);

enum spare_weights { SPARE_NONE, SPARE_LOADING, SPARE_LOADED, SPARE_REPLACED, SPARE_REFUSED };

/* As of the last change. */
struct worker_weights {
    char fingerprint[17]; /* of those in use, as of READY */
    int32_t sleep_level;
    enum spare_weights spare; /* beside them */
    char spare_fingerprint[17];
    int64_t spare_bytes;
    double fraction, load_ms;       /* of the last load */
    const char *refusal;            /* SPARE_REFUSED: why */
    int64_t kv_bytes, weight_bytes; /* that the last sleep, wake-up or drop gave back or took */
};
struct worker_weights worker_weights(const struct worker *worker);

/* ---- procedures by name ------------------------------------------------------------------------- */

/*
 * What an engine may call on every rank: the rows of calls.c.
 *
 *   sleep {"level": 1 | 2}      wake_up {}
 *   reload_weights {"phase": "load" | "begin", "path"}      begin: the reply does not wait for the load
 *   reload_weights {"phase": "swap", "fingerprint" if only that will do}
 *   reload_weights {"phase": "status" | "rollback" | "drop"}
 *   stacks {}
 */
struct worker_call {
    const struct worker_procedure *procedure; /* NULL: none goes on */
};
/* args: a JSON object. ERR_NOT_FOUND: there is no such procedure; ERR_INVALID: not with such arguments. */
MUST_USE enum status worker_call_begin(struct worker *worker, const char *name, const char *args,
                                       struct worker_call *out);
/* Is it over, if need be after waiting? Then reply gets JSON, or the failure is returned. While it goes on, worker_output_fd
 * becomes readable when it may be over. */
MUST_USE enum status worker_call_end(struct worker *worker, struct worker_call *call, bool wait,
                                     struct bytes *reply, bool *is_over_out);

/* ---- steps --------------------------------------------------------------------------------------- */

/* A step is prepared, and its answer not collected. */
bool worker_has_steps(const struct worker *worker);
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

/* What the rank's memory went to; any thread. */
struct memory_held worker_memory_held(const struct worker *worker);

/* Wakes and fails whatever waits for other ranks. */
void worker_abort(struct worker *worker);

/* Where the device thread is. */
struct worker_progress {
    int64_t step; /* on the device now; -1: none */
    int64_t ns_in_step;
    int64_t num_done;  /* pieces of work, at least one for each layer that it loads or runs */
    int32_t waits_for; /* the rank without which it can't go on; -1: none */
    struct pass_counts passes;
};
struct worker_progress worker_progress(const struct worker *worker); /* alone: any thread */

#endif
