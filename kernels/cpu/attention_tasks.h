/*
 * attention_tasks: how the attention of a step is cut into tasks, for threads to take in turn.
 *
 * A chunk is some rows of one request, a unit of work those rows' heads that read one KV head. Most units
 * are one task. One that reads so much that others would wait for it is shared: each task does some of
 * its tiles, whose softmaxes go to memory of the device, and the last to finish merges them.
 * Nothing of this shows in a result.
 *
 * Thread: struct attention_tasks is frozen while threads work; a cursor belongs to one of them.
 */
#ifndef KERNELS_CPU_ATTENTION_TASKS_H
#define KERNELS_CPU_ATTENTION_TASKS_H

#include "kernels/numerics.h"

#include <stdatomic.h>

enum {
    MAX_HEADS = 256,
    MAX_QUERIES = 96,  /* of a unit; a query is a row and a head */
    MAX_PARTS = 8192,  /* softmaxes of tiles that threads share, in one call */
    MAX_SHARED = 1024, /* units that are shared, in one call */
};

/* Over some positions of one query: out / sum is their softmax times their values. */
struct softmax {
    _Alignas(64) float out[MAX_HEAD_DIM]; /* the sum of exp(score - max) * v */
    float sums[SUM_LANES];                /* of exp(score - max), by position % SUM_LANES */
    float max;                            /* of the scores */
};

/* What threads tell each other, owned by the device. Pages that no call has used take no memory. */
struct attention_shared {
    _Atomic int32_t tiles_done[MAX_SHARED]; /* 0 between calls */
    struct softmax parts[MAX_PARTS];
};

/* Heads that read one KV head, at most MAX_QUERIES: a place in attention_tasks.heads. */
struct head_group {
    int32_t kv_head, first, count;
};

struct attention_tasks {
    const struct attention_args *args;
    int32_t heads[MAX_HEADS]; /* by the KV head they read */
    struct head_group groups[MAX_HEADS];
    int32_t num_groups;
    int32_t chunk_rows; /* at most */
    int32_t most_tiles; /* that one task goes through, of a unit that can be shared */
    int64_t num_tasks;
};

struct attention_chunk {
    int32_t request, first_row, num_rows;
    int32_t first_tile, num_tiles; /* that its rows see */
    int32_t tasks_per_unit;        /* more than one: units are shared */
    int64_t first_task, num_tasks;
    int32_t first_part, num_parts;     /* of attention_shared.parts, if shared */
    int32_t first_shared, num_shared;  /* of attention_shared.tiles_done */
};

struct attention_task {
    struct attention_chunk chunk;
    const struct head_group *group;
    int32_t first_tile, num_tiles;
    int32_t shared;     /* the unit's place in tiles_done; -1: the task is all of its unit */
    int32_t first_part; /* shared: of the unit's parts, [chunk.num_tiles, num_rows * group->count] */
};

void attention_tasks_init(struct attention_tasks *tasks, const struct attention_args *args,
                          int32_t num_threads);

/* A cursor before the first chunk. */
struct attention_chunk attention_tasks_begin(void);
/* Moves the cursor on to task `number`, which may not lie before where it is. false: there are fewer. */
bool attention_tasks_find(const struct attention_tasks *tasks, int64_t number,
                          struct attention_chunk *cursor, struct attention_task *task_out);

/* The positions that the query of a row sees: first … positions[row]. */
static inline int32_t attention_first_position(const struct attention_args *args, int32_t row)
{
    int32_t first = args->batch->positions[row] + 1 - args->window;

    return args->window && first > 0 ? first : 0;
}

#endif
