/*
 * prefix_cache: which KV block holds the KV of which tokens.
 *
 * A full block is known by a hash over its tokens and the hash of the block before it, so a hash
 * stands for the whole prefix. Hashes are XXH3-128 under a key drawn at random for each engine: a
 * client cannot aim for a collision, and tokens are compared on a hit all the same. The hash of a first
 * block covers the request's cache salt: requests of different salts never share.
 *
 * Several blocks may hold the same tokens (two requests computed them in parallel): each is known, the
 * last one added is found first.
 *
 * Everything is sized at the start; nothing is allocated later.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_PREFIX_CACHE_H
#define ENGINE_CORE_PREFIX_CACHE_H

#include "proto/base/memory.h"

#include <stdint.h>

typedef int32_t block_id;

struct block_hash {
    uint64_t low, high;
};

struct prefix_cache;

struct prefix_cache *prefix_cache_new(int32_t num_blocks, int32_t block_size);
void prefix_cache_free(struct prefix_cache *cache); /* NULL is fine */
DEFINE_AUTO_FREE(prefix_cache)

/* parent: the hash of the block before; NULL for a first block, which takes the salt ("" for none).
 * tokens: [block_size]. */
struct block_hash prefix_cache_hash(const struct prefix_cache *cache,
                                    const struct block_hash *parent, const int32_t *tokens,
                                    const char *salt);

/* The block that holds these tokens behind this prefix, or -1. */
block_id prefix_cache_find(const struct prefix_cache *cache, const struct block_hash *hash,
                           const int32_t *tokens);

/* The block, which is not known yet, holds these tokens from now on. */
void prefix_cache_add(struct prefix_cache *cache, block_id id, const struct block_hash *hash,
                      const int32_t *tokens);
bool prefix_cache_has(const struct prefix_cache *cache, block_id id);
/* The block is about to hold something else. One that is not known is fine. */
void prefix_cache_remove(struct prefix_cache *cache, block_id id);
int32_t prefix_cache_num_blocks(const struct prefix_cache *cache);

#endif
