#include "engine/core/kv_cache_manager.h"

void kv_cache_manager_init(struct kv_cache_manager *manager, int32_t num_blocks, int32_t block_size,
                           bool enable_prefix_caching)
{
    *manager = (struct kv_cache_manager){
        .pool = block_pool_new(num_blocks),
        .block_size = block_size,
    };
    if (enable_prefix_caching) {
        manager->cache = prefix_cache_new(num_blocks, block_size);
        block_pool_use_cache(manager->pool, manager->cache);
    }
}

void kv_cache_manager_close(struct kv_cache_manager *manager)
{
    block_pool_free(manager->pool);
    prefix_cache_free(manager->cache);
}

enum status kv_cache_manager_take(struct kv_cache_manager *manager, struct request *request,
                                  int32_t num_tokens)
{
    int32_t more = kv_cache_manager_blocks_for(manager, num_tokens) - request->num_blocks;

    ASSERT(request->num_blocks + more <= request->max_blocks);
    TRY(block_pool_take(manager->pool, more, request->blocks + request->num_blocks));
    request->num_blocks += more;
    return OK;
}

void kv_cache_manager_drop(struct kv_cache_manager *manager, struct request *request)
{
    block_pool_drop(manager->pool, request->num_blocks, request->blocks);
    request->num_blocks = 0;
    request->num_known_blocks = 0;
    request->num_computed = 0;
}

/* Hashes of the request's first `num_blocks` blocks, which are full of tokens that are known. */
static void hash_blocks(const struct kv_cache_manager *manager, struct request *request,
                        int32_t num_blocks)
{
    for (int32_t i = request->num_hashes; i < num_blocks; i++)
        request->hashes[i] =
            prefix_cache_hash(manager->cache, i > 0 ? &request->hashes[i - 1] : NULL,
                              request->tokens + (int64_t)i * manager->block_size,
                              request->cache_salt);
    request->num_hashes = MAX(request->num_hashes, num_blocks);
}

int32_t kv_cache_manager_find_prefix(const struct kv_cache_manager *manager,
                                     struct request *request)
{
    int32_t block_size = manager->block_size, n = 0;
    int32_t limit = (request->num_tokens - 1) / block_size;

    if (!manager->cache || request_wants_scores(request))
        return 0;
    hash_blocks(manager, request, limit);
    while (n < limit) {
        block_id id = prefix_cache_find(manager->cache, &request->hashes[n],
                                        request->tokens + (int64_t)n * block_size);

        if (id < 0)
            break;
        request->blocks[n++] = id;
    }
    return n;
}

int32_t kv_cache_manager_blocks_wanted(const struct kv_cache_manager *manager,
                                       const struct request *request, int32_t num_cached_blocks)
{
    int32_t wanted = kv_cache_manager_blocks_for(manager, request->num_tokens) - num_cached_blocks;

    for (int32_t i = 0; i < num_cached_blocks; i++)
        wanted += block_pool_is_free(manager->pool, request->blocks[i]);
    return wanted;
}

void kv_cache_manager_take_prefix(struct kv_cache_manager *manager, struct request *request,
                                  int32_t num_cached_blocks)
{
    for (int32_t i = 0; i < num_cached_blocks; i++)
        block_pool_share(manager->pool, request->blocks[i]);
    request->num_blocks = request->num_known_blocks = num_cached_blocks;
    request->num_computed = num_cached_blocks * manager->block_size;
}

void kv_cache_manager_cache_first(struct kv_cache_manager *manager, struct request *request,
                                  int32_t num_full)
{
    hash_blocks(manager, request, num_full);
    for (int32_t i = request->num_known_blocks; i < num_full; i++)
        prefix_cache_add(manager->cache, request->blocks[i], &request->hashes[i],
                         request->tokens + (int64_t)i * manager->block_size);
    request->num_known_blocks = num_full;
}
