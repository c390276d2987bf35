/* bench rpc: a step's way to the ranks and back, over ZeroMQ, between processes. */
#include "engine/bench/bench.h"
#include "engine/bench/decode_load.h"
#include "engine/bench/samples.h"
#include "engine/executor/link.h"
#include "proto/base/clock.h"
#include "proto/base/spawn.h"

#include <stdio.h>

enum { EPOCH = 1, NUM_STEPS = 3000, NUM_WARM_UP = 100 };
enum { START_TIMEOUT_MS = 30000, STEP_TIMEOUT_MS = 30000, STOP_TIMEOUT_MS = 2000 };

struct rpc_settings {
    int32_t running, ranks;
};

/* Null workers, each in a process of its own. */
struct null_ranks {
    struct run_dir run_dir;
    struct link link;
    struct child *children; /* [num_started] */
    int32_t num_started;
};

static enum status start_rank(struct null_ranks *ranks, const char *endpoint, int32_t rank)
{
    char rank_text[16], world_text[16];
    const char *argv[] = {"/proc/self/exe", "bench",   "null-worker", "--engine", endpoint,
                          "--rank",         rank_text, "--world",     world_text, NULL};

    snprintf(rank_text, sizeof rank_text, "%d", rank);
    snprintf(world_text, sizeof world_text, "%d", ranks->link.world);
    TRY(spawn(&(struct spawn_options){.argv = argv}, &ranks->children[rank]));
    ranks->num_started = rank + 1;
    ranks->link.ranks[rank].pidfd = ranks->children[rank].pidfd;
    return OK;
}

static enum status null_ranks_start(struct null_ranks *ranks, int32_t num_ranks)
{
    struct channel *channel;

    TRY(run_dir_open(NULL, &ranks->run_dir));

    AUTO_MEM char *endpoint = mem_printf("ipc://%s/engine", ranks->run_dir.path);

    TRY(channel_listen(endpoint, NULL, &channel));
    link_open(channel, num_ranks, EPOCH, &ranks->link);
    ranks->children = mem_new_array(struct child, (size_t)num_ranks);
    for (int32_t rank = 0; rank < num_ranks; rank++)
        TRY(start_rank(ranks, endpoint, rank));
    return link_gather(&ranks->link, NULL, NULL, "{}", clock_deadline_ns(START_TIMEOUT_MS));
}

static void null_ranks_close(struct null_ranks *ranks)
{
    AUTO_MEM char *sentence = mem_strdup(fail_text()); /* why, if a failure brought us here */
    int64_t deadline_ns = clock_deadline_ns(STOP_TIMEOUT_MS);

    if (!ranks->num_started || link_send_all(&ranks->link, &shutdown_type, -1, NULL) != OK)
        deadline_ns = 0; /* whoever has not heard it is killed */
    for (int32_t rank = 0; rank < ranks->num_started; rank++) {
        int status;

        child_wait(&ranks->children[rank], deadline_ns, &status);
        child_close(&ranks->children[rank]);
    }
    if (ranks->link.ranks)
        link_close(&ranks->link);
    if (ranks->run_dir.path)
        run_dir_close(&ranks->run_dir);
    mem_free(ranks->children);
    (void)fail(OK, "%s", sentence);
}

/* The verbs that go to the ranks, as the executor sends them. */
static enum status run_step(struct link *link, const struct decode_step *step,
                            const struct model_runner_output **answer_out)
{
    TRY(link_send_all(link, &scheduler_output_type, step->id, &step->plan));
    TRY(link_send_all(link, &execute_model_type, step->id, NULL));
    TRY(link_sample(link, step->id, NULL));
    return link_collect(link, step->id, clock_deadline_ns(STEP_TIMEOUT_MS), answer_out);
}

static enum status run(const void *user, double *figures_out)
{
    const struct rpc_settings *settings = user;
    AUTO_CLOSE(null_ranks) struct null_ranks ranks = {0};
    AUTO_CLOSE(decode_load) struct decode_load load = {0};
    AUTO_CLOSE(samples) struct samples samples = {0};

    TRY(null_ranks_start(&ranks, settings->ranks));
    TRY(decode_load_open(settings->running, NUM_WARM_UP + NUM_STEPS, &load));
    for (int32_t i = 0; i < NUM_WARM_UP + NUM_STEPS; i++) {
        struct decode_step *step = decode_load_begin(&load);
        const struct model_runner_output *answer;
        int64_t start_ns;

        scheduler_schedule(load.scheduler, &step->arena, &step->plan);
        start_ns = clock_now_ns();
        TRY(run_step(&ranks.link, step, &answer));
        if (i >= NUM_WARM_UP)
            samples_add(&samples, clock_now_ns() - start_ns);
        TRY(scheduler_update_from_output(load.scheduler, &step->plan, answer, &load.events));
        decode_load_drop_events(&load);
    }
    figures_out[0] = samples_median_us(&samples);
    figures_out[1] = samples_quantile_us(&samples, 0.99);
    return OK;
}

#define ROW(member, ...) OPTION(struct rpc_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(running, OPTION_I32, "256", "requests that decode", .least = 1, .most = BENCH_MAX_RUNNING),
    ROW(ranks, OPTION_I32, "2", "processes without a model", .least = 1, .most = BENCH_MAX_RANKS),
};
#undef ROW

static const struct figure figures[] = {
    {"p50_us", 2, "from prepare_inputs to rank 0's answer"},
    {"p99_us", 2, "which 99 of 100 steps do not exceed"},
};

const struct bench bench_rpc = {
    .name = "rpc",
    .help = "a decode step to the ranks' processes and back",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct rpc_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
