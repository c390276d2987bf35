#include "engine/text/token_map.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

static uint32_t hash_text(const char *text, size_t size)
{
    return (uint32_t)XXH3_64bits(text, size);
}

/* Where the text is, or the empty slot where it would be. */
static struct token_slot *find_slot(const struct token_map *map, const char *text, size_t size,
                                    uint32_t hash)
{
    for (uint32_t i = hash & map->mask;; i = (i + 1) & map->mask) {
        struct token_slot *slot = &map->slots[i];
        token_id id = slot->id_plus_one - 1;

        if (id < 0)
            return slot;
        if (slot->hash == hash && token_map_bytes(map, id) == size &&
            memcmp(token_map_text(map, id), text, size) == 0)
            return slot;
    }
}

token_id token_map_find(const struct token_map *map, const char *text, size_t size)
{
    if (size > map->max_bytes)
        return -1;
    return find_slot(map, text, size, hash_text(text, size))->id_plus_one - 1;
}

static enum status total_bytes(const struct vocabulary *vocabulary, size_t *out)
{
    size_t total = 0;

    for (int32_t i = 0; i < vocabulary->num_tokens; i++)
        if (add_overflows(total, vocabulary->tokens[i].size, &total) || total > UINT32_MAX)
            return fail(ERR_CORRUPT, "the texts of the first %d tokens are more than 4 GiB", i + 1);
    *out = total;
    return OK;
}

static enum status copy_types(struct token_map *map, const int32_t *types)
{
    map->types = mem_new_array(uint8_t, (size_t)map->num_tokens);
    for (int32_t i = 0; i < map->num_tokens; i++) {
        int32_t type = types ? types[i] : TOKEN_NORMAL;

        if (type < TOKEN_NORMAL || type > TOKEN_BYTE)
            return fail(ERR_CORRUPT, "token %d is of type %d; types are %d to %d", i, type,
                        TOKEN_NORMAL, TOKEN_BYTE);
        map->types[i] = (uint8_t)type;
    }
    return OK;
}

static void copy_texts(struct token_map *map, const struct text_view *tokens, size_t bytes)
{
    uint32_t at = 0;

    map->texts = mem_alloc(bytes);
    map->starts = mem_new_array(uint32_t, (size_t)map->num_tokens + 1);
    for (int32_t i = 0; i < map->num_tokens; i++) {
        uint32_t size = (uint32_t)tokens[i].size;

        if (size)
            memcpy(map->texts + at, tokens[i].data, size);
        map->max_bytes = MAX(map->max_bytes, size);
        at += size;
        map->starts[i + 1] = at;
    }
}

static void index_texts(struct token_map *map)
{
    uint32_t num_slots = 16;

    while (num_slots / 2 < (uint32_t)map->num_tokens) /* at most half full */
        num_slots *= 2;
    map->mask = num_slots - 1;
    map->slots = mem_new_array(struct token_slot, num_slots);
    mem_touch(map->slots, num_slots * sizeof *map->slots); /* a page that is read first comes twice */
    for (token_id id = 0; id < map->num_tokens; id++) {
        const char *text = token_map_text(map, id);
        size_t size = token_map_bytes(map, id);
        uint32_t hash = hash_text(text, size);
        struct token_slot *slot = find_slot(map, text, size, hash);

        if (!slot->id_plus_one)
            *slot = (struct token_slot){hash, id + 1};
        else
            map->has_twins = true;
    }
}

enum status token_map_init(struct token_map *map, const struct vocabulary *vocabulary)
{
    enum { MAX_TOKENS = 1 << 28 };
    size_t bytes = 0;

    *map = (struct token_map){.num_tokens = vocabulary->num_tokens};
    if (vocabulary->num_tokens <= 0 || vocabulary->num_tokens > MAX_TOKENS)
        return fail(ERR_CORRUPT, "a vocabulary of %d tokens; 1 to %d can be used",
                    vocabulary->num_tokens, MAX_TOKENS);
    TRY(total_bytes(vocabulary, &bytes));
    TRY(copy_types(map, vocabulary->types));
    copy_texts(map, vocabulary->tokens, bytes);
    index_texts(map);
    return OK;
}

void token_map_close(struct token_map *map)
{
    mem_free(map->texts);
    mem_free(map->starts);
    mem_free(map->types);
    mem_free(map->slots);
    *map = (struct token_map){0};
}
