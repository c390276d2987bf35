/*
 * attention_work: what a block of threads does of a step's attention. It is worked out on the device, where
 * row_start, positions and kv_head_of are.
 *
 * A query is a row and a head. Queries of a request whose heads read the same KV head share its keys and values;
 * they are counted row by row, and a block takes as many of them as its shape says. Rows that see tiles of several
 * groups have parts, one a tile and head, which merge_parts merges; other rows are merged by the block that attends
 * to them. How many positions a tile has is the way's of attending (attention.h).
 *
 * The functions are a warp's.
 */
#ifndef KERNELS_CUDA_ATTENTION_WORK_CUH
#define KERNELS_CUDA_ATTENTION_WORK_CUH

#include "kernels/cuda/batch.cuh"
#include "kernels/numerics.h"

enum {
    THREADS = 128,
    WARPS = THREADS / WARP,
    MAX_BLOCK_QUERIES = WARP,    /* of a warp that lists them: a lane each */
    MAX_OWN = 8,                 /* queries of a thread */
    ALL_TILES = 1 << 20,         /* more than any row sees, and not too many to count their positions */
    PART_FLOATS = SUM_LANES + 4, /* of a part, besides the dimensions */
};

/* By value: all pointers are the device's. */
struct attention_task {
    float *out;
    const float *q;
    int64_t q_stride;
    struct kv_layer kv;
    struct batch_view batch;
    int32_t num_heads;
    const int32_t *kv_head_of;
    int32_t window;
    float scale;
    int32_t tile_tokens;        /* positions [tile_tokens * t, tile_tokens * (t + 1)) are tile t */

    int32_t min_rows, max_rows; /* requests with fewer or more rows are another launch's */
    int32_t num_slots;          /* blocks of a KV head and a group of tiles */
    int32_t slots_each;         /* of them for every request; 0: as `slots` says */
    struct request_places slots;
    int32_t group_tiles; /* tiles [g * group_tiles, (g + 1) * group_tiles) are group g */
    float *parts;        /* each: out [head_dim], sums [SUM_LANES], max, and up to 16 bytes */
    int64_t max_parts;   /* that there is room for, of each head */
};

/* Queries [QUERIES * c, QUERIES * (c + 1)) of a request and KV head, for c = slot, slot + num_slots, ... */
struct unit {
    int32_t request, first_row, num_rows, kv_head;
    int32_t slot, num_slots;
};

enum outcome { DROPPED, WRITTEN, PARTS };

struct query {
    int32_t row, head;
    int32_t first, end;   /* positions that it sees in this block's tiles; none: both 0 */
    enum outcome outcome; /* its row is written, or its tiles are parts */
    int64_t part;         /* that of tile t is part + t * num_heads */
};

/* In shared memory. */
struct work {
    struct unit unit;
    int32_t num_heads; /* that read its KV head */
    struct query queries[MAX_BLOCK_QUERIES];
    int32_t first, end;        /* positions that some query sees */
    float max[WARPS][MAX_OWN]; /* of a warp's scores, of each query of its team */
};

static __host__ __device__ __forceinline__ int32_t part_floats(int32_t head_dim)
{
    return head_dim + PART_FLOATS;
}

/* The first position that a row at `position` sees. */
static __device__ __forceinline__ int32_t first_seen(const struct attention_task &task, int32_t position)
{
    return task.window ? max(position - task.window + 1, 0) : 0;
}

/* Tiles that a row sees at most, of rows up to max_position. */
static __host__ __device__ __forceinline__ int32_t most_tiles(const struct attention_task &task,
                                                              int32_t max_position)
{
    int32_t tiles = max_position / task.tile_tokens + 1;

    return task.window ? min(tiles, (task.window + task.tile_tokens - 2) / task.tile_tokens + 1) : tiles;
}

/* ---- units --------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ int32_t kv_head_of_block(const struct attention_task &task)
{
    return (int32_t)(blockIdx.x % (unsigned)task.kv.num_kv_heads);
}

/* The heads that read a KV head, in order, and how many. */
static __device__ __forceinline__ int32_t list_heads(const struct attention_task &task, int32_t kv_head,
                                                     int32_t *heads)
{
    int32_t lane = threadIdx.x % WARP, count = 0;

    for (int32_t first = 0; first < task.num_heads; first += WARP) {
        bool reads = first + lane < task.num_heads && task.kv_head_of[first + lane] == kv_head;
        unsigned readers = __ballot_sync(ALL_LANES, reads);

        if (reads)
            heads[count + __popc(readers & ((1u << lane) - 1))] = first + lane;
        count += __popc(readers);
    }
    return count;
}

static __device__ __forceinline__ bool is_of_launch(const struct attention_task &task, int32_t num_rows)
{
    return num_rows >= task.min_rows && num_rows <= task.max_rows;
}

/* Of this block; one without rows is none. */
static __device__ __forceinline__ struct unit find_unit(const struct attention_task &task)
{
    /* Late rows see most: these blocks begin first. */
    int32_t slot = task.num_slots - 1 - (int32_t)(blockIdx.x / (unsigned)task.kv.num_kv_heads);
    struct unit unit = {0, 0, 0, kv_head_of_block(task), 0, task.slots_each};

    unit.request = task.slots_each ? slot / task.slots_each : request_at(task.batch, task.slots, slot);
    unit.first_row = task.batch.row_start[unit.request];

    int32_t end = task.batch.row_start[unit.request + 1];

    if (task.slots_each) {
        unit.slot = slot % task.slots_each;
    } else {
        int64_t first = first_place(task.slots, unit.request, unit.first_row);

        unit.slot = (int32_t)(slot - first);
        unit.num_slots = (int32_t)(first_place(task.slots, unit.request + 1, end) - first);
    }
    if (is_of_launch(task, end - unit.first_row))
        unit.num_rows = end - unit.first_row;
    return unit;
}

/* All threads of a block: what it works on, and the heads that read its KV head, [num_heads]; there after a barrier. */
static __device__ __forceinline__ void begin_work(const struct attention_task &task, struct unit *unit,
                                                  int32_t *num_heads, int32_t *heads)
{
    if (threadIdx.x < WARP) {
        struct unit own = find_unit(task);

        if (threadIdx.x == 0)
            *unit = own;
    } else if (threadIdx.x < 2 * WARP) {
        int32_t count = list_heads(task, kv_head_of_block(task), heads);

        if (threadIdx.x == WARP)
            *num_heads = count;
    }
}

/* ---- parts --------------------------------------------------------------------------------------------------- */

/* Room for parts is dealt to requests in order: num_tiles to each of its rows. Counted in parts of all heads. */
struct room {
    int64_t first;
    int32_t num_tiles;
    bool is_there;
};

/* Of a row of a request that ends at end_row; 0: none of its rows has parts. */
static __device__ __forceinline__ int32_t room_tiles(const struct attention_task &task, int32_t end_row)
{
    int32_t position = task.batch.positions[max(end_row - 1, 0)];

    return position / task.tile_tokens < task.group_tiles ? 0 : most_tiles(task, position);
}

static __device__ __forceinline__ struct room find_room(const struct attention_task &task, int32_t request)
{
    const int32_t *row_start = task.batch.row_start;
    int32_t num_rows = row_start[request + 1] - row_start[request];
    struct room room = {0, room_tiles(task, row_start[request + 1]), false};

#pragma unroll 4
    for (int32_t i = threadIdx.x % WARP; i < request; i += WARP) {
        int32_t end = row_start[i + 1], rows = end - row_start[i], tiles = room_tiles(task, end);

        room.first += is_of_launch(task, rows) ? (int64_t)rows * tiles : 0;
    }
#pragma unroll
    for (int width = WARP / 2; width; width /= 2)
        room.first += __shfl_xor_sync(ALL_LANES, room.first, width);
    room.is_there = room.first + (int64_t)num_rows * room.num_tiles <= task.max_parts;
    return room;
}

/* The part of a tile, of the first head, where the row's first tile is first_tile. */
static __device__ __forceinline__ int64_t part_of_tile(const struct attention_task &task, const struct room &room,
                                                       int32_t row_of_request, int32_t first_tile, int32_t tile)
{
    return (room.first + (int64_t)row_of_request * room.num_tiles + tile - first_tile) * task.num_heads;
}

/* Whether a row sees tiles of several groups. */
static __device__ __forceinline__ bool is_shared(const struct attention_task &task, int32_t position)
{
    return first_seen(task, position) / task.tile_tokens / task.group_tiles !=
           position / task.tile_tokens / task.group_tiles;
}

/* What a block that merges has: a row, a head of it, and the parts of the tiles that it sees. */
struct parts {
    int32_t row, head;
    int32_t first_tile, end_tile;
    const float *first; /* the next is num_heads parts further on */
};

/* false: there is nothing to merge. tile_tokens and part_floats: the task's. */
static __device__ __forceinline__ bool find_parts(const struct attention_task &task, int32_t tile_tokens,
                                                  int32_t part_floats, struct parts *parts)
{
    int32_t row = (int32_t)(blockIdx.x / (unsigned)task.num_heads);
    int32_t position = task.batch.positions[row];

    if (!is_shared(task, position))
        return false;

    int32_t request = request_of_row(task.batch, row), first_row = task.batch.row_start[request];
    struct room room = find_room(task, request);

    if (!is_of_launch(task, task.batch.row_start[request + 1] - first_row) || !room.is_there)
        return false;
    parts->row = row;
    parts->head = (int32_t)(blockIdx.x % (unsigned)task.num_heads);
    parts->first_tile = first_seen(task, position) / tile_tokens;
    parts->end_tile = position / tile_tokens + 1;

    int64_t first = part_of_tile(task, room, row - first_row, parts->first_tile, parts->first_tile) + parts->head;

    parts->first = task.parts + first * part_floats;
    return true;
}

/* ---- queries ------------------------------------------------------------------------------------------------- */

/* Leaves those of its positions that are of tiles [first_tile, end_tile). */
static __device__ __forceinline__ void clip(const struct attention_task &task, struct query *query,
                                            int32_t first_tile, int32_t end_tile)
{
    query->first = max(query->first, first_tile * task.tile_tokens);
    query->end = min(query->end, end_tile * task.tile_tokens);
    if (query->first >= query->end)
        query->first = query->end = 0;
}

/* A lane's of queries [first, first + count) of a unit, and what this block's group of tiles has of it. heads: that
 * read its KV head. Behind the last query there is that one again and again, to no effect. HAS_GROUPS: there may be
 * several. */
template <bool HAS_GROUPS>
static __device__ __forceinline__ struct query find_query(const struct attention_task &task,
                                                          const struct unit &unit, const int32_t *heads,
                                                          int32_t num_heads, int32_t first, int32_t count)
{
    int32_t lane = threadIdx.x % WARP, last = min(first + count, unit.num_rows * num_heads) - 1;
    int32_t index = min(first + lane, last), row = index / num_heads;
    int32_t position = task.batch.positions[unit.first_row + row];
    struct query query = {
        unit.first_row + row, heads[index % num_heads], first_seen(task, position), position + 1, WRITTEN, 0};
    int32_t first_tile = query.first / task.tile_tokens;
    int32_t group = __shfl_sync(ALL_LANES, first_tile / task.group_tiles, 0) + (int32_t)blockIdx.y;
    int32_t group_first = group * task.group_tiles, group_end = group_first + task.group_tiles;

    if (HAS_GROUPS && __any_sync(ALL_LANES, is_shared(task, position))) {
        struct room room = find_room(task, unit.request);

        if (!room.is_there) { /* the block of the first group does all */
            group_first = 0;
            group_end = blockIdx.y ? 0 : ALL_TILES;
        } else if (is_shared(task, position)) {
            query.outcome = PARTS;
            query.part = part_of_tile(task, room, row, first_tile, 0) + query.head;
        }
    }
    clip(task, &query, group_first, group_end);
    if (first + lane > last || query.end == 0)
        query.outcome = DROPPED;
    return query;
}

/* The same of all lanes, to work->queries, and what they see. */
static __device__ __forceinline__ void list_queries(const struct attention_task &task, const int32_t *heads,
                                                    int32_t first, int32_t count, struct work *work)
{
    struct query query = find_query<true>(task, work->unit, heads, work->num_heads, first, count);
    int32_t first_of_all = query.end ? query.first : INT32_MAX, end_of_all = query.end;

#pragma unroll
    for (int width = WARP / 2; width; width /= 2) {
        first_of_all = min(first_of_all, __shfl_xor_sync(ALL_LANES, first_of_all, width));
        end_of_all = max(end_of_all, __shfl_xor_sync(ALL_LANES, end_of_all, width));
    }
    work->queries[threadIdx.x % WARP] = query;
    if (threadIdx.x % WARP == 0) {
        work->first = first_of_all;
        work->end = end_of_all;
    }
}

#endif
