/*
 * What ends one sublayer and begins the next: a block of threads to a row, which stays in shared memory from one
 * pass to the next.
 */
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/state.h"

enum {
    MAX_PARTS = 64,
    MAX_THREADS = 512,
    BATCH = 4,             /* quads that a thread has on their way from memory */
    PARTS_AHEAD = 4,       /* the same of parts of a quad, which are of doubles, and may be on other devices */
    RESERVED_BYTES = 1024, /* of shared memory: `scale` below, and what CUDA keeps */
};

struct norm_task {
    int32_t n;
    float *residual;
    const float *sum;
    const double *parts[MAX_PARTS];
    int32_t num_parts;
    const float *post_norm, *norm;
    float eps;
    struct activations out;
    int32_t warp_quads; /* as quad_at wants them */
    const int32_t *row_ids;
    int32_t chunk; /* elements of a row that are in shared memory at a time, a multiple of SQUARES_ROUND */
    bool prefetch; /* there is room behind the chunk for the rows of weights: 2 of n */
};

/* A row on its way through. */
struct norm_row {
    int64_t start; /* in residual, sum and parts */
    float *x;      /* shared: [task.chunk], and SQUARES_ROUND that are not used; then, where they are prefetched,
                    * the weights: norm [n], post_norm [n] */
};

struct __align__(16) double_pair {
    double x, y;
};

/* Parts have a kernel of their own, since they take so many registers. */
enum addends { SUM_OR_NOTHING, PARTS };

template <enum addends kind> static __device__ __forceinline__ bool adds(const struct norm_task &task)
{
    return kind == PARTS || task.sum;
}

/* The whole row is one chunk, so it is still there in the next pass. */
static __device__ __forceinline__ bool keeps_row(const struct norm_task &task)
{
    return task.n <= task.chunk;
}

/* Elements of the chunk at `first`; zeros are behind those of the row. */
static __device__ __forceinline__ int32_t chunk_size(const struct norm_task &task, int32_t first)
{
    return min((task.n - first + SQUARES_ROUND - 1) / SQUARES_ROUND * SQUARES_ROUND, task.chunk);
}

/* The sum of the parts at element i of the array. */
static __device__ __forceinline__ float4 load_parts(const struct norm_task &task, int64_t i)
{
    double total[QUAD] = {-0.0, -0.0, -0.0, -0.0}; /* to which what is added is itself, -0 too */

#pragma unroll 1
    for (int32_t first = 0; first < task.num_parts; first += PARTS_AHEAD) {
        struct double_pair low[PARTS_AHEAD], high[PARTS_AHEAD];

        for (int p = 0; p < PARTS_AHEAD; p++)
            if (first + p < task.num_parts) {
                const struct double_pair *part = (const struct double_pair *)(task.parts[first + p] + i);

                low[p] = part[0];
                high[p] = part[1];
            }
        for (int p = 0; p < PARTS_AHEAD; p++)
            if (first + p < task.num_parts) {
                total[0] += low[p].x;
                total[1] += low[p].y;
                total[2] += high[p].x;
                total[3] += high[p].y;
            }
    }
    return make_float4((float)total[0], (float)total[1], (float)total[2], (float)total[3]);
}

static __device__ __forceinline__ float4 load_quad_if(bool in, const float *p)
{
    return in ? load_quad(p) : make_float4(0, 0, 0, 0);
}

/* What is added at the elements at[b] of the row. */
template <enum addends kind>
static __device__ __forceinline__ void load_addends(const struct norm_task &task, const struct norm_row &row,
                                                    const int32_t *at, float4 *out)
{
    for (int b = 0; b < BATCH; b++)
        if (kind == SUM_OR_NOTHING)
            out[b] = load_quad_if(at[b] < task.n, task.sum + row.start + at[b]);
        else if (at[b] < task.n)
            out[b] = load_parts(task, row.start + at[b]);
}

static __device__ __forceinline__ float *prefetched_norm(const struct norm_task &task, const struct norm_row &row)
{
    return row.x + task.chunk + SQUARES_ROUND;
}

static __device__ __forceinline__ float *prefetched_post_norm(const struct norm_task &task,
                                                              const struct norm_row &row)
{
    return prefetched_norm(task, row) + task.n;
}

/* x * scale * w, in this order. */
static __device__ __forceinline__ float4 normed(float4 x, float scale, float4 w)
{
    return make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w);
}

/* The quads of a thread from `base` on; some may be beyond the end of the row. */
static __device__ __forceinline__ void batch_at(int32_t base, int32_t *at)
{
    for (int b = 0; b < BATCH; b++)
        at[b] = base + (int32_t)(b * blockDim.x + threadIdx.x) * QUAD;
}

static __device__ __forceinline__ int32_t batch_size()
{
    return BATCH * (int32_t)blockDim.x * QUAD;
}

/* To shared memory, where the chunk is [first, end). */
static __device__ __forceinline__ void keep(const struct norm_task &task, const struct norm_row &row, int32_t first,
                                            int32_t end, const int32_t *at, const float4 *x)
{
    for (int b = 0; b < BATCH; b++)
        if (at[b] < end)
            store_quad(row.x + at[b] - first, at[b] < task.n ? x[b] : make_float4(0, 0, 0, 0));
}

/* What is added to the chunk at `first`, to shared memory. */
template <enum addends kind>
static __device__ __forceinline__ void fill_with_addends(const struct norm_task &task, const struct norm_row &row,
                                                         int32_t first)
{
    int32_t end = first + chunk_size(task, first);

#pragma unroll 1
    for (int32_t base = first; base < end; base += batch_size()) {
        int32_t at[BATCH];
        float4 x[BATCH];

        batch_at(base, at);
        load_addends<kind>(task, row, at, x);
        keep(task, row, first, end, at, x);
    }
}

/* The residual of the chunk at `first`, to which is added what there is, also to shared memory. */
template <enum addends kind>
static __device__ __forceinline__ void fill_with_residual(const struct norm_task &task, const struct norm_row &row,
                                                          int32_t first, float post_scale)
{
    int32_t end = first + chunk_size(task, first);
    float *residual = task.residual + row.start;

#pragma unroll 1
    for (int32_t base = first; base < end; base += batch_size()) {
        int32_t at[BATCH];
        float4 x[BATCH], added[BATCH];

        batch_at(base, at);
        for (int b = 0; b < BATCH; b++)
            x[b] = load_quad_if(at[b] < task.n, residual + at[b]);
        if (adds<kind>(task)) {
            if (task.post_norm && keeps_row(task)) {
                for (int b = 0; b < BATCH; b++)
                    added[b] = load_quad_if(at[b] < task.n, row.x + at[b]);
            } else {
                load_addends<kind>(task, row, at, added);
            }
            for (int b = 0; b < BATCH; b++) {
                if (task.post_norm) {
                    const float *w = task.prefetch ? prefetched_post_norm(task, row) : task.post_norm;

                    added[b] = normed(added[b], post_scale, load_quad_if(at[b] < task.n, w + at[b]));
                }
                x[b] = make_float4(x[b].x + added[b].x, x[b].y + added[b].y, x[b].z + added[b].z,
                                   x[b].w + added[b].w);
                if (at[b] < min(end, task.n))
                    store_quad(residual + at[b], x[b]);
            }
        }
        keep(task, row, first, end, at, x);
    }
}

/* Fills shared memory with what is added, or with the residual after it, and returns the scale of its norm. */
template <enum addends kind, bool is_addends>
static __device__ __forceinline__ float pass_over(const struct norm_task &task, const struct norm_row &row,
                                                  float post_scale)
{
    __shared__ float scale;
    float squares = 0;

#pragma unroll 1
    for (int32_t first = 0; first < task.n; first += task.chunk) {
        if (is_addends)
            fill_with_addends<kind>(task, row, first);
        else
            fill_with_residual<kind>(task, row, first, post_scale);
        __syncthreads();
        if (threadIdx.x < WARP) {
            squares = add_squares(squares, row.x, chunk_size(task, first));

            float so_far = norm_scale(squares, task.n, task.eps);

            if (threadIdx.x == 0)
                scale = so_far;
        }
        __syncthreads();
    }
    return scale;
}

/* The weights set out for shared memory. A thread has those of its own quads there when it has waited for them. */
static __device__ __forceinline__ void prefetch_weights(const struct norm_task &task, const struct norm_row &row)
{
#pragma unroll 1
    for (int32_t at = (int32_t)threadIdx.x * QUAD; at < task.n; at += (int32_t)blockDim.x * QUAD) {
        if (task.norm)
            cp_async_16(prefetched_norm(task, row) + at, task.norm + at);
        if (task.post_norm)
            cp_async_16(prefetched_post_norm(task, row) + at, task.post_norm + at);
    }
    cp_async_commit();
}

template <enum addends kind>
static __global__ void __launch_bounds__(MAX_THREADS, kind == PARTS ? 1 : 2) add_norm_rows(struct norm_task task)
{
    int64_t named = task.row_ids ? task.row_ids[blockIdx.x] : (int64_t)blockIdx.x;
    struct norm_row row = {named * task.n, (float *)dynamic_shared()};
    float post_scale = 1, scale;

    if (task.prefetch)
        prefetch_weights(task, row);
    if (task.post_norm)
        post_scale = pass_over<kind, true>(task, row, 1);
    cp_async_wait<0>();
    if (!task.norm) {
        for (int32_t first = 0; first < task.n; first += task.chunk)
            fill_with_residual<kind>(task, row, first, post_scale);
        return;
    }
    scale = pass_over<kind, false>(task, row, post_scale);
    /* Whole warps, since a group is quantised by several threads. Their quads are not those that they have had before:
     * they have met since in pass_over. */
    for (int32_t first = 0; quad_at(first, task.warp_quads) < task.n; first += (int32_t)blockDim.x) {
        int32_t at = quad_at(first + (int32_t)threadIdx.x, task.warp_quads);
        bool in = at < task.n;
        float4 x = make_float4(0, 0, 0, 0);

        if (in) {
            const float *w = task.prefetch ? prefetched_norm(task, row) : task.norm;
            const float *residual = keeps_row(task) ? row.x : task.residual + row.start;

            x = normed(load_quad(residual + at), scale, load_quad(w + at));
        }
        put_quad(task.out, (int64_t)blockIdx.x * task.n + at, in, x);
    }
}

/* ---- on the host --------------------------------------------------------------------------------------------- */

cudaError_t add_norm_prepare(const struct cuda_state *state)
{
    cudaError_t error = allow_shared(add_norm_rows<SUM_OR_NOTHING>, state->max_shared - RESERVED_BYTES);

    return error == cudaSuccess ? allow_shared(add_norm_rows<PARTS>, state->max_shared - RESERVED_BYTES) : error;
}

static bool is_supported(const struct add_norm_args *args)
{
    bool aligned = is_aligned(args->residual) && is_aligned(args->sum) && is_aligned(args->post_norm) &&
                   is_aligned(args->norm) && (!args->norm || can_write_activations(args->out));

    if (args->sum)
        return aligned && !args->row_ids;
    for (int32_t p = 0; p < args->num_parts && p < MAX_PARTS; p++)
        aligned = aligned && is_aligned(args->parts[p]);
    return aligned && args->num_parts <= MAX_PARTS && !(args->num_parts && args->row_ids);
}

static struct norm_task norm_task(const struct add_norm_args *args)
{
    struct norm_task task = {};

    task.n = args->n;
    task.residual = args->residual;
    task.sum = args->sum;
    task.num_parts = args->sum ? 0 : args->num_parts;
    for (int32_t p = 0; p < task.num_parts; p++)
        task.parts[p] = args->parts[p];
    task.post_norm = task.sum || task.num_parts ? args->post_norm : NULL;
    task.norm = args->norm;
    task.eps = args->eps;
    if (args->norm)
        task.out = *args->out;
    task.warp_quads = warp_quads(&task.out);
    task.row_ids = args->row_ids;
    return task;
}

extern "C" void add_norm_cuda(struct device *dev, const struct add_norm_args *args)
{
    struct cuda_state *state = state_of(dev);
    /* Where a row has a processor for itself, it takes all of it, and its time is that of the way to memory and
     * back; else blocks are small and several to a processor, and some load while others add up squares. */
    bool is_alone = args->rows <= state->num_processors;
    int64_t room = (state->max_shared - RESERVED_BYTES) / (int64_t)sizeof(float) - SQUARES_ROUND;
    int64_t warps, chunk, shared;
    struct norm_task task;

    if (args->rows == 0 || !(args->norm || args->sum || args->num_parts))
        return;
    if (!is_supported(args)) {
        note_error(state, cudaErrorInvalidValue);
        return;
    }
    task = norm_task(args);
    warps = divide_up(divide_up(args->n / QUAD, task.warp_quads), is_alone ? 1 : BATCH);
    chunk = min(round_up(args->n, SQUARES_ROUND), room / SQUARES_ROUND * SQUARES_ROUND);
    task.chunk = (int32_t)chunk;
    shared = chunk + SQUARES_ROUND;
    task.prefetch = is_alone && chunk >= args->n && chunk + 2 * (int64_t)args->n <= room;
    if (task.prefetch)
        shared += 2 * (int64_t)args->n;
    launch(task.num_parts ? add_norm_rows<PARTS> : add_norm_rows<SUM_OR_NOTHING>, dim3((unsigned)args->rows),
           dim3((unsigned)min(warps * WARP, (int64_t)MAX_THREADS)), (size_t)shared * sizeof(float), state->stream,
           task);
    note_launch(state);
}
