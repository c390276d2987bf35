/*
 * Many rows: a warp has a panel, and its accumulators are registers. The four warps of a block share the rows'
 * activations. All that is read comes through shared memory, two records at a time, while the two before are
 * multiplied.
 *
 * What limits it are not the tensor cores but the four float instructions that each of their results takes, or where
 * scales are whole numbers one or two, and the end of each group of activations: a warp unpacks its weights and scales
 * once a record, for as many rows as there are registers.
 */
#include "kernels/cuda/matmul.cuh"

enum {
    MANY_WARPS = 4,
    MANY_THREADS = MANY_WARPS * WARP,
    PLAIN_ROWS = 64, /* of a block */
    GROUP_ROWS = 32, /* sums of groups are registers too, two a double */
    STAGE_RECORDS = 2,
    /* Bytes from one row's codes to the next in shared memory: words of 8 rows and 4 k-groups are in 32 banks. */
    CODE_STRIDE = STAGE_RECORDS * QUANT_BLOCK + 16,
};

/*
 * A stage in shared memory, of two that take turns: each warp's records, their pieces moved, with their super
 * scales behind them; and the rows' codes and pairs.
 */
template <enum tensor_type type, int ROWS> struct stage {
    uint8_t records[MANY_WARPS][STAGE_RECORDS][packed_record_bytes(type) + packed_super_bytes(type)];
    int8_t q[ROWS * CODE_STRIDE];
    uint2 pairs[STAGE_RECORDS][ROWS]; /* load_pair */
};

/* ---- to shared memory ---------------------------------------------------------------------------------------- */

/* Record b of the warp's panel. */
template <enum tensor_type type>
static __device__ __forceinline__ void copy_record(uint8_t *to, const struct matmul_task &task,
                                                   const uint8_t *panel, int32_t b)
{
    constexpr int record_bytes = packed_record_bytes(type), super_bytes = packed_super_bytes(type);
    const int lane = threadIdx.x % WARP;
    const uint8_t *record = panel + task.supers_bytes + (int64_t)b * record_bytes;

#pragma unroll
    for (int i = 0; i < record_bytes / 16; i += WARP)
        if (i + lane < record_bytes / 16)
            cp_async_16(to + moved_piece<type>(i + lane) * 16, record + (i + lane) * 16);
    if (lane < super_bytes / 16)
        cp_async_16(to + record_bytes + lane * 16,
                    panel + (task.first_block + b) / SUPER_BLOCKS * super_bytes + lane * 16);
}

/* Row i of the block; in the place of those beyond the last stands the last, and nobody asks for its sums. */
static __device__ __forceinline__ int64_t row_at(const struct matmul_task &task, int32_t row0, int32_t i)
{
    return min(row0 + i, task.a.rows - 1);
}

/* A thread's pieces of the rows' codes: every so many rows one, each time at the same place of the row. */
template <int ROWS> struct row_pieces {
    enum { PIECES = STAGE_RECORDS * QUANT_BLOCK / 16, STEP = MANY_THREADS / PIECES, COUNT = ROWS / STEP };

    uint32_t from[COUNT]; /* 16 bytes each */
};

template <int ROWS>
static __device__ __forceinline__ void find_row_pieces(struct row_pieces<ROWS> *pieces,
                                                       const struct matmul_task &task, int32_t row0)
{
    const unsigned row = threadIdx.x / pieces->PIECES, piece = threadIdx.x % pieces->PIECES;

#pragma unroll
    for (int i = 0; i < pieces->COUNT; i++)
        pieces->from[i] = (uint32_t)(row_at(task, row0, row + i * pieces->STEP) * (task.a.k / 16)) + piece;
}

/* Records [b, b + STAGE_RECORDS), as far as there are any; without pairs. */
template <enum tensor_type type, int ROWS>
static __device__ __forceinline__ void copy_stage(struct stage<type, ROWS> *stage, const struct matmul_task &task,
                                                  const uint8_t *panel, const struct row_pieces<ROWS> &pieces,
                                                  int32_t b)
{
    const unsigned row = threadIdx.x / pieces.PIECES, piece = threadIdx.x % pieces.PIECES;

#pragma unroll
    for (int i = 0; i < STAGE_RECORDS; i++)
        if (b + i < task.num_records)
            copy_record<type>(stage->records[threadIdx.x / WARP][i], task, panel, b + i);
    if (b + (int32_t)piece / (QUANT_BLOCK / 16) < task.num_records)
#pragma unroll
        for (int i = 0; i < pieces.COUNT; i++)
            cp_async_16(stage->q + (row + i * pieces.STEP) * CODE_STRIDE + piece * 16,
                        task.a.q + (int64_t)(pieces.from[i] + b * (QUANT_BLOCK / 16)) * 16);
    cp_async_commit();
}

/* A thread's part of a stage's pairs: of row thread / STAGE_RECORDS. */
template <enum tensor_type type>
static __device__ __forceinline__ uint2 load_stage_pair(const struct matmul_task &task, int32_t row0, int32_t b)
{
    int row = threadIdx.x / STAGE_RECORDS, record = min(b + (int)threadIdx.x % STAGE_RECORDS, task.num_records - 1);

    return load_pair<type>(task.a, row_at(task, row0, row) * task.num_records + record);
}

template <enum tensor_type type, int ROWS>
static __device__ __forceinline__ void store_stage_pair(struct stage<type, ROWS> *stage, uint2 pair)
{
    static_assert(ROWS * STAGE_RECORDS <= MANY_THREADS, "a pair a thread");

    if (threadIdx.x < ROWS * STAGE_RECORDS)
        stage->pairs[threadIdx.x % STAGE_RECORDS][threadIdx.x / STAGE_RECORDS] = pair;
}

/* ---- one record ---------------------------------------------------------------------------------------------- */

/* What a lane multiplies by: columns 4g + c. */
template <enum tensor_type type> struct weights {
    uint32_t codes[2][4];
    number_pair<type> scales[LANE_COLUMNS]; /* whole_scales or column_scales */
    struct half_scales halves, mins;        /* SCALE_HALVES */
};

/* Of SCALE_WHOLE. */
template <enum tensor_type type>
static __device__ __forceinline__ void unpack_whole_scales(int2 out[LANE_COLUMNS], const uint8_t *scales)
{
    const int g = threadIdx.x % WARP / 4;

    if constexpr (quant_form(type).has_min) {
        const uint4 words = ((const uint4 *)scales)[g];

#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++)
            out[c] = whole_scales<type>(word_of(words, c));
    } else {
        const uint2 words = ((const uint2 *)scales)[g];

#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++)
            out[c] = whole_scales<type>((c < 2 ? words.x : words.y) >> c % 2 * 16);
    }
}

/* Of the others. */
template <enum tensor_type type>
static __device__ __forceinline__ void unpack_column_scales(float2 out[LANE_COLUMNS], const uint8_t *record)
{
    constexpr struct quant_form form = quant_form(type);
    const int g = threadIdx.x % WARP / 4;
    const uint8_t *scales = record + packed_code_bytes(type);
    const uint8_t *halves = form.scales == SCALE_PLAIN ? scales : record + packed_record_bytes(type);
    const uint2 d = ((const uint2 *)halves)[g];
    uint2 m = make_uint2(0, 0), scale = m, min = m;

    if constexpr (form.has_min)
        m = ((const uint2 *)(halves + 2 * PANEL))[g];
    if constexpr (form.scales == SCALE_SUPER) {
        scale.x = ((const uint32_t *)scales)[g];
        min.x = ((const uint32_t *)(scales + PANEL))[g];
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c++)
        out[c] = column_scales<type>(float_of_half_at(d, c), float_of_half_at(m, c), float_of_u8(scale, c),
                                     float_of_u8(min, c));
}

template <enum tensor_type type>
static __device__ __forceinline__ void unpack_record(struct weights<type> *out, const uint8_t *record)
{
    constexpr struct quant_form form = quant_form(type);
    const int lane = threadIdx.x % WARP, g = lane / 4;
    const uint8_t *scales = record + packed_code_bytes(type);
    struct packed_codes<type> codes;

    read_codes<type>(&codes, lane, [=](int piece) { return ((const uint4 *)record)[moved_piece<type>(piece)]; });
    unpack_codes<type>(out->codes, codes, lane);
    if constexpr (is_whole<type>())
        unpack_whole_scales<type>(out->scales, scales);
    else
        unpack_column_scales<type>(out->scales, record);
    if constexpr (form.scales == SCALE_HALVES)
        out->halves = half_scales_of(((const uint2 *)scales)[g]);
    if constexpr (has_half_mins<type>())
        out->mins = half_scales_of(((const uint2 *)(scales + 2 * PANEL))[g]);
}

/* Rows 2t + r of each tile. */
template <enum tensor_type type, int ROWS, bool has_groups> struct accumulators {
    enum { SUM_TILES = has_groups || is_whole<type>() ? ROWS / TILE_ROWS : 1 };

    number<type> acc[ROWS / TILE_ROWS][LANE_COLUMNS][2];
    std::conditional_t<has_groups, double, float> sum[SUM_TILES][LANE_COLUMNS][2]; /* of groups */
};

/* Record `record` of the stage. Half of the rows are left out where they are none. */
template <enum tensor_type type, int ROWS, bool has_groups>
static __device__ __forceinline__ void add_record(struct accumulators<type, ROWS, has_groups> *to,
                                                  const struct weights<type> &w, const struct stage<type, ROWS> &stage,
                                                  int record, int32_t rows)
{
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

#pragma unroll
    for (int n = 0; n < ROWS / TILE_ROWS; n++) {
        const int8_t *row = stage.q + (n * TILE_ROWS + g) * CODE_STRIDE;
        const uint32_t *block = (const uint32_t *)(row + record * QUANT_BLOCK) + t;
        const uint32_t b[2] = {block[0], block[4]};
        const uint4 pairs = *(const uint4 *)&stage.pairs[record][n * TILE_ROWS + 2 * t];
        number<type> sum[LANE_COLUMNS][2];

        if (n == ROWS / TILE_ROWS / 2 && rows <= ROWS / 2)
            break;
        dot_record<type>(sum, w.codes, b, w.halves);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint2 pair = r ? make_uint2(pairs.z, pairs.w) : make_uint2(pairs.x, pairs.y);

#pragma unroll
            for (int c = 0; c < LANE_COLUMNS; c++) {
                float min_sum = 0;

                if constexpr (has_half_mins<type>())
                    min_sum = fmaf(w.mins.of[c][1], (float)((int32_t)pair.y >> 16),
                                   fmaf(w.mins.of[c][0], (float)(int16_t)pair.y, 0.0f));
                to->acc[n][c][r] = add_block<type>(to->acc[n][c][r], sum[c][r], w.scales[c], pair, min_sum);
            }
        }
    }
}

/* `record` of the stage is the last of the group: the scale of activations is that of all of it. */
template <enum tensor_type type, int ROWS, bool has_groups>
static __device__ __forceinline__ void end_group(struct accumulators<type, ROWS, has_groups> *sums,
                                                 const struct stage<type, ROWS> &stage, int record)
{
    const int t = threadIdx.x % 4;

#pragma unroll
    for (int n = 0; n < ROWS / TILE_ROWS; n++)
#pragma unroll
        for (int i = 0; i < LANE_COLUMNS * 2; i++) {
            const int c = i / 2, r = i % 2;

            if constexpr (is_whole<type>())
                add_total(&sums->sum[n][c][r], sums->acc[n][c][r],
                          __uint_as_float(stage.pairs[record][n * TILE_ROWS + 2 * t + r].x));
            else
                sums->sum[n][c][r] += on_grid(sums->acc[n][c][r]);
            sums->acc[n][c][r] = 0;
        }
}

/* ---- the kernel ---------------------------------------------------------------------------------------------- */

/* Blocks that a multiprocessor has registers for. */
template <enum tensor_type type, bool has_groups> static QUANT_CONSTANT int many_blocks()
{
    const struct quant_form form = quant_form(type);
    const bool takes_more = has_groups ? form.scales == SCALE_HALVES : form.scales == SCALE_WHOLE && form.has_min;

    return takes_more ? 2 : 3;
}

/* Blocks [tiles of rows, panels / MANY_WARPS]. */
template <enum tensor_type type, int ROWS, bool has_groups>
static __global__ void __launch_bounds__(MANY_THREADS, (many_blocks<type, has_groups>()))
many_rows(struct matmul_task task)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int32_t row0 = (int32_t)blockIdx.x * ROWS, rows = min(ROWS, task.a.rows - row0);
    const int32_t column0 = ((int32_t)blockIdx.y * MANY_WARPS + warp) * PANEL;
    /* A warp without a panel does the last one's work for nothing. */
    const uint8_t *panel = task.weights + min(column0, task.n - 1) / PANEL * task.panel_bytes;
    struct stage<type, ROWS> *stages = (struct stage<type, ROWS> *)dynamic_shared();
    struct accumulators<type, ROWS, has_groups> sums;
    struct row_pieces<ROWS> pieces;
    const int32_t group = is_whole<type>() ? task.scale_group : task.group;
    int32_t left = group;

    memset(&sums, 0, sizeof(sums));
    if constexpr (is_whole<type>())
#pragma unroll
        for (int n = 0; n < ROWS / TILE_ROWS; n++)
#pragma unroll
            for (int i = 0; i < LANE_COLUMNS * 2; i++)
                begin_whole(&sums.sum[n][i / 2][i % 2]);
    find_row_pieces<ROWS>(&pieces, task, row0);
    copy_stage<type, ROWS>(&stages[0], task, panel, pieces, 0);
    store_stage_pair<type, ROWS>(&stages[0], load_stage_pair<type>(task, row0, 0));
#pragma unroll 1
    for (int32_t first = 0; first < task.num_records; first += STAGE_RECORDS) {
        const int turn = first / STAGE_RECORDS % 2, following = first + STAGE_RECORDS;
        uint2 pair = make_uint2(0, 0);

        cp_async_wait<0>();
        __syncthreads(); /* this stage is there, and nobody needs the other any more */
        if (following < task.num_records) {
            copy_stage<type, ROWS>(&stages[!turn], task, panel, pieces, following);
            pair = load_stage_pair<type>(task, row0, following);
        }
#pragma unroll 1
        for (int i = 0; i < min(STAGE_RECORDS, task.num_records - first); i++) {
            struct weights<type> w;

            unpack_record<type>(&w, stages[turn].records[warp][i]);
            add_record<type, ROWS, has_groups>(&sums, w, stages[turn], i, rows);
            if constexpr (has_groups || is_whole<type>()) {
                if (--left == 0) {
                    end_group<type, ROWS, has_groups>(&sums, stages[turn], i);
                    left = group;
                }
            }
        }
        store_stage_pair<type, ROWS>(&stages[!turn], pair);
    }
#pragma unroll
    for (int n = 0; n < ROWS / TILE_ROWS; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int32_t row = n * TILE_ROWS + 2 * t + r;

            if (row >= rows)
                continue;
#pragma unroll
            for (int c = 0; c < LANE_COLUMNS; c++) {
                const int32_t column = column0 + LANE_COLUMNS * g + c;

                if constexpr (is_whole<type>()) {
                    const auto result = end_whole(sums.sum[n][c][r], load_step(panel, LANE_COLUMNS * g + c));

                    store_result(task, row0 + row, column, (float)result, (double)result);
                } else {
                    store_result(task, row0 + row, column, sums.acc[n][c][r],
                                 has_groups ? sums.sum[has_groups ? n : 0][c][r] : 0);
                }
            }
        }
}

/* ---- launches ------------------------------------------------------------------------------------------------ */

struct many_kernel {
    void (*kernel)(struct matmul_task task);
    size_t shared_bytes;
};

#define MANY(type)                                                                                                 \
    {{many_rows<type, PLAIN_ROWS, false>, 2 * sizeof(struct stage<type, PLAIN_ROWS>)},                             \
     {many_rows<type, GROUP_ROWS, true>, 2 * sizeof(struct stage<type, GROUP_ROWS>)}}

/* In the order of enum tensor_type. */
static const struct many_kernel kernels[NUM_TENSOR_TYPES - TYPE_Q4_0][2] = {
    MANY(TYPE_Q4_0), MANY(TYPE_Q4_1), MANY(TYPE_Q5_0), MANY(TYPE_Q5_1), MANY(TYPE_Q8_0),
    MANY(TYPE_Q2_K), MANY(TYPE_Q3_K), MANY(TYPE_Q4_K), MANY(TYPE_Q5_K), MANY(TYPE_Q6_K),
};

void matmul_many(struct cuda_state *state, enum tensor_type type, const struct matmul_task *task)
{
    const struct many_kernel *k = &kernels[type - TYPE_Q4_0][task->group != 0];
    int32_t rows = task->group ? GROUP_ROWS : PLAIN_ROWS, num_tiles = divide_up(task->a.rows, rows);
    int32_t num_quads = divide_up(num_panels(task), MANY_WARPS);

    launch(k->kernel, dim3((unsigned)num_tiles, (unsigned)num_quads), dim3(MANY_THREADS), k->shared_bytes,
           state->stream, *task);
    note_launch(state);
}
