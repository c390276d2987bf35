/*
 * Weights of 16 bits, and codes of 8 that stand for BF16, on tensor cores.
 *
 * The rule, which every kernel here keeps whatever the number of rows:
 *  - Activations are rounded: to bf16 for BF16 weights, to tf32 for F16, whose halves are tf32 as they are.
 *  - k, filled up with zeros to whole blocks of 32, is cut into units: in matmul_groups the groups, else two halves
 *    where there is enough of it (blocks_of_unit), so that two warps can share a column.
 *  - A unit is one chain of mma in order of k that begins with 0: weights are a, rows are b, and of each block
 *        BF16  mma j = 0, 1  has k 16j..16j + 15
 *        F16   mma j = 0..3  has k 8j..8j + 7, at its place 4e + t that of 8j + 2t + e: e = 0, 1; t = 0..3
 *    so that of every 8 of k a lane has the two from 2t on, of both types.
 *  - The second half is added to the first, in float; groups are added as everywhere, exactly.
 *  - Codes become the bf16 that they stand for (fp8_codes.cuh), and then are as BF16.
 * So bits depend on nothing but a row, a column and k. What an mma does inside is the GPU's affair: other models of
 * GPU may give other bits, and kernels/ref does.
 *
 * A few rows: a warp has 16 columns and some units, and its weights come through a ring of its own; codes become bf16
 * in registers. More: tiles of columns and rows, whose units may be shared out to several blocks; another kernel then
 * adds up what they leave. There codes become bf16 in shared memory, once for all warps.
 */
#include "kernels/cuda/fp8_codes.cuh"
#include "kernels/cuda/fp8_layout.h"
#include "kernels/cuda/half_layout.h"
#include "kernels/cuda/matmul.cuh"

enum {
    COLUMNS = 16,      /* of an mma; it has TILE_ROWS rows */
    PIECE = 16,        /* bytes that a lane copies, or reads, at a time */
    STAGE_BYTES = 128, /* of a column, in shared memory: of a line of memory */
    STAGE_PIECES = STAGE_BYTES / PIECE,
    HALVED_K = 2048,   /* from here on k has two halves */
};

struct half_task {
    const uint8_t *weights; /* half_layout.h, fp8_layout.h */
    const uint8_t *x;       /* few: floats; else rounded */
    const float *scales;    /* of codes */
    int32_t scales_stride;  /* from columns to the next with scales of their own */
    int32_t scale_columns, scale_blocks; /* that share one, as powers of two */
    int64_t weights_stride, x_stride; /* bytes */
    int32_t rows, n;
    int32_t num_blocks;     /* of k */
    int32_t unit, num_units; /* blocks of a unit; the last may have less */
    int32_t splits;         /* blocks of threads that share a tile's units */
    bool has_groups;
    float *out;             /* NULL: doubles are wanted */
    int64_t out_stride;
    double *sums;           /* [rows, n] */
    void *parts;            /* of several: [units, rows, n] floats, or [splits, rows, n] doubles; else NULL */
};

/* ---- arithmetic ---------------------------------------------------------------------------------------------- */

static QUANT_CONSTANT bool are_codes(enum tensor_type type)
{
    return type == TYPE_F8_E4M3;
}

/* Of a block. */
template <enum tensor_type type> struct half_form {
    enum {
        STEPS = type == TYPE_F16 ? 4 : 2, /* mma */
        X_WORDS = 2 * STEPS,              /* of a lane: 8 elements */
        X_BYTES = type == TYPE_F16 ? 4 : 2,
        X_PIECES = X_WORDS / 4,
        BYTES = HALF_BLOCK * (are_codes(type) ? 1 : HALF_BYTES), /* of a column, as it is copied */
        PIECES = BYTES / PIECE,
    };
};

/* words: ldmatrix_x4's, of 16 columns and half a block: the fragment of one mma, or of F16's two, packed. */
template <enum tensor_type type>
static __device__ __forceinline__ void unpack_weights(uint32_t a[][4], const uint32_t words[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        if constexpr (type == TYPE_BF16) {
            a[0][i] = words[i];
        } else {
            a[i / 2][i % 2] = __float_as_uint(float_of_half((uint16_t)words[i]));
            a[i / 2][2 + i % 2] = __float_as_uint(float_of_half((uint16_t)(words[i] >> 16)));
        }
}

/* The same of codes, a whole block: the fragments of two mma. scales: of columns g and g + 8. */
static __device__ __forceinline__ void unpack_fp8(uint32_t a[2][4], const uint32_t words[4], const float scales[2])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t pairs[2];

        bf16_pairs_of_fp8(pairs, words[i], scales[i % 2]);
        a[i / 2][i % 2] = pairs[0];
        a[i / 2][2 + i % 2] = pairs[1];
    }
}

/* acc[n] += half h of a block of 16 columns, times rows' words of this block. */
template <enum tensor_type type, int NT>
static __device__ __forceinline__ void multiply_half(float acc[NT][4], const void *weights_row,
                                                     const uint32_t x[NT][half_form<type>::X_WORDS], int h)
{
    constexpr int steps = half_form<type>::STEPS / 2;
    uint32_t words[4], a[steps][4];

    ldmatrix_x4(words, weights_row);
    unpack_weights<type>(a, words);
#pragma unroll
    for (int j = 0; j < steps; j++)
#pragma unroll
        for (int n = 0; n < NT; n++)
            if constexpr (type == TYPE_BF16)
                mma_bf16_k16(acc[n], a[j], x[n] + 2 * h);
            else
                mma_tf32_k8(acc[n], a[j], x[n] + 4 * h + 2 * j);
}

/* Where a column's pieces of a stage lie, so that eight columns' same pieces are in banks of their own. */
static __device__ __forceinline__ int weights_piece_at(int column, int piece)
{
    return column * STAGE_BYTES + (piece ^ column % 8) * PIECE;
}

/* In a stage of 16 columns: the row that a lane knows for ldmatrix_x4, of pieces 2h and 2h + 1: half a block, or one of
 * codes. */
static __device__ __forceinline__ int weights_row_at(int h)
{
    return weights_piece_at(threadIdx.x % 16, threadIdx.x % WARP / 16 ^ 2 * h);
}

/* acc += a block of 16 columns' codes, times rows' words of this block. */
static __device__ __forceinline__ void multiply_fp8(float acc[4], const void *weights_row, const uint32_t x[4],
                                                    const float scales[2])
{
    uint32_t words[4], a[2][4];

    ldmatrix_x4(words, weights_row);
    unpack_fp8(a, words, scales);
#pragma unroll
    for (int j = 0; j < 2; j++)
        mma_bf16_k16(acc, a[j], x + 2 * j);
}

/* The place of the scale of a column, in a block of k. */
static __device__ __forceinline__ const float *scale_at(const struct half_task &task, int32_t column, int32_t block)
{
    return task.scales + (int64_t)(column >> task.scale_columns) * task.scales_stride + (block >> task.scale_blocks);
}

/* What a lane has of a block of a row: of every 8 the two from 2t on. */
struct x_pairs {
    float2 of[4];
};

template <enum tensor_type type>
static __device__ __forceinline__ void round_x(uint32_t *words, const struct x_pairs &x)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        if constexpr (type == TYPE_F16) {
            words[2 * i] = tf32_of_float(x.of[i].x);
            words[2 * i + 1] = tf32_of_float(x.of[i].y);
        } else {
            words[i] = bf16_pair_of_floats(x.of[i].x, x.of[i].y);
        }
}

static __device__ __forceinline__ void store_half(const struct half_task &task, int64_t row, int32_t column,
                                                  float acc, double sum)
{
    if (!task.has_groups)
        task.out[row * task.out_stride + column] = acc;
    else if (task.out)
        task.out[row * task.out_stride + column] = (float)sum;
    else
        task.sums[row * task.n + column] = sum;
}

/* ---- the way through k --------------------------------------------------------------------------------------- */

/* A stage has some blocks of k, and never of two units. */
struct walk {
    int32_t block; /* the first of the stage */
    int32_t left;  /* of its unit; not above 0: there is no stage any more */
    int32_t end;   /* of all blocks */
};

static __device__ __forceinline__ struct walk walk_from(const struct half_task &task, int32_t unit,
                                                        int32_t end_unit)
{
    struct walk w;

    w.block = unit * task.unit;
    w.end = min(end_unit * task.unit, task.num_blocks);
    w.left = min(task.unit, w.end - w.block);
    return w;
}

/* blocks: of a stage, at most. skip: between two units. */
static __device__ __forceinline__ void walk_on(struct walk *w, const struct half_task &task, int32_t blocks,
                                               int32_t skip)
{
    int32_t count = min(w->left, blocks);

    w->block += count;
    w->left -= count;
    if (w->left == 0) {
        w->block += skip;
        w->left = min(task.unit, w->end - w->block);
    }
}

static __device__ __forceinline__ bool ends_unit(const struct walk &w, int32_t blocks)
{
    return w.left <= blocks;
}

/* ---- a few rows ---------------------------------------------------------------------------------------------- */

enum {
    FEW_WARPS = 8, /* at most; those of a block share out the units of 16 columns */
    FEW_STAGES = 8,
    FEW_STAGE_BYTES = COLUMNS * STAGE_BYTES,
    FEW_RING_BYTES = FEW_STAGES * FEW_STAGE_BYTES,
    FEW_STEP = WARP / STAGE_PIECES, /* columns that a warp copies at a time */
};

/* Of a stage: whole lines of memory. */
template <enum tensor_type type> static QUANT_CONSTANT int few_blocks()
{
    return STAGE_BYTES / half_form<type>::BYTES;
}

/* columns: the lane's of each step, and its piece there. */
template <enum tensor_type type>
static __device__ __forceinline__ void copy_few(char *stage, const uint8_t *const columns[COLUMNS / FEW_STEP],
                                                const struct walk &w)
{
    const int lane = threadIdx.x % WARP, column = lane / STAGE_PIECES, piece = lane % STAGE_PIECES;

    if (piece / half_form<type>::PIECES < w.left)
#pragma unroll
        for (int i = 0; i < COLUMNS / FEW_STEP; i++)
            cp_async_16(stage + weights_piece_at(column + i * FEW_STEP, piece),
                        columns[i] + (int64_t)w.block * half_form<type>::BYTES);
    cp_async_commit();
}

template <int BLOCKS>
static __device__ __forceinline__ void load_few_x(struct x_pairs to[BLOCKS], const float *x, const struct walk &w)
{
#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
        if (b < w.left)
#pragma unroll
            for (int i = 0; i < 4; i++)
                to[b].of[i] = __ldg((const float2 *)(x + (int64_t)(w.block + b) * HALF_BLOCK + 8 * i));
}

/* Of a lane's columns, g and g + 8: a stage of codes goes through two 128 of k at most. */
struct few_scales {
    float first[2], last[2];
    int32_t num_first; /* blocks of the stage that have the first ones, or more */
};

static __device__ __forceinline__ void load_few_scales(struct few_scales *to, const struct half_task &task,
                                                       const int32_t columns[2], const struct walk &w)
{
    const int32_t blocks_of_128 = FP8_BLOCK / HALF_BLOCK;

    if (w.left <= 0)
        return;
    to->num_first = blocks_of_128 - w.block % blocks_of_128;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        to->first[i] = __ldg(scale_at(task, columns[i], w.block));
        to->last[i] = __ldg(scale_at(task, columns[i], min(w.block + blocks_of_128, task.num_blocks) - 1));
    }
}

/* Blocks [columns / 16], of as many warps as there are halves of k, or any number for groups. */
template <enum tensor_type type>
static __global__ void __launch_bounds__(FEW_WARPS * WARP) half_few(struct half_task task)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int32_t num_warps = blockDim.x / WARP, skip = (num_warps - 1) * task.unit;
    const int32_t column0 = (int32_t)blockIdx.x * COLUMNS;
    const int32_t own_columns[2] = {min(column0 + g, task.n - 1), min(column0 + g + 8, task.n - 1)};
    const float *x = (const float *)(task.x + min(g, task.rows - 1) * task.x_stride) + 2 * t;
    constexpr int blocks = few_blocks<type>();
    char *rings = dynamic_shared(), *ring = rings + warp * FEW_RING_BYTES;
    struct walk now = walk_from(task, warp, task.num_units), ahead = now;
    const uint8_t *columns[COLUMNS / FEW_STEP];
    float acc[1][4] = {{0, 0, 0, 0}};
    double sum[4] = {0, 0, 0, 0};
    struct x_pairs xs[blocks], next_xs[blocks];
    struct few_scales scales = {}, next_scales = {};
    int slot = 0;

    /* In the place of columns and rows beyond the last stands the last, and nobody asks for its sums. */
#pragma unroll
    for (int i = 0; i < COLUMNS / FEW_STEP; i++)
        columns[i] = task.weights + lane % STAGE_PIECES * PIECE +
                     min(column0 + lane / STAGE_PIECES + i * FEW_STEP, task.n - 1) * task.weights_stride;
#pragma unroll
    for (int i = 0; i < FEW_STAGES - 1; i++) {
        copy_few<type>(ring + i * FEW_STAGE_BYTES, columns, ahead);
        if (ahead.left > 0)
            walk_on(&ahead, task, blocks, skip);
    }
    load_few_x<blocks>(xs, x, now);
    if constexpr (are_codes(type))
        load_few_scales(&scales, task, own_columns, now);
#pragma unroll 1
    while (now.left > 0) {
        const int32_t count = now.left;
        const bool is_end = ends_unit(now, blocks);
        const char *stage = ring + slot * FEW_STAGE_BYTES;

        cp_async_wait<FEW_STAGES - 2>();
        __syncwarp(); /* this stage is there, and no lane needs the one before any more */
        copy_few<type>(ring + (slot + FEW_STAGES - 1) % FEW_STAGES * FEW_STAGE_BYTES, columns, ahead);
        if (ahead.left > 0)
            walk_on(&ahead, task, blocks, skip);
        walk_on(&now, task, blocks, skip);
        load_few_x<blocks>(next_xs, x, now);
        if constexpr (are_codes(type))
            load_few_scales(&next_scales, task, own_columns, now);
#pragma unroll
        for (int b = 0; b < blocks; b++) {
            uint32_t words[1][half_form<type>::X_WORDS];

            if (b >= count)
                break;
            round_x<type>(words[0], xs[b]);
            if constexpr (are_codes(type)) {
                const bool is_first = b < scales.num_first;
                const float of_block[2] = {is_first ? scales.first[0] : scales.last[0],
                                           is_first ? scales.first[1] : scales.last[1]};

                multiply_fp8(acc[0], stage + weights_row_at(b), words[0], of_block);
            } else {
#pragma unroll
                for (int h = 0; h < 2; h++)
                    multiply_half<type, 1>(acc, stage + weights_row_at(2 * b + h), words, h);
            }
        }
        if (is_end && task.has_groups) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sum[e] += on_grid(acc[0][e]);
                acc[0][e] = 0;
            }
        }
        memcpy(xs, next_xs, sizeof(xs));
        scales = next_scales;
        slot = (slot + 1) % FEW_STAGES;
    }

    /* The first warp adds up what the others leave in their rings. */
    __syncwarp(); /* no lane needs the last stage any more */
    if (task.has_groups)
        memcpy(ring + lane * sizeof(sum), sum, sizeof(sum));
    else
        memcpy(ring + lane * sizeof(acc), acc, sizeof(acc));
    __syncthreads();
    if (warp > 0)
        return;
#pragma unroll 1
    for (int other = 1; other < num_warps; other++) {
        const char *from = rings + other * FEW_RING_BYTES;

#pragma unroll
        for (int e = 0; e < 4; e++)
            if (task.has_groups)
                sum[e] += ((const double *)from)[4 * lane + e];
            else
                acc[0][e] += ((const float *)from)[4 * lane + e];
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        int32_t row = 2 * t + e % 2, column = column0 + g + e / 2 * 8;

        if (row < task.rows && column < task.n)
            store_half(task, row, column, acc[0][e], sum[e]);
    }
}

/* ---- rounded activations ------------------------------------------------------------------------------------- */

enum { ROUND_THREADS = 256 };

struct round_task {
    const float *x; /* [rows, k] */
    uint8_t *out;   /* [rows, num_blocks, 4]: what each t has, zeros beyond k */
    int32_t rows, k, num_blocks;
    bool is_aligned; /* x to pairs, and k is even */
};

/* A block's pairs a thread: what a lane asks for later lies side by side. */
template <enum tensor_type type>
static __global__ void __launch_bounds__(ROUND_THREADS) round_rows(struct round_task task)
{
    typedef struct half_form<type> Form;
    const int64_t i = (int64_t)blockIdx.x * ROUND_THREADS + threadIdx.x, row = i / (4 * task.num_blocks);
    const int32_t at = (int32_t)(i % (4 * task.num_blocks)), first = at / 4 * HALF_BLOCK + at % 4 * 2;
    const float *x = task.x + row * task.k;
    uint32_t words[Form::X_WORDS];
    struct x_pairs pairs;

    if (row >= task.rows)
        return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int32_t k = first + 8 * j;

        if (task.is_aligned && k < task.k)
            pairs.of[j] = __ldg((const float2 *)(x + k));
        else
            pairs.of[j] = make_float2(k < task.k ? __ldg(x + k) : 0.0f, k + 1 < task.k ? __ldg(x + k + 1) : 0.0f);
    }
    round_x<type>(words, pairs);
#pragma unroll
    for (int p = 0; p < Form::X_PIECES; p++)
        ((uint4 *)task.out)[i * Form::X_PIECES + p] =
            make_uint4(words[4 * p], words[4 * p + 1], words[4 * p + 2], words[4 * p + 3]);
}

/* ---- tiles --------------------------------------------------------------------------------------------------- */

enum {
    TILE_WARPS = 8,
    TILE_THREADS = TILE_WARPS * WARP,
    STAGE_BLOCKS = STAGE_BYTES / (HALF_BLOCK * HALF_BYTES), /* of k, when they are halves */
};

/* A block's columns and rows: COLUMN_WARPS warps beside each other have MT mma of columns each, and so many rows of
 * warps NT mma of rows. */
template <enum tensor_type type, int COLUMN_WARPS, int MT, int NT> struct half_tile {
    enum {
        WIDTH = COLUMN_WARPS * MT * COLUMNS,
        ROWS = TILE_WARPS / COLUMN_WARPS * NT * TILE_ROWS,
        X_STAGE_BYTES = STAGE_BLOCKS * HALF_BLOCK * half_form<type>::X_BYTES, /* of a row */
        X_PIECES = X_STAGE_BYTES / PIECE,
        WEIGHTS_BYTES = WIDTH * STAGE_BYTES,
        BYTES = WEIGHTS_BYTES + ROWS * X_STAGE_BYTES, /* of a stage */
        CODE_COPIES = WEIGHTS_BYTES / 2 / PIECE / TILE_THREADS,
    };
};

/*
 * Where the pieces of a row's stage lie, so that lanes find banks of their own: they read a block of two rows at a
 * time, and those of odd rows change places with the other block's. Of tf32 a lane reads two pieces, one after the
 * other: these change places.
 */
template <enum tensor_type type> static __device__ __forceinline__ int x_piece_at(int row, int piece)
{
    return piece ^ row % 2 * (type == TYPE_F16 ? 1 : 4);
}

/* What a tile reads; from the first columns and rows the others are less than 2 GiB away. */
struct tile_source {
    const uint8_t *columns, *rows;
    int32_t num_columns, num_rows; /* that there are */
};

/* What a thread copies of a stage's columns: the same piece of some of them, STEP apart. Codes lie in the first of the
 * two pieces that are to stand there. */
template <enum tensor_type type> struct tile_copies {
    enum {
        PIECES = STAGE_BLOCKS * half_form<type>::PIECES, /* of a column */
        STEP = TILE_THREADS / PIECES,                    /* a multiple of 8 */
        STEP_BYTES = STEP * STAGE_BYTES,
        WIDTH = STAGE_PIECES / PIECES,
    };
};

template <enum tensor_type type, typename Tile>
static __device__ __forceinline__ void copy_tile(char *stage, const struct half_task &task,
                                                 const struct tile_source &source, const struct walk &w)
{
    typedef struct tile_copies<type> Copies;
    const int x_step = TILE_THREADS / Tile::X_PIECES;
    const int thread = unforeseen(threadIdx.x); /* addresses of a dozen copies would fill registers */
    const int column = thread / Copies::PIECES, piece = thread % Copies::PIECES;
    const int row = thread / Tile::X_PIECES, x_piece = thread % Tile::X_PIECES;
    const int32_t stride = (int32_t)task.weights_stride, x_stride = (int32_t)task.x_stride;

    if (piece / half_form<type>::PIECES < w.left) {
        const uint8_t *from = source.columns + (int64_t)w.block * half_form<type>::BYTES + piece * PIECE;
        char *to = stage + weights_piece_at(column, piece * Copies::WIDTH);

#pragma unroll
        for (int i = 0; i < Tile::WIDTH / Copies::STEP; i++) /* in the place of those beyond the last stands the last */
            cp_async_16(to + i * Copies::STEP_BYTES,
                        from + min(column + i * Copies::STEP, source.num_columns - 1) * stride);
    }
    if (x_piece / (Tile::X_PIECES / STAGE_BLOCKS) < w.left) {
        const uint8_t *from =
            source.rows + (int64_t)w.block * (Tile::X_STAGE_BYTES / STAGE_BLOCKS) + x_piece * PIECE;
        char *to = stage + Tile::WEIGHTS_BYTES + row * Tile::X_STAGE_BYTES + x_piece_at<type>(row, x_piece) * PIECE;

#pragma unroll
        for (int i = 0; i < Tile::ROWS / x_step; i++)
            if (row + i * x_step < source.num_rows) /* of others nobody asks what they are */
                cp_async_16(to + i * x_step * Tile::X_STAGE_BYTES, from + (row + i * x_step) * x_stride);
    }
    cp_async_commit();
}

/* Of what a thread has copied of a stage of codes. */
template <typename Tile>
static __device__ __forceinline__ void load_tile_scales(float scales[Tile::CODE_COPIES], const struct half_task &task,
                                                        int32_t column0, const struct walk &w)
{
    typedef struct tile_copies<TYPE_F8_E4M3> Copies;
    const int thread = unforeseen(threadIdx.x), column = thread / Copies::PIECES;
    const int block = thread % Copies::PIECES / half_form<TYPE_F8_E4M3>::PIECES;

    if (block < w.left)
#pragma unroll
        for (int i = 0; i < Tile::CODE_COPIES; i++)
            scales[i] = __ldg(scale_at(task, min(column0 + column + i * Copies::STEP, task.n - 1), w.block + block));
}

/* It becomes bf16 where it is, and is there for others after a barrier. */
template <typename Tile>
static __device__ __forceinline__ void expand_tile(char *stage, const struct walk &w,
                                                   const float scales[Tile::CODE_COPIES])
{
    typedef struct tile_copies<TYPE_F8_E4M3> Copies;
    const int thread = unforeseen(threadIdx.x), column = thread / Copies::PIECES, piece = thread % Copies::PIECES;
    char *first = stage + weights_piece_at(column, piece * Copies::WIDTH);
    char *second = stage + weights_piece_at(column, piece * Copies::WIDTH + 1);

    if (piece / half_form<TYPE_F8_E4M3>::PIECES >= w.left)
        return;
#pragma unroll
    for (int i = 0; i < Tile::CODE_COPIES; i++) {
        uint32_t codes[4], halves[2][4];

        memcpy(codes, __builtin_assume_aligned(first + i * Copies::STEP_BYTES, PIECE), PIECE);
#pragma unroll
        for (int t = 0; t < 4; t++) {
            uint32_t pairs[2];

            bf16_pairs_of_fp8(pairs, codes[t], scales[i]);
            halves[0][t] = pairs[0];
            halves[1][t] = pairs[1];
        }
        memcpy(__builtin_assume_aligned(first + i * Copies::STEP_BYTES, PIECE), halves[0], PIECE);
        memcpy(__builtin_assume_aligned(second + i * Copies::STEP_BYTES, PIECE), halves[1], PIECE);
    }
}

/* Block b of a stage of halves. columns: the warp's first; rows: the lane's first. */
template <enum tensor_type type, typename Tile, int MT, int NT>
static __device__ __forceinline__ void multiply_block(float acc[MT][NT][4], const char *columns, const char *rows,
                                                      int b)
{
    typedef struct half_form<type> Form;
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    uint32_t x[NT][Form::X_WORDS];

#pragma unroll
    for (int p = 0; p < Form::X_PIECES; p++) {
        const char *row = rows + x_piece_at<type>(g, (4 * b + t) * Form::X_PIECES + p) * PIECE;

#pragma unroll
        for (int n = 0; n < NT; n++)
            memcpy(&x[n][4 * p], __builtin_assume_aligned(row + n * TILE_ROWS * Tile::X_STAGE_BYTES, PIECE), PIECE);
    }
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int m = 0; m < MT; m++)
            multiply_half<type, NT>(acc[m], columns + m * COLUMNS * STAGE_BYTES + weights_row_at(2 * b + h), x, h);
}

/* Where a lane's results belong: element e of mma (m, n) to column 16 m + 8 (e / 2), row 8 n + e % 2 from here. */
struct place {
    int32_t column, row;
    int32_t columns, rows; /* that there are from here on; may be below 1 */
};

static __device__ __forceinline__ bool is_inside(const struct place &place, int m, int n, int e)
{
    return m * COLUMNS + e / 2 * 8 < place.columns && n * TILE_ROWS + e % 2 < place.rows;
}

/*
 * A half of k. Where nobody else adds them up the first is found in `out` again: that of some rows is on its way
 * before any of it is wanted. ALL_INSIDE: all results are.
 */
template <int MT, int NT, bool ALL_INSIDE>
static __device__ __forceinline__ void store_half_of_k(const float acc[MT][NT][4], const struct half_task &task,
                                                       const struct place &place, bool is_second)
{
    const int some = NT > 4 ? 2 : 4; /* as there are registers */
    const bool adds = is_second && !task.parts;
    const int64_t stride = unforeseen(task.parts ? task.n : (int32_t)task.out_stride);
    float *to = task.parts ? (float *)task.parts + (is_second ? task.rows * (int64_t)task.n : 0) : task.out;

    to += place.row * stride + place.column;
#pragma unroll
    for (int r = 0; r < 2 * NT; r += some, to += some / 2 * TILE_ROWS * stride) {
        float first[some][2 * MT];

        if (adds)
#pragma unroll
            for (int i = 0; i < some; i++)
                if (ALL_INSIDE || (r + i) / 2 * TILE_ROWS + i % 2 < place.rows)
#pragma unroll
                    for (int c = 0; c < 2 * MT; c++)
                        if (ALL_INSIDE || c * 8 < place.columns)
                            first[i][c] = to[(i / 2 * TILE_ROWS + i % 2) * stride + c * 8];
#pragma unroll
        for (int i = 0; i < some; i++)
            if (ALL_INSIDE || (r + i) / 2 * TILE_ROWS + i % 2 < place.rows)
#pragma unroll
                for (int c = 0; c < 2 * MT; c++) {
                    float x = acc[c / 2][(r + i) / 2][c % 2 * 2 + i % 2];

                    if (ALL_INSIDE || c * 8 < place.columns)
                        to[(i / 2 * TILE_ROWS + i % 2) * stride + c * 8] = adds ? first[i][c] + x : x;
                }
    }
}

template <int MT, int NT>
static __device__ __forceinline__ void end_half(float acc[MT][NT][4], const struct half_task &task,
                                                struct place place, bool is_second)
{
    place.row = unforeseen(place.row);
    place.rows = unforeseen(place.rows);
    place.columns = unforeseen(place.columns);
    if (is_inside(place, MT - 1, NT - 1, 3))
        store_half_of_k<MT, NT, true>(acc, task, place, is_second);
    else
        store_half_of_k<MT, NT, false>(acc, task, place, is_second);
    memset(acc, 0, MT * sizeof(acc[0]));
}

template <int MT, int NT>
static __device__ __forceinline__ void store_sums(const double sums[MT][NT][4], const struct half_task &task,
                                                  const struct place &place, int32_t split)
{
    double *part = (double *)task.parts + split * (int64_t)task.rows * task.n;

#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) {
        int m = i / 4 / NT, n = i / 4 % NT, e = i % 4;
        int64_t row = place.row + n * TILE_ROWS + e % 2;
        int32_t column = place.column + m * COLUMNS + e / 2 * 8;

        if (!is_inside(place, m, n, e))
            continue;
        if (task.parts)
            part[row * task.n + column] = sums[m][n][e];
        else
            store_half(task, row, column, 0, sums[m][n][e]);
    }
}

/*
 * Blocks [tiles of rows in a band, tiles of columns, bands * splits]: those that run at the same time read few rows
 * and few columns. HAS_SUMS: there are registers for sums of groups.
 */
template <enum tensor_type type, int COLUMN_WARPS, int MT, int NT, int STAGES, bool HAS_SUMS>
static __global__ void __launch_bounds__(TILE_THREADS, 1) half_tiles(struct half_task task)
{
    typedef struct half_tile<type, COLUMN_WARPS, MT, NT> Tile;
    constexpr enum tensor_type multiplied = are_codes(type) ? TYPE_BF16 : type;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int warp_column = warp % COLUMN_WARPS * MT * COLUMNS, warp_row = warp / COLUMN_WARPS * NT * TILE_ROWS;
    const int32_t split = (int32_t)blockIdx.z % task.splits, band = (int32_t)blockIdx.z / task.splits;
    const int32_t column0 = (int32_t)blockIdx.y * Tile::WIDTH;
    const int32_t row0 = (band * (int32_t)gridDim.x + (int32_t)blockIdx.x) * Tile::ROWS;
    const int32_t first_unit = (int32_t)((int64_t)task.num_units * split / task.splits);
    const int32_t end_unit = (int32_t)((int64_t)task.num_units * (split + 1) / task.splits);
    const int32_t column = column0 + warp_column + g, row = row0 + warp_row + 2 * t;
    const struct place place = {column, row, task.n - column, task.rows - row};
    const struct tile_source source = {task.weights + column0 * task.weights_stride, task.x + row0 * task.x_stride,
                                       task.n - column0, task.rows - row0};
    const int columns_at = warp_column * STAGE_BYTES;
    const int rows_at = Tile::WEIGHTS_BYTES + (warp_row + g) * Tile::X_STAGE_BYTES;
    char *stages = dynamic_shared();
    struct walk now = walk_from(task, first_unit, end_unit), ahead = now;
    float scales[are_codes(type) ? Tile::CODE_COPIES : 1];
    float acc[MT][NT][4];
    double sums[HAS_SUMS ? MT : 1][HAS_SUMS ? NT : 1][4];
    int slot = 0;

    if (row0 >= task.rows)
        return;
    memset(acc, 0, sizeof(acc));
    memset(sums, 0, sizeof(sums));
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++) {
        copy_tile<type, Tile>(stages + i * Tile::BYTES, task, source, ahead);
        if (ahead.left > 0)
            walk_on(&ahead, task, STAGE_BLOCKS, 0);
    }
    if constexpr (are_codes(type)) {
        load_tile_scales<Tile>(scales, task, column0, now);
        cp_async_wait<STAGES - 2>();
        expand_tile<Tile>(stages, now, scales);
    }
#pragma unroll 1
    while (now.left > 0) {
        const struct walk w = now;
        const char *stage = stages + slot * Tile::BYTES;

        walk_on(&now, task, STAGE_BLOCKS, 0);
        if constexpr (are_codes(type))
            load_tile_scales<Tile>(scales, task, column0, now);
        cp_async_wait<STAGES - 2 - are_codes(type)>();
        __syncthreads(); /* this stage is there, and nobody needs the one before any more */
        copy_tile<type, Tile>(stages + (slot + STAGES - 1) % STAGES * Tile::BYTES, task, source, ahead);
        if (ahead.left > 0)
            walk_on(&ahead, task, STAGE_BLOCKS, 0);
        if constexpr (are_codes(type)) /* of the next, for after the next barrier */
            expand_tile<Tile>(stages + (slot + 1) % STAGES * Tile::BYTES, now, scales);
#pragma unroll
        for (int b = 0; b < STAGE_BLOCKS; b++)
            if (b < w.left)
                multiply_block<multiplied, Tile, MT, NT>(acc, stage + columns_at, stage + rows_at, b);
        slot = (slot + 1) % STAGES;
        if (!ends_unit(w, STAGE_BLOCKS))
            continue;
        if (HAS_SUMS && task.has_groups) {
            if constexpr (HAS_SUMS) {
#pragma unroll
                for (int i = 0; i < MT * NT * 4; i++) {
                    sums[i / 4 / NT][i / 4 % NT][i % 4] += on_grid(acc[i / 4 / NT][i / 4 % NT][i % 4]);
                    acc[i / 4 / NT][i / 4 % NT][i % 4] = 0;
                }
            }
        } else {
            end_half<MT, NT>(acc, task, place, w.block >= task.unit);
        }
    }
    if constexpr (HAS_SUMS)
        if (task.has_groups)
            store_sums<MT, NT>(sums, task, place, split);
}

/* ---- what several blocks left -------------------------------------------------------------------------------- */

enum { ADD_THREADS = 256 };

static __global__ void __launch_bounds__(ADD_THREADS) add_parts(struct half_task task)
{
    const int64_t count = (int64_t)task.rows * task.n, i = (int64_t)blockIdx.x * ADD_THREADS + threadIdx.x;
    float acc = 0;
    double sum = 0;

    if (i >= count)
        return;
    if (task.has_groups) {
        const double *parts = (const double *)task.parts + i;

#pragma unroll 4
        for (int32_t p = 0; p < task.splits; p++)
            sum += parts[p * count];
    } else {
        const float *parts = (const float *)task.parts + i;

        acc = parts[0] + parts[count];
    }
    store_half(task, i / task.n, (int32_t)(i % task.n), acc, sum);
}

/* ---- launches ------------------------------------------------------------------------------------------------ */

enum {
    BAND_TILES = 8,
    MOST_SPLITS = 16,
    /* Estimates, in a multiprocessor's clocks. */
    TILE_CLOCKS = 1500, /* until the first stage is there, and to store the last results */
    ADD_CLOCKS = 3500,  /* a kernel more */
    ADD_BYTES = 16,     /* of parts, a clock */
    PARTS_ALIGN = 256,
    PIECE_ROWS = 256, /* rows that go through scratch memory at a time are a multiple */
};

/* A row: which tasks it is for, and about how many clocks a stage takes. */
struct half_kernel {
    void (*kernel)(struct half_task task);
    bool is_plain, has_groups;
    int32_t clocks;
    int32_t width, rows; /* of a tile */
    int32_t shared_bytes;
};

#define TILES(type, is_plain, has_groups, clocks, column_warps, mt, nt, stages)                                    \
    {half_tiles<type, column_warps, mt, nt, stages, has_groups>, is_plain, has_groups, clocks,                     \
     half_tile<type, column_warps, mt, nt>::WIDTH, half_tile<type, column_warps, mt, nt>::ROWS,                    \
     stages * half_tile<type, column_warps, mt, nt>::BYTES}

enum { NUM_KERNELS = 4 };

enum { F16, BF16, CODES, NUM_KINDS };

/* Of each kind the first two find shared memory on every GPU. */
static const struct half_kernel kernels[NUM_KINDS][NUM_KERNELS] = {
    {
        TILES(TYPE_F16, true, true, 800, 8, 1, 4, 4),
        TILES(TYPE_F16, true, true, 1300, 4, 2, 4, 3),
        TILES(TYPE_F16, true, false, 2200, 2, 4, 4, 3),
    },
    {
        TILES(TYPE_BF16, true, true, 400, 8, 1, 4, 4),
        TILES(TYPE_BF16, true, true, 700, 4, 2, 4, 4),
        TILES(TYPE_BF16, true, false, 1150, 2, 4, 4, 3),
        TILES(TYPE_BF16, true, false, 2100, 2, 4, 8, 3),
    },
    {
        TILES(TYPE_F8_E4M3, true, true, 500, 8, 1, 4, 4),
        TILES(TYPE_F8_E4M3, true, true, 850, 4, 2, 4, 4),
        TILES(TYPE_F8_E4M3, true, false, 1300, 2, 4, 4, 3),
        TILES(TYPE_F8_E4M3, true, false, 2250, 2, 4, 8, 3),
    },
};

static void (*const few_kernels[NUM_KINDS])(struct half_task task) = {half_few<TYPE_F16>, half_few<TYPE_BF16>,
                                                                      half_few<TYPE_F8_E4M3>};

static bool has_room(const struct cuda_state *state, const struct half_kernel *k)
{
    return k->kernel && k->shared_bytes <= state->max_shared;
}

static int32_t most_few_warps(const struct cuda_state *state)
{
    return min((int32_t)FEW_WARPS, state->max_shared / FEW_RING_BYTES);
}

cudaError_t matmul_half_prepare(const struct cuda_state *state)
{
    cudaError_t error = cudaSuccess;

    for (int i = 0; i < NUM_KINDS && error == cudaSuccess; i++) {
        error = allow_shared(few_kernels[i], most_few_warps(state) * FEW_RING_BYTES);
        for (int j = 0; j < NUM_KERNELS && error == cudaSuccess; j++)
            if (has_room(state, &kernels[i][j]))
                error = allow_shared(kernels[i][j].kernel, kernels[i][j].shared_bytes);
    }
    return error;
}

/* A half begins where a line of memory does. */
static int32_t blocks_of_unit(int32_t num_blocks, int32_t group_k)
{
    if (group_k)
        return group_k / HALF_BLOCK;
    return num_blocks * HALF_BLOCK < HALVED_K ? num_blocks : divide_up(num_blocks, 2 * STAGE_BLOCKS) * STAGE_BLOCKS;
}

/* A warp has so much on its way that a multiprocessor needs only a few. More share out groups where there are few
 * columns. */
static void launch_few(struct cuda_state *state, int kind, const struct half_task *task)
{
    int32_t num_tiles = divide_up(task->n, COLUMNS), warps = task->num_units;

    if (task->has_groups)
        warps = min(warps, num_tiles < state->num_processors ? most_few_warps(state) : FEW_WARPS / 2);
    launch(few_kernels[kind], dim3((unsigned)num_tiles), dim3((unsigned)(warps * WARP)),
           (size_t)(warps * FEW_RING_BYTES), state->stream, *task);
    note_launch(state);
}

struct half_plan {
    const struct half_kernel *kernel;
    int32_t splits;
    int64_t clocks;
};

static int64_t parts_bytes(const struct half_task *task, int32_t splits)
{
    int64_t count = (int64_t)task->rows * task->n;

    return splits == 1         ? 0
           : task->has_groups ? count * splits * (int64_t)sizeof(double)
                              : count * task->num_units * (int64_t)sizeof(float);
}

static int64_t clocks_of(const struct cuda_state *state, const struct half_task *task, const struct half_kernel *k,
                         int32_t splits)
{
    int64_t tiles = (int64_t)divide_up(task->rows, k->rows) * divide_up(task->n, k->width);
    int64_t stages = (int64_t)divide_up(task->num_units, splits) * divide_up(task->unit, STAGE_BLOCKS);
    int64_t clocks = divide_up_64(tiles * splits, state->num_processors) * (stages * k->clocks + TILE_CLOCKS);

    if (splits > 1)
        clocks += ADD_CLOCKS + 2 * parts_bytes(task, splits) / (state->num_processors * (int64_t)ADD_BYTES);
    return clocks;
}

/* The fastest; whichever it is, bits are the same. part_bytes: that are left for parts. */
static struct half_plan plan(const struct cuda_state *state, int kind, const struct half_task *task,
                             int64_t part_bytes)
{
    struct half_plan best = {NULL, 1, INT64_MAX};

    for (int i = 0; i < NUM_KERNELS; i++) {
        const struct half_kernel *k = &kernels[kind][i];

        if (!has_room(state, k) || !(task->has_groups ? k->has_groups : k->is_plain))
            continue;
        for (int32_t splits = 1; splits <= min(task->num_units, (int32_t)MOST_SPLITS); splits++) {
            int64_t clocks = clocks_of(state, task, k, splits);

            if (clocks < best.clocks && (splits == 1 || parts_bytes(task, splits) <= part_bytes))
                best = {k, splits, clocks};
        }
    }
    return best;
}

/* x: [rows, k], to the beginning of the scratch memory. */
static void launch_round(struct cuda_state *state, int kind, const float *x, int32_t k, const struct half_task *task)
{
    struct round_task round = {};
    int64_t pieces = (int64_t)task->rows * task->num_blocks * 4;

    round.x = x;
    round.out = (uint8_t *)state->scratch;
    round.rows = task->rows;
    round.k = k;
    round.num_blocks = task->num_blocks;
    round.is_aligned = k % 2 == 0 && (uintptr_t)x % sizeof(float2) == 0;
    launch(kind == F16 ? round_rows<TYPE_F16> : round_rows<TYPE_BF16>,
           dim3((unsigned)divide_up_64(pieces, ROUND_THREADS)), dim3(ROUND_THREADS), 0, state->stream, round);
    note_launch(state);
}

/* Of scratch memory, which begins with the rows. */
static int64_t x_bytes(const struct half_task *task)
{
    return round_up(task->rows * task->x_stride, PARTS_ALIGN);
}

static void launch_tiles(struct cuda_state *state, struct half_task *task, const struct half_plan *plan)
{
    int32_t num_tiles = divide_up(task->rows, plan->kernel->rows), bands = divide_up(num_tiles, BAND_TILES);

    task->x = (const uint8_t *)state->scratch;
    task->splits = plan->splits;
    task->parts = plan->splits > 1 ? state->scratch + x_bytes(task) : NULL;
    launch(plan->kernel->kernel,
           dim3((unsigned)divide_up(num_tiles, bands), (unsigned)divide_up(task->n, plan->kernel->width),
                (unsigned)(bands * plan->splits)),
           dim3(TILE_THREADS), (size_t)plan->kernel->shared_bytes, state->stream, *task);
    note_launch(state);
    if (!task->parts)
        return;
    launch(add_parts, dim3((unsigned)divide_up_64((int64_t)task->rows * task->n, ADD_THREADS)), dim3(ADD_THREADS), 0,
           state->stream, *task);
    note_launch(state);
}

static void place_weights(struct half_task *half, const struct matrix *w)
{
    half->weights = (const uint8_t *)w->data;
    if (w->type != TYPE_F8_E4M3) {
        half->weights_stride = half_row_stride(w->k) * HALF_BYTES;
        return;
    }
    half->weights_stride = fp8_row_stride(w->k);
    half->scales = (const float *)(half->weights + fp8_scales_at(w->n, w->k));
    half->scales_stride = w->fp8_has_blocks ? fp8_block_stride(w->k) : 1;
    half->scale_columns = w->fp8_has_blocks ? 7 : 0;
    half->scale_blocks = w->fp8_has_blocks ? 2 : 31;
}

void matmul_half(struct cuda_state *state, const struct matrix *w, const struct matmul_task *task)
{
    const int kind = w->type == TYPE_F16 ? F16 : w->type == TYPE_BF16 ? BF16 : CODES;
    const int element_bytes = kind == F16 ? 4 : 2;
    const int32_t k = task->a.k;
    struct half_task half = {};

    static_assert(FP8_BLOCK == 1 << 7 && FP8_BLOCK / HALF_BLOCK == 1 << 2 && (int)FP8_PAD == (int)HALF_BLOCK,
                  "as place_weights says");
    place_weights(&half, w);
    half.n = task->n;
    half.num_blocks = divide_up(k, HALF_BLOCK);
    half.unit = blocks_of_unit(half.num_blocks, task->group);
    half.num_units = divide_up(half.num_blocks, half.unit);
    half.splits = 1;
    half.has_groups = task->group != 0;
    half.out_stride = task->out_stride;
    if (task->a.rows <= TILE_ROWS && k % HALF_BLOCK == 0 && (uintptr_t)task->a.x % sizeof(float2) == 0) {
        half.x = (const uint8_t *)task->a.x;
        half.x_stride = k * (int64_t)sizeof(float);
        half.rows = task->a.rows;
        half.out = task->out;
        half.sums = task->sums;
        launch_few(state, kind, &half);
        return;
    }
    half.x_stride = (int64_t)half.num_blocks * HALF_BLOCK * element_bytes;

    /* As many rows at a time as scratch memory holds. */
    int64_t most = state->scratch_bytes / half.x_stride;

    if (most > PIECE_ROWS)
        most = most / PIECE_ROWS * PIECE_ROWS;
    if (most == 0) {
        note_error(state, cudaErrorInvalidValue);
        return;
    }
    for (int64_t first = 0; first < task->a.rows; first += most) {
        half.rows = (int32_t)min(most, task->a.rows - first);
        half.out = task->out ? task->out + first * task->out_stride : NULL;
        half.sums = task->sums ? task->sums + first * task->n : NULL;
        launch_round(state, kind, task->a.x + first * k, k, &half);

        struct half_plan best = plan(state, kind, &half, state->scratch_bytes - x_bytes(&half));

        launch_tiles(state, &half, &best);
    }
}
