/*
 * token_map: the tokens of a vocabulary, and which id a text has.
 *
 * All texts lie end to end in one block, and the hash table is sized once: a vocabulary of
 * 262,144 tokens is a handful of allocations.
 *
 * Thread: frozen after init.
 */
#ifndef ENGINE_TEXT_TOKEN_MAP_H
#define ENGINE_TEXT_TOKEN_MAP_H

#include "engine/text/tokenizer.h"

struct token_slot {
    uint32_t hash;
    token_id id_plus_one; /* 0: empty */
};

struct token_map {
    int32_t num_tokens;
    char *texts;              /* owns; every token, end to end */
    uint32_t *starts;         /* [num_tokens + 1], owns */
    uint8_t *types;           /* [num_tokens] enum token_type, owns */
    struct token_slot *slots; /* [mask + 1], a power of two, owns */
    uint32_t mask;
    uint32_t max_bytes; /* of the longest token */
    bool has_twins;     /* tokens with one text */
};

/* Copies tokens and types. ERR_CORRUPT: no tokens, more text than 4 GiB, or an unknown type. */
MUST_USE enum status token_map_init(struct token_map *map, const struct vocabulary *vocabulary);
void token_map_close(struct token_map *map);

/* -1: no token has this text. Of two tokens with one text the first is meant. */
token_id token_map_find(const struct token_map *map, const char *text, size_t size);

static inline const char *token_map_text(const struct token_map *map, token_id id)
{
    return map->texts + map->starts[id];
}

static inline size_t token_map_bytes(const struct token_map *map, token_id id)
{
    return map->starts[id + 1] - map->starts[id];
}

static inline enum token_type token_map_type(const struct token_map *map, token_id id)
{
    return (enum token_type)map->types[id];
}

#endif
