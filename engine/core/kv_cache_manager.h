/*
 * kv_cache_manager: which KV blocks hold the tokens of a request.
 *
 * A request's block table begins with blocks that the prefix cache knows, which it shares with others, and goes on with
 * blocks of its own; those that have become full are told to the cache. This keeps what a request says of its blocks
 * (blocks, num_blocks, num_known_blocks, hashes, num_hashes); when to admit one and whom to take blocks from is the
 * scheduler's business.
 *
 * Each step asks of each row whether a block begins or has become full, and for most none has: what is asked for all is
 * in line.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_KV_CACHE_MANAGER_H
#define ENGINE_CORE_KV_CACHE_MANAGER_H

#include "engine/core/request.h"
#include "proto/base/rounding.h"

struct kv_cache_manager {
    struct block_pool *pool;    /* owned */
    struct prefix_cache *cache; /* owned; NULL: prefix caching is off */
    int32_t block_size;         /* tokens of a block */
};

void kv_cache_manager_init(struct kv_cache_manager *manager, int32_t num_blocks, int32_t block_size,
                           bool enable_prefix_caching);
void kv_cache_manager_close(struct kv_cache_manager *manager);

/* Blocks that so many tokens take. */
static inline int32_t kv_cache_manager_blocks_for(const struct kv_cache_manager *manager,
                                                  int32_t num_tokens)
{
    return divide_up(num_tokens, manager->block_size);
}

/* Blocks that a request will still take for the tokens that it has. */
static inline int32_t kv_cache_manager_blocks_missing(const struct kv_cache_manager *manager,
                                                      const struct request *request)
{
    return MAX(0, kv_cache_manager_blocks_for(manager, request->num_tokens) - request->num_blocks);
}

/* Blocks for the request's first `num_tokens` tokens, which need more than it has; ERR_FULL leaves it as it was. */
MUST_USE enum status kv_cache_manager_take(struct kv_cache_manager *manager,
                                           struct request *request, int32_t num_tokens);

/* The same, where it may have them. */
MUST_USE static inline enum status kv_cache_manager_grow(struct kv_cache_manager *manager,
                                                         struct request *request,
                                                         int32_t num_tokens)
{
    return num_tokens <= request->num_blocks * manager->block_size
               ? OK
               : kv_cache_manager_take(manager, request, num_tokens);
}

/* Gives all of its blocks: none of its tokens is computed any more. */
void kv_cache_manager_drop(struct kv_cache_manager *manager, struct request *request);

/* How many of the request's first blocks are cached; their ids go to its block table, not yet its: it has no blocks.
 * The last token is always computed: its logits are wanted. */
int32_t kv_cache_manager_find_prefix(const struct kv_cache_manager *manager,
                                     struct request *request);
/* Blocks that the request, admitted with these, would take from the free ones: new ones and revived ones. */
int32_t kv_cache_manager_blocks_wanted(const struct kv_cache_manager *manager,
                                       const struct request *request, int32_t num_cached_blocks);
/* They are its blocks, and their tokens computed. Nothing was taken since they were found. */
void kv_cache_manager_take_prefix(struct kv_cache_manager *manager, struct request *request,
                                  int32_t num_cached_blocks);

/* Tells the cache of the request's first `num_full` blocks, as far as it does not know them. */
void kv_cache_manager_cache_first(struct kv_cache_manager *manager, struct request *request,
                                  int32_t num_full);

/*
 * Tells the cache of the blocks that have become full. Their KV may still be on its way: whoever finds
 * them is computed after it, or in the same step, where every layer stores before it reads.
 */
static inline void kv_cache_manager_cache_blocks(struct kv_cache_manager *manager,
                                                 struct request *request)
{
    int32_t num_tokens = MIN(request->num_computed, request->num_tokens);

    if (manager->cache && num_tokens >= (request->num_known_blocks + 1) * manager->block_size)
        kv_cache_manager_cache_first(manager, request, num_tokens / manager->block_size);
}

#endif
