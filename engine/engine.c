#include "engine/engine.h"

#include "engine/admission.h"
#include "engine/core/core.h"
#include "engine/executor/executor.h"
#include "proto/base/log.h"
#include "proto/base/mailbox.h"
#include "proto/base/trace.h"
#include "proto/config/config.h"
#include "proto/model/model_file.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Outputs that may wait for the front: one a step. A front that does not poll for so long is gone. */
enum { MAX_OUTPUTS = 1 << 20 };

/* A mask takes microseconds; one that takes longer is the fault of its grammar, and not worth a step. */
enum { MASK_PATIENCE_MS = 5 };

struct engine {
    const struct config *config;
    struct core *core;
    struct mailbox outputs;
    int grammar_fd;
    bool is_one_process;
    int32_t max_model_len;
    int32_t vocab_size;
    int32_t block_size, num_blocks;
    struct engine_memory memory;
    request_id last_id;
    _Atomic bool is_draining;

    struct admission admission;
};

static const char *const phase_names[] = {
    [PHASE_STARTING] = "starting", [PHASE_LOADING] = "loading", [PHASE_READY] = "ready",
    [PHASE_RECOVERING] = "recovering", [PHASE_DRAINING] = "draining", [PHASE_FAILED] = "failed",
};

const char *engine_phase_name(enum engine_phase phase)
{
    return phase_names[phase];
}

static const char *const reason_names[] = {
    [FINISH_NONE] = "none",   [FINISH_STOP] = "stop",   [FINISH_LENGTH] = "length",
    [FINISH_ABORT] = "abort", [FINISH_ERROR] = "error",
};

const char *finish_reason_name(enum finish_reason reason)
{
    return reason_names[reason];
}

/* A file that cannot be had is told before the work, not behind it. */
static enum status check_trace_file(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);

    if (fd < 0)
        return fail(ERR_IO, "--trace %s: %m", path);
    close(fd);
    return OK;
}

/* All that the requests of a step may want fits in the answer to it. */
static enum status check_max_logprobs(const struct config *config, int32_t vocab_size)
{
    int64_t each = config->max_logprobs < 0 ? vocab_size : MIN(config->max_logprobs, vocab_size);

    if ((each + 1) * config->max_num_seqs > MAX_TOKENS)
        return fail(ERR_INVALID,
                    "--max-logprobs %d: %lld logprobs for each of --max-num-seqs %d are more than the "
                    "%d that fit in one answer; lower one of them",
                    config->max_logprobs, (long long)each + 1, config->max_num_seqs, MAX_TOKENS);
    return OK;
}

static void take_admission(struct engine *engine, const struct config *config)
{
    engine->admission.queues[LIMIT_QUEUED_REQS].most = config->max_num_queued_reqs;
    engine->admission.queues[LIMIT_QUEUED_TOKENS].most = config->max_num_queued_tokens;
}

enum status engine_new(const struct config *config, const struct model_file *model,
                       void (*progress)(void *user, const char *words, double fraction),
                       void *user, struct engine **out)
{
    AUTO_FREE(engine) struct engine *engine = mem_new(struct engine);
    AUTO_FREE(executor) struct executor *executor = NULL;

    engine->config = config;
    take_admission(engine, config);
    engine->grammar_fd = -1;
    TRY(check_max_logprobs(config, model_file_vocabulary(model)->num_tokens));
    if (config->trace) {
        TRY(check_trace_file(config->trace));
        TRY(trace_start(TRACE_SPANS));
    }
    TRY(mailbox_open(&engine->outputs, MAX_OUTPUTS));
    engine->grammar_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->grammar_fd < 0)
        return fail(ERR_IO, "no descriptor for grammars: %m");
    TRY(executor_open(&(struct executor_options){.config = config,
                                                 .model = model,
                                                 .progress = progress,
                                                 .user = user},
                      &executor));
    engine->is_one_process = executor->ops == &executor_uniproc;
    engine->max_model_len = executor->info.max_model_len;
    engine->vocab_size = model_file_vocabulary(model)->num_tokens;
    engine->block_size = config->block_size;
    engine->num_blocks = executor->info.num_kv_blocks;
    engine->memory = executor->info.memory;
    TRY(core_new(&(struct core_options){.config = config,
                                        .executor = executor,
                                        .outputs = &engine->outputs,
                                        .grammar_fd = engine->grammar_fd,
                                        .mask_patience_ms = MASK_PATIENCE_MS,
                                        .vocab_size = engine->vocab_size,
                                        .vocabulary = model_file_is_simulated(model)
                                                          ? NULL /* there are no weights to load */
                                                          : model_file_vocabulary(model)},
                 &engine->core));
    executor = NULL; /* core's now */
    TRY(core_start(engine->core));
    *out = give(engine);
    return OK;
}

/* Every process has written its part when it ended; one file is made of them. */
static void merge_traces(const struct engine *engine)
{
    const struct config *config = engine->config;
    const char **parts = mem_new_array(const char *, (size_t)config->tp + 1);

    for (int32_t rank = 0; rank < config->tp; rank++)
        parts[rank + 1] = mem_printf("%s.worker.%d", config->trace, rank);
    parts[0] = mem_printf("%s.engine", config->trace);

    /* A rank in this process has its spans in the engine's part. */
    int32_t num_parts = engine->is_one_process ? 1 : config->tp + 1;

    if (trace_write(parts[0], "engine") != OK ||
        trace_merge(parts, num_parts, config->trace) != OK)
        log_error("%s", fail_text());
    for (int32_t i = 0; i <= config->tp; i++) {
        unlink(parts[i]);
        mem_free((char *)parts[i]);
    }
    mem_free(parts);
}

void engine_free(struct engine *engine)
{
    if (!engine)
        return;
    core_free(engine->core);
    for (struct engine_output *output; (output = engine_poll(engine));)
        engine_output_free(output);
    mailbox_close(&engine->outputs);
    if (engine->grammar_fd >= 0)
        close(engine->grammar_fd);
    if (engine->core && engine->config->trace)
        merge_traces(engine);
    mem_free(engine);
}

static enum status check_prompt(const struct engine *engine, const struct submission *submission)
{
    if (submission->num_prompt < 1)
        return fail(ERR_INVALID, "The decoder prompt cannot be empty");
    if (submission->num_prompt >= engine->max_model_len)
        return fail(ERR_INVALID,
                    "The decoder prompt (length %d) is longer than the maximum model length of %d, "
                    "which has to hold one generated token too",
                    submission->num_prompt, engine->max_model_len);
    for (int32_t i = 0; i < submission->num_prompt; i++)
        if (submission->prompt[i] < 0 || submission->prompt[i] >= engine->vocab_size)
            return fail(ERR_INVALID, "Token id %d is out of vocabulary, which has %d tokens",
                        submission->prompt[i], engine->vocab_size);
    return OK;
}

enum status engine_check_admission(struct engine *engine, int32_t n)
{
    return admission_check(&engine->admission, n);
}

bool engine_has_room(const struct engine *engine)
{
    return admission_has_room(&engine->admission);
}

int32_t engine_retry_after_s(const struct engine *engine)
{
    return engine->admission.retry_after_s;
}

/* What came out is queued no more. */
static void count_out(struct engine *engine, const struct engine_output *output)
{
    for (int32_t i = 0; i < output->num_events; i++) {
        const struct engine_event *event = &output->events[i];
        bool is_first = event->num_output_tokens == event->num_tokens;

        if (event->finish != FINISH_NONE)
            admission_leave(&engine->admission, LIMIT_QUEUED_REQS, 1);
        if (is_first)
            admission_leave(&engine->admission, LIMIT_QUEUED_TOKENS, event->num_prompt_tokens);
    }
}

/* The scheduler counts on it that those of one prompt fit in one step. */
static enum status check_prompt_logprobs(const struct engine *engine,
                                         const struct submission *submission)
{
    int32_t each = MIN(submission->params->prompt_logprobs, engine->vocab_size);
    int64_t all = ((int64_t)each + 1) * submission->num_prompt;

    if (each >= 0 && all > MAX_PROMPT_LOGPROBS)
        return fail(ERR_INVALID,
                    "prompt_logprobs of %d for %d prompt tokens are %lld logprobs; %d are the most.",
                    each, submission->num_prompt, (long long)all, MAX_PROMPT_LOGPROBS);
    return OK;
}

enum status engine_submit(struct engine *engine, const struct submission *submission,
                          request_id *id_out)
{
    AUTO_FREE(request) struct request *request = NULL;

    if (atomic_load(&engine->is_draining))
        return fail(ERR_CLOSED, "the engine is shutting down");
    TRY(check_prompt(engine, submission));
    TRY(sampling_params_validate(submission->params, engine->vocab_size, engine->max_model_len,
                                 engine->config->max_logprobs));
    TRY(check_prompt_logprobs(engine, submission));
    request = request_new(engine->last_id + 1, submission, engine->max_model_len,
                          engine->block_size);
    TRY(request_check_fits(request, engine->num_blocks, engine->block_size));
    request->grammar = submission->grammar;

    enum status status = core_add(engine->core, request);

    if (status != OK) {
        request->grammar = NULL; /* still the caller's */
        return status;
    }
    request = NULL; /* core's now */
    admission_enter(&engine->admission, submission->num_prompt);
    *id_out = ++engine->last_id;
    return OK;
}

void engine_set_grammar(struct engine *engine, request_id id, struct grammar *grammar,
                        enum status status, const char *text)
{
    core_set_grammar(engine->core, id, grammar, status, text);
}

void engine_abort(struct engine *engine, request_id id)
{
    core_abort(engine->core, id);
}

void engine_drain(struct engine *engine)
{
    atomic_store(&engine->is_draining, true);
}

/* ---- orders ---------------------------------------------------------------------------------- */

static const char *const pause_mode_names[NUM_PAUSE_MODES] = {
    [PAUSE_ABORT] = "abort",
    [PAUSE_WAIT] = "wait",
    [PAUSE_KEEP] = "keep",
};

enum status pause_mode_parse(const char *text, enum pause_mode *out)
{
    for (int mode = 0; mode < NUM_PAUSE_MODES; mode++)
        if (strcmp(pause_mode_names[mode], text) == 0) {
            *out = (enum pause_mode)mode;
            return OK;
        }
    return fail(ERR_INVALID, "Invalid pause mode: '%.32s'; the modes are abort, wait and keep", text);
}

enum status engine_pause(struct engine *engine, enum pause_mode mode, bool clear_cache,
                         engine_listener *listener, void *user)
{
    return core_pause(engine->core, mode, clear_cache, listener, user);
}

enum status engine_resume(struct engine *engine, engine_listener *listener, void *user)
{
    if (atomic_load(&engine->is_draining) && !engine_is_paused(engine))
        return fail(ERR_CLOSED, "the engine drains for good: end it ('tandem ctl shutdown') and start another");
    return core_resume(engine->core, listener, user);
}

bool engine_is_paused(const struct engine *engine)
{
    struct engine_stats stats;

    core_stats(engine->core, &stats);
    return stats.is_paused;
}

enum status engine_reset_prefix_cache(struct engine *engine, bool reset_running,
                                      engine_listener *listener, void *user)
{
    return core_reset_prefix_cache(engine->core, reset_running, listener, user);
}

enum status engine_retune(struct engine *engine, const struct config *config,
                          engine_listener *listener, void *user)
{
    struct scheduler_tuning tuning = {
        .max_num_active_seqs = config->max_num_active_seqs,
        .long_prefill_token_threshold = config->long_prefill_token_threshold,
        .long_prefill_token_threshold_adaptive = config->long_prefill_token_threshold_adaptive,
        .decode_slowdown = config->decode_slowdown,
        .watermark = config->watermark,
    };

    TRY(core_retune(engine->core, &tuning, listener, user));
    take_admission(engine, config);
    return OK;
}

static const char *const worker_state_names[] = {
    [WORKER_STARTING] = "starting",
    [WORKER_LOADING] = "loading",
    [WORKER_READY] = "ready",
    [WORKER_LOST] = "lost",
};

const char *worker_state_name(enum worker_state state)
{
    return worker_state_names[state];
}

int32_t engine_workers(const struct engine *engine, struct engine_worker *out, int32_t capacity)
{
    return core_workers(engine->core, out, capacity);
}

enum status engine_restart_worker(struct engine *engine, int32_t rank, engine_listener *listener,
                                  void *user)
{
    return core_restart_worker(engine->core, rank, listener, user);
}

enum status engine_call_workers(struct engine *engine, const char *name, const char *args,
                                engine_listener *listener, void *user)
{
    return core_call_workers(engine->core, name, args, listener, user);
}

enum status engine_reload_weights(struct engine *engine, const char *path,
                                  engine_listener *listener, void *user)
{
    return core_reload_weights(engine->core, path, listener, user);
}

/* ---- out ------------------------------------------------------------------------------------- */

int engine_fd(const struct engine *engine)
{
    return mailbox_fd(&engine->outputs);
}

struct engine_output *engine_poll(struct engine *engine)
{
    struct mail *mail;

    while ((mail = mailbox_pop(&engine->outputs))) {
        struct output_node *node = MAIL_ITEM(mail, struct output_node, mail);

        if (!node->listener) {
            count_out(engine, &node->output);
            return &node->output;
        }
        node->listener(node->user, node->status, node->text);
        engine_output_free(&node->output);
    }
    return NULL;
}

static int32_t count_ready(const struct engine *engine)
{
    struct engine_worker workers[MAX_RANKS];
    int32_t num_workers = engine_workers(engine, workers, MAX_RANKS), num_ready = 0;

    for (int32_t i = 0; i < num_workers; i++)
        num_ready += workers[i].state == WORKER_READY;
    return num_ready;
}

void engine_stats(const struct engine *engine, struct engine_stats *out)
{
    core_stats(engine->core, out);
    out->num_ranks_alive = count_ready(engine);
    if (out->phase == PHASE_READY && atomic_load(&engine->is_draining))
        out->phase = PHASE_DRAINING;
    for (int i = 0; i < NUM_ADMISSION_LIMITS; i++)
        out->admission_rejections[i] = atomic_load(&engine->admission.num_rejections[i]);
}

int32_t engine_max_model_len(const struct engine *engine)
{
    return engine->max_model_len;
}

int engine_grammar_fd(const struct engine *engine)
{
    return engine->grammar_fd;
}

void engine_memory(const struct engine *engine, struct engine_memory *out)
{
    *out = engine->memory;
}
