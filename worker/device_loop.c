#include "worker/state.h"

#include "proto/base/cpus.h"
#include "proto/base/log.h"
#include "proto/base/trace.h"
#include "worker/comm_mpi.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Fewer rows take the time of reading the weights, which cuda/matmul_half.cu does with one launch where cuBLASLt
 * wants two. */
enum { CUBLASLT_ROWS = 9 };

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

int32_t worker_cublaslt_rows(const struct worker_options *options)
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
                                    .cublaslt_rows = worker_cublaslt_rows(options),
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

struct model_options worker_model_options(struct worker *worker)
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
    struct model_options options = worker_model_options(worker);

    options.is_given_up = &worker->is_given_up;
    options.progress = worker->options.progress;
    options.user = worker->options.user;
    TRY(model_load(worker->device, worker->origin.file, &options, &worker->model));
    worker->undropped_bytes = model_file_bytes(worker->origin.file);
    return OK;
}

/* Of a file's pages that were read, at a time: a command may have to wait for it, a fraction of a millisecond. */
enum { DROP_BYTES = 4 << 20 };

/* The last so many bytes, or what is left. */
static void drop_pages(struct worker *worker, int64_t bytes)
{
    int64_t end = worker->undropped_bytes, first = MAX(end - bytes, (int64_t)0);

    model_file_drop_pages(worker->origin.file, first, end);
    worker->undropped_bytes = first;
}

static void set(_Atomic int64_t *place, int64_t value)
{
    atomic_store_explicit(place, value, memory_order_relaxed);
}

void worker_count_model(const struct model *model, struct memory_held *held)
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

    worker_count_model(worker->model, &held);
    worker_count_model(worker->spare, &held);
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
    TRY(worker_open_drawing(worker));
    if (options->world == 1)
        TRY(worker_connect_ranks(worker, &worker->connect));
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
    worker_disconnect_ranks(worker);
    model_free(worker->model);
    model_free(worker->spare);
    worker_close_drawing(worker);
    device_close(worker->device);
}

void worker_reply(struct worker *worker, struct answer *answer, int64_t step, enum status status)
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

/* Steps that were launched and not answered are nobody's any more. */
static void reset(struct worker *worker)
{
    worker->num_pending = worker->num_late = 0;
    worker->last_end_ns = 0;
    worker->has_failed = false;
    worker_disconnect_ranks(worker);
}

static void sleep_now(struct worker *worker, int32_t level)
{
    worker_drop_sampler(worker);
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
    worker_connect_model(worker);
    worker->weights.weight_bytes = model_weight_bytes(worker->model);
    return OK;
}

static enum status wake_up_now(struct worker *worker)
{
    if (!worker->model)
        TRY(load_weights_again(worker));
    TRY(model_alloc_kv(worker->model, worker->initialize.num_blocks));
    worker->weights.kv_bytes = model_kv_bytes(worker->model);
    worker_make_sampler(worker);
    return OK;
}

static void swap_weights_now(struct worker *worker)
{
    struct model *replaced = worker->model;
    struct origin origin = worker->origin;

    worker_drop_sampler(worker);
    model_take_kv(worker->spare, replaced);
    model_connect(replaced, NULL);
    worker->model = worker->spare;
    worker_connect_model(worker);
    worker->origin = worker->spare_origin;
    worker->spare = replaced;
    worker->spare_origin = origin;
    worker_make_sampler(worker);
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

    drop_pages(worker, worker->undropped_bytes); /* the file may be gone then */
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
    TRY(worker_connect_ranks(worker, command));
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
        worker_reply(worker, &worker->met, -1, meet_ranks(worker, command));
        break;
    case VERB_INITIALIZE_KV_CACHE:
        worker_reply(worker, &worker->setup, -1, initialize_kv_cache(worker, command->num_blocks));
        break;
    case VERB_RESET:
        reset(worker);
        worker_reply(worker, &worker->setup, -1, OK);
        break;
    case VERB_SLEEP:
    case VERB_WAKE_UP:
    case VERB_SWAP_WEIGHTS:
    case VERB_DROP_WEIGHTS:
        change(worker, command);
        break;
    default:
        worker_run_step(worker, command);
    }
}

void *worker_device_loop(void *user)
{
    struct worker *worker = user;
    enum status status;

    trace_name_thread("device");
    status = load(worker);
    worker_reply(worker, &worker->setup, -1, status);
    for (int64_t look_ns = INT64_MAX;;) {
        struct mail *mail = mailbox_wait(&worker->commands, worker->undropped_bytes > 0 ? 0 : look_ns);
        const struct command *command = mail ? MAIL_ITEM(mail, struct command, mail) : NULL;

        if (command && command->verb == VERB_STOP)
            break;
        if (command)
            obey(worker, command);
        else if (worker->undropped_bytes > 0) /* takes a tenth of the time that loading does: while nobody waits */
            drop_pages(worker, DROP_BYTES);
        look_ns = worker_answer_steps(worker);
    }
    unload(worker);
    if (mailbox_push(&worker->answers, &worker->stopped) != OK)
        ASSERT(false, "%s", fail_text()); /* it holds one of each */
    return NULL;
}
