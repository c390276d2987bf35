#include "engine/core/block_pool.h"

#include "proto/base/list.h"

struct block {
    int32_t users;         /* requests whose block table names it */
    struct list_node link; /* among the free ones, while nobody uses it */
};

struct block_pool {
    struct prefix_cache *cache; /* NULL: nothing is cached */
    int32_t num_blocks;
    int32_t num_free;
    int32_t num_touched;    /* blocks from here on were never handed out */
    struct list_node plain; /* free, contents unknown: the last freed first */
    struct list_node cached; /* free, contents known: unused for longest first */
    struct block blocks[];
};

struct block_pool *block_pool_new(int32_t num_blocks)
{
    ASSERT(num_blocks > 0);
    struct block_pool *pool = mem_alloc(sizeof *pool + sizeof(struct block) * (size_t)num_blocks);

    pool->num_blocks = pool->num_free = num_blocks;
    list_init(&pool->plain);
    list_init(&pool->cached);
    return pool;
}

void block_pool_free(struct block_pool *pool)
{
    mem_free(pool);
}

void block_pool_use_cache(struct block_pool *pool, struct prefix_cache *cache)
{
    ASSERT(pool->num_touched == 0);
    pool->cache = cache;
}

int32_t block_pool_num_free(const struct block_pool *pool)
{
    return pool->num_free;
}

int32_t block_pool_num_blocks(const struct block_pool *pool)
{
    return pool->num_blocks;
}

bool block_pool_is_free(const struct block_pool *pool, block_id id)
{
    return pool->blocks[id].users == 0;
}

int64_t block_pool_num_users(const struct block_pool *pool)
{
    int64_t n = 0;

    for (block_id id = 0; id < pool->num_touched; id++)
        n += pool->blocks[id].users;
    return n;
}

static block_id id_of(const struct block_pool *pool, const struct list_node *node)
{
    return (block_id)(LIST_ITEM(node, struct block, link) - pool->blocks);
}

static block_id take_one(struct block_pool *pool)
{
    struct list_node *from = !list_is_empty(&pool->plain) ? &pool->plain : &pool->cached;

    if (list_is_empty(&pool->plain) && pool->num_touched < pool->num_blocks)
        return pool->num_touched++;

    block_id id = id_of(pool, from->next);

    list_remove(from->next);
    if (pool->cache)
        prefix_cache_remove(pool->cache, id);
    return id;
}

enum status block_pool_take(struct block_pool *pool, int32_t n, block_id *ids_out)
{
    if (n > pool->num_free)
        return fail(ERR_FULL, "%d KV blocks wanted, %d free", n, pool->num_free);

    for (int32_t i = 0; i < n; i++) {
        ids_out[i] = take_one(pool);
        pool->blocks[ids_out[i]].users = 1;
    }
    pool->num_free -= n;
    return OK;
}

void block_pool_share(struct block_pool *pool, block_id id)
{
    struct block *block = &pool->blocks[id];

    ASSERT(id >= 0 && id < pool->num_touched);
    if (block->users++ == 0) {
        ASSERT(pool->cache && prefix_cache_has(pool->cache, id), "block %d holds nothing", id);
        list_remove(&block->link);
        pool->num_free--;
    }
}

void block_pool_drop(struct block_pool *pool, int32_t n, const block_id *ids)
{
    for (int32_t i = n; i-- > 0;) {
        ASSERT(ids[i] >= 0 && ids[i] < pool->num_touched && pool->blocks[ids[i]].users > 0,
               "block %d is not in use", ids[i]);
        struct block *block = &pool->blocks[ids[i]];

        if (--block->users > 0)
            continue;
        if (pool->cache && prefix_cache_has(pool->cache, ids[i]))
            list_push_back(&pool->cached, &block->link);
        else
            list_push_front(&pool->plain, &block->link);
        pool->num_free++;
    }
}

bool block_pool_reset_cache(struct block_pool *pool)
{
    if (pool->num_free < pool->num_blocks)
        return false;
    while (pool->cache && !list_is_empty(&pool->cached)) {
        struct list_node *node = pool->cached.next;

        prefix_cache_remove(pool->cache, id_of(pool, node));
        list_remove(node);
        list_push_back(&pool->plain, node);
    }
    return true;
}

static int32_t check_list(const struct block_pool *pool, const struct list_node *head, bool cached)
{
    int32_t n = 0;

    for (const struct list_node *node = head->next; node != head; node = node->next, n++) {
        block_id id = id_of(pool, node);

        ASSERT(id >= 0 && id < pool->num_touched && pool->blocks[id].users == 0);
        ASSERT((pool->cache && prefix_cache_has(pool->cache, id)) == cached);
    }
    return n;
}

void block_pool_check(const struct block_pool *pool)
{
    int32_t num_untouched = pool->num_blocks - pool->num_touched, num_unused = num_untouched;
    int32_t num_listed = check_list(pool, &pool->plain, false) + check_list(pool, &pool->cached, true);

    for (block_id id = 0; id < pool->num_touched; id++)
        num_unused += pool->blocks[id].users == 0;
    ASSERT(num_listed + num_untouched == pool->num_free && num_unused == pool->num_free,
           "%d listed, %d never used, %d unused, %d counted", num_listed, num_untouched, num_unused,
           pool->num_free);
}
