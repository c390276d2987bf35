#include "kernels/cpu/attention_tasks.h"

#include "proto/base/memory.h"

enum {
    TASKS_PER_THREAD = 4, /* so many that threads finish together */
    FEWEST_ROWS = 8,      /* of a chunk: fewer read the cache too often */
};

static void add_group(struct attention_tasks *tasks, int32_t kv_head, int32_t first, int32_t end)
{
    for (int32_t count; first < end; first += count) {
        count = MIN(end - first, MAX_QUERIES);
        tasks->groups[tasks->num_groups++] = (struct head_group){kv_head, first, count};
    }
}

/* Sorts heads by KV head; returns how many the largest group has. */
static int32_t group_heads(struct attention_tasks *tasks)
{
    const struct attention_args *args = tasks->args;
    int32_t num_heads = 0, largest = 1;

    for (int32_t kv_head = 0; kv_head < args->kv->num_kv_heads; kv_head++) {
        int32_t first = num_heads;

        for (int32_t h = 0; h < args->num_heads; h++)
            if (args->kv_head_of[h] == kv_head)
                tasks->heads[num_heads++] = h;
        add_group(tasks, kv_head, first, num_heads);
    }
    for (int32_t g = 0; g < tasks->num_groups; g++)
        largest = MAX(largest, tasks->groups[g].count);
    return largest;
}

/* The chunk of at most chunk_rows rows that end before `end`, with neither tasks nor parts. */
static void place_chunk(const struct attention_tasks *tasks, struct attention_chunk *chunk,
                        int32_t request, int32_t end)
{
    const struct batch_view *batch = tasks->args->batch;
    int32_t first = MAX(end - tasks->chunk_rows, batch->row_start[request]);

    chunk->request = request;
    chunk->first_row = first;
    chunk->num_rows = end - first;
    chunk->first_tile = attention_first_position(tasks->args, first) / KV_TILE_TOKENS;
    chunk->num_tiles = batch->positions[end - 1] / KV_TILE_TOKENS + 1 - chunk->first_tile;
}

/* Its tasks, and their memory if it is to be shared and there is enough. */
static void cut_chunk(const struct attention_tasks *tasks, struct attention_chunk *chunk)
{
    int64_t num_parts = (int64_t)chunk->num_tiles * chunk->num_rows * tasks->args->num_heads;
    bool is_shared = chunk->num_tiles > tasks->most_tiles &&
                     num_parts <= MAX_PARTS - chunk->first_part &&
                     tasks->num_groups <= MAX_SHARED - chunk->first_shared;

    chunk->tasks_per_unit = is_shared ? (chunk->num_tiles - 1) / tasks->most_tiles + 1 : 1;
    chunk->num_tasks = (int64_t)tasks->num_groups * chunk->tasks_per_unit;
    chunk->num_parts = is_shared ? (int32_t)num_parts : 0;
    chunk->num_shared = is_shared ? tasks->num_groups : 0;
}

/* Steps to the next chunk. Those of a request come last first, since later rows have more to read
 * and what is long is best begun early. */
static bool next_chunk(const struct attention_tasks *tasks, struct attention_chunk *chunk)
{
    const struct batch_view *batch = tasks->args->batch;
    int32_t request = chunk->request, end = chunk->first_row;

    while (request < 0 || end == batch->row_start[request]) {
        if (++request == batch->num_requests)
            return false;
        end = batch->row_start[request + 1];
    }
    place_chunk(tasks, chunk, request, end);
    chunk->first_task += chunk->num_tasks;
    chunk->first_part += chunk->num_parts;
    chunk->first_shared += chunk->num_shared;
    cut_chunk(tasks, chunk);
    return true;
}

void attention_tasks_init(struct attention_tasks *tasks, const struct attention_args *args,
                          int32_t num_threads)
{
    struct attention_chunk chunk;
    int64_t tiles = 0, wanted = (int64_t)num_threads * TASKS_PER_THREAD;

    tasks->args = args;
    tasks->num_groups = 0;
    tasks->num_tasks = 0;
    tasks->most_tiles = INT32_MAX;

    int32_t largest = group_heads(tasks);
    int64_t rows = MAX(args->batch->rows * tasks->num_groups / wanted, (int64_t)FEWEST_ROWS);

    tasks->chunk_rows = (int32_t)MIN(rows, (int64_t)(MAX_QUERIES / largest));
    for (chunk = attention_tasks_begin(); next_chunk(tasks, &chunk);)
        tiles += (int64_t)chunk.num_tiles * tasks->num_groups;
    if (num_threads > 1)
        tasks->most_tiles = (int32_t)MIN(tiles / wanted + 1, (int64_t)INT32_MAX);
    for (chunk = attention_tasks_begin(); next_chunk(tasks, &chunk);)
        tasks->num_tasks += chunk.num_tasks;
}

struct attention_chunk attention_tasks_begin(void)
{
    return (struct attention_chunk){.request = -1};
}

bool attention_tasks_find(const struct attention_tasks *tasks, int64_t number,
                          struct attention_chunk *cursor, struct attention_task *task_out)
{
    while (number >= cursor->first_task + cursor->num_tasks)
        if (!next_chunk(tasks, cursor))
            return false;

    int32_t local = (int32_t)(number - cursor->first_task), n = cursor->tasks_per_unit;
    const struct head_group *group = &tasks->groups[local / n];
    int32_t first = cursor->num_tiles * (local % n) / n, end = cursor->num_tiles * (local % n + 1) / n;

    *task_out = (struct attention_task){
        .chunk = *cursor,
        .group = group,
        .first_tile = cursor->first_tile + first,
        .num_tiles = end - first,
        .shared = n > 1 ? cursor->first_shared + local / n : -1,
        .first_part = cursor->first_part + group->first * cursor->num_rows * cursor->num_tiles,
    };
    return true;
}
