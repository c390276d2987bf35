/*
 * uniproc: one rank in this process. The calls go straight to the worker, whose device thread
 * is all that runs beside core.
 */
#include "engine/executor/executor.h"
#include "worker/worker.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

struct uniproc {
    struct executor executor;
    struct worker *worker;
    struct sim_device sim; /* with --sim */
};

static struct uniproc *of(struct executor *executor)
{
    return CONTAINER_OF(executor, struct uniproc, executor);
}

static void uniproc_free(struct executor *executor)
{
    worker_free(of(executor)->worker);
    mem_free(of(executor));
}

static enum status uniproc_open(const struct executor_options *options, struct executor **out)
{
    AUTO_FREE(executor) struct executor *executor = &mem_new(struct uniproc)->executor;
    const struct config *config = options->config;
    struct executor_info *info = &executor->info;
    struct worker_options worker_options;
    struct worker_memory memory;

    executor->ops = &executor_uniproc;
    if (config->tp != 1)
        return fail(ERR_INVALID, "--executor uniproc runs one rank, not --tp %d; use multiproc",
                    config->tp);
    info->num_ranks = 1;
    TRY(executor_max_model_len(config, model_file_config(options->model), &info->max_model_len));
    TRY(worker_options_read(config, &of(executor)->sim, &worker_options));
    worker_options.world = 1;
    worker_options.num_threads = executor_threads(config);
    worker_options.max_model_len = info->max_model_len;
    TRY(worker_new(&worker_options, options->model, &of(executor)->worker));
    TRY(worker_wait_loaded(of(executor)->worker, &memory));
    strcpy(info->fingerprint, worker_weights(of(executor)->worker).fingerprint);
    info->memory = (struct engine_memory){memory.weight_bytes, memory.step_weight_bytes,
                                          memory.kv_block_bytes};
    TRY(executor_plan_kv(config, info->max_model_len, 1, memory.kv_block_bytes,
                         memory.available_bytes, &info->num_kv_blocks));
    TRY(worker_initialize_kv_cache(of(executor)->worker, info->num_kv_blocks));
    *out = give(executor);
    return OK;
}

static enum status uniproc_prepare_inputs(struct executor *executor, int64_t step,
                                          const struct scheduler_output *plan)
{
    return worker_prepare_inputs(of(executor)->worker, step, plan);
}

static enum status uniproc_execute_model(struct executor *executor, int64_t step)
{
    return worker_execute_model(of(executor)->worker, step);
}

static enum status uniproc_sample(struct executor *executor, int64_t step,
                                  const struct grammar_output *grammar)
{
    return worker_sample(of(executor)->worker, step, grammar);
}

static enum status uniproc_collect(struct executor *executor, int64_t step,
                                   const struct model_runner_output **output_out)
{
    int64_t answered;

    TRY(worker_collect(of(executor)->worker, true, &answered, output_out));
    ASSERT(answered == step);
    return OK;
}

/* The rank lives as long as we do. */
static enum status uniproc_wait(struct executor *executor, int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    (void)executor;
    while (poll(&poll_fd, 1, -1) < 0)
        ASSERT(errno == EINTR);
    return OK;
}

static enum status uniproc_call(struct executor *executor, const char *name, const char *args,
                                struct bytes *replies_out, bool *refused_out)
{
    AUTO_CLOSE(bytes) struct bytes reply = {0};
    struct worker_call call = {0};
    bool is_over;
    enum status status = worker_call_begin(of(executor)->worker, name, args, &call);

    if (status == OK)
        status = worker_call_end(of(executor)->worker, &call, true, &reply, &is_over);
    *refused_out = status != OK;
    if (status != OK)
        return fail_in(name, status);
    bytes_printf(replies_out, "[%s]", bytes_text(&reply));
    return OK;
}

static int32_t uniproc_workers(struct executor *executor, struct engine_worker *out,
                               int32_t capacity)
{
    if (capacity < 1)
        return 1;
    struct worker_progress progress = worker_progress(of(executor)->worker);

    *out = (struct engine_worker){.pid = getpid(),
                                  .state = WORKER_READY,
                                  .epoch = 1,
                                  .step = progress.step,
                                  .ms_in_step = progress.ns_in_step / 1000000,
                                  .memory = worker_memory_held(of(executor)->worker),
                                  .passes = progress.passes};
    gethostname(out->host, sizeof out->host - 1);
    return 1;
}

const struct executor_ops executor_uniproc = {
    .name = "uniproc",
    .doc = "one rank on a thread of this process",
    .open = uniproc_open,
    .prepare_inputs = uniproc_prepare_inputs,
    .execute_model = uniproc_execute_model,
    .sample = uniproc_sample,
    .collect = uniproc_collect,
    .wait = uniproc_wait,
    .call = uniproc_call,
    .workers = uniproc_workers,
    .free = uniproc_free,
};
