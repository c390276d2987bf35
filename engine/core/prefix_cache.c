#include "engine/core/prefix_cache.h"

#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

enum { NONE = -1, MAX_BLOCK_SIZE = 256 };

struct entry {
    struct block_hash hash;
    block_id next; /* in the same bucket; NONE: last */
    bool is_known;
};

struct prefix_cache {
    uint64_t key;
    int32_t block_size;
    int32_t num_known;
    uint64_t bucket_mask;
    block_id *buckets;     /* [bucket_mask + 1] NONE: empty */
    int32_t *tokens;       /* [num_blocks, block_size] */
    struct entry entries[]; /* [num_blocks] */
};

struct prefix_cache *prefix_cache_new(int32_t num_blocks, int32_t block_size)
{
    struct prefix_cache *cache =
        mem_alloc(sizeof *cache + sizeof(struct entry) * (size_t)num_blocks);
    uint64_t num_buckets = 16;
    ssize_t n = getrandom(&cache->key, sizeof cache->key, 0);

    ASSERT(n == sizeof cache->key && block_size <= MAX_BLOCK_SIZE);
    while (num_buckets < (uint64_t)num_blocks * 2)
        num_buckets *= 2;
    cache->block_size = block_size;
    cache->bucket_mask = num_buckets - 1;
    cache->buckets = mem_new_array(block_id, num_buckets);
    memset(cache->buckets, 0xff, num_buckets * sizeof *cache->buckets);
    cache->tokens = mem_new_array(int32_t, (size_t)num_blocks * (size_t)block_size);
    return cache;
}

void prefix_cache_free(struct prefix_cache *cache)
{
    if (!cache)
        return;
    mem_free(cache->buckets);
    mem_free(cache->tokens);
    mem_free(cache);
}

static size_t tokens_bytes(const struct prefix_cache *cache)
{
    return sizeof *cache->tokens * (size_t)cache->block_size;
}

struct block_hash prefix_cache_hash(const struct prefix_cache *cache,
                                    const struct block_hash *parent, const int32_t *tokens,
                                    const char *salt)
{
    uint8_t input[sizeof(XXH128_hash_t) + MAX_BLOCK_SIZE * sizeof *tokens];
    XXH128_hash_t hash;

    if (parent)
        memcpy(&hash, parent, sizeof hash);
    else
        hash = XXH3_128bits_withSeed(salt, strlen(salt), cache->key);
    memcpy(input, &hash, sizeof hash);
    memcpy(input + sizeof hash, tokens, tokens_bytes(cache));
    hash = XXH3_128bits_withSeed(input, sizeof hash + tokens_bytes(cache), cache->key);
    return (struct block_hash){hash.low64, hash.high64};
}

static bool is_same(const struct block_hash *a, const struct block_hash *b)
{
    return a->low == b->low && a->high == b->high;
}

static block_id *bucket_of(const struct prefix_cache *cache, const struct block_hash *hash)
{
    return &cache->buckets[hash->low & cache->bucket_mask];
}

block_id prefix_cache_find(const struct prefix_cache *cache, const struct block_hash *hash,
                           const int32_t *tokens)
{
    for (block_id id = *bucket_of(cache, hash); id != NONE; id = cache->entries[id].next)
        if (is_same(&cache->entries[id].hash, hash) &&
            memcmp(cache->tokens + (int64_t)id * cache->block_size, tokens,
                   tokens_bytes(cache)) == 0)
            return id;
    return NONE;
}

void prefix_cache_add(struct prefix_cache *cache, block_id id, const struct block_hash *hash,
                      const int32_t *tokens)
{
    struct entry *entry = &cache->entries[id];
    block_id *bucket = bucket_of(cache, hash);

    ASSERT(!entry->is_known, "block %d is known already", id);
    *entry = (struct entry){.hash = *hash, .next = *bucket, .is_known = true};
    memcpy(cache->tokens + (int64_t)id * cache->block_size, tokens, tokens_bytes(cache));
    *bucket = id;
    cache->num_known++;
}

bool prefix_cache_has(const struct prefix_cache *cache, block_id id)
{
    return cache->entries[id].is_known;
}

void prefix_cache_remove(struct prefix_cache *cache, block_id id)
{
    struct entry *entry = &cache->entries[id];
    block_id *at = bucket_of(cache, &entry->hash);

    if (!entry->is_known)
        return;
    while (*at != id)
        at = &cache->entries[*at].next;
    *at = entry->next;
    entry->is_known = false;
    cache->num_known--;
}

int32_t prefix_cache_num_blocks(const struct prefix_cache *cache)
{
    return cache->num_known;
}
