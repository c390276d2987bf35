#include "engine/core/block_pool.h"

enum { NONE = -1 };

struct block {
    int32_t users;      /* requests whose block table names it */
    block_id next_free; /* NONE: last one, or in use */
};

struct block_pool {
    int32_t num_blocks;
    int32_t num_free;
    int32_t num_touched; /* blocks from here on were never handed out */
    block_id first_free; /* among the touched ones */
    block_id last_free;
    struct block blocks[];
};

struct block_pool *block_pool_new(int32_t num_blocks)
{
    ASSERT(num_blocks > 0);
    struct block_pool *pool = mem_alloc(sizeof *pool + sizeof(struct block) * (size_t)num_blocks);

    pool->num_blocks = pool->num_free = num_blocks;
    pool->first_free = pool->last_free = NONE;
    return pool;
}

void block_pool_free(struct block_pool *pool)
{
    mem_free(pool);
}

int32_t block_pool_num_free(const struct block_pool *pool)
{
    return pool->num_free;
}

int32_t block_pool_num_blocks(const struct block_pool *pool)
{
    return pool->num_blocks;
}

static block_id take_one(struct block_pool *pool)
{
    block_id id = pool->first_free;

    if (id == NONE)
        return pool->num_touched++;
    pool->first_free = pool->blocks[id].next_free;
    if (pool->first_free == NONE)
        pool->last_free = NONE;
    return id;
}

enum status block_pool_take(struct block_pool *pool, int32_t n, block_id *ids_out)
{
    if (n > pool->num_free)
        return fail(ERR_FULL, "%d KV blocks wanted, %d free", n, pool->num_free);

    for (int32_t i = 0; i < n; i++) {
        ids_out[i] = take_one(pool);
        pool->blocks[ids_out[i]] = (struct block){.users = 1, .next_free = NONE};
    }
    pool->num_free -= n;
    return OK;
}

void block_pool_share(struct block_pool *pool, block_id id)
{
    ASSERT(id >= 0 && id < pool->num_touched && pool->blocks[id].users > 0);
    pool->blocks[id].users++;
}

void block_pool_drop(struct block_pool *pool, int32_t n, const block_id *ids)
{
    for (int32_t i = 0; i < n; i++) {
        ASSERT(ids[i] >= 0 && ids[i] < pool->num_touched && pool->blocks[ids[i]].users > 0,
               "block %d is not in use", ids[i]);
        if (--pool->blocks[ids[i]].users > 0)
            continue;
        if (pool->last_free == NONE)
            pool->first_free = ids[i];
        else
            pool->blocks[pool->last_free].next_free = ids[i];
        pool->last_free = ids[i];
        pool->num_free++;
    }
}

void block_pool_check(const struct block_pool *pool)
{
    int32_t num_free = pool->num_blocks - pool->num_touched, num_unused = num_free;

    for (block_id id = pool->first_free; id != NONE; id = pool->blocks[id].next_free) {
        ASSERT(id >= 0 && id < pool->num_touched && pool->blocks[id].users == 0);
        ASSERT(pool->blocks[id].next_free != NONE || id == pool->last_free);
        num_free++;
    }
    for (block_id id = 0; id < pool->num_touched; id++)
        num_unused += pool->blocks[id].users == 0;
    ASSERT(num_free == pool->num_free && num_unused == num_free, "%d listed, %d unused, %d counted",
           num_free, num_unused, pool->num_free);
}
