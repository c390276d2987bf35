/*
 * block_pool: which KV-cache blocks are free, shared or cached.
 *
 * It counts blocks; it never touches KV memory, which only workers own. A block whose contents the
 * prefix cache knows keeps them while nobody uses it, so that a later request with the same prefix can
 * revive it. Blocks are handed out in this order: freed ones whose contents nobody knows, those never
 * used (in order of ids, so that memory nobody needed is never touched), and at last cached ones, the one
 * unused for longest first: what is handed out is forgotten by the prefix cache.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_BLOCK_POOL_H
#define ENGINE_CORE_BLOCK_POOL_H

#include "engine/core/prefix_cache.h"

struct block_pool;

struct block_pool *block_pool_new(int32_t num_blocks);
void block_pool_free(struct block_pool *pool); /* NULL is fine */
DEFINE_AUTO_FREE(block_pool)

/* Whose blocks these are; borrowed. Before the first take. */
void block_pool_use_cache(struct block_pool *pool, struct prefix_cache *cache);

int32_t block_pool_num_free(const struct block_pool *pool);
int32_t block_pool_num_blocks(const struct block_pool *pool);
bool block_pool_is_free(const struct block_pool *pool, block_id id);

/* Users of all blocks together. */
int64_t block_pool_num_users(const struct block_pool *pool);

/* Takes `n` blocks, all or none. ERR_FULL leaves the pool untouched. */
MUST_USE enum status block_pool_take(struct block_pool *pool, int32_t n, block_id *ids_out);

/* One more user of a block: one that others use, or a cached one that is revived. */
void block_pool_share(struct block_pool *pool, block_id id);

/* One user fewer of each. Of cached blocks the last of `ids` is handed out again first: the tail of a
 * prefix is given up before its head. */
void block_pool_drop(struct block_pool *pool, int32_t n, const block_id *ids);

/* Forgets the contents of every block. false: some are in use, and nothing was done. */
bool block_pool_reset_cache(struct block_pool *pool);

/* Walks every block and asserts that counts and lists agree. */
void block_pool_check(const struct block_pool *pool);

#endif
