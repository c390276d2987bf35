/*
 * shard: how heads, FFN groups and the vocabulary of a model are dealt out to ranks.
 *
 * The units depend on the model alone, never on the world: row-parallel sums are rounded once a
 * unit, so the same units give the same bits for every world size. The engine asks before it starts ranks,
 * the ranks when they load.
 *
 * Thread: any (no state).
 */
#ifndef PROTO_MODEL_SHARD_H
#define PROTO_MODEL_SHARD_H

#include "proto/model/model_file.h"

/* What rank `rank` of `world` holds. Ranges of whole units. */
struct shard {
    int32_t rank, world;
    int32_t first_head, num_heads;
    int32_t first_kv_head, num_kv_heads; /* all that its heads read: ranges of ranks may overlap */
    int32_t first_group, num_groups;     /* FFN groups of group_columns columns */
    int32_t group_columns;
    int32_t first_token, num_tokens;     /* vocabulary rows */
};

/* The largest world size the model can be split into; 0: none, and fail_text() says why. */
int32_t shard_max_world(const struct model_config *config);
/* ERR_INVALID says the largest --tp; ERR_UNSUPPORTED names the size that has no whole units. */
MUST_USE enum status shard_init(const struct model_config *config, int32_t rank, int32_t world,
                                struct shard *shard_out);

#endif
