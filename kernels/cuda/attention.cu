/*
 * Attention, with the bits of ref/attention.c; and how any is shared out, this and that of attention_half.cu.
 *
 * Blocks of threads take few queries or many (attention_work.cuh says what a query is). Few: each key and value is
 * read once for the heads that share it, which is what takes time where requests have a row each; requests that are
 * long, or so few that processors would be idle, are shared out in groups of tiles. Many: prompts, where it is
 * arithmetic that takes time; a block goes through all that its queries see. The host knows no more than counts, so
 * it launches enough blocks for any rows of that number; those that find nothing to do end at once.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_tile.cuh"

template <typename S>
static __device__ __forceinline__ void attend_queries(const struct attention_task &task,
                                                      const struct shared_arrays &arrays, struct work *work)
{
    struct slabs slabs = begin_slabs<S>(task, *work, arrays.slabs);
    struct place place = find_place<S>(*work, arrays.weights, task.kv.head_dim);
    struct softmax<S> rows, tile;

    load_queries<S>(task, *work, arrays.q);
    clear<S>(&rows);
    for (int32_t t = work->first / KV_TILE_TOKENS; t * KV_TILE_TOKENS < work->end; t++) {
        attend_tile<S>(place, arrays, work, &slabs, t, &tile);
        put_tile<S>(task, place, t, &rows, tile);
    }
    put_rows<S>(task, place, rows);
}

template <typename S>
static __global__ void __launch_bounds__(THREADS, S::QUERIES > 8 ? 2 : 4) attend(const struct attention_task task)
{
    __shared__ struct work work;
    char *memory = dynamic_shared();
    struct shared_arrays arrays;

    arrays.slabs = memory;
    arrays.weights = (float *)(memory + S::STAGES * S::SLAB_BYTES);
    arrays.q = arrays.weights + THREADS * S::WEIGHTS;
    arrays.heads = (int32_t *)(arrays.q + task.kv.head_dim * S::Q_STRIDE);
    begin_work(task, &work.unit, &work.num_heads, arrays.heads);
    __syncthreads();
    for (int32_t chunk = work.unit.slot; chunk * S::QUERIES < work.unit.num_rows * work.num_heads;
         chunk += work.unit.num_slots) {
        if (threadIdx.x < WARP)
            list_queries(task, arrays.heads, chunk * S::QUERIES, S::QUERIES, &work);
        __syncthreads();
        if (work.end)
            attend_queries<S>(task, arrays, &work);
        __syncthreads();
    }
}

/* A block of threads to a row and head: a thread has two dimensions, and one of the sums, which others have too. */
static __global__ void __launch_bounds__(THREADS) merge_parts(const struct attention_task task)
{
    int32_t dim = task.kv.head_dim, at = threadIdx.x * 2;
    struct parts parts;

    if (!find_parts(task, KV_TILE_TOKENS, part_floats(dim), &parts))
        return;

    const float *part = parts.first;
    float max = NO_SCORE, sum = 0;
    float2 out = make_float2(0, 0);

#pragma unroll 4
    for (int32_t t = parts.first_tile; t < parts.end_tile; t++) {
        struct factors factors = merge_max(&max, part[dim + SUM_LANES]);
        float2 x = at < dim ? *(const float2 *)(part + at) : out;

        sum = merge(factors, sum, part[dim + threadIdx.x % SUM_LANES]);
        out.x = merge(factors, out.x, x.x);
        out.y = merge(factors, out.y, x.y);
        part += (int64_t)task.num_heads * part_floats(dim);
    }
#pragma unroll
    for (int width = SUM_LANES / 2; width; width /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, width);

    float inverse = 1.0f / sum;

    if (at < dim)
        *(float2 *)(task.out + ((int64_t)parts.row * task.num_heads + parts.head) * dim + at) =
            make_float2(out.x * inverse, out.y * inverse);
}

/* ---- the host: kernels --------------------------------------------------------------------------------------- */

/* Queries of a block, by how many there are of a KV head; teams and dimensions as shape says. */
typedef struct shape<1, 1, 2, 4> one_query;
typedef struct shape<2, 1, 2, 4> two_queries;
typedef struct shape<4, 1, 2, 4> four_queries;
typedef struct shape<8, 2, 2, 4> eight_queries_128; /* head_dim at most; likewise below */
typedef struct shape<8, 2, 4, 4> eight_queries_256;
typedef struct shape<32, 4, 2, 3> many_queries_64;
typedef struct shape<32, 4, 4, 3> many_queries_128;
typedef struct shape<32, 4, 8, 3> many_queries_256;

enum { MANY_QUERIES = 32 };

template <typename S> static size_t shared_bytes(int32_t head_dim, int32_t num_heads)
{
    return S::STAGES * S::SLAB_BYTES + (THREADS * S::WEIGHTS + head_dim * S::Q_STRIDE) * sizeof(float) +
           (size_t)num_heads * sizeof(int32_t);
}

template <typename S> static cudaError_t prepare(const struct cuda_state *state)
{
    cudaError_t error = allow_all_shared(state, attend<S>, sizeof(struct work));

    return error == cudaSuccess ? allow_all_shared(state, attend<in_pairs<S>>, sizeof(struct work)) : error;
}

cudaError_t attention_prepare(const struct cuda_state *state)
{
    cudaError_t errors[] = {prepare<one_query>(state),         prepare<two_queries>(state),
                            prepare<four_queries>(state),      prepare<eight_queries_128>(state),
                            prepare<eight_queries_256>(state), prepare<many_queries_64>(state),
                            prepare<many_queries_128>(state),  prepare<many_queries_256>(state),
                            attention_half_prepare(state)};

    for (cudaError_t error : errors)
        if (error != cudaSuccess)
            return error;
    return cudaSuccess;
}

template <typename S>
static void launch_shape(struct cuda_state *state, const struct attention_task &task, int32_t groups)
{
    dim3 grid((unsigned)task.num_slots * (unsigned)task.kv.num_kv_heads, (unsigned)groups);

    launch(attend<S>, grid, dim3(THREADS), shared_bytes<S>(task.kv.head_dim, task.num_heads), state->stream, task);
    note_launch(state);
}

template <typename S>
static void launch_attend(struct cuda_state *state, const struct attention_task &task, int32_t groups)
{
    if (task.kv.type == KV_BFLOAT16)
        launch_shape<in_pairs<S>>(state, task, groups);
    else
        launch_shape<S>(state, task, groups);
}

static void launch_few(struct cuda_state *state, const struct attention_task &task, int32_t queries, int32_t groups)
{
    if (queries == 1)
        launch_attend<one_query>(state, task, groups);
    else if (queries == 2)
        launch_attend<two_queries>(state, task, groups);
    else if (queries <= 4)
        launch_attend<four_queries>(state, task, groups);
    else if (task.kv.head_dim <= 128)
        launch_attend<eight_queries_128>(state, task, groups);
    else
        launch_attend<eight_queries_256>(state, task, groups);
}

static void launch_many(struct cuda_state *state, const struct attention_task &task)
{
    if (task.kv.head_dim <= 64)
        launch_attend<many_queries_64>(state, task, 1);
    else if (task.kv.head_dim <= 128)
        launch_attend<many_queries_128>(state, task, 1);
    else
        launch_attend<many_queries_256>(state, task, 1);
}

static void launch_merge(struct cuda_state *state, const struct attention_task &task)
{
    int32_t threads = divide_up(task.kv.head_dim, 2 * WARP) * WARP;

    launch(merge_parts, dim3((unsigned)task.batch.rows * (unsigned)task.num_heads), dim3((unsigned)threads), 0,
           state->stream, task);
    note_launch(state);
}

static int32_t many_queries(const struct cuda_state *, int32_t, int32_t)
{
    return MANY_QUERIES;
}

const struct attention_way attention_exact = {KV_TILE_TOKENS, 8, 16, 16, MANY_QUERIES, many_queries, part_floats,
                                              launch_few, launch_many, launch_merge};

/* ---- the host: shares, of either way ------------------------------------------------------------------------- */

enum { SMALL_REQUEST_QUERIES = 16 }; /* of a KV head: more are worth a block of many */

/* Groups of tiles that the rows of a block see at most, max_rows that follow each other. */
static int32_t groups_of_block(const struct attention_task &task, int32_t max_rows)
{
    int32_t groups = task.batch.max_position / task.tile_tokens / task.group_tiles + 1;
    int64_t positions = (int64_t)task.window + max_rows - 1;

    if (!task.window)
        return groups;
    return (int32_t)min((int64_t)groups,
                        (positions + task.tile_tokens - 2) / task.tile_tokens / task.group_tiles + 2);
}

/* Tiles of a group: so few that there are blocks for all processors and no block takes long, and not fewer. */
static int32_t choose_group_tiles(const struct cuda_state *state, const struct attention_way *way,
                                  const struct attention_task &task)
{
    int64_t blocks = (int64_t)task.num_slots * task.kv.num_kv_heads,
            tiles = most_tiles(task, task.batch.max_position);
    int64_t most = blocks * tiles / ((int64_t)way->blocks_wanted * state->num_processors);

    most = min(max(most, (int64_t)1), (int64_t)way->most_group_tiles);
    return (int32_t)divide_up_64(tiles, divide_up_64(tiles, most)); /* the last group is about as long as the others */
}

/* Blocks of few queries, which share long requests among them. */
static void attend_few(struct cuda_state *state, const struct attention_way *way, struct attention_task task,
                       int32_t queries)
{
    task.num_slots = task.slots_each ? task.slots_each * task.batch.num_requests
                                     : (int32_t)first_place(task.slots, task.batch.num_requests, task.batch.rows);
    task.group_tiles = choose_group_tiles(state, way, task);

    int32_t groups = groups_of_block(task, queries);

    way->few(state, task, queries, groups);
    if (groups > 1)
        way->merge(state, task);
}

/* Blocks of many queries, each of which goes through all that these see. */
static void attend_many(struct cuda_state *state, const struct attention_way *way, struct attention_task task)
{
    task.num_slots = (int32_t)first_place(task.slots, task.batch.num_requests, task.batch.rows);
    task.group_tiles = ALL_TILES;
    way->many(state, task);
}

static struct attention_task task_of(const struct cuda_state *state, const struct attention_way *way,
                                     const struct attention_args *args)
{
    struct attention_task task = {};

    task.out = args->out;
    task.q = args->q;
    task.q_stride = args->q_stride;
    task.kv = *args->kv;
    task.batch = *args->batch;
    task.num_heads = args->num_heads;
    task.kv_head_of = args->kv_head_of;
    task.window = args->window;
    task.scale = args->scale;
    task.tile_tokens = way->tile_tokens;
    task.max_rows = INT32_MAX;
    task.parts = (float *)state->scratch;
    task.max_parts = state->scratch_bytes / ((int64_t)args->num_heads * way->part_floats(args->kv->head_dim) *
                                             (int64_t)sizeof(float));
    return task;
}

static void attend(struct cuda_state *state, const struct attention_args *args)
{
    const struct attention_way *way = args->device_order ? &attention_half : &attention_exact;
    int32_t rows = args->batch->rows, num_requests = args->batch->num_requests;
    int32_t num_kv_heads = args->kv->num_kv_heads, few = way->few_queries;

    if (rows == 0 || args->num_heads == 0)
        return;

    /* About how many heads read a KV head. Where they are uneven, a rank has some of the first's and the last's. */
    int32_t heads = divide_up(args->num_heads, num_kv_heads) + (args->num_heads % num_kv_heads != 0);
    int32_t small = max(SMALL_REQUEST_QUERIES / heads, 1); /* rows of a small request, at most */
    struct attention_task task = task_of(state, way, args);

    if (rows <= num_requests) { /* one each, as good as ever */
        int32_t queries = min(heads, few);

        task.slots_each = divide_up(heads, queries);
        attend_few(state, way, task, queries);
        return;
    }

    int32_t many = way->many_queries(state, args->kv->head_dim, args->num_heads);

    if (many == 0 || (int64_t)rows * args->num_heads < (int64_t)way->busy_queries * state->num_processors) {
        task.slots = request_places{heads, few, 1};
        attend_few(state, way, task, few);
        return;
    }
    task.slots = request_places{heads, many, 1};
    if (num_requests > 1) {
        struct attention_task small_ones = task;

        small_ones.max_rows = small;
        small_ones.slots_each = (int32_t)divide_up_64((int64_t)small * heads, few);
        attend_few(state, way, small_ones, few);
        task.min_rows = small + 1;
    }
    attend_many(state, way, task);
}

void attention_cuda(struct device *dev, const struct attention_args *args)
{
    attend(state_of(dev), args);
    if (args->quantized)
        quantize_cuda(dev, args->quantized);
}
