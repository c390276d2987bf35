#include "engine/text/merge.h"

void merge_reset(struct merge *merge)
{
    merge->num_symbols = 0;
    merge->num_candidates = 0;
}

void merge_close(struct merge *merge)
{
    mem_free(merge->symbols);
    mem_free(merge->heap);
    *merge = (struct merge){0};
}

void merge_add(struct merge *merge, uint32_t start, uint32_t size, token_id id)
{
    int32_t i = merge->num_symbols++;

    if (i == merge->symbol_capacity) {
        merge->symbol_capacity = MAX(64, 2 * i);
        merge->symbols =
            mem_resize(merge->symbols, (size_t)merge->symbol_capacity * sizeof *merge->symbols);
    }
    merge->symbols[i] = (struct merge_symbol){start, size, .next = -1, .prev = i - 1, id};
    if (i > 0)
        merge->symbols[i - 1].next = i;
}

static void heap_push(struct merge *merge, struct merge_candidate candidate)
{
    int32_t i = merge->num_candidates++;

    if (i == merge->candidate_capacity) {
        merge->candidate_capacity = MAX(64, 2 * i);
        merge->heap =
            mem_resize(merge->heap, (size_t)merge->candidate_capacity * sizeof *merge->heap);
    }
    for (; i > 0 && merge->heap[(i - 1) / 2].order > candidate.order; i = (i - 1) / 2)
        merge->heap[i] = merge->heap[(i - 1) / 2];
    merge->heap[i] = candidate;
}

static struct merge_candidate heap_pop(struct merge *merge)
{
    struct merge_candidate *heap = merge->heap, top = heap[0];
    int32_t n = --merge->num_candidates, i = 0;
    struct merge_candidate last = heap[n];

    for (int32_t child = 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && heap[child + 1].order < heap[child].order)
            child++;
        if (heap[child].order >= last.order)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

static void consider(struct merge *merge, int32_t left, merge_find *find, const void *context)
{
    if (left < 0 || merge->symbols[left].next < 0)
        return;

    const struct merge_symbol *a = &merge->symbols[left], *b = &merge->symbols[a->next];
    uint32_t priority;
    token_id id;

    if (find(context, a, b, &priority, &id))
        heap_push(merge, (struct merge_candidate){(uint64_t)priority << 32 | (uint32_t)left,
                                                  a->size + b->size, id});
}

/* Symbols only grow, so the pair is as it was exactly when the sizes still add up. */
static bool is_current(const struct merge *merge, int32_t left, uint32_t size)
{
    const struct merge_symbol *a = &merge->symbols[left];

    return a->size && a->next >= 0 && a->size + merge->symbols[a->next].size == size;
}

static void swallow_next(struct merge *merge, int32_t left, token_id id)
{
    struct merge_symbol *a = &merge->symbols[left], *b = &merge->symbols[a->next];

    a->size += b->size;
    a->id = id;
    a->next = b->next;
    if (b->next >= 0)
        merge->symbols[b->next].prev = left;
    b->size = 0;
}

void merge_run(struct merge *merge, merge_find *find, const void *context)
{
    for (int32_t i = 0; i + 1 < merge->num_symbols; i++)
        consider(merge, i, find, context);
    while (merge->num_candidates) {
        struct merge_candidate best = heap_pop(merge);
        int32_t left = (int32_t)(uint32_t)best.order;

        if (!is_current(merge, left, best.size))
            continue;
        swallow_next(merge, left, best.id);
        consider(merge, merge->symbols[left].prev, find, context);
        consider(merge, left, find, context);
    }
}
