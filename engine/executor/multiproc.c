/*
 * multiproc: a process for each rank on this host. The engine starts them, and they end with it.
 */
#include "engine/executor/linked.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/spawn.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { STOP_TIMEOUT_MS = 2000 };

/* Raised when the set of ranks is rebuilt; so far it never is. */
enum { FIRST_EPOCH = 1 };

struct multiproc {
    struct linked_executor linked;
    struct run_dir run_dir;
    int comm_fd;            /* memory that the ranks share; it has no name, so it ends with them */
    struct child *children; /* [num_started] */
    int32_t num_started;
};

static struct multiproc *of(struct executor *executor)
{
    return CONTAINER_OF(executor, struct multiproc, linked.executor);
}

/* ---- starting ------------------------------------------------------------------------------- */

static enum status start_rank(struct multiproc *multiproc, const char *endpoint, int32_t rank)
{
    char rank_text[16], world_text[16], epoch_text[16], comm_text[32];
    const char *argv[] = {"/proc/self/exe", "worker",  "--engine", endpoint,  "--rank",
                          rank_text,        "--world", world_text, "--epoch", epoch_text,
                          "--comm",         comm_text, NULL};
    struct spawn_options options = {.argv = argv, .fds = &multiproc->comm_fd, .num_fds = 1};
    struct child *child = &multiproc->children[rank];

    snprintf(rank_text, sizeof rank_text, "%d", rank);
    snprintf(world_text, sizeof world_text, "%d", multiproc->linked.link.world);
    snprintf(epoch_text, sizeof epoch_text, "%d", FIRST_EPOCH);
    snprintf(comm_text, sizeof comm_text, "/proc/self/fd/%d", multiproc->comm_fd);
    TRY(spawn(&options, child));
    multiproc->num_started = rank + 1;
    multiproc->linked.link.ranks[rank].pidfd = child->pidfd;
    return OK;
}

static enum status start_ranks(struct multiproc *multiproc, const struct executor_options *options)
{
    int32_t world = options->config->tp;
    struct channel *channel;

    TRY(run_dir_open(options->config->run_dir, &multiproc->run_dir));

    AUTO_MEM char *endpoint = mem_printf("ipc://%s/engine", multiproc->run_dir.path);

    TRY(channel_listen(endpoint, &channel));
    linked_open(&multiproc->linked, channel, FIRST_EPOCH, options->config);
    multiproc->comm_fd = memfd_create("tandem-comm", MFD_CLOEXEC);
    if (multiproc->comm_fd < 0)
        return fail(ERR_IO, "no memory to share between %d ranks: %m", world);
    multiproc->children = mem_new_array(struct child, (size_t)world);
    for (int32_t rank = 0; rank < world; rank++)
        TRY(start_rank(multiproc, endpoint, rank));
    return OK;
}

static enum status multiproc_open(const struct executor_options *options, struct executor **out)
{
    AUTO_FREE(executor) struct executor *executor = &mem_new(struct multiproc)->linked.executor;
    struct multiproc *multiproc = of(executor);
    struct executor_info *info = &executor->info;

    executor->ops = &executor_multiproc;
    multiproc->comm_fd = -1;
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
    if (multiproc->comm_fd >= 0)
        close(multiproc->comm_fd);
    if (multiproc->run_dir.path)
        run_dir_close(&multiproc->run_dir);
    mem_free(multiproc->children);
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
    .free = multiproc_free,
};
