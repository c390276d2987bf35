#include "engine/executor/linked.h"

#include "proto/base/clock.h"

#include <stdio.h>

enum { START_TIMEOUT_MS = 600000, STEP_TIMEOUT_MS = 300000 };

/* ---- starting ------------------------------------------------------------------------------- */

void linked_open(struct linked_executor *linked, struct channel *channel, uint32_t epoch,
                 const struct config *config)
{
    link_open(channel, linked->executor.info.num_ranks, epoch, &linked->link);
    linked->recorder =
        flight_recorder_new(config->flight_recorder_bytes, config->flight_recorder_seconds);
    linked->link.recorder = linked->recorder;
    linked->executor.wire = linked->recorder;
}

void linked_close(struct linked_executor *linked)
{
    if (linked->link.ranks)
        link_close(&linked->link);
    flight_recorder_free(linked->recorder);
}

/* No rank has more; and sums of so many bytes over all ranks and blocks fit. */
static const int64_t MAX_BLOCK_BYTES = (int64_t)1 << 32, MAX_FREE_BYTES = (int64_t)1 << 50;

static enum status check_ready(int32_t rank, const struct ready *ready)
{
    if (ready->first_token < 0 || ready->num_tokens < 1 ||
        (int64_t)ready->first_token + ready->num_tokens > ready->vocab_size)
        return fail(ERR_MISMATCH, "rank %d: says that it samples %d tokens from %d on, of %d", rank,
                    ready->num_tokens, ready->first_token, ready->vocab_size);
    if (ready->weights_bytes < 0 || ready->weights_bytes > MAX_FREE_BYTES ||
        ready->step_weights_bytes < 0 || ready->step_weights_bytes > ready->weights_bytes)
        return fail(ERR_MISMATCH, "rank %d: says that a step reads %lld of %lld bytes of weights", rank,
                    (long long)ready->step_weights_bytes, (long long)ready->weights_bytes);
    if (ready->kv_block_bytes < 1 || ready->kv_block_bytes > MAX_BLOCK_BYTES ||
        ready->free_bytes < 0 || ready->free_bytes > MAX_FREE_BYTES)
        return fail(ERR_MISMATCH,
                    "rank %d: says that a KV block takes %lld bytes, and that %lld are free", rank,
                    (long long)ready->kv_block_bytes, (long long)ready->free_bytes);
    return OK;
}

/* The smallest of what the ranks have for KV, and the largest of what a block costs them. */
static enum status size_kv_cache(struct linked_executor *linked,
                                 const struct executor_options *options)
{
    const struct rank_info *ranks = linked->link.rendezvous.ranks;
    struct executor_info *info = &linked->executor.info;
    int64_t block_bytes = 0, available = INT64_MAX;
    char args[64];

    for (int32_t rank = 0; rank < linked->link.world; rank++) {
        TRY(check_ready(rank, &ranks[rank].ready));
        block_bytes = MAX(block_bytes, ranks[rank].ready.kv_block_bytes);
        available = MIN(available, ranks[rank].ready.free_bytes);
        info->memory.weight_bytes += ranks[rank].ready.weights_bytes;
        info->memory.step_weight_bytes += ranks[rank].ready.step_weights_bytes;
        info->memory.kv_block_bytes += ranks[rank].ready.kv_block_bytes;
    }
    if (options->config->sim) /* each rank has a device's memory to itself */
        available *= linked->link.world;
    TRY(executor_plan_kv(options->config, info->max_model_len, info->num_ranks, block_bytes,
                         available, &info->num_kv_blocks));
    snprintf(args, sizeof args, "{\"num_blocks\": %d}", info->num_kv_blocks);
    return link_call_all(&linked->link, "initialize_kv_cache", args,
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

enum status linked_gather(struct linked_executor *linked, const struct executor_options *options)
{
    AUTO_MEM char *settings = settle(options, linked->executor.info.max_model_len);

    TRY(link_gather(&linked->link, options, settings, clock_deadline_ns(START_TIMEOUT_MS)));
    return size_kv_cache(linked, options);
}

/* ---- steps ---------------------------------------------------------------------------------- */

enum status linked_prepare_inputs(struct executor *executor, int64_t step,
                                  const struct scheduler_output *plan)
{
    return link_send_all(&linked_of(executor)->link, &scheduler_output_type, step, plan);
}

enum status linked_execute_model(struct executor *executor, int64_t step)
{
    return link_send_all(&linked_of(executor)->link, &execute_model_type, step, NULL);
}

enum status linked_sample(struct executor *executor, int64_t step,
                          const struct grammar_output *grammar)
{
    return link_sample(&linked_of(executor)->link, step, grammar);
}

enum status linked_collect(struct executor *executor, int64_t step,
                           const struct model_runner_output **output_out)
{
    return link_collect(&linked_of(executor)->link, step, clock_deadline_ns(STEP_TIMEOUT_MS),
                        output_out);
}

enum status linked_wait(struct executor *executor, int fd)
{
    struct message message;
    int32_t rank;

    TRY(link_hear(&linked_of(executor)->link, fd, clock_deadline_ns(-1), &message, &rank));
    if (message.type)
        return fail(ERR_MISMATCH, "rank %d: %s while nothing was asked", rank, message.type->name);
    return OK;
}
