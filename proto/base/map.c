#include "proto/base/map.h"

static size_t home_of(const struct map *map, uint64_t key)
{
    key ^= key >> 32;
    key *= 0x9e3779b97f4a7c15; /* 2^64 / golden ratio: neighbours land far apart */
    return (size_t)(key >> 32) & (map->capacity - 1);
}

/* The key's entry, or the free one where it would go. */
static struct map_entry *find(const struct map *map, uint64_t key)
{
    size_t i = home_of(map, key);

    while (map->entries[i].value && map->entries[i].key != key)
        i = (i + 1) & (map->capacity - 1);
    return &map->entries[i];
}

static void grow(struct map *map)
{
    struct map old = *map;

    map->capacity = old.capacity ? old.capacity * 2 : 16;
    map->entries = mem_new_array(struct map_entry, map->capacity);
    if (!old.entries) /* C has no NULL + 0 */
        return;
    MAP_FOR_EACH(&old, entry)
        *find(map, entry->key) = *entry;
    mem_free(old.entries);
}

void map_close(struct map *map)
{
    mem_free(map->entries);
    *map = (struct map){0};
}

void *map_get(const struct map *map, uint64_t key)
{
    return map->capacity ? find(map, key)->value : NULL;
}

void *map_put(struct map *map, uint64_t key, void *value)
{
    ASSERT(value);
    if (2 * (map->num_entries + 1) > map->capacity)
        grow(map);

    struct map_entry *entry = find(map, key);
    void *before = entry->value;

    map->num_entries += !before;
    *entry = (struct map_entry){key, value};
    return before;
}

void *map_remove(struct map *map, uint64_t key)
{
    struct map_entry *hole = map->capacity ? find(map, key) : NULL;
    void *before = hole ? hole->value : NULL;

    if (!before)
        return NULL;
    map->num_entries--;
    hole->value = NULL;
    /* Those behind the hole that it cut off from their home move into it. */
    for (size_t at = (size_t)(hole - map->entries);;) {
        at = (at + 1) & (map->capacity - 1);

        struct map_entry moved = map->entries[at];

        if (!moved.value)
            return before;
        map->entries[at].value = NULL;
        *find(map, moved.key) = moved;
    }
}
