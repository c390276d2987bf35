/*
 * A few rows: one to thirty-two, a panel a block of threads.
 *
 * Sums of whole numbers may come in any order, those of floats may not. So a block goes through its panel in chunks
 * of records: first its warps multiply the chunk's records, each its own, and leave the sums in shared memory; then
 * each row's chain of fmas runs through them in order, a lane a column. While it does, the next chunk's weights are
 * on their way to registers.
 */
#include "kernels/cuda/matmul.cuh"

enum {
    FEW_THREADS = 512,
    FEW_WARPS = 8, /* at least */
    /* Words behind a row's sums: four lanes with rows two apart write 16 bytes each to banks of their own. */
    SUM_PADDING = 4,
};

struct few_task {
    struct matmul_task matmul;
    int32_t rows, more; /* of a block: `rows`, and in the first `more` blocks of a panel one more */
};

/* ---- what a block's threads tell each other ------------------------------------------------------------------ */

template <enum tensor_type type> struct few_shared {
    number<type> *sums;        /* [rows, sum_stride]: [chunk, PANEL], and the padding */
    number_pair<type> *scales; /* [chunk, PANEL]: whole_scales or column_scales */
    uint2 *pairs;              /* [rows, chunk]: load_pair */
    uint32_t *mins;            /* [chunk, PANEL]: both halves', low and high; where there are some */
    int32_t sum_stride;        /* 4 modulo 16 */
};

static inline int64_t few_shared_bytes(enum tensor_type type, int64_t chunk, int64_t rows)
{
    struct quant_form form = quant_form(type);
    int64_t column_bytes = sizeof(float2) + (form.scales == SCALE_HALVES && form.has_min ? sizeof(uint32_t) : 0);
    int64_t sums = chunk * PANEL + SUM_PADDING;

    return rows * (sums * (int64_t)sizeof(float) + chunk * (int64_t)sizeof(uint2)) + chunk * PANEL * column_bytes;
}

template <enum tensor_type type>
static __device__ __forceinline__ struct few_shared<type> few_shared_of(int32_t chunk, int32_t rows)
{
    struct few_shared<type> shared;

    shared.sum_stride = chunk * PANEL + SUM_PADDING;
    shared.sums = (number<type> *)dynamic_shared();
    shared.scales = (number_pair<type> *)(shared.sums + rows * shared.sum_stride);
    shared.pairs = (uint2 *)(shared.scales + chunk * PANEL);
    shared.mins = (uint32_t *)(shared.pairs + rows * chunk);
    return shared;
}

/* ---- a warp's records ---------------------------------------------------------------------------------------- */

/* What it loads of a record before it is its turn. */
template <enum tensor_type type, int TILES> struct record_ahead {
    struct packed_codes<type> codes;
    uint32_t q[TILES][2]; /* the rows' fragments */
    uint32_t d, m;        /* halves, of column `lane`; SCALE_WHOLE: d is s and, in the high half, t */
    uint32_t scale, min;  /* SCALE_SUPER: likewise; SCALE_HALVES: both mins */
    uint2 scales;         /* SCALE_HALVES: of the lane's four columns */
};

/* record, super: where it and its super scales are; its blocks of the rows are at q + rows_at. */
template <enum tensor_type type, int TILES>
static __device__ __forceinline__ void load_record(struct record_ahead<type, TILES> *ahead, const uint8_t *record,
                                                   const uint8_t *super, const uint32_t *q,
                                                   const uint32_t rows_at[TILES], int32_t rows)
{
    constexpr struct quant_form form = quant_form(type);
    const int lane = threadIdx.x % WARP;
    const uint8_t *scales = record + packed_code_bytes(type);
    const uint16_t *halves = (const uint16_t *)(packed_super_bytes(type) ? super : scales);

    read_codes<type>(&ahead->codes, lane, [=](int piece) { return __ldg((const uint4 *)record + piece); });
#pragma unroll
    for (int n = 0; n < TILES; n++)
        if (n == 0 || n * TILE_ROWS < rows) {
            ahead->q[n][0] = __ldg(q + rows_at[n]);
            ahead->q[n][1] = __ldg(q + rows_at[n] + 4);
        }
    if constexpr (is_whole<type>() && form.has_min) {
        ahead->d = __ldg((const uint32_t *)scales + lane);
    } else {
        ahead->d = __ldg(halves + lane);
        if constexpr (form.has_min)
            ahead->m = __ldg(halves + PANEL + lane);
    }
    if constexpr (form.scales == SCALE_SUPER) {
        ahead->scale = __ldg(scales + lane);
        ahead->min = __ldg(scales + PANEL + lane);
    }
    if constexpr (form.scales == SCALE_HALVES)
        ahead->scales = __ldg((const uint2 *)scales + lane / 4);
    if constexpr (has_half_mins<type>())
        ahead->min = __ldg((const uint16_t *)(scales + 2 * PANEL) + lane);
}

static __device__ __forceinline__ void store_four(float *p, float a, float b, float c, float d)
{
    *(float4 *)p = make_float4(a, b, c, d);
}

static __device__ __forceinline__ void store_four(int32_t *p, int32_t a, int32_t b, int32_t c, int32_t d)
{
    *(int4 *)p = make_int4(a, b, c, d);
}

/* Record i of the chunk. */
template <enum tensor_type type, int TILES>
static __device__ __forceinline__ void multiply_record(const struct few_shared<type> &shared,
                                                       const struct record_ahead<type, TILES> &ahead, int32_t i,
                                                       int32_t rows)
{
    constexpr struct quant_form form = quant_form(type);
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    number<type> *sums = shared.sums + 2 * t * shared.sum_stride + LANE_COLUMNS * g + i * PANEL;
    struct half_scales halves;
    uint32_t a[2][4];

    unpack_codes<type>(a, ahead.codes, lane);
    if constexpr (form.scales == SCALE_HALVES)
        halves = half_scales_of(ahead.scales);
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        number<type> sum[LANE_COLUMNS][2];

        if (n > 0 && n * TILE_ROWS >= rows)
            break;
        dot_record<type>(sum, a, ahead.q[n], halves);
#pragma unroll
        for (int r = 0; r < 2; r++)
            if (n * TILE_ROWS + 2 * t + r < rows)
                store_four(sums + (n * TILE_ROWS + r) * shared.sum_stride, sum[0][r], sum[1][r], sum[2][r],
                           sum[3][r]);
    }
    if constexpr (is_whole<type>()) {
        shared.scales[i * PANEL + lane] = whole_scales<type>(ahead.d);
    } else {
        float m = 0, scale = 0, min = 0;

        if constexpr (form.has_min)
            m = float_of_half((uint16_t)ahead.m);
        if constexpr (form.scales == SCALE_SUPER) {
            scale = (float)ahead.scale;
            min = (float)ahead.min;
        }
        shared.scales[i * PANEL + lane] = column_scales<type>(float_of_half((uint16_t)ahead.d), m, scale, min);
    }
    if constexpr (has_half_mins<type>())
        shared.mins[i * PANEL + lane] = ahead.min;
}

/* ---- a row's chain ------------------------------------------------------------------------------------------- */

/* Where a column has got to. */
template <enum tensor_type type> struct chain {
    number<type> acc;
    double sum;    /* of groups */
    float rounded; /* the same of SCALE_WHOLE, where no exact sums are wanted */
};

/* Records [i, end) of the chunk; not of SCALE_WHOLE. */
template <enum tensor_type type>
static __device__ __forceinline__ float add_records(float acc, const struct few_shared<type> &shared, int32_t chunk,
                                                    int32_t row, int32_t i, int32_t end)
{
    const int lane = threadIdx.x % WARP;
    const float *sums = shared.sums + row * shared.sum_stride + lane;
    const uint2 *pairs = shared.pairs + row * chunk;

#pragma unroll 4
    for (; i < end; i++) {
        uint2 pair = pairs[i];
        float min_sum = 0;

        if constexpr (has_half_mins<type>()) {
            uint32_t mins = shared.mins[i * PANEL + lane]; /* four bits each */

            min_sum = (float)((int32_t)(mins & 0xff) * (int16_t)pair.y +
                              (int32_t)(mins >> 8) * ((int32_t)pair.y >> 16));
        }
        acc = add_block<type>(acc, sums[i * PANEL], shared.scales[i * PANEL + lane], pair, min_sum);
    }
    return acc;
}

/* All `count` records, of SCALE_WHOLE, and totals of groups of activations that end there are added to `sum`. What is
 * left of the group then. These are of three records at most: a loop for each would wait for what it reads. */
template <enum tensor_type type, typename Sum>
static __device__ __forceinline__ int32_t add_totals(int32_t *total, Sum *sum, int32_t left, int32_t group,
                                                     const struct few_shared<type> &shared, int32_t chunk,
                                                     int32_t row, int32_t count)
{
    const int lane = threadIdx.x % WARP;
    const int32_t *sums = shared.sums + row * shared.sum_stride + lane;
    const uint2 *pairs = shared.pairs + row * chunk;

#pragma unroll 4
    for (int32_t i = 0; i < count; i++) {
        uint2 pair = pairs[i];

        *total = add_block<type>(*total, sums[i * PANEL], shared.scales[i * PANEL + lane], pair, 0);
        if (--left == 0) {
            add_total(sum, *total, __uint_as_float(pair.x));
            *total = 0;
            left = group;
        }
    }
    return left;
}

/* All `count` of them, and groups that end there are added up. What is left of the group then. */
template <enum tensor_type type>
static __device__ __forceinline__ int32_t run_chain(struct chain<type> *chain, int32_t left,
                                                    const struct matmul_task &task,
                                                    const struct few_shared<type> &shared, int32_t chunk,
                                                    int32_t row, int32_t count)
{
    if constexpr (is_whole<type>()) {
        if (task.group)
            left = add_totals<type>(&chain->acc, &chain->sum, left, task.scale_group, shared, chunk, row, count);
        else
            left = add_totals<type>(&chain->acc, &chain->rounded, left, task.scale_group, shared, chunk, row, count);
    } else {
        for (int32_t i = 0; i < count;) {
            int32_t end = i + min(left, count - i);

            chain->acc = add_records<type>(chain->acc, shared, chunk, row, i, end);
            left -= end - i;
            i = end;
            if (left == 0) {
                chain->sum += on_grid(chain->acc);
                chain->acc = 0;
                left = task.group;
            }
        }
    }
    return left;
}

/* ---- the kernel ---------------------------------------------------------------------------------------------- */

/* Blocks [tiles of rows, panels]: neighbours read the same weights. ROWS: of a block, at most; AHEAD: records that
 * each warp has on their way. */
template <enum tensor_type type, int ROWS, int AHEAD>
static __global__ void __launch_bounds__(FEW_THREADS, 1) few_rows(struct few_task few)
{
    constexpr int TILES = ROWS / TILE_ROWS, CHAINS = ROWS / FEW_WARPS;
    constexpr int PAIRS = (FEW_THREADS / WARP * AHEAD + WARP - 1) / WARP; /* of a row's chunk, a lane's */
    constexpr int record_bytes = packed_record_bytes(type), super_bytes = packed_super_bytes(type);
    const struct matmul_task &task = few.matmul;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, num_warps = blockDim.x / WARP;
    const int32_t row0 = (int32_t)blockIdx.x * few.rows + min((int32_t)blockIdx.x, few.more);
    const int32_t rows = few.rows + ((int32_t)blockIdx.x < few.more), chunk = num_warps * AHEAD;
    const int32_t own = warp * AHEAD; /* the first of the warp's records in a chunk */
    const uint8_t *panel = task.weights + blockIdx.y * task.panel_bytes;
    const uint8_t *record = panel + task.supers_bytes + own * record_bytes; /* the next to be loaded */
    const struct few_shared<type> shared = few_shared_of<type>(chunk, rows);
    uint32_t rows_at[TILES]; /* the lane's word in the first block of the row that it loads of each tile */
    struct record_ahead<type, TILES> ahead[AHEAD];
    struct chain<type> chains[CHAINS];
    /* Records of the group that are still to come. */
    int32_t left = is_whole<type>() ? task.scale_group : task.group ? task.group : task.num_records + 1;

#pragma unroll
    for (int n = 0; n < TILES; n++) {
        /* In the place of rows beyond the last stands the last, and nobody asks for its sums. */
        int64_t row = row0 + min(n * TILE_ROWS + lane / 4, rows - 1);

        rows_at[n] = (uint32_t)(row * (task.a.k / 4)) + lane % 4;
    }
#pragma unroll
    for (int j = 0; j < CHAINS; j++) {
        chains[j].acc = 0;
        chains[j].sum = 0;
        if constexpr (is_whole<type>()) {
            begin_whole(&chains[j].rounded);
            begin_whole(&chains[j].sum);
        }
    }
    /* The first turn, at -chunk, only loads. */
#pragma unroll 1
    for (int32_t first = -chunk; first < task.num_records; first += chunk) {
        const int32_t count = min(chunk, task.num_records - first);
        int32_t next_left = left;
        uint2 pairs[CHAINS][PAIRS];

#pragma unroll
        for (int j = 0; j < CHAINS; j++)
#pragma unroll
            for (int p = 0; p < PAIRS; p++) {
                int32_t row = warp + j * num_warps, i = p * WARP + lane;

                if (first >= 0 && row < rows && i < count)
                    pairs[j][p] = load_pair<type>(task.a, (int64_t)(row0 + row) * task.num_records + first + i);
            }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int32_t next = first + chunk + own + u;

            if (first >= 0 && own + u < count)
                multiply_record<type, TILES>(shared, ahead[u], own + u, rows);
            if (next < task.num_records)
                load_record<type, TILES>(&ahead[u], record + u * record_bytes,
                                         panel + (task.first_block + next) / SUPER_BLOCKS * super_bytes,
                                         (const uint32_t *)task.a.q + (int64_t)next * (QUANT_BLOCK / 4), rows_at,
                                         rows);
        }
        record += chunk * record_bytes;
        if (first < 0)
            continue;
#pragma unroll
        for (int j = 0; j < CHAINS; j++)
#pragma unroll
            for (int p = 0; p < PAIRS; p++) {
                int32_t row = warp + j * num_warps, i = p * WARP + lane;

                if (row < rows && i < count)
                    shared.pairs[row * chunk + i] = pairs[j][p];
            }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < CHAINS; j++) {
            int32_t row = warp + j * num_warps;

            if (row < rows)
                next_left = run_chain<type>(&chains[j], left, task, shared, chunk, row, count);
        }
        left = next_left;
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < CHAINS; j++) {
        int32_t row = warp + j * num_warps;

        if (row >= rows)
            continue;
        if constexpr (is_whole<type>()) {
            const float step = load_step(panel, lane);

            store_result(task, row0 + row, (int32_t)blockIdx.y * PANEL + lane, end_whole(chains[j].rounded, step),
                         end_whole(chains[j].sum, step));
        } else {
            store_result(task, row0 + row, (int32_t)blockIdx.y * PANEL + lane, chains[j].acc, chains[j].sum);
        }
    }
}

/* ---- launches ------------------------------------------------------------------------------------------------ */

struct few_kernel {
    void (*kernel)(struct few_task task);
    int32_t rows, ahead; /* ROWS and AHEAD */
};

#define FEW(type, few, more) {{few_rows<type, 8, few>, 8, few}, {few_rows<type, 32, more>, 32, more}}

/* In the order of enum tensor_type; as many records ahead as registers hold. */
static const struct few_kernel kernels[NUM_TENSOR_TYPES - TYPE_Q4_0][2] = {
    FEW(TYPE_Q4_0, 4, 2), FEW(TYPE_Q4_1, 4, 2), FEW(TYPE_Q5_0, 3, 2), FEW(TYPE_Q5_1, 3, 2), FEW(TYPE_Q8_0, 2, 2),
    FEW(TYPE_Q2_K, 4, 1), FEW(TYPE_Q3_K, 4, 1), FEW(TYPE_Q4_K, 4, 2), FEW(TYPE_Q5_K, 3, 2), FEW(TYPE_Q6_K, 2, 1),
};

cudaError_t matmul_prepare(const struct cuda_state *state)
{
    cudaError_t error = cudaSuccess;

    for (int i = 0; i < NUM_TENSOR_TYPES - TYPE_Q4_0 && error == cudaSuccess; i++)
        for (int j = 0; j < 2 && error == cudaSuccess; j++)
            error = allow_shared(kernels[i][j].kernel, state->max_shared);
    return error;
}

void matmul_few(struct cuda_state *state, enum tensor_type type, const struct matmul_task *task)
{
    const struct few_kernel *k = &kernels[type - TYPE_Q4_0][task->a.rows > TILE_ROWS];
    int32_t num_tiles = divide_up(task->a.rows, k->rows), warps = FEW_WARPS;
    struct few_task few = {*task, task->a.rows / num_tiles, task->a.rows % num_tiles};
    int32_t rows = few.rows + (few.more > 0); /* of the largest block */

    /* Where a multiprocessor has one or two blocks, these are larger, so that as many loads are on their way. */
    if ((int64_t)num_panels(task) * num_tiles <= 2 * state->num_processors &&
        few_shared_bytes(type, 2 * FEW_WARPS * k->ahead, rows) <= state->max_shared)
        warps = 2 * FEW_WARPS;
    launch(k->kernel, dim3((unsigned)num_tiles, (unsigned)num_panels(task)), dim3((unsigned)(warps * WARP)),
           (size_t)few_shared_bytes(type, warps * k->ahead, rows), state->stream, few);
    note_launch(state);
}
