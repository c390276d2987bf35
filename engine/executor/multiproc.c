/*
 * multiproc: a process for each rank on this host. The engine starts them, and they end with it.
 */
#include "engine/executor/link.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/spawn.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { START_TIMEOUT_MS = 600000, STEP_TIMEOUT_MS = 300000, STOP_TIMEOUT_MS = 2000 };

/* Raised when the set of ranks is rebuilt; so far it never is. */
enum { FIRST_EPOCH = 1 };

struct multiproc {
    struct executor executor;
    struct run_dir run_dir;
    struct link link;
    struct flight_recorder *recorder;
    int comm_fd; /* memory that the ranks share; it has no name, so it ends with them */
    struct child *children; /* [num_started] */
    int32_t num_started;
};

static struct multiproc *of(struct executor *executor)
{
    return CONTAINER_OF(executor, struct multiproc, executor);
}

/* ---- starting ------------------------------------------------------------------------------- */

static enum status start_rank(struct multiproc *multiproc, const char *endpoint, int32_t rank)
{
    char rank_text[16], world_text[16], epoch_text[16], comm_text[32];
    const char *argv[] = {"/proc/self/exe", "worker",   "--engine", endpoint,   "--rank", rank_text,
                          "--world",        world_text, "--epoch",  epoch_text, "--comm", comm_text,
                          NULL};
    struct spawn_options options = {.argv = argv, .fds = &multiproc->comm_fd, .num_fds = 1};
    struct child *child = &multiproc->children[rank];

    snprintf(rank_text, sizeof rank_text, "%d", rank);
    snprintf(world_text, sizeof world_text, "%d", multiproc->link.world);
    snprintf(epoch_text, sizeof epoch_text, "%d", FIRST_EPOCH);
    snprintf(comm_text, sizeof comm_text, "/proc/self/fd/%d", multiproc->comm_fd);
    TRY(spawn(&options, child));
    multiproc->num_started = rank + 1;
    multiproc->link.ranks[rank].pidfd = child->pidfd;
    return OK;
}

static enum status start_ranks(struct multiproc *multiproc, const struct executor_options *options)
{
    int32_t world = options->config->tp;
    struct channel *channel;

    TRY(run_dir_open(options->config->run_dir, &multiproc->run_dir));

    AUTO_MEM char *endpoint = mem_printf("ipc://%s/engine", multiproc->run_dir.path);

    TRY(channel_listen(endpoint, &channel));
    link_open(channel, world, FIRST_EPOCH, &multiproc->link);
    multiproc->recorder = flight_recorder_new(options->config->flight_recorder_bytes,
                                              options->config->flight_recorder_seconds);
    multiproc->link.recorder = multiproc->recorder;
    multiproc->executor.wire = multiproc->recorder;
    multiproc->comm_fd = memfd_create("tandem-comm", MFD_CLOEXEC);
    if (multiproc->comm_fd < 0)
        return fail(ERR_IO, "no memory to share between %d ranks: %m", world);
    multiproc->children = mem_new_array(struct child, (size_t)world);
    for (int32_t rank = 0; rank < world; rank++)
        TRY(start_rank(multiproc, endpoint, rank));
    return OK;
}

/* The smallest of what the ranks have for KV, and the largest of what a block costs them. */
static enum status size_kv_cache(struct multiproc *multiproc,
                                 const struct executor_options *options)
{
    const struct rank_info *ranks = multiproc->link.rendezvous.ranks;
    struct executor_info *info = &multiproc->executor.info;
    int64_t block_bytes = 0, available = INT64_MAX;
    char args[64];

    for (int32_t rank = 0; rank < multiproc->link.world; rank++) {
        block_bytes = MAX(block_bytes, ranks[rank].ready.kv_block_bytes);
        available = MIN(available, ranks[rank].ready.free_bytes);
    }
    if (options->config->sim) /* each rank has a device's memory to itself */
        available *= multiproc->link.world;
    TRY(executor_plan_kv(options->config, info->max_model_len, info->num_ranks, block_bytes,
                         available, &info->num_kv_blocks));
    snprintf(args, sizeof args, "{\"num_blocks\": %d}", info->num_kv_blocks);
    return link_call_all(&multiproc->link, "initialize_kv_cache", args,
                         clock_deadline_ns(START_TIMEOUT_MS));
}

/* The settings as the ranks are to have them: what was left open is decided here, for all. */
static char *settle(const struct executor_options *options, int32_t max_model_len)
{
    struct config settled = *options->config; /* borrows the texts */

    settled.max_model_len = max_model_len;
    settled.threads = executor_threads(options->config);
    return config_to_json(&settled);
}

static enum status multiproc_open(const struct executor_options *options, struct executor **out)
{
    AUTO_FREE(executor) struct executor *executor = &mem_new(struct multiproc)->executor;
    AUTO_MEM char *settings = NULL;
    struct multiproc *multiproc = of(executor);
    struct executor_info *info = &executor->info;

    executor->ops = &executor_multiproc;
    multiproc->comm_fd = -1;
    info->num_ranks = options->config->tp;
    TRY(executor_max_model_len(options->config, model_file_config(options->model),
                               &info->max_model_len));
    settings = settle(options, info->max_model_len);
    TRY(start_ranks(multiproc, options));
    TRY(link_gather(&multiproc->link, options, settings, clock_deadline_ns(START_TIMEOUT_MS)));
    TRY(size_kv_cache(multiproc, options));
    *out = give(executor);
    return OK;
}

/* ---- steps ---------------------------------------------------------------------------------- */

static enum status multiproc_prepare_inputs(struct executor *executor, int64_t step,
                                            const struct scheduler_output *plan)
{
    return link_send_all(&of(executor)->link, &scheduler_output_type, step, plan);
}

static enum status multiproc_execute_model(struct executor *executor, int64_t step)
{
    return link_send_all(&of(executor)->link, &execute_model_type, step, NULL);
}

static enum status multiproc_sample(struct executor *executor, int64_t step,
                                    const struct grammar_output *grammar)
{
    return link_sample(&of(executor)->link, step, grammar);
}

static enum status multiproc_collect(struct executor *executor, int64_t step,
                                     const struct model_runner_output **output_out)
{
    return link_collect(&of(executor)->link, step, clock_deadline_ns(STEP_TIMEOUT_MS), output_out);
}

static enum status multiproc_wait(struct executor *executor, int fd)
{
    struct message message;
    int32_t rank;

    TRY(link_hear(&of(executor)->link, fd, clock_deadline_ns(-1), &message, &rank));
    if (message.type)
        return fail(ERR_MISMATCH, "rank %d: %s while nothing was asked", rank, message.type->name);
    return OK;
}

/* ---- stopping ------------------------------------------------------------------------------- */

static void stop_ranks(struct multiproc *multiproc)
{
    bool were_ready = rendezvous_is_complete(&multiproc->link.rendezvous);
    int64_t deadline_ns = clock_deadline_ns(were_ready ? STOP_TIMEOUT_MS : 0);

    /* A rank that does not hear it any more, or does not listen yet, is killed below. */
    if (were_ready && link_send_all(&multiproc->link, &shutdown_type, -1, NULL) != OK)
        log_debug("shutdown: %s", fail_text());
    for (int32_t rank = 0; rank < multiproc->num_started; rank++) {
        int status;

        if (!child_wait(&multiproc->children[rank], deadline_ns, &status) && were_ready)
            log_warn("rank %d does not stop, and is killed", rank);
        child_close(&multiproc->children[rank]);
    }
}

static void multiproc_free(struct executor *executor)
{
    struct multiproc *multiproc = of(executor);
    AUTO_MEM char *sentence = mem_strdup(fail_text()); /* why, if a failure brought us here */

    if (multiproc->num_started > 0)
        stop_ranks(multiproc);
    if (multiproc->link.ranks)
        link_close(&multiproc->link);
    if (multiproc->comm_fd >= 0)
        close(multiproc->comm_fd);
    if (multiproc->run_dir.path)
        run_dir_close(&multiproc->run_dir);
    flight_recorder_free(multiproc->recorder);
    mem_free(multiproc->children);
    mem_free(multiproc);
    (void)fail(OK, "%s", sentence);
}

const struct executor_ops executor_multiproc = {
    .name = "multiproc",
    .doc = "a process for each rank on this host",
    .open = multiproc_open,
    .prepare_inputs = multiproc_prepare_inputs,
    .execute_model = multiproc_execute_model,
    .sample = multiproc_sample,
    .collect = multiproc_collect,
    .wait = multiproc_wait,
    .free = multiproc_free,
};
