#include "engine/executor/executor.h"

#include "proto/base/cpus.h"
#include "proto/base/log.h"
#include "proto/base/rounding.h"
#include "proto/model/shard.h"

#include <string.h>
#include <unistd.h>

/* Memory for KV that nobody asked for by a flag. */
static const int64_t DEFAULT_KV_BYTES_MAX = (int64_t)4 << 30;

static const struct executor_ops *const rows[] = {&executor_uniproc, &executor_multiproc,
                                                  &executor_distributed};

enum status executor_choose(const struct config *config, const struct executor_ops **out)
{
    const char *name = config->executor;

    if (!name)
        name = config->tp == 1 ? executor_uniproc.name : executor_multiproc.name;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (strcmp(rows[i]->name, name) == 0) {
            *out = rows[i];
            return OK;
        }
    return fail(ERR_INVALID, "--executor '%s' is unknown; use uniproc, multiproc or distributed", name);
}

enum status executor_open(const struct executor_options *options, struct executor **out)
{
    const struct executor_ops *ops;
    struct shard shard;

    TRY(shard_init(model_file_config(options->model), 0, options->config->tp, &shard));
    TRY(executor_choose(options->config, &ops));
    return ops->open(options, out);
}

enum status executor_max_model_len(const struct config *config, const struct model_config *model,
                                   int32_t *out)
{
    if (config->max_model_len > model->max_position)
        return fail(ERR_INVALID,
                    "--max-model-len %d is more than the %d positions the model was trained for",
                    config->max_model_len, model->max_position);
    *out = config->max_model_len > 0 ? config->max_model_len : model->max_position;
    /* config_check can say so only of a length that was given. */
    if (!config->enable_chunked_prefill && *out > config->max_num_batched_tokens)
        return fail(ERR_INVALID,
                    "--max-num-batched-tokens is %d, without chunked prefill it must be at least the "
                    "model's length, %d; lower it by --max-model-len",
                    config->max_num_batched_tokens, *out);
    return OK;
}

static double mib(double bytes)
{
    return bytes / (1 << 20);
}

/* Digits enough that a size never reads as 0. */
static int digits(double bytes)
{
    return bytes < 10 << 20 ? 3 : 0;
}

static enum status too_little_kv(int32_t max_model_len, double needed_bytes, double budget_bytes,
                                 int64_t num_tokens)
{
    AUTO_MEM char *lower = num_tokens > 0 ? mem_printf("lower --max-model-len to %lld or ",
                                                       (long long)num_tokens)
                                          : mem_strdup("");

    return fail(ERR_NO_MEMORY,
                "one request of --max-model-len %d tokens needs %.*f MiB of KV cache, there are "
                "%.*f MiB; %sraise --kv-cache-memory",
                max_model_len, digits(needed_bytes), mib(needed_bytes), digits(budget_bytes),
                mib(budget_bytes), lower);
}

enum status executor_plan_kv(const struct config *config, int32_t max_model_len, int32_t num_ranks,
                             int64_t block_bytes_per_rank, int64_t available_bytes,
                             int32_t *num_blocks_out)
{
    int64_t block_bytes = block_bytes_per_rank * num_ranks;
    int64_t needed = divide_up(max_model_len, config->block_size);
    int64_t num_blocks = config->num_gpu_blocks_override, budget = config->kv_cache_memory;

    ASSERT(block_bytes > 0, "%lld bytes a block", (long long)block_bytes);
    if (num_blocks == 0) {
        if (budget == 0)
            budget = config->sim || strcmp(config->device, "cuda") == 0 ? available_bytes / 10 * 9
                                 : MIN(available_bytes / 2, DEFAULT_KV_BYTES_MAX);
        num_blocks = budget / block_bytes;
        if (num_blocks < needed)
            return too_little_kv(max_model_len, (double)needed * (double)block_bytes, (double)budget,
                                 num_blocks * config->block_size);

        /* More than every running request at full length can never be used. */
        num_blocks = MIN(num_blocks, needed * config->max_num_seqs);
    }
    if (num_blocks > available_bytes / block_bytes) {
        double wanted = (double)num_blocks * (double)block_bytes, there = (double)available_bytes;

        return fail(ERR_NO_MEMORY,
                    "%lld KV blocks need %.*f MiB, %.*f MiB of memory are free; lower %s",
                    (long long)num_blocks, digits(wanted), mib(wanted), digits(there), mib(there),
                    config->num_gpu_blocks_override ? "--num-gpu-blocks-override"
                                                    : "--kv-cache-memory");
    }
    *num_blocks_out = (int32_t)MIN(num_blocks, (int64_t)INT32_MAX / config->block_size);
    return OK;
}

static int32_t count_cores(void)
{
    AUTO_FREE(cpus) struct cpus *cpus = NULL;

    if (cpus_open(NULL, &cpus) == OK)
        return cpus_num_cores(cpus);
    log_warn("%s; --threads is the number of processors", fail_text());
    return (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
}

int32_t executor_threads(const struct config *config)
{
    return config->threads > 0 ? config->threads : MAX(count_cores() / config->tp, 1);
}
