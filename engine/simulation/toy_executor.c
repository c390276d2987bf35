#include "engine/simulation/toy_executor.h"

#include "engine/executor/linked.h"

struct toy_executor {
    struct linked_executor linked;
    struct cluster *cluster;
    struct cluster_options options; /* of the cluster */
    const struct config *config;    /* borrowed */
};

static struct toy_executor *of(struct executor *executor)
{
    return CONTAINER_OF(executor, struct toy_executor, linked.executor);
}

static enum status find_memory(struct executor *executor)
{
    return network_fails_call(cluster_network(of(executor)->cluster))
               ? fail(ERR_NO_MEMORY, "no memory for a message to the ranks")
               : OK;
}

static enum status prepare_inputs(struct executor *executor, int64_t step,
                                  const struct scheduler_output *plan)
{
    TRY(find_memory(executor));
    return linked_prepare_inputs(executor, step, plan);
}

static enum status execute_model(struct executor *executor, int64_t step)
{
    TRY(find_memory(executor));
    return linked_execute_model(executor, step);
}

static enum status sample(struct executor *executor, int64_t step,
                          const struct grammar_output *grammar)
{
    TRY(find_memory(executor));
    return linked_sample(executor, step, grammar);
}

static enum status collect(struct executor *executor, int64_t step,
                           const struct model_runner_output **output_out)
{
    TRY(find_memory(executor));
    return linked_collect(executor, step, output_out);
}

static enum status gather(struct toy_executor *toy)
{
    struct executor *executor = &toy->linked.executor;

    executor->info.memory = (struct engine_memory){0};
    toy->cluster = cluster_new(&toy->options);
    linked_open(&toy->linked, network_channel(cluster_network(toy->cluster)), toy->options.epoch,
                toy->config);
    for (int32_t rank = 0; rank < toy->options.world; rank++)
        toy->linked.link.ranks[rank].pidfd = network_pidfd(rank);
    return linked_gather(&toy->linked, &(struct executor_options){.config = toy->config});
}

static void scatter(struct toy_executor *toy)
{
    linked_close(&toy->linked);
    cluster_free(toy->cluster);
    toy->cluster = NULL;
}

/* All ranks are new ones. Faults may strike before they are ready: then once more. */
static enum status recover(struct executor *executor, int32_t rank)
{
    struct toy_executor *toy = of(executor);

    (void)rank;
    fault_plan_cure(toy->options.faults, toy->options.agenda->now_ns);
    do {
        scatter(toy);
        toy->options.faults->fatal = FAULT_NONE;
        toy->options.epoch++;
        toy->options.seed = mix(toy->options.seed);
    } while (gather(toy) != OK);
    return OK;
}

static void free_executor(struct executor *executor)
{
    struct toy_executor *toy = of(executor);

    scatter(toy);
    mem_free(toy);
}

static const struct executor_ops ops = {
    .name = "toy",
    .prepare_inputs = prepare_inputs,
    .execute_model = execute_model,
    .sample = sample,
    .collect = collect,
    .wait = linked_wait,
    .recover = recover,
    .free = free_executor,
};

enum status toy_executor_open(const struct config *config, const struct cluster_options *options,
                              struct executor **out)
{
    struct toy_executor *toy = mem_new(struct toy_executor);
    AUTO_FREE(executor) struct executor *executor = &toy->linked.executor;

    executor->ops = &ops;
    executor->info.num_ranks = options->world;
    executor->info.max_model_len = options->limits.max_model_len;
    toy->options = *options;
    toy->config = config;
    TRY(gather(toy));
    *out = give(executor);
    return OK;
}
