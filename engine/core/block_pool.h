/*
 * block_pool: which KV-cache blocks are free and which are in use.
 *
 * It counts blocks; it never touches KV memory, which only workers own. Blocks never used before
 * are handed out in order of their ids, so that memory nobody needed is never touched; freed ones
 * come back most recently freed last.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_BLOCK_POOL_H
#define ENGINE_CORE_BLOCK_POOL_H

#include "proto/base/memory.h"

#include <stdint.h>

typedef int32_t block_id;

struct block_pool;

struct block_pool *block_pool_new(int32_t num_blocks);
void block_pool_free(struct block_pool *pool); /* NULL is fine */
DEFINE_AUTO_FREE(block_pool)

int32_t block_pool_num_free(const struct block_pool *pool);
int32_t block_pool_num_blocks(const struct block_pool *pool);

/* Takes `n` blocks, all or none. ERR_FULL leaves the pool untouched. */
MUST_USE enum status block_pool_take(struct block_pool *pool, int32_t n, block_id *ids_out);

/* One more user of a block that has some. */
void block_pool_share(struct block_pool *pool, block_id id);

/* One user fewer of each; a block without users is free. */
void block_pool_drop(struct block_pool *pool, int32_t n, const block_id *ids);

/* Walks every block and asserts that counts and lists agree. */
void block_pool_check(const struct block_pool *pool);

#endif
