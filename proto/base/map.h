/*
 * map: a number to a pointer.
 *
 * Open addressing in one array that doubles; what is removed leaves no mark.
 *
 * Thread: that of the map's owner.
 */
#ifndef PROTO_BASE_MAP_H
#define PROTO_BASE_MAP_H

#include "proto/base/memory.h"

struct map_entry {
    uint64_t key;
    void *value; /* NULL: free */
};

struct map { /* zeroed: empty */
    struct map_entry *entries;
    size_t num_entries, capacity;
};

void map_close(struct map *map);
/* NULL: not there. */
void *map_get(const struct map *map, uint64_t key);
/* Adds or replaces; `value` is not NULL. Returns what was there before, or NULL. */
void *map_put(struct map *map, uint64_t key, void *value);
/* Returns what was there, or NULL. */
void *map_remove(struct map *map, uint64_t key);

/* Every entry, in no order; the map must not change meanwhile. */
#define MAP_FOR_EACH(map, entry)                                                                   \
    for (struct map_entry *entry = (map)->entries; entry < (map)->entries + (map)->capacity;       \
         entry++)                                                                                  \
        if (entry->value)

#endif
