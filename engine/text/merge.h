/*
 * merge: the loop that both kinds of BPE share. Symbols of a text form a list; of all pairs of
 * neighbours that may merge, the one of the lowest priority number goes first, the leftmost of
 * equals. With a heap this takes O(n log n) whatever the text.
 *
 * A struct merge keeps its memory from text to text: one for each encode call, zeroed first.
 *
 * Thread: the one that encodes.
 */
#ifndef ENGINE_TEXT_MERGE_H
#define ENGINE_TEXT_MERGE_H

#include "engine/text/tokenizer.h"

struct merge_symbol {
    uint32_t start, size; /* bytes of the text; size 0: swallowed by its left neighbour */
    int32_t next, prev;   /* -1: none */
    token_id id;          /* -1: not known, the text says it */
};

struct merge_candidate {
    uint64_t order; /* priority << 32 | left symbol: the heap's key */
    uint32_t size;  /* of both together when the pair was found; else the pair is out of date */
    token_id id;    /* what they become */
};

struct merge {
    struct merge_symbol *symbols; /* the first is always alive */
    int32_t num_symbols, symbol_capacity;
    struct merge_candidate *heap;
    int32_t num_candidates, candidate_capacity;
};

/* Whether two neighbours may become one token, which, and how soon. */
typedef bool merge_find(const void *context, const struct merge_symbol *left,
                        const struct merge_symbol *right, uint32_t *priority_out, token_id *id_out);

void merge_reset(struct merge *merge);
void merge_add(struct merge *merge, uint32_t start, uint32_t size, token_id id);
/* Afterwards symbols[0], symbols[symbols[0].next], … are what is left. */
void merge_run(struct merge *merge, merge_find *find, const void *context);
void merge_close(struct merge *merge);

#endif
