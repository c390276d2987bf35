#include "proto/model/shard.h"

#include "proto/base/memory.h"
#include "proto/base/rounding.h"

enum {
    COLUMN_UNIT = 32,     /* a block of quantised activations */
    VOCABULARY_UNIT = 32, /* what matrix_pack and the kernels' panels like */
    MAX_FFN_GROUPS = 16,  /* each costs a rounding per output of the down projection */
};

/* Items [first, first + count) of `total` for `rank`: in order, the first ranks take one more. */
static void deal(int32_t total, int32_t rank, int32_t world, int32_t *first_out, int32_t *count_out)
{
    int32_t each = total / world, extra = total % world;

    *first_out = rank * each + MIN(rank, extra);
    *count_out = each + (rank < extra);
}

/* The most groups, up to MAX_FFN_GROUPS, that are equal and whole blocks of activations. */
static int32_t num_ffn_groups(const struct model_config *config)
{
    int32_t num_units = config->intermediate_size / COLUMN_UNIT;
    int32_t num_groups = MIN(num_units, (int32_t)MAX_FFN_GROUPS);

    while (num_units % num_groups != 0)
        num_groups--;
    return num_groups;
}

static int32_t num_vocabulary_units(const struct model_config *config)
{
    return divide_up(config->vocab_size, VOCABULARY_UNIT);
}

static enum status check_units(const struct model_config *config)
{
    if (config->num_heads < 1 || config->num_kv_heads < 1 ||
        config->num_heads % config->num_kv_heads != 0)
        return fail(ERR_UNSUPPORTED, "%d attention heads cannot share %d KV heads evenly",
                    config->num_heads, config->num_kv_heads);
    if (config->head_dim < COLUMN_UNIT || config->head_dim % COLUMN_UNIT != 0)
        return fail(ERR_UNSUPPORTED, "a head of %d dimensions is not a multiple of %d",
                    config->head_dim, COLUMN_UNIT);
    if (config->intermediate_size < COLUMN_UNIT || config->intermediate_size % COLUMN_UNIT != 0)
        return fail(ERR_UNSUPPORTED, "intermediate size %d is not a multiple of %d",
                    config->intermediate_size, COLUMN_UNIT);
    if (config->vocab_size < 1)
        return fail(ERR_UNSUPPORTED, "a vocabulary of %d tokens", config->vocab_size);
    return OK;
}

int32_t shard_max_world(const struct model_config *config)
{
    if (check_units(config) != OK)
        return 0;

    int32_t max_world = MIN(config->num_heads, num_ffn_groups(config));

    return MIN(max_world, num_vocabulary_units(config));
}

enum status shard_init(const struct model_config *config, int32_t rank, int32_t world,
                       struct shard *shard_out)
{
    TRY(check_units(config));

    int32_t max_world = shard_max_world(config);

    if (world < 1 || world > max_world)
        return fail(ERR_INVALID,
                    "--tp %d: this model splits over at most %d ranks (%d heads, %d FFN groups)",
                    world, max_world, config->num_heads, num_ffn_groups(config));
    ASSERT(rank >= 0 && rank < world);

    struct shard shard = {.rank = rank, .world = world};
    int32_t heads_per_kv_head = config->num_heads / config->num_kv_heads;

    deal(config->num_heads, rank, world, &shard.first_head, &shard.num_heads);
    shard.first_kv_head = shard.first_head / heads_per_kv_head;
    shard.num_kv_heads =
        (shard.first_head + shard.num_heads - 1) / heads_per_kv_head - shard.first_kv_head + 1;

    deal(num_ffn_groups(config), rank, world, &shard.first_group, &shard.num_groups);
    shard.group_columns = config->intermediate_size / num_ffn_groups(config);

    /* The last unit may be short of tokens; the last rank has it. */
    deal(num_vocabulary_units(config), rank, world, &shard.first_token, &shard.num_tokens);
    shard.first_token *= VOCABULARY_UNIT;
    shard.num_tokens =
        MIN(shard.num_tokens * VOCABULARY_UNIT, config->vocab_size - shard.first_token);

    *shard_out = shard;
    return OK;
}
