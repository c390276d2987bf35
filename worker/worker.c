#include "worker/worker.h"

#include "kernels/kernels.h"
#include "proto/base/clock.h"
#include "proto/base/cpus.h"
#include "proto/base/log.h"
#include "proto/base/mailbox.h"
#include "proto/base/trace.h"
#include "worker/comm_hosts.h"
#include "worker/comm_mpi.h"
#include "worker/comm_net.h"
#include "worker/device_draw.h"
#include "worker/input_batch.h"
#include "worker/models/model.h"
#include "worker/prompt_logprobs.h"
#include "worker/reload.h"
#include "worker/sampler.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { NUM_STEPS = 2 }; /* staged or running at a time: slot step & 1 */

/* One rank's share of an exchange at most; longer sums go in pieces. */
enum { MIN_COMM_BYTES = 1 << 20 };
/* The engine tells all ranks at once. NCCL looks for networks, and for the ways between all GPUs. */
enum { MEET_TIMEOUT_MS = 2000, NCCL_TIMEOUT_MS = 60000 };

/* Fewer rows take the time of reading the weights, which cuda/matmul_half.cu does with one launch where cuBLASLt
 * wants two. */
enum { CUBLASLT_ROWS = 9 };

/* From an abort to the device's return: the rest of a kernel, or of a layer that is loaded, and the waits that follow
 * it. */
enum { RESET_TIMEOUT_MS = 2000 };

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

/* ---- the device thread ---------------------------------------------------------------------- */

/* The tokens whose masks this rank wants: its shard's. A device without logits draws from them all.
 */
static void find_slice(const struct worker *worker, int32_t *first_token_out,
                       int32_t *num_tokens_out)
{
    const struct shard *shard = model_shard(worker->model);
    bool has_logits = !device_kernels(worker->device)->draw;

    *first_token_out = has_logits ? shard->first_token : 0;
    *num_tokens_out =
        has_logits ? shard->num_tokens : model_file_vocabulary(worker->file)->num_tokens;
}

static int64_t logits_row_bytes(const struct worker *worker)
{
    return model_shard(worker->model)->num_tokens * (int64_t)sizeof(float);
}

static enum status make_logits(struct worker *worker)
{
    int64_t max_rows = worker->options.max_num_seqs;

    worker->rows = mem_new_array(struct sampler_row, max_rows);
    worker->results = mem_new_array(struct sampler_result, max_rows);
    if (device_kernels(worker->device)->draw)
        return OK;
    return device_mirror_open(worker->device, max_rows * logits_row_bytes(worker), "the logits", &worker->logits);
}

static void make_sampler(struct worker *worker)
{
    const struct worker_options *options = &worker->options;
    const struct shard *shard = model_shard(worker->model);

    if (!device_kernels(worker->device)->draw)
        worker->sampler = sampler_new(&(struct sampler_options){
            .vocab_size = model_file_config(worker->file)->vocab_size,
            .first_token = shard->first_token,
            .num_tokens = shard->num_tokens,
            .max_rows = options->max_num_seqs,
            .rank = options->rank,
            .world = options->world,
            .comm = worker->comm,
            .device = worker->device,
            .work = &worker->work,
        });
    worker->prompt_logprobs = prompt_logprobs_new(&(struct prompt_logprobs_options){
        .model = worker->model,
        .sampler = worker->sampler,
        .batch = worker->batch,
        .device = worker->device,
        .logits = &worker->logits,
        .max_rows = options->max_num_seqs,
        .vocab_size = model_file_config(worker->file)->vocab_size,
    });
}

static enum status make_device_draw(struct worker *worker)
{
    int32_t max_rows = worker->options.max_num_seqs, world = worker->options.world;
    AUTO_MEM int32_t *first_tokens = mem_new_array(int32_t, world + 1);

    worker->slots = mem_new_array(int32_t, max_rows);
    if (!device_kernels(worker->device)->draw_rows)
        return OK;
    for (int32_t rank = 0; rank < world; rank++) {
        struct shard shard;

        TRY(shard_init(model_file_config(worker->file), rank, world, &shard));
        first_tokens[rank] = shard.first_token;
        first_tokens[rank + 1] = shard.first_token + shard.num_tokens;
    }
    return device_draw_new(worker->device,
                           &(struct device_draw_limits){.rows = max_rows,
                                                        .slots = num_slots_for(max_rows),
                                                        .first_tokens = first_tokens,
                                                        .rank = worker->options.rank,
                                                        .world = world},
                           &worker->device_draw);
}

static struct model_comm_bytes comm_bytes(const struct worker *worker)
{
    return model_comm_bytes(model_file_config(worker->file), worker->options.max_batched_tokens);
}

static int64_t comm_buffer_bytes(const struct worker *worker)
{
    return MAX(comm_bytes(worker).buffer, (int64_t)MIN_COMM_BYTES);
}

/* This rank's place among `count` of its own: those of its host, or the first ranks of all hosts. */
struct place {
    int32_t place, count;
};

static struct place find_local(const struct worker_options *options, const int32_t *hosts)
{
    struct place found = {0};

    for (int32_t rank = 0; rank < options->world; rank++) {
        found.place += rank < options->rank && hosts[rank] == hosts[options->rank];
        found.count += hosts[rank] == hosts[options->rank];
    }
    return found;
}

/* endpoints: [world], of the first ranks alone. */
static struct place find_host(const struct worker_options *options,
                              const struct worker_meeting *meeting, const char **endpoints)
{
    struct place found = {0};

    for (int32_t rank = 0; rank < options->world; rank++) {
        if (meeting->hosts[rank] != rank)
            continue;
        found.place += rank < options->rank;
        endpoints[found.count++] = meeting->endpoints ? meeting->endpoints[rank] : NULL;
    }
    return found;
}

/* Among the hosts, of which this rank is the first of one; takes the net. */
static enum status join_hosts(const struct worker *worker, const struct worker_meeting *meeting,
                              struct comm_net *net, struct place host, const char *const *endpoints,
                              struct comm **out)
{
    AUTO_FREE(comm_net) struct comm_net *taken = net;

    if (!net)
        return fail(ERR_MISMATCH, "rank %d is the first of one of %d hosts, and does not listen",
                    worker->options.rank, host.count);
    TRY(comm_net_join(net,
                      &(struct comm_net_group){.rank = host.place,
                                               .world = host.count,
                                               .session = meeting->session,
                                               .epoch = meeting->epoch,
                                               .endpoints = endpoints,
                                               .buffer_bytes = comm_buffer_bytes(worker)},
                      clock_deadline_ns(MEET_TIMEOUT_MS), out));
    taken = NULL; /* the comm's now */
    return OK;
}

static enum status open_comms(const struct worker *worker, const struct worker_meeting *meeting,
                              struct comm **local, struct comm **net)
{
    const struct worker_options *options = &worker->options;
    AUTO_FREE(comm_net) struct comm_net *listener = meeting->net;
    AUTO_MEM const char **endpoints = mem_new_array(const char *, (size_t)options->world);
    struct place place = find_local(options, meeting->hosts),
                 host = find_host(options, meeting, endpoints);

    if (place.count > 1)
        TRY(comm_open(meeting->path, place.place, place.count, local));
    if (place.place == 0 && host.count > 1)
        TRY(join_hosts(worker, meeting, give(listener), host, endpoints, net));
    return OK;
}

static enum status open_comm(struct worker *worker, const struct worker_meeting *meeting)
{
    const struct worker_options *options = &worker->options;
    struct comm *local = NULL, *net = NULL;
    enum status status;
    int32_t num_local;

    if (options->sim) {
        comm_net_free(meeting->net);
        return comm_open_sim(worker->device, options->world, &worker->comm);
    }
    if (meeting->over_mpi)
        return comm_mpi_open(comm_buffer_bytes(worker), clock_deadline_ns(MEET_TIMEOUT_MS), &worker->comm);
    num_local = find_local(options, meeting->hosts).count;
    status = open_comms(worker, meeting, &local, &net);
    if (status == OK && num_local > 1 && num_local < options->world)
        status = comm_hosts_new(&(struct comm_hosts_group){.rank = options->rank,
                                                           .world = options->world,
                                                           .hosts = meeting->hosts,
                                                           .buffer_bytes = comm_buffer_bytes(worker)},
                                local, net, &worker->comm);
    else if (status == OK)
        worker->comm = local ? local : net;
    if (status != OK) {
        comm_close(net);
        comm_close(local);
    }
    return status;
}

static bool is_on_one_host(const struct worker *worker, const struct worker_meeting *meeting)
{
    return !meeting->over_mpi && find_local(&worker->options, meeting->hosts).count == worker->options.world;
}

static enum status open_device_comm(struct worker *worker, const struct worker_meeting *meeting)
{
    const struct worker_options *options = &worker->options;

    atomic_store(&worker->meeting_comm, worker->comm);
    if (atomic_load(&worker->gives_up_meeting))
        return fail(ERR_ABORTED, "the ranks meet anew");
    return comm_open_device(worker->device, worker->comm,
                            &(struct comm_device_options){.rank = options->rank,
                                                          .is_one_host = is_on_one_host(worker, meeting),
                                                          .by = options->device_comm,
                                                          .nccl = options->nccl,
                                                          .timeout_ms = NCCL_TIMEOUT_MS},
                            &worker->device_comm);
}

/* By which the model's sums go; who aborts it, or asks it whom it waits for, means that of the hosts too. */
static struct comm *layers_comm(const struct worker *worker)
{
    return worker->device_comm ? worker->device_comm : worker->comm;
}

static void connect_model(struct worker *worker)
{
    model_connect(worker->model, layers_comm(worker));
}

/* Whatever reaches the other ranks, or knows of requests. */
static enum status connect_ranks(struct worker *worker, const struct command *command)
{
    if (worker->options.world > 1)
        TRY(open_comm(worker, &command->meeting));
    if (worker->comm && device_has_own_memory(worker->device))
        TRY(open_device_comm(worker, &command->meeting));
    connect_model(worker);
    make_sampler(worker);
    return OK;
}

static void drop_sampler(struct worker *worker)
{
    prompt_logprobs_free(give(worker->prompt_logprobs));
    sampler_free(give(worker->sampler));
}

static void disconnect_ranks(struct worker *worker)
{
    drop_sampler(worker);
    if (worker->model)
        model_connect(worker->model, NULL);
    atomic_store(&worker->meeting_comm, NULL);
    comm_close(give(worker->device_comm));
    comm_close(give(worker->comm));
}

/* Where the device's threads are to run: [num_threads]; false: anywhere. */
static bool find_place(const struct worker_options *options, cpu_set_t *sets)
{
    AUTO_FREE(cpus) struct cpus *cpus = NULL;

    if (!options->binds_threads || options->sim)
        return false;
    if (cpus_open(NULL, &cpus) != OK) {
        log_warn("threads are not bound: %s", fail_text());
        return false;
    }
    return cpus_place(cpus, options->local_rank, options->local_world, options->num_threads, sets);
}

static bool is_device(const struct worker_options *options, const char *name)
{
    return options->device && strcmp(options->device, name) == 0;
}

static int32_t cublaslt_rows(const struct worker_options *options)
{
    return options->batch_varies ? CUBLASLT_ROWS : 0;
}

/* Before anything is allocated, so that memory is on the node of the threads that write it first. */
static enum status open_device(const struct worker_options *options, struct device **out)
{
    AUTO_MEM cpu_set_t *sets = mem_new_array(cpu_set_t, (size_t)options->num_threads);
    bool is_placed = find_place(options, sets);
    struct device_options device = {.name = options->sim ? "sim" : "cuda",
                                    .isa = options->isa,
                                    .num_threads = options->num_threads,
                                    .cpus = is_placed ? sets : NULL,
                                    .sim = options->sim,
                                    .ordinal = options->local_rank,
                                    .num_users = options->local_world,
                                    .module = options->cuda_module,
                                    .cublaslt_rows = cublaslt_rows(options),
                                    .cublaslt = options->cublaslt};

    log_debug("%d threads, %s", options->num_threads, is_placed ? "bound" : "not bound");
    if (options->sim || is_device(options, "cuda"))
        return device_open(&device, out);
    if (is_device(options, "auto")) {
        enum status status = device_open(&device, out);

        if (status == OK || status == ERR_NOT_FOUND) /* a GPU is there */
            return status;
        log_warn("the CPU is used: %s", fail_text());
    }
    if (options->batch_varies)
        log_warn("--batch-invariant off changes nothing on a CPU: a row has the same bits in any batch there");
    device.name = "cpu";
    return device_open(&device, out);
}

static struct model_options model_options_of(struct worker *worker)
{
    const struct worker_options *options = &worker->options;

    return (struct model_options){
        .rank = options->rank,
        .world = options->world,
        .max_batched_tokens = options->max_batched_tokens,
        .max_logit_rows = options->max_num_seqs,
        .kv_type = options->kv_type,
        .inexact_sums = options->inexact_sums,
        .records_nothing = options->records_nothing,
        .work = &worker->work,
        .max_position = options->max_model_len,
    };
}

static enum status load_weights(struct worker *worker)
{
    struct model_options options = model_options_of(worker);

    options.is_given_up = &worker->is_given_up;
    options.progress = worker->options.progress;
    options.user = worker->options.user;
    return model_load(worker->device, worker->origin.file, &options, &worker->model);
}

static void set(_Atomic int64_t *place, int64_t value)
{
    atomic_store_explicit(place, value, memory_order_relaxed);
}

/* Each one that there is adds its own. */
static void count_model(const struct model *model, struct memory_held *held)
{
    if (!model)
        return;
    held->weights_bytes += model_weight_bytes(model);
    held->kv_cache_bytes += model_kv_bytes(model);
    held->workspace_bytes += model_workspace_bytes(model);
}

/* Whenever what the device holds has changed. */
static struct device_memory note_memory(struct worker *worker)
{
    struct device_memory memory = device_memory(worker->device);
    struct memory_held held = {.workspace_bytes = worker->logits.bytes};

    count_model(worker->model, &held);
    count_model(worker->spare, &held);
    set(&worker->held.weights_bytes, held.weights_bytes);
    set(&worker->held.kv_cache_bytes, held.kv_cache_bytes);
    set(&worker->held.workspace_bytes, held.workspace_bytes);
    set(&worker->held.free_bytes, memory.free_bytes);
    set(&worker->held.total_bytes, memory.total_bytes);
    return memory;
}

static double in_gib(int64_t bytes)
{
    return (double)bytes / (1 << 30);
}

/* A GPU's in the log; a host's memory is in /metrics, and in `tandem ctl workers`. */
static void tell_memory(const struct worker *worker)
{
    struct memory_held held = worker_memory_held(worker);

    if (worker->options.sim || !device_has_own_memory(worker->device))
        return;
    log_info("rank %d holds %.2f GiB of weights, %.2f GiB of KV cache and %.2f GiB of workspaces; %.2f of the "
             "%.2f GiB of its GPU are free",
             worker->options.rank, in_gib(held.weights_bytes), in_gib(held.kv_cache_bytes),
             in_gib(held.workspace_bytes), in_gib(held.free_bytes), in_gib(held.total_bytes));
}

static enum status alloc_kv_cache(struct worker *worker, int32_t num_blocks)
{
    TRY(model_alloc_kv(worker->model, num_blocks));
    note_memory(worker);
    tell_memory(worker);
    return OK;
}

static enum status load(struct worker *worker)
{
    const struct worker_options *options = &worker->options;

    /* MPI's own threads are not to be bound to this one's core. */
    if (options->over_mpi && options->world > 1 && !options->sim)
        TRY(comm_mpi_start(NULL, options->rank, options->world));
    TRY(open_device(options, &worker->device));
    TRY(load_weights(worker));
    worker->origin.fingerprint = model_file_fingerprint(worker->file);
    model_file_drop_pages(worker->file);
    TRY(make_logits(worker));
    TRY(make_device_draw(worker));
    if (options->world == 1)
        TRY(connect_ranks(worker, &worker->connect));
    worker->memory = (struct worker_memory){
        .weight_bytes = model_weight_bytes(worker->model),
        .step_weight_bytes = model_step_weight_bytes(worker->model),
        .workspace_bytes = model_workspace_bytes(worker->model),
        .kv_block_bytes = model_kv_block_bytes(worker->model),
        .available_bytes = note_memory(worker).available_bytes,
    };
    find_slice(worker, &worker->memory.first_token, &worker->memory.num_tokens);
    return OK;
}

static void unload(struct worker *worker)
{
    disconnect_ranks(worker);
    mem_free(worker->rows);
    mem_free(worker->results);
    model_free(worker->model);
    model_free(worker->spare);
    mem_free(worker->slots);
    device_draw_free(worker->device_draw);
    if (worker->device)
        device_mirror_close(worker->device, &worker->logits);
    device_close(worker->device);
}

static void reply(struct worker *worker, struct answer *answer, int64_t step, enum status status)
{
    answer->step = step;
    answer->status = status;
    if (status != OK) {
        snprintf(answer->text, sizeof answer->text, "%s", fail_text());
        worker->has_failed = true;
    }
    if (mailbox_push(&worker->answers, &answer->mail) != OK)
        ASSERT(false, "%s", fail_text()); /* it holds as many as there are answers */
}

/* Ranks whose devices can't put their logits together leave it to the sampler. */
static bool can_draw_there(const struct worker *worker)
{
    return worker->device_draw && device_draw_can_meet(worker->device_draw, layers_comm(worker));
}

/* Of this step, on the device alone? */
static bool are_tokens_there(const struct worker *worker, int64_t step)
{
    for (int32_t i = 0; i < worker->num_pending; i++)
        if (worker->pending[i]->step == step)
            return worker->steps[step & 1].is_drawn_there;
    return false;
}

static enum status execute_model(struct worker *worker, int64_t step)
{
    struct staged_step *staged = input_batch_staged(worker->batch, step);

    struct step_slot *slot = &worker->steps[step & 1];

    ASSERT(staged->step == step);
    if (are_tokens_there(worker, step - 1))
        input_batch_name_slots(worker->batch, staged);
    else
        input_batch_fill_ids(worker->batch, staged);
    slot->marks.step = step;
    device_mark(worker->device, &slot->marks.begin);
    if (can_draw_there(worker))
        model_read_last_tokens(worker->model, device_draw_last_tokens(worker->device_draw));
    TRY(model_forward(worker->model, &staged->batch, staged->ids, staged->sample_rows,
                      staged->num_samples, (float *)worker->logits.device));
    device_mark(worker->device, &slot->marks.executed);
    return OK;
}

static int64_t answer_finished_steps(struct worker *worker);
static void note_device_step(struct worker *worker, int64_t step);

/* The columns of the answer while it grows. */
struct output_columns {
    int32_t *slots, *positions, *tokens, *logprob_counts, *ranks, *logprob_tokens;
    float *logprobs;
    int32_t num_logprobs;
};

static void add_logprobs(struct output_columns *columns, int32_t i,
                         const struct sampler_result *result)
{
    int32_t at = columns->num_logprobs;

    columns->logprob_counts[i] =
        sampler_result_write(result, columns->logprob_tokens + at, columns->logprobs + at);
    columns->ranks[i] = result->rank;
    columns->num_logprobs += columns->logprob_counts[i];
}

/* On a device that has no logits. The prompt takes part, for logits would tell it: greedy requests
 * whose tokens meet at one place must not go on as one. */
static struct sampler_result draw_row(const struct worker *worker,
                                      const struct staged_sample *sample,
                                      const struct sampler_row *row)
{
    const struct kernels *kernels = device_kernels(worker->device);
    uint64_t seed = input_batch_prompt_hash(worker->batch, sample->slot);

    if (!sampling_params_is_greedy(row->params))
        seed += (uint64_t)row->params->seed;
    return (struct sampler_result){
        .token = kernels->draw(
            worker->device,
            &(struct draw_args){
                .vocab_size = model_file_vocabulary(worker->file)->num_tokens,
                .seed = seed,
                .previous = row->prompt[sample->position - 1], /* the output follows the prompt */
                .position = sample->position,
                .bitmask = row->bitmask,
            }),
        .rank = 1,
    };
}

static struct sampler_row row_of(const struct worker *worker, const struct staged_sample *sample,
                                 const uint32_t *bitmask)
{
    int32_t num_prompt;
    const int32_t *tokens = input_batch_tokens(worker->batch, sample->slot, &num_prompt);

    return (struct sampler_row){
        .params = input_batch_params(worker->batch, sample->slot),
        .prompt = tokens,
        .num_prompt = num_prompt,
        .output = tokens + num_prompt,
        .num_output = sample->position - num_prompt,
        .position = sample->position,
        .bitmask = bitmask,
    };
}

static void make_rows(struct worker *worker, const struct staged_step *staged, const struct step_slot *slot)
{
    for (int32_t i = 0; i < staged->num_samples; i++)
        worker->rows[i] = row_of(worker, &staged->samples[i], slot->bitmasks[i]);
}

static bool is_to_be_drawn_there(const struct worker *worker, const struct staged_step *staged)
{
    return can_draw_there(worker) && staged->num_prompt_runs == 0 &&
           device_draw_can(worker->rows, staged->num_samples);
}

static enum status launch_draw(struct worker *worker, const struct staged_step *staged)
{
    for (int32_t i = 0; i < staged->num_samples; i++)
        worker->slots[i] = staged->samples[i].slot;
    return device_draw_launch(worker->device_draw, layers_comm(worker), staged->step,
                              (float *)worker->logits.device, worker->rows, worker->slots, staged->num_samples);
}

/* Every rank draws every row's token: the same. */
static enum status draw_tokens(struct worker *worker, const struct staged_step *staged)
{
    int32_t n = staged->num_samples;

    for (int32_t i = 0; i < n && !worker->sampler; i++)
        worker->results[i] = draw_row(worker, &staged->samples[i], &worker->rows[i]);
    if (worker->sampler) {
        TRY(device_mirror_pull(worker->device, &worker->logits, n * logits_row_bytes(worker)));
        TRY(comm_check(layers_comm(worker)));
        /* The step before may have been drawn on the device, and its tokens count here. */
        answer_finished_steps(worker);
        return sampler_run(worker->sampler, (float *)worker->logits.host, worker->rows, n, worker->results);
    }
    /* What the sampler's exchange would take. */
    return worker->comm ? comm_all_gather(worker->comm, NULL, 32 * n, 32 * n, NULL, NULL) : OK;
}

static int32_t count_logprobs(const struct worker *worker, const struct staged_step *staged)
{
    int32_t vocab_size = model_file_config(worker->file)->vocab_size, n = 0;

    for (int32_t i = 0; i < staged->num_samples; i++) {
        int32_t k = input_batch_params(worker->batch, staged->samples[i].slot)->logprobs;

        n += k < 0 ? 0 : 1 + MIN(k, vocab_size);
    }
    return n;
}

static void write_answer(const struct worker *worker, const struct staged_step *staged,
                         struct answer *answer)
{
    struct arena *arena = &answer->arena;
    size_t n = (size_t)staged->num_samples, max_logprobs = (size_t)count_logprobs(worker, staged);
    struct output_columns columns = {
        .slots = arena_alloc(arena, n * sizeof(int32_t)),
        .positions = arena_alloc(arena, n * sizeof(int32_t)),
        .tokens = arena_alloc(arena, n * sizeof(int32_t)),
        .logprob_counts = arena_alloc(arena, n * sizeof(int32_t)),
        .ranks = arena_alloc(arena, n * sizeof(int32_t)),
        .logprob_tokens = arena_alloc(arena, max_logprobs * sizeof(int32_t)),
        .logprobs = arena_alloc(arena, max_logprobs * sizeof(float)),
    };

    for (int32_t i = 0; i < staged->num_samples; i++) {
        const struct sampler_result *result = &worker->results[i];

        columns.slots[i] = staged->samples[i].slot;
        columns.positions[i] = staged->samples[i].position;
        columns.tokens[i] = result->token;
        columns.logprob_counts[i] = columns.ranks[i] = 0;
        if (input_batch_params(worker->batch, staged->samples[i].slot)->logprobs >= 0)
            add_logprobs(&columns, i, result);
    }
    answer->output.slots = columns.slots;
    answer->output.positions = columns.positions;
    answer->output.num_sampled = staged->num_samples;
    answer->output.sampled_token_ids = columns.tokens;
    answer->output.logprob_counts = columns.logprob_counts;
    answer->output.sampled_token_ranks = columns.ranks;
    answer->output.logprob_token_ids = columns.logprob_tokens;
    answer->output.logprobs = columns.logprobs;
    answer->output.num_logprobs = columns.num_logprobs;
}

static void append_tokens(struct worker *worker, const struct staged_step *staged)
{
    for (int32_t i = 0; i < staged->num_samples; i++)
        input_batch_append_token(worker->batch, &staged->samples[i], worker->results[i].token);
}

static enum status sample(struct worker *worker, int64_t step)
{
    struct staged_step *staged = input_batch_staged(worker->batch, step);
    struct step_slot *slot = &worker->steps[step & 1];

    ASSERT(staged->step == step);
    arena_reset(&slot->answer.arena);
    slot->answer.output = (struct model_runner_output){
        .rank = worker->options.rank,
        .num_rows = staged->batch.num_requests,
    };
    device_mark(worker->device, &slot->marks.sample_begin);
    make_rows(worker, staged, slot);
    slot->is_drawn_there = is_to_be_drawn_there(worker, staged);
    if (slot->is_drawn_there) {
        TRY(launch_draw(worker, staged));
        device_mark(worker->device, &slot->marks.end);
        return OK;
    }
    TRY(draw_tokens(worker, staged));
    if (worker->options.rank == 0)
        write_answer(worker, staged, &slot->answer);
    TRY(prompt_logprobs_run(worker->prompt_logprobs, staged, &slot->answer.arena,
                            worker->options.rank == 0 ? &slot->answer.output : NULL));
    append_tokens(worker, staged);
    device_mark(worker->device, &slot->marks.end);
    return OK;
}

/* The device has passed the end of the step: its tokens are there, if no rank was lost on the way. */
static enum status take_drawn_tokens(struct worker *worker, struct step_slot *slot)
{
    const struct staged_step *staged = input_batch_staged(worker->batch, slot->answer.step);
    const int32_t *tokens = device_draw_tokens(worker->device_draw, slot->answer.step);

    TRY(comm_check(layers_comm(worker)));
    for (int32_t i = 0; i < staged->num_samples; i++)
        worker->results[i] = (struct sampler_result){.token = tokens[i]};
    if (worker->options.rank == 0)
        write_answer(worker, staged, &slot->answer);
    append_tokens(worker, staged);
    return OK;
}

/* Rank 0's answers have tokens, so they wait for the device; the others only say that they are in step, and wait
 * where they have yet to learn the tokens. */
static bool is_due(const struct worker *worker, const struct answer *answer, int64_t *ns_out)
{
    bool has_passed = device_has_passed(worker->device, &worker->steps[answer->step & 1].marks.end, ns_out);

    return has_passed || (worker->options.rank > 0 && !worker->steps[answer->step & 1].is_drawn_there);
}

/* When the device got to a mark that it has passed. */
static int64_t passed_ns(const struct worker *worker, const struct device_mark *mark)
{
    int64_t ns;

    device_has_passed(worker->device, mark, &ns);
    return ns;
}

/* Where the time of a step went, by the device's own clock. */
static void note_times(struct worker *worker, const struct step_marks *marks, int64_t end_ns,
                       struct model_runner_output *output)
{
    /* What is known of that clock may have become another since the last: the order is certain. */
    int64_t begin_ns = MAX(passed_ns(worker, &marks->begin), worker->last_end_ns);
    int64_t executed_ns = MAX(passed_ns(worker, &marks->executed), begin_ns);
    int64_t sample_begin_ns = MAX(passed_ns(worker, &marks->sample_begin), executed_ns);

    end_ns = MAX(end_ns, sample_begin_ns);
    output->execute_ns = executed_ns - begin_ns;
    output->sample_ns = end_ns - sample_begin_ns;
    output->idle_ns = sample_begin_ns - executed_ns;
    if (worker->last_end_ns > 0)
        output->idle_ns += begin_ns - worker->last_end_ns;
    worker->last_end_ns = end_ns;
    if (!trace_is_on())
        return;
    trace_add("execute_model", begin_ns, executed_ns, marks->step);
    trace_add("sample", sample_begin_ns, end_ns, marks->step);
}

/* Tells the times of steps that were answered before their end; says when to look for the next one. */
static int64_t note_late_times(struct worker *worker)
{
    struct model_runner_output answered;
    int64_t ns;

    while (worker->num_late > 0) {
        if (!device_has_passed(worker->device, &worker->late[0].end, &ns))
            return ns;
        note_times(worker, &worker->late[0], ns, &answered);
        worker->late[0] = worker->late[1];
        worker->num_late--;
    }
    return INT64_MAX;
}

/* For the trace; of more the oldest is not told. */
static void keep_late(struct worker *worker, const struct step_marks *marks)
{
    if (!trace_is_on())
        return;
    if (worker->num_late == NUM_STEPS)
        worker->late[0] = worker->late[--worker->num_late];
    worker->late[worker->num_late++] = *marks;
}

/* Gives the answers of steps that the device has finished; says when to look for the next one. */
static int64_t answer_finished_steps(struct worker *worker)
{
    int64_t ns = INT64_MAX, late_ns = note_late_times(worker);

    while (worker->num_pending > 0 && is_due(worker, worker->pending[0], &ns)) {
        struct answer *answer = worker->pending[0];
        struct step_slot *slot = &worker->steps[answer->step & 1];
        enum status status = OK;

        worker->pending[0] = worker->pending[1];
        worker->num_pending--;
        answer->output.prepare_ns = input_batch_staged(worker->batch, answer->step)->prepare_ns;
        /* Ranks above 0 do not wait for it. A simulated device knows its times in advance. */
        if (device_has_passed(worker->device, &slot->marks.end, &ns) || !device_has_own_memory(worker->device)) {
            note_late_times(worker); /* of earlier steps, so these have ended */
            note_times(worker, &slot->marks, ns, &answer->output);
        } else {
            keep_late(worker, &slot->marks);
            late_ns = ns;
        }
        if (slot->is_drawn_there)
            status = take_drawn_tokens(worker, slot);
        if (atomic_load_explicit(&worker->device_step, memory_order_relaxed) == answer->step)
            note_device_step(worker, -1); /* nothing behind it was launched */
        reply(worker, answer, answer->step, status);
        ns = INT64_MAX;
    }
    if (worker->num_pending + worker->num_late > 0 && device_check(worker->device) != OK) {
        if (worker->num_pending > 0)
            reply(worker, worker->pending[0], worker->pending[0]->step, ERR_INTERNAL);
        worker->num_pending = worker->num_late = 0;
        return INT64_MAX;
    }
    return MIN(ns, worker->num_late > 0 ? late_ns : INT64_MAX);
}

/* For heartbeats: the step that is on the device, -1: none. */
static void note_device_step(struct worker *worker, int64_t step)
{
    if (atomic_load_explicit(&worker->device_step, memory_order_relaxed) != step)
        atomic_store_explicit(&worker->device_since_ns, clock_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&worker->device_step, step, memory_order_relaxed);
}

/* Runs the step, or launches it where the device runs behind. */
static void run_step(struct worker *worker, const struct command *command)
{
    struct step_slot *slot = &worker->steps[command->step & 1];
    bool executes = command->verb == VERB_EXECUTE_MODEL;
    enum status status;

    if (worker->has_failed)
        return; /* the engine has been told: it ends this rank, or has it reset */
    note_device_step(worker, command->step);
    status = injected_fault_strike(&worker->options.fault, worker->options.rank, command->step,
                                   executes ? FAULT_IN_EXECUTE_MODEL : FAULT_IN_SAMPLE);
    if (status == OK) {
        device_begin_range(worker->device, executes ? "execute_model" : "sample", command->step);
        status = executes ? execute_model(worker, command->step) : sample(worker, command->step);
        device_end_range(worker->device);
    }
    if (!device_has_own_memory(worker->device) || status != OK)
        note_device_step(worker, -1);
    if (status != OK) {
        reply(worker, &slot->answer, command->step, status);
    } else if (!executes) {
        slot->answer.step = command->step;
        ASSERT(worker->num_pending < NUM_STEPS);
        worker->pending[worker->num_pending++] = &slot->answer;
    }
}

/* Steps that were launched and not answered are nobody's any more. */
static void reset(struct worker *worker)
{
    worker->num_pending = worker->num_late = 0;
    worker->last_end_ns = 0;
    worker->has_failed = false;
    disconnect_ranks(worker);
}

static void sleep_now(struct worker *worker, int32_t level)
{
    drop_sampler(worker);
    if (worker->model) {
        worker->weights.kv_bytes = model_kv_bytes(worker->model);
        model_free_kv(worker->model);
    }
    if (level == 1)
        return;
    if (worker->model)
        worker->weights.weight_bytes = model_weight_bytes(worker->model);
    if (worker->spare)
        worker->weights.weight_bytes += model_weight_bytes(worker->spare);
    model_free(give(worker->model));
    model_free(give(worker->spare));
}

/* Its file may have been written to, though nobody should. */
static enum status load_weights_again(struct worker *worker)
{
    uint64_t fingerprint = model_file_fingerprint(worker->origin.file);

    if (fingerprint != worker->origin.fingerprint)
        return fail(ERR_CORRUPT,
                    "the model's file has changed: its fingerprint is %016" PRIx64
                    ", that of the weights before was %016" PRIx64,
                    fingerprint, worker->origin.fingerprint);
    TRY(load_weights(worker));
    model_file_drop_pages(worker->origin.file);
    connect_model(worker);
    worker->weights.weight_bytes = model_weight_bytes(worker->model);
    return OK;
}

static enum status wake_up_now(struct worker *worker)
{
    if (!worker->model)
        TRY(load_weights_again(worker));
    TRY(model_alloc_kv(worker->model, worker->initialize.num_blocks));
    worker->weights.kv_bytes = model_kv_bytes(worker->model);
    make_sampler(worker);
    return OK;
}

static void swap_weights_now(struct worker *worker)
{
    struct model *replaced = worker->model;
    struct origin origin = worker->origin;

    drop_sampler(worker);
    model_take_kv(worker->spare, replaced);
    model_connect(replaced, NULL);
    worker->model = worker->spare;
    connect_model(worker);
    worker->origin = worker->spare_origin;
    worker->spare = replaced;
    worker->spare_origin = origin;
    make_sampler(worker);
}

static enum status change_now(struct worker *worker, const struct command *command)
{
    worker->weights.kv_bytes = worker->weights.weight_bytes = 0;
    switch (command->verb) {
    case VERB_SLEEP:
        sleep_now(worker, command->sleep_level);
        return OK;
    case VERB_WAKE_UP:
        return wake_up_now(worker);
    case VERB_SWAP_WEIGHTS:
        swap_weights_now(worker);
        return OK;
    default:
        worker->weights.weight_bytes = model_weight_bytes(worker->spare);
        model_free(give(worker->spare));
        return OK;
    }
}

/* A change that fails is no failure of the rank's. */
static void change(struct worker *worker, const struct command *command)
{
    struct answer *answer = &worker->changed;

    answer->status = change_now(worker, command);
    note_memory(worker);
    if (answer->status != OK)
        snprintf(answer->text, sizeof answer->text, "%s", fail_text());
    if (mailbox_push(&worker->answers, &answer->mail) != OK)
        ASSERT(false, "%s", fail_text());
}

/* What the ranks need of each other's devices has been taken then. */
static enum status meet_ranks(struct worker *worker, const struct command *command)
{
    TRY(connect_ranks(worker, command));
    worker->available_bytes = note_memory(worker).available_bytes;
    return OK;
}

static enum status initialize_kv_cache(struct worker *worker, int32_t num_blocks)
{
    if (model_kv_bytes(worker->model) == 0)
        TRY(alloc_kv_cache(worker, num_blocks));
    return model_record(worker->model, (float *)worker->logits.device);
}

static void obey(struct worker *worker, const struct command *command)
{
    switch (command->verb) {
    case VERB_CONNECT:
        reply(worker, &worker->met, -1, meet_ranks(worker, command));
        break;
    case VERB_INITIALIZE_KV_CACHE:
        reply(worker, &worker->setup, -1, initialize_kv_cache(worker, command->num_blocks));
        break;
    case VERB_RESET:
        reset(worker);
        reply(worker, &worker->setup, -1, OK);
        break;
    case VERB_SLEEP:
    case VERB_WAKE_UP:
    case VERB_SWAP_WEIGHTS:
    case VERB_DROP_WEIGHTS:
        change(worker, command);
        break;
    default:
        run_step(worker, command);
    }
}

static void *device_loop(void *user)
{
    struct worker *worker = user;
    enum status status;

    trace_name_thread("device");
    status = load(worker);
    reply(worker, &worker->setup, -1, status);
    for (int64_t look_ns = INT64_MAX;;) {
        struct mail *mail = mailbox_wait(&worker->commands, look_ns);
        const struct command *command = mail ? MAIL_ITEM(mail, struct command, mail) : NULL;

        if (command && command->verb == VERB_STOP)
            break;
        if (command)
            obey(worker, command);
        look_ns = answer_finished_steps(worker);
    }
    unload(worker);
    if (mailbox_push(&worker->answers, &worker->stopped) != OK)
        ASSERT(false, "%s", fail_text()); /* it holds one of each */
    return NULL;
}

/* ---- the wire thread: life ------------------------------------------------------------------ */

static void command(struct worker *worker, struct command *command)
{
    if (mailbox_push(&worker->commands, &command->mail) != OK)
        ASSERT(false, "%s", fail_text()); /* it holds as many as there are commands */
}

static enum status make_batch(struct worker *worker)
{
    const struct worker_options *options = &worker->options;

    return input_batch_new(
        &(struct input_batch_limits){
            .max_num_seqs = options->max_num_seqs,
            .max_batched_tokens = options->max_batched_tokens,
            .max_model_len = options->max_model_len,
            .vocab_size = model_file_vocabulary(worker->file)->num_tokens,
        },
        &worker->batch);
}

enum status worker_new(const struct worker_options *options, const struct model_file *model,
                       struct worker **out)
{
    AUTO_FREE(worker) struct worker *worker = mem_new(struct worker);

    worker->options = *options;
    if (options->local_world == 0) {
        worker->options.local_rank = options->rank;
        worker->options.local_world = options->world;
    }
    worker->file = model;
    worker->origin.file = model;
    worker->next_step = -1;
    atomic_store(&worker->device_step, -1);
    worker->is_connected = options->world == 1; /* by loading */
    worker->connect.verb = VERB_CONNECT;
    worker->initialize.verb = VERB_INITIALIZE_KV_CACHE;
    worker->reset.verb = VERB_RESET;
    worker->stop.verb = VERB_STOP;
    for (int i = 0; i < NUM_STEPS; i++) {
        worker->steps[i].execute.verb = VERB_EXECUTE_MODEL;
        worker->steps[i].sample.verb = VERB_SAMPLE;
        worker->steps[i].bitmasks = mem_new_array(const uint32_t *, (size_t)options->max_num_seqs);
    }
    TRY(mailbox_open(&worker->commands, 2 * NUM_STEPS + 5));
    TRY(mailbox_open(&worker->answers, NUM_STEPS + 5));
    TRY(make_batch(worker));
    if (pthread_create(&worker->thread, NULL, device_loop, worker) != 0)
        return fail(ERR_IO, "no thread for the device: %m");
    worker->thread_runs = true;
    *out = give(worker);
    return OK;
}

/* While the device is there that its model would have run on. */
static void drop_reload(struct worker *worker)
{
    if (!worker->reload)
        return;
    reload_stop(worker->reload);
    while (mailbox_pop(&worker->answers)) /* nobody waits for any */
        continue;
    reload_free(give(worker->reload));
}

bool worker_stop(struct worker *worker)
{
    int64_t deadline_ns = clock_deadline_ns(RESET_TIMEOUT_MS);
    struct mail *mail;

    atomic_store(&worker->is_given_up, true);
    worker_abort(worker);
    drop_reload(worker);
    command(worker, &worker->stop);
    do
        mail = mailbox_wait(&worker->answers, deadline_ns);
    while (mail && mail != &worker->stopped);
    if (!mail)
        return false;
    pthread_join(worker->thread, NULL);
    worker->thread_runs = false;
    return true;
}

void worker_free(struct worker *worker)
{
    if (!worker)
        return;
    drop_reload(worker);
    if (worker->thread_runs) {
        command(worker, &worker->stop);
        pthread_join(worker->thread, NULL);
    }
    /* The engine may stop in the middle of a step: its answer is nobody's, and lies in steps[]. */
    while (mailbox_pop(&worker->commands) || mailbox_pop(&worker->answers))
        continue;
    input_batch_free(worker->batch);
    for (int i = 0; i < NUM_STEPS; i++) {
        arena_close(&worker->steps[i].answer.arena);
        arena_close(&worker->steps[i].grammar_arena);
        mem_free(worker->steps[i].bitmasks);
    }
    arena_close(&worker->meeting);
    mailbox_close(&worker->commands);
    mailbox_close(&worker->answers);
    model_file_free(worker->origin.owned);
    model_file_free(worker->spare_origin.owned);
    mem_free(worker);
}

int worker_output_fd(const struct worker *worker)
{
    return mailbox_fd(&worker->answers);
}

static void end_change(struct worker *worker);
static void end_reload(struct worker *worker);
static void end_connect(struct worker *worker);

/* true: it was what a change came to, or the ranks' meeting. */
static bool take_change(struct worker *worker, struct mail *mail)
{
    if (mail == &worker->met.mail)
        end_connect(worker);
    else if (mail == &worker->changed.mail)
        end_change(worker);
    else if (worker->reload && mail == reload_mail(worker->reload))
        end_reload(worker);
    else
        return false;
    return true;
}

/* The next answer; NULL: there is none. */
static struct mail *next_answer(struct worker *worker, bool wait)
{
    struct mail *mail;

    do
        mail = wait ? mailbox_wait(&worker->answers, clock_deadline_ns(-1))
                    : mailbox_pop(&worker->answers);
    while (mail && take_change(worker, mail));
    return mail;
}

/* Waits for what loading, or another command that is no step, came to. */
static enum status wait_setup(struct worker *worker)
{
    struct mail *mail = next_answer(worker, true);
    const struct answer *answer = MAIL_ITEM(mail, struct answer, mail);

    ASSERT(answer == &worker->setup);
    return answer->status == OK ? OK : fail(answer->status, "%s", answer->text);
}

enum status worker_wait_loaded(struct worker *worker, struct worker_memory *memory_out)
{
    ASSERT(!worker->is_loaded);
    TRY(wait_setup(worker));
    worker->is_loaded = true;
    *memory_out = worker->memory;
    return OK;
}

bool worker_is_loaded(const struct worker *worker)
{
    return worker->is_loaded;
}

enum status worker_create_shared(const struct worker *worker, int32_t num_ranks, const char *path)
{
    int32_t world = worker->options.world;
    int64_t buffer_bytes = comm_buffer_bytes(worker);

    if (num_ranks < 2 || num_ranks > world)
        return fail(ERR_MISMATCH, "memory of %d ranks that one host shares, of %d", num_ranks, world);
    return comm_create(path, num_ranks, buffer_bytes,
                       num_ranks == world ? comm_bytes(worker).shared
                                          : comm_hosts_shared_bytes(world, buffer_bytes));
}

/* The meeting as the device thread is to have it, whatever becomes of the caller's. */
static struct worker_meeting keep_meeting(struct worker *worker, const struct worker_meeting *meeting)
{
    struct worker_meeting kept = *meeting;
    size_t world = (size_t)worker->options.world;

    arena_reset(&worker->meeting);
    if (meeting->path)
        kept.path = arena_strndup(&worker->meeting, meeting->path, strlen(meeting->path));
    if (meeting->hosts) {
        int32_t *hosts = arena_alloc(&worker->meeting, world * sizeof *hosts);

        memcpy(hosts, meeting->hosts, world * sizeof *hosts);
        kept.hosts = hosts;
    }
    if (meeting->endpoints) {
        const char **endpoints = arena_alloc(&worker->meeting, world * sizeof *endpoints);

        for (size_t rank = 0; rank < world; rank++) {
            const char *text = meeting->endpoints[rank];

            endpoints[rank] = text ? arena_strndup(&worker->meeting, text, strlen(text)) : NULL;
        }
        kept.endpoints = endpoints;
    }
    return kept;
}

static void end_connect(struct worker *worker)
{
    worker->is_connecting = false;
    worker->met_status = worker->met.status;
    worker->is_connected = worker->met_status == OK;
}

static void begin_connect(struct worker *worker)
{
    worker->is_connecting = true;
    atomic_store(&worker->gives_up_meeting, false);
    command(worker, &worker->connect);
}

enum status worker_connect_begin(struct worker *worker, const struct worker_meeting *meeting)
{
    AUTO_FREE(comm_net) struct comm_net *taken = meeting->net;

    if (!worker->is_loaded || worker->is_connected || worker->is_connecting)
        return fail(ERR_MISMATCH, "ranks meet once, after loading or a reset");
    worker->connect.meeting = keep_meeting(worker, meeting);
    taken = NULL; /* the device thread's */
    begin_connect(worker);
    return OK;
}

enum status worker_connect_end(struct worker *worker, bool wait, bool *is_over_out)
{
    bool goes_on = true;

    while (goes_on && worker->is_connecting) {
        struct mail *mail = wait ? mailbox_wait(&worker->answers, clock_deadline_ns(-1))
                                 : mailbox_pop(&worker->answers);

        goes_on = mail && take_change(worker, mail);
    }
    *is_over_out = !worker->is_connecting;
    return worker->is_connecting || worker->met_status == OK
               ? OK
               : fail(worker->met_status, "%s", worker->met.text);
}

int64_t worker_available_bytes(const struct worker *worker)
{
    ASSERT(worker->is_connected);
    return worker->available_bytes;
}

enum status worker_connect(struct worker *worker, const struct worker_meeting *meeting)
{
    bool is_over;

    TRY(worker_connect_begin(worker, meeting));
    return worker_connect_end(worker, true, &is_over);
}

enum status worker_initialize_kv_cache(struct worker *worker, int32_t num_blocks)
{
    int32_t before = worker->initialize.num_blocks;

    if (!worker->is_loaded || (before > 0 && before != num_blocks) || num_blocks < 1)
        return fail(ERR_MISMATCH, "the KV cache is sized once, after loading, with 1 block or more");
    if (worker->weights.sleep_level < 2) {
        worker->initialize.num_blocks = num_blocks;
        command(worker, &worker->initialize);
        TRY(wait_setup(worker));
        worker->weights.sleep_level = 0;
    }
    input_batch_set_num_blocks(worker->batch, num_blocks);
    return OK;
}

/* Lets pass the answers to steps that are given up. */
static enum status wait_reset(struct worker *worker)
{
    int64_t deadline_ns = clock_deadline_ns(RESET_TIMEOUT_MS);
    struct mail *mail;

    do
        mail = mailbox_wait(&worker->answers, deadline_ns);
    while (mail && (take_change(worker, mail) || mail != &worker->setup.mail));
    return mail ? OK
                : fail(ERR_TIMEOUT, "the device has not come back %d ms after an abort",
                       RESET_TIMEOUT_MS);
}

enum status worker_reset(struct worker *worker)
{
    bool is_over;

    ASSERT(worker->is_loaded);
    if (worker->weights.sleep_level > 1 || worker->is_changing)
        return fail(ERR_MISMATCH, "the ranks meet anew while this one is asleep without weights or "
                                  "changes them: another process is to take its place");
    worker_abort(worker);
    worker->is_connected = false; /* the device thread closes the comm, if late after we have given it up */
    command(worker, &worker->reset);
    TRY(wait_reset(worker));
    worker->is_connected = false; /* it may have become that meanwhile */
    worker->next_step = -1;
    for (int i = 0; i < NUM_STEPS; i++)
        worker->steps[i].phase = PHASE_EMPTY;
    input_batch_free(give(worker->batch));
    TRY(make_batch(worker));
    if (worker->options.world > 1)
        return OK;
    begin_connect(worker);
    return worker_connect_end(worker, true, &is_over);
}

/* ---- the wire thread: memory and weights ---------------------------------------------------- */

static void write_fingerprint(uint64_t fingerprint, char out[static 17])
{
    snprintf(out, 17, "%016" PRIx64, fingerprint);
}

static void note_spare(struct worker *worker, enum spare_weights spare)
{
    struct worker_weights *weights = &worker->weights;

    weights->spare = spare;
    weights->spare_bytes = worker->spare ? model_weight_bytes(worker->spare) : 0;
    weights->spare_fingerprint[0] = '\0';
    if (worker->spare)
        write_fingerprint(worker->spare_origin.fingerprint, weights->spare_fingerprint);
    else
        model_file_free(give(worker->spare_origin.owned));
}

static void end_change(struct worker *worker)
{
    struct worker_weights *weights = &worker->weights;

    worker->is_changing = false;
    worker->change_status = worker->changed.status;
    if (worker->changed.status != OK)
        snprintf(worker->refusal, sizeof worker->refusal, "%s", worker->changed.text);
    switch (worker->change.verb) {
    case VERB_SLEEP:
        weights->sleep_level = worker->change.sleep_level;
        input_batch_forget(worker->batch);
        if (weights->sleep_level > 1)
            note_spare(worker, SPARE_NONE);
        break;
    case VERB_WAKE_UP: /* it may have come half the way */
        weights->sleep_level = worker->changed.status == OK ? 0 : worker->model ? 1 : 2;
        break;
    case VERB_SWAP_WEIGHTS:
        input_batch_forget(worker->batch);
        note_spare(worker, weights->spare == SPARE_LOADED ? SPARE_REPLACED : SPARE_LOADED);
        break;
    default:
        note_spare(worker, SPARE_NONE);
    }
}

/* The device thread is at steps, perhaps, and the device is its own. */
static void note_spare_memory(struct worker *worker)
{
    struct memory_held spare = {0};

    count_model(worker->spare, &spare);
    atomic_fetch_add(&worker->held.weights_bytes, spare.weights_bytes);
    atomic_fetch_add(&worker->held.workspace_bytes, spare.workspace_bytes);
    atomic_fetch_sub(&worker->held.free_bytes, spare.weights_bytes + spare.workspace_bytes);
}

static void end_reload(struct worker *worker)
{
    struct reloaded loaded;

    worker->change_status = reload_end(give(worker->reload), &loaded);
    if (worker->change_status != OK) {
        snprintf(worker->refusal, sizeof worker->refusal, "%s", fail_text());
        note_spare(worker, SPARE_REFUSED);
        return;
    }
    worker->spare = loaded.model;
    worker->spare_origin = (struct origin){loaded.file, loaded.file, loaded.fingerprint};
    note_spare_memory(worker);
    worker->weights.load_ms = loaded.load_ms;
    note_spare(worker, SPARE_LOADED);
}

static enum status check_idle(const struct worker *worker, const char *what)
{
    if (worker->initialize.num_blocks == 0 || !worker->is_connected)
        return fail(ERR_MISMATCH, "%s before the rank is ready for steps", what);
    if (worker->is_changing || worker->reload)
        return fail(ERR_MISMATCH, "%s while %s", what,
                    worker->reload ? "weights are being loaded" : "another change goes on");
    return OK;
}

bool worker_has_steps(const struct worker *worker)
{
    for (int i = 0; i < NUM_STEPS; i++)
        if (worker->steps[i].phase != PHASE_EMPTY)
            return true;
    return false;
}

static enum status check_between_steps(const struct worker *worker, const char *what)
{
    TRY(check_idle(worker, what));
    if (worker_has_steps(worker))
        return fail(ERR_MISMATCH, "%s while a step is in hand", what);
    return OK;
}

static void begin_change(struct worker *worker, enum verb verb)
{
    worker->change.verb = verb;
    worker->is_changing = true;
    command(worker, &worker->change);
}

/* Nothing to do: over, and well. */
static enum status change_nothing(struct worker *worker)
{
    worker->change_status = OK;
    worker->weights.kv_bytes = worker->weights.weight_bytes = 0;
    return OK;
}

enum status worker_sleep(struct worker *worker, int32_t level)
{
    if (level < 1 || level > 2)
        return fail(ERR_INVALID, "sleep at level %d; there are 1 and 2", level);
    TRY(check_between_steps(worker, "sleep"));
    if (level <= worker->weights.sleep_level)
        return change_nothing(worker);
    worker->change.sleep_level = level;
    begin_change(worker, VERB_SLEEP);
    return OK;
}

enum status worker_wake_up(struct worker *worker)
{
    TRY(check_idle(worker, "wake-up"));
    if (worker->weights.sleep_level == 0)
        return change_nothing(worker);
    begin_change(worker, VERB_WAKE_UP);
    return OK;
}

enum status worker_load_weights(struct worker *worker, const char *path)
{
    TRY(check_idle(worker, "load of weights"));
    if (worker->spare)
        return fail(ERR_MISMATCH, "load of weights while others, of fingerprint %s, are kept beside "
                                  "those in use: drop them first",
                    worker->weights.spare_fingerprint);
    if (worker->weights.sleep_level > 0)
        return fail(ERR_MISMATCH, "load of weights while the rank is asleep");
    TRY(reload_start(&(struct reload_options){.path = path,
                                              .running = worker->file,
                                              .model = model_options_of(worker),
                                              .isa = worker->options.isa,
                                              .cuda_module = worker->options.cuda_module,
                                              .ordinal = worker->options.local_rank,
                                              .cublaslt_rows = cublaslt_rows(&worker->options),
                                              .cublaslt = worker->options.cublaslt,
                                              .device = worker->device},
                     &worker->answers, &worker->reload));
    worker->weights.spare = SPARE_LOADING;
    return OK;
}

static enum status exchange_weights(struct worker *worker, enum spare_weights with,
                                    const char *what, const char *fingerprint)
{
    const struct worker_weights *weights = &worker->weights;

    TRY(check_between_steps(worker, what));
    if (weights->sleep_level > 0)
        return fail(ERR_MISMATCH, "%s while the rank is asleep", what);
    if (weights->spare != with)
        return fail(ERR_MISMATCH, "%s, and no weights were %s before", what,
                    with == SPARE_LOADED ? "loaded" : "replaced");
    if (fingerprint && strcmp(fingerprint, weights->spare_fingerprint) != 0)
        return fail(ERR_MISMATCH, "%s to weights of fingerprint %.64s, those loaded have %s", what,
                    fingerprint, weights->spare_fingerprint);
    begin_change(worker, VERB_SWAP_WEIGHTS);
    return OK;
}

enum status worker_swap_weights(struct worker *worker, const char *fingerprint)
{
    return exchange_weights(worker, SPARE_LOADED, "swap of weights", fingerprint);
}

enum status worker_roll_weights_back(struct worker *worker)
{
    return exchange_weights(worker, SPARE_REPLACED, "rollback of weights", NULL);
}

enum status worker_drop_weights(struct worker *worker)
{
    TRY(check_idle(worker, "drop of weights"));
    if (!worker->spare) {
        worker->weights.spare = SPARE_NONE;
        return change_nothing(worker);
    }
    begin_change(worker, VERB_DROP_WEIGHTS);
    return OK;
}

enum status worker_finish(struct worker *worker, bool wait, bool *is_over_out)
{
    bool goes_on = true;

    /* What is answered to steps in hand is worker_collect's, which takes what comes between. */
    while (goes_on && !worker_has_steps(worker) && (worker->is_changing || worker->reload)) {
        struct mail *mail = wait ? mailbox_wait(&worker->answers, clock_deadline_ns(-1))
                                 : mailbox_pop(&worker->answers);

        goes_on = mail && take_change(worker, mail);
    }
    *is_over_out = !worker->is_changing && !worker->reload;
    return !*is_over_out || worker->change_status == OK
               ? OK
               : fail(worker->change_status, "%s", worker->refusal);
}

struct worker_weights worker_weights(const struct worker *worker)
{
    struct worker_weights weights = worker->weights;

    write_fingerprint(worker->origin.fingerprint, weights.fingerprint);
    weights.refusal = worker->refusal;
    weights.fraction = worker->reload ? reload_fraction(worker->reload) : worker->spare ? 1 : 0;
    return weights;
}

/* ---- the wire thread: steps ----------------------------------------------------------------- */

bool worker_awaits_collect(const struct worker *worker, int64_t step,
                           const struct scheduler_output *plan)
{
    return worker->steps[step & 1].phase == PHASE_SAMPLING ||
           (worker->steps[(step - 1) & 1].phase == PHASE_SAMPLING &&
            input_batch_is_replaced(worker->batch, step - 1, plan));
}

enum status worker_prepare_inputs(struct worker *worker, int64_t step,
                                  const struct scheduler_output *plan)
{
    struct step_slot *slot = &worker->steps[step & 1];
    int64_t begin_ns = trace_begin();
    enum status status;

    if (worker->initialize.num_blocks == 0)
        return fail(ERR_MISMATCH, "step %" PRId64 " came before the KV cache was sized", step);
    if (worker->weights.sleep_level > 0 || worker->is_changing)
        return fail(ERR_MISMATCH, "step %" PRId64 " came while the rank %s", step,
                    worker->is_changing ? "changes what it holds" : "is asleep");
    if (!worker->is_connected)
        return fail(ERR_MISMATCH, "step %" PRId64 " came before the ranks have met", step);
    if (step < 0 || (worker->next_step >= 0 && step != worker->next_step))
        return fail(ERR_MISMATCH, "step %" PRId64 " is prepared, step %" PRId64 " is next", step,
                    worker->next_step);
    if (slot->phase != PHASE_EMPTY)
        return fail(ERR_MISMATCH, "step %" PRId64 " is prepared while step %" PRId64 " runs", step,
                    step - NUM_STEPS);
    TRY(injected_fault_strike(&worker->options.fault, worker->options.rank, step,
                              FAULT_IN_PREPARE_INPUTS));
    device_begin_range(worker->device, "prepare_inputs", step);
    status = input_batch_stage(worker->batch, step, plan);
    device_end_range(worker->device);
    TRY(status);
    slot->phase = PHASE_PREPARED;
    worker->next_step = step + 1;
    trace_end("prepare_inputs", begin_ns, step);
    return OK;
}

static enum status check_phase(const struct worker *worker, int64_t step, enum step_phase phase,
                               const char *verb)
{
    const struct step_slot *slot = &worker->steps[step & 1];

    if (input_batch_staged(worker->batch, step)->step != step || slot->phase != phase)
        return fail(ERR_MISMATCH, "%s of step %" PRId64 ", which is not due", verb, step);
    return OK;
}

enum status worker_execute_model(struct worker *worker, int64_t step)
{
    struct step_slot *slot = &worker->steps[step & 1];

    TRY(check_phase(worker, step, PHASE_PREPARED, "execute_model"));
    slot->phase = PHASE_EXECUTING;
    slot->execute.step = step;
    command(worker, &slot->execute);
    return OK;
}

static enum status check_bitmask(const struct staged_step *staged,
                                 const struct staged_sample *sample,
                                 const struct grammar_output *grammar, int32_t at)
{
    if (at >= grammar->num_rows || grammar->slots[at] != sample->slot)
        return fail(ERR_MISMATCH, "step %" PRId64 ": no bitmask came for slot %d, which needs one",
                    staged->step, sample->slot);
    if (grammar->positions[at] != sample->position)
        return fail(ERR_MISMATCH,
                    "step %" PRId64 ": the bitmask of slot %d is for position %d, its token comes at %d",
                    staged->step, sample->slot, grammar->positions[at], sample->position);
    return OK;
}

/* Each mask goes beside the row of the step that it is for: nothing is sampled unmasked where a mask
 * was due. */
static enum status take_bitmasks(struct worker *worker, const struct staged_step *staged,
                                 struct step_slot *slot, const struct grammar_output *grammar)
{
    static const struct grammar_output no_masks;
    const struct worker_memory *memory = &worker->memory;
    int32_t num_due = 0;
    uint32_t *bits;

    if (!grammar)
        grammar = &no_masks;
    TRY(grammar_output_check(grammar, memory->first_token, memory->num_tokens));
    arena_reset(&slot->grammar_arena);
    bits = arena_alloc(&slot->grammar_arena, (size_t)grammar->num_bitmask_bytes);
    if (grammar->num_bitmask_bytes > 0)
        memcpy(bits, grammar->bitmask, (size_t)grammar->num_bitmask_bytes);
    for (int32_t i = 0; i < staged->num_samples; i++) {
        slot->bitmasks[i] = NULL;
        if (!staged->samples[i].needs_bitmask)
            continue;
        TRY(check_bitmask(staged, &staged->samples[i], grammar, num_due));
        slot->bitmasks[i] =
            bits + (int64_t)grammar->bitmask_rows[num_due++] * grammar->words_per_row;
    }
    if (num_due < grammar->num_rows)
        return fail(ERR_MISMATCH, "step %" PRId64 ": a bitmask came for slot %d, which needs none",
                    staged->step, grammar->slots[num_due]);
    return OK;
}

enum status worker_sample(struct worker *worker, int64_t step,
                          const struct grammar_output *grammar)
{
    struct step_slot *slot = &worker->steps[step & 1];

    TRY(check_phase(worker, step, PHASE_EXECUTING, "sample"));
    TRY(take_bitmasks(worker, input_batch_staged(worker->batch, step), slot, grammar));
    slot->phase = PHASE_SAMPLING;
    slot->sample.step = step;
    command(worker, &slot->sample);
    return OK;
}

enum status worker_collect(struct worker *worker, bool wait, int64_t *step_out,
                           const struct model_runner_output **output_out)
{
    struct mail *mail = next_answer(worker, wait);

    *output_out = NULL;
    if (!mail)
        return OK;

    struct answer *answer = MAIL_ITEM(mail, struct answer, mail);

    *step_out = answer->step;
    if (answer->status != OK)
        return fail(answer->status, "%s", answer->text);
    worker->steps[answer->step & 1].phase = PHASE_EMPTY;
    *output_out = &answer->output;
    return OK;
}

void worker_abort(struct worker *worker)
{
    atomic_store(&worker->gives_up_meeting, true);
    if (worker->is_connected && worker->comm)
        comm_abort(layers_comm(worker));
    else if (worker->is_connecting)
        comm_abort(atomic_load(&worker->meeting_comm));
}

struct memory_held worker_memory_held(const struct worker *worker)
{
    return (struct memory_held){
        .weights_bytes = atomic_load_explicit(&worker->held.weights_bytes, memory_order_relaxed),
        .kv_cache_bytes = atomic_load_explicit(&worker->held.kv_cache_bytes, memory_order_relaxed),
        .workspace_bytes = atomic_load_explicit(&worker->held.workspace_bytes, memory_order_relaxed),
        /* Less than nothing: others took it while weights were loaded beside. */
        .free_bytes = MAX(atomic_load_explicit(&worker->held.free_bytes, memory_order_relaxed), (int64_t)0),
        .total_bytes = atomic_load_explicit(&worker->held.total_bytes, memory_order_relaxed),
    };
}

struct worker_progress worker_progress(const struct worker *worker)
{
    struct worker_progress progress = {
        .step = atomic_load_explicit(&worker->device_step, memory_order_relaxed),
        .num_done = work_count_read(&worker->work),
        /* One rank alone has no comm, and may be asked by any thread. */
        .waits_for = worker->options.world > 1 && worker->is_connected
                         ? comm_waits_for(layers_comm(worker))
                         : -1,
        .passes = work_count_passes(&worker->work),
    };

    if (progress.step >= 0)
        progress.ns_in_step = clock_now_ns() - atomic_load_explicit(&worker->device_since_ns,
                                                                    memory_order_relaxed);
    return progress;
}
