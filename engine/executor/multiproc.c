/*
 * multiproc: a process for each rank on this host. The engine starts them, and they end with it.
 */
#include "engine/executor/linked.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/spawn.h"

#include <stdio.h>
#include <unistd.h>

enum { STOP_TIMEOUT_MS = 2000 };

struct multiproc {
    struct linked_executor linked;
    struct run_dir run_dir;
    char *endpoint;
    struct child *children; /* [num_started] */
    int32_t num_started;
};

static struct multiproc *of(struct executor *executor)
{
    return CONTAINER_OF(executor, struct multiproc, linked.executor);
}

/* ---- starting ------------------------------------------------------------------------------- */

static enum status start_rank(struct multiproc *multiproc, int32_t rank)
{
    char rank_text[16], world_text[16];
    const char *argv[] = {"/proc/self/exe", "worker",  "--engine",  multiproc->endpoint, "--rank",
                          rank_text,        "--world", world_text, NULL};
    struct spawn_options options = {.argv = argv};
    struct child *child = &multiproc->children[rank];

    snprintf(rank_text, sizeof rank_text, "%d", rank);
    snprintf(world_text, sizeof world_text, "%d", multiproc->linked.link.world);
    TRY(spawn(&options, child));
    multiproc->num_started = MAX(multiproc->num_started, rank + 1);
    multiproc->linked.link.ranks[rank].pidfd = child->pidfd;
    return OK;
}

/* How it ended, if it has: a signal says more than that it did. */
static void tell_end(struct child *child, int32_t rank)
{
    char text[64];
    int status;

    if (child->pid != 0 && child_wait(child, clock_now_ns(), &status))
        log_warn("rank %d: its process ended with %s", rank, child_status_text(status, text));
}

/* The old one is killed first: what it still writes would be nobody's. */
static enum status replace(struct linked_executor *linked, int32_t rank, const char *peer)
{
    struct multiproc *multiproc = of(&linked->executor);

    (void)peer;
    tell_end(&multiproc->children[rank], rank);
    child_close(&multiproc->children[rank]);
    return start_rank(multiproc, rank);
}

static const struct rank_source source = {.replace = replace};

static enum status start_ranks(struct multiproc *multiproc, const struct executor_options *options)
{
    int32_t world = options->config->tp;
    struct channel *channel;

    TRY(run_dir_open(options->config->run_dir, &multiproc->run_dir));
    multiproc->endpoint = mem_printf("ipc://%s/engine", multiproc->run_dir.path);
    TRY(channel_listen(multiproc->endpoint, NULL, &channel));
    linked_open(&multiproc->linked, channel, 1, options->config);
    multiproc->linked.source = &source;
    multiproc->children = mem_new_array(struct child, (size_t)world);
    for (int32_t rank = 0; rank < world; rank++)
        TRY(start_rank(multiproc, rank));
    return OK;
}

static enum status multiproc_open(const struct executor_options *options, struct executor **out)
{
    AUTO_FREE(executor) struct executor *executor = &mem_new(struct multiproc)->linked.executor;
    struct multiproc *multiproc = of(executor);
    struct executor_info *info = &executor->info;

    executor->ops = &executor_multiproc;
    info->num_ranks = options->config->tp;
    TRY(executor_max_model_len(options->config, model_file_config(options->model),
                               &info->max_model_len));
    TRY(start_ranks(multiproc, options));
    TRY(linked_gather(&multiproc->linked, options));
    *out = give(executor);
    return OK;
}

/* ---- stopping ------------------------------------------------------------------------------- */

static void stop_ranks(struct multiproc *multiproc)
{
    bool were_ready = rendezvous_is_complete(&multiproc->linked.link.rendezvous);
    int64_t deadline_ns = clock_deadline_ns(were_ready ? STOP_TIMEOUT_MS : 0);

    /* A rank that does not hear it any more, or does not listen yet, is killed below. */
    if (were_ready && link_send_all(&multiproc->linked.link, &shutdown_type, -1, NULL) != OK)
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
    linked_close(&multiproc->linked);
    if (multiproc->run_dir.path)
        run_dir_close(&multiproc->run_dir);
    mem_free(multiproc->children);
    mem_free(multiproc->endpoint);
    mem_free(multiproc);
    (void)fail(OK, "%s", sentence);
}

const struct executor_ops executor_multiproc = {
    .name = "multiproc",
    .doc = "a process for each rank on this host",
    .open = multiproc_open,
    .prepare_inputs = linked_prepare_inputs,
    .execute_model = linked_execute_model,
    .sample = linked_sample,
    .collect = linked_collect,
    .wait = linked_wait,
    .call = linked_call,
    .recover = linked_recover,
    .workers = linked_workers,
    .free = multiproc_free,
};
