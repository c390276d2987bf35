/*
 * Attention on tensor cores, for layers whose weights are of 16 bits (device_order).
 *
 * The rule, which both kernels here keep for every row and head, whoever shares its block of threads:
 *  - q * scale * log2(e) is rounded to half, or to bfloat16 where the cache is of these. A score is a chain of mma
 *    along the dimensions, 16 after 16, from 0.
 *  - A tile is TILE positions at fixed places, gone through in steps of STEP. The tile's maximum is that of the
 *    scores so far: where a step raises it, what has been added up is multiplied by 2^(old - new). Weights are
 *    2^(score - maximum), rounded likewise. Values times weights are added by a chain of mma, KV block after KV
 *    block, and so are the weights alone, as if 1 were a value.
 *  - Tiles are merged in order, in float: out = out * 2^(its maximum - m) + tile * 2^(the tile's - m), where m is
 *    the greater one; at last out is multiplied by 1 / sum.
 * What a row does not see has the weight 0; an mma with zeros changes nothing, nor does a factor 2^0: so it does
 * not matter what else is in a step. An infinite value would, or what lies in slots that nobody uses, as 0 times it
 * is NaN: add_some keeps them away, and so do fetch_keys and widen_keys where a slab has more dimensions than keys.
 *
 * Codes of 8 bits become halves in shared memory, and from there on all is as if the cache were of these: those of
 * KV_FP8 as they are, those of KV_INT8 times their scale, rounded, and 65504 at most (in float16 they would be
 * infinite). A half has no room for a weight times a scale, so it is not that which is rounded.
 *
 * What is rounded is off by 2^-11 of it at most, by 2^-8 where it becomes bfloat16; call that u. Against the same
 * softmax of q as it was rounded, in real numbers, out is off by 2 u of the largest |v|, as weights were: that is what
 * tests hold it to. Against ref, a score is off by u * sum|q k| * scale, as q was rounded, and out by twice that, times
 * the largest |v|, more. Of KV_INT8 keys and values were rounded, too, by u of each. Of KV_BFLOAT16 ref rounds q and
 * weights as well, but q without log2(e), and weights against the maxima of its own tiles: all of it counts twice.
 *
 * Keys and values are read once for up to 16 queries of a KV head (few), or for 128, 64 of more than 128 dimensions
 * (many), in slabs: the keys of a step, its values, the next step's keys, ... While one is used the others of the
 * ring are on their way (cp.async). In the cache keys lie [dim][token] and values [token][dim], so fragments of
 * both are read turned round; in shared memory pieces of 16 bytes change places so that any eight that ldmatrix
 * reads together are of different banks. Of codes the ring has one slab less, and each becomes halves behind it.
 * KV_BFLOAT16 lies as fragments want it, in words of two dimensions of a key, or of two positions of a value: a lane
 * reads its words one by one, and the eight pieces that those of a warp are of are of different banks, too.
 *
 *          a warp of four has                                  slabs of up to 64, 96, 128, 256   shared memory, KiB
 *    few   16 queries; of a step's scores those of a KV        4, 4, 4, 2                        37, 71, 71, 75
 *          block, of its values a quarter of the dimensions;
 *          between the two, weights go to all
 *    many  32 queries, or 16; all of a step's scores, which    3, 3, 2, 2                        46, 66, 69, 99
 *          become weights where they are, and all dimensions
 *
 * A multiprocessor with 164 KiB (8.0) holds two blocks of either, but one of many of 256 dimensions; one with 228
 * (9.0, 10.0) two or more, as registers allow two of many; one with 100 (8.6, 8.9) one or two.
 *
 * Where many's rows see several tiles, what the earlier ones came to waits in `out`: registers have no room for it.
 * They are rare in many: what is the same for a block of threads, or seldom wanted, lies in shared memory, and what
 * follows from a thread's number is found out where it stands (this_thread).
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_codes.cuh"

enum {
    TILE = 512,
    STEP = 64,
    STEP_BLOCKS = STEP / KV_BLOCK_TOKENS,
    ROW_TILE = 16, /* rows of an mma; here, queries */
    HALF_BYTES = 2,
    PIECE = 16, /* bytes of cp.async, and of a row of ldmatrix */
    PIECE_HALVES = PIECE / HALF_BYTES,
    BLOCK_SCALE_BYTES = KV_BLOCK_TOKENS * (int)sizeof(float),
    FEW_QUERIES = ROW_TILE,
    HALF_PART_FLOATS = 4, /* of a part, behind the dimensions: maximum, sum, and two more for alignment */
};

static_assert((int)STEP_BLOCKS == (int)WARPS, "a warp of few has the scores of a KV block");

#define LOG2_E 1.44269504088896341f

/* dim: head_dim is this or less. Queries and keys are filled up with zeros; what comes of values is not looked at. */
template <int dim, int slabs> struct slab_shape {
    enum {
        DIM = dim,
        SLABS = slabs, /* in shared memory; all but one are on their way */
        SLAB_BYTES = STEP * dim * HALF_BYTES,
        ROW_PIECES = dim / PIECE_HALVES,                   /* of q */
        KEY_PIECES = dim * KV_BLOCK_TOKENS / PIECE_HALVES, /* of a KV block */
        HAS_PAIRS = false,                                 /* KV_BFLOAT16 */
        PIECE_DIMS = PIECE_HALVES,                         /* of values */
        VALUE_ROWS = KV_BLOCK_TOKENS,                      /* of a KV block */
        VALUE_PIECES = dim / PIECE_DIMS,                   /* of such a row */
        CODE_BLOCK_BYTES = dim * KV_BLOCK_TOKENS + BLOCK_SCALE_BYTES,
        CODE_SLAB_BYTES = STEP_BLOCKS * CODE_BLOCK_BYTES,
    };
    static_assert((int)CODE_SLAB_BYTES <= (int)SLAB_BYTES, "one slab less of codes is room for one of halves");
};

template <int dim, int slabs> struct few_shape : slab_shape<dim, slabs> {
    enum { QUERIES = FEW_QUERIES, ROW_TILES = 1, COLUMN_TILES = dim / 8 / WARPS /* of values, of a warp */ };
};

template <int dim, int row_tiles, int slabs> struct many_shape : slab_shape<dim, slabs> {
    enum { QUERIES = WARPS * row_tiles * ROW_TILE, ROW_TILES = row_tiles, COLUMN_TILES = dim / 8 };
};

template <typename S> struct slab_in_pairs : S {
    enum {
        HAS_PAIRS = true,
        PIECE_DIMS = PIECE_HALVES / 2,
        VALUE_ROWS = KV_BLOCK_TOKENS / 2,
        VALUE_PIECES = S::DIM / PIECE_DIMS,
    };
};

/* ---- numbers of 16 bits -------------------------------------------------------------------------------------- */

template <typename S> static __device__ __forceinline__ uint32_t pair_of_floats(float low, float high)
{
    return S::HAS_PAIRS ? bf16_pair_of_floats(low, high) : half_pair_of_floats(low, high);
}

template <typename S>
static __device__ __forceinline__ void multiply(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    if (S::HAS_PAIRS)
        mma_bf16_k16(d, a, b);
    else
        mma_f16_k16(d, a, b);
}

/* ---- what a warp's queries see ------------------------------------------------------------------------------- */

static __device__ __forceinline__ unsigned this_thread()
{
    return (unsigned)unforeseen((int32_t)threadIdx.x);
}

static __device__ __forceinline__ unsigned this_lane()
{
    return this_thread() % WARP;
}

/* Positions; none: first >= end. */
struct range {
    int32_t first, end;
};

struct seen {
    struct range any, all; /* by some query of a warp, by each */
};

/* What a warp's queries see; a lane has one of them. */
static __device__ __forceinline__ struct seen see(const struct query &query)
{
    bool has_some = query.end != 0;
    struct seen seen = {{has_some ? query.first : INT32_MAX, query.end}, {query.first, query.end}};

#pragma unroll
    for (int width = WARP / 2; width; width /= 2) {
        seen.any.first = min(seen.any.first, __shfl_xor_sync(ALL_LANES, seen.any.first, width));
        seen.any.end = max(seen.any.end, __shfl_xor_sync(ALL_LANES, seen.any.end, width));
        seen.all.first = max(seen.all.first, __shfl_xor_sync(ALL_LANES, seen.all.first, width));
        seen.all.end = min(seen.all.end, __shfl_xor_sync(ALL_LANES, seen.all.end, width));
    }
    return seen;
}

/* What is seen of the step that begins at `start`. */
static __device__ __forceinline__ bool sees_some(const struct seen &seen, int32_t start)
{
    return seen.any.first < start + STEP && seen.any.end > start;
}

static __device__ __forceinline__ bool sees_all(const struct seen &seen, int32_t start)
{
    return seen.all.first <= start && seen.all.end >= start + STEP;
}

/* Of a step's own count. */
static __device__ __forceinline__ bool sees_block(const struct seen &seen, int32_t start, int block)
{
    int32_t first = start + block * KV_BLOCK_TOKENS;

    return seen.any.first < first + KV_BLOCK_TOKENS && seen.any.end > first;
}

/* ---- shared memory ------------------------------------------------------------------------------------------- */

/* Where piece `piece` of a row of q lies: [rows][dim]. */
template <typename S> static __device__ __forceinline__ int row_piece_at(unsigned row, unsigned piece)
{
    return (row * S::ROW_PIECES + (piece ^ (S::ROW_PIECES % 8 == 0 ? row % 8 : row / 2 % 4))) * PIECE;
}

/* Of values, whose rows are positions, or pairs of them. */
template <typename S> static __device__ __forceinline__ int value_piece_at(unsigned row, unsigned piece)
{
    return S::HAS_PAIRS ? (row * S::VALUE_PIECES + (piece ^ row % 4 * 2)) * PIECE : row_piece_at<S>(row, piece);
}

/* And of keys: [KV blocks][dim][2], or [KV blocks][dim / 2][4]. */
template <typename S> static __device__ __forceinline__ int key_piece_at(unsigned piece)
{
    return (piece ^ piece / 8 % 2 << S::HAS_PAIRS) * PIECE;
}

/* Where a block of threads finds the KV blocks that its queries see. */
struct source {
    const char *k, *v;     /* of the KV head, in block 0 */
    const int32_t *blocks; /* of the request */
    struct range range;    /* KV blocks */
};

static __device__ __forceinline__ struct source find_source(const struct attention_task &task,
                                                            const struct unit &unit, struct range positions)
{
    int64_t head = kv_block_at(task.kv, 0, unit.kv_head);

    return {(const char *)task.kv.k + head,
            (const char *)task.kv.v + head,
            task.batch.block_tables + (int64_t)unit.request * task.batch.block_table_stride,
            {positions.first / KV_BLOCK_TOKENS, (positions.end - 1) / KV_BLOCK_TOKENS + 1}};
}

/* Of a step's KV blocks, in bytes from block 0; -1: it is not wanted. */
static __device__ __forceinline__ void find_blocks(int64_t offsets[STEP_BLOCKS], const struct attention_task &task,
                                                   const struct source &source, int32_t step)
{
#pragma unroll
    for (int b = 0; b < STEP_BLOCKS; b++) {
        int32_t block = step * STEP_BLOCKS + b;
        bool is_wanted = block >= source.range.first && block < source.range.end;

        offsets[b] = is_wanted ? kv_block_at(task.kv, __ldg(source.blocks + block), 0) : -1;
    }
}

/* Of a KV block. */
static __device__ __forceinline__ unsigned key_pieces(const struct attention_task &task)
{
    return (unsigned)task.kv.head_dim * (KV_BLOCK_TOKENS / PIECE_HALVES);
}

/* Piece `piece` + i, behind the keys of a KV block. */
template <typename S> static __device__ __forceinline__ void put_zeros(char *to, unsigned piece, unsigned i)
{
    if (piece + i < S::KEY_PIECES)
        *(uint4 *)(to + i * PIECE) = make_uint4(0, 0, 0, 0);
}

template <typename S>
static __device__ __forceinline__ void fetch_keys(const struct attention_task &task, const struct source &source,
                                                  int32_t step, char *to)
{
    const unsigned piece = this_thread();
    const char *from = source.k + piece * PIECE;
    int64_t offsets[STEP_BLOCKS];

    find_blocks(offsets, task, source, step);
    to += key_piece_at<S>(piece);
#pragma unroll
    for (int b = 0; b < STEP_BLOCKS; b++, to += S::KEY_PIECES * PIECE)
#pragma unroll
        for (int i = 0; i < S::KEY_PIECES; i += THREADS)
            if (piece + i >= key_pieces(task))
                put_zeros<S>(to, piece, i);
            else if (offsets[b] >= 0)
                cp_async_16(to + i * PIECE, from + offsets[b] + i * PIECE);
}

template <typename S>
static __device__ __forceinline__ void fetch_values(const struct attention_task &task, const struct source &source,
                                                    int32_t step, char *to)
{
    const int pieces = S::VALUE_PIECES;
    const int in_row = pieces <= 8 ? 8 : pieces <= 16 ? 16 : pieces <= 32 ? 32 : 64; /* threads */
    const unsigned thread = this_thread(), row = thread / in_row, piece = thread % in_row;
    const int32_t row_pieces = task.kv.head_dim / S::PIECE_DIMS;
    const char *from = source.v + (row * row_pieces + piece) * PIECE;
    int64_t offsets[STEP_BLOCKS];

    find_blocks(offsets, task, source, step);
    if (piece >= row_pieces)
        return;
#pragma unroll
    for (int b = 0; b < STEP_BLOCKS; b++, to += S::VALUE_ROWS * S::VALUE_PIECES * PIECE)
#pragma unroll
        for (int i = 0; i < S::VALUE_ROWS; i += THREADS / in_row)
            if (offsets[b] >= 0)
                cp_async_16(to + value_piece_at<S>(row + i, piece), from + offsets[b] + i * row_pieces * PIECE);
}

/* ---- codes --------------------------------------------------------------------------------------------------- */

template <typename S> static __device__ __forceinline__ bool has_codes(const struct attention_task &task)
{
    return !S::HAS_PAIRS && has_codes(task.kv.type);
}

/* Of keys or values, as they lie in the cache: base is the source's k or v. */
template <typename S>
static __device__ __forceinline__ void fetch_codes(const struct attention_task &task, const struct source &source,
                                                   const char *base, int32_t step, char *to)
{
    const unsigned thread = this_thread(), pieces = (unsigned)kv_block_bytes(task.kv) / PIECE;
    int64_t offsets[STEP_BLOCKS];

    find_blocks(offsets, task, source, step);
#pragma unroll
    for (int b = 0; b < STEP_BLOCKS; b++)
        for (unsigned i = thread; i < pieces; i += THREADS)
            if (offsets[b] >= 0)
                cp_async_16(to + b * S::CODE_BLOCK_BYTES + i * PIECE, base + offsets[b] + i * PIECE);
}

/* Eight codes of KV_INT8 times their scales: code i's is scales[i * step], step 0 or 1. */
static __device__ __forceinline__ uint4 scaled_halves(uint2 codes, const float *scales, int step)
{
    const float most = 65504.0f / 127;
    uint4 exact = halves_of_codes(KV_INT8, codes);
    uint32_t words[4] = {exact.x, exact.y, exact.z, exact.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low = scales[2 * i * step], high = scales[(2 * i + 1) * step];

        words[i] = half_pair_of_floats(float_of_half((uint16_t)words[i]) * (low > most ? most : low),
                                       float_of_half((uint16_t)(words[i] >> 16)) * (high > most ? most : high));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

/* All threads: a slab of codes as one of halves, as fetch_keys and fetch_values leave them. */
template <typename S>
static __device__ __forceinline__ void widen_keys(const struct attention_task &task, const char *from, char *to)
{
    const unsigned piece = this_thread(), tokens = piece % 2 * PIECE_HALVES;
    const unsigned dim = (unsigned)task.kv.head_dim;

    to += key_piece_at<S>(piece);
#pragma unroll 1
    for (int b = 0; b < STEP_BLOCKS; b++, from += S::CODE_BLOCK_BYTES, to += S::KEY_PIECES * PIECE) {
        const float *scales = (const float *)(from + dim * KV_BLOCK_TOKENS) + tokens;

#pragma unroll
        for (unsigned i = 0; i < S::KEY_PIECES; i += THREADS) {
            if (piece + i >= key_pieces(task)) {
                put_zeros<S>(to, piece, i);
                continue;
            }

            uint2 codes = *(const uint2 *)(from + (piece + i) * PIECE / 2);

            *(uint4 *)(to + i * PIECE) =
                task.kv.type == KV_INT8 ? scaled_halves(codes, scales, 1) : halves_of_codes(KV_FP8, codes);
        }
    }
}

template <typename S>
static __device__ __forceinline__ void widen_values(const struct attention_task &task, const char *from, char *to)
{
    const int in_row = S::ROW_PIECES <= 8 ? 8 : S::ROW_PIECES <= 16 ? 16 : 32; /* threads */
    const unsigned thread = this_thread(), piece = thread % in_row, dim = (unsigned)task.kv.head_dim;

    if (piece * PIECE_HALVES >= dim)
        return;
#pragma unroll 1
    for (int b = 0; b < STEP_BLOCKS; b++) {
#pragma unroll 2
        for (unsigned token = thread / in_row; token < KV_BLOCK_TOKENS; token += THREADS / in_row) {
            uint2 codes = *(const uint2 *)(from + token * dim + piece * PIECE_HALVES);
            const float *scale = (const float *)(from + dim * KV_BLOCK_TOKENS) + token;

            *(uint4 *)(to + value_piece_at<S>(token, piece)) =
                task.kv.type == KV_INT8 ? scaled_halves(codes, scale, 0) : halves_of_codes(KV_FP8, codes);
        }
        from += S::CODE_BLOCK_BYTES;
        to += KV_BLOCK_TOKENS * S::ROW_PIECES * PIECE;
    }
}

/* ---- the ring ------------------------------------------------------------------------------------------------ */

/* Slabs are numbered: those of step i are 2 i, its keys, and 2 i + 1, its values. */
template <typename S>
static __device__ __forceinline__ char *slab_at(const struct attention_task &task, char *slabs, int32_t number)
{
    return slabs + (has_codes<S>(task) ? (unsigned)number % (S::SLABS - 1) * S::CODE_SLAB_BYTES
                                       : (unsigned)number % S::SLABS * S::SLAB_BYTES);
}

/* It is on its way; behind the last, nothing is. */
template <typename S, bool IS_VALUES>
static __device__ __forceinline__ void fetch_slab(const struct attention_task &task, const struct source &source,
                                                  char *slabs, int32_t step)
{
    char *to = slab_at<S>(task, slabs, 2 * step + IS_VALUES);

    if (has_codes<S>(task))
        fetch_codes<S>(task, source, IS_VALUES ? source.v : source.k, step, to);
    else if (IS_VALUES)
        fetch_values<S>(task, source, step, to);
    else
        fetch_keys<S>(task, source, step, to);
    cp_async_commit();
}

/* All threads: this slab is there, so is what they wrote before, and the one before it makes room for another; of
 * codes, this one does so, when they have become halves. */
template <typename S, bool IS_VALUES>
static __device__ __forceinline__ const char *take_slab(const struct attention_task &task,
                                                        const struct source &source, char *slabs, int32_t step)
{
    const int ahead = IS_VALUES + S::SLABS - 1;
    char *halves = slabs + (S::SLABS - 1) * S::SLAB_BYTES;

    cp_async_wait<S::SLABS - 2>();
    __syncthreads();
    if (has_codes<S>(task)) {
        const char *codes = slab_at<S>(task, slabs, 2 * step + IS_VALUES);

        if (IS_VALUES)
            widen_values<S>(task, codes, halves);
        else
            widen_keys<S>(task, codes, halves);
        __syncthreads();
    }
    fetch_slab<S, ahead % 2 != 0>(task, source, slabs, step + ahead / 2);
    return has_codes<S>(task) ? halves : slab_at<S>(task, slabs, 2 * step + IS_VALUES);
}

/* So that take_slab finds the first. */
template <typename S>
static __device__ __forceinline__ void begin_slabs(const struct attention_task &task, const struct source &source,
                                                   char *slabs, int32_t step)
{
    static_assert(S::SLABS >= 2 && S::SLABS <= 4, "");
    fetch_slab<S, false>(task, source, slabs, step);
    if (S::SLABS > 2)
        fetch_slab<S, true>(task, source, slabs, step);
    if (S::SLABS > 3)
        fetch_slab<S, false>(task, source, slabs, step + 1);
}

/* Of a block of threads, in shared memory. */
template <int count> struct half_work {
    struct unit unit;
    int32_t num_heads; /* that read its KV head */
    struct query queries[count];
    struct seen seen[WARPS];
    struct source source;
};

/* All threads: the block's queries, [QUERIES][DIM]. */
template <typename S>
static __device__ __forceinline__ void load_queries(const struct attention_task &task, const struct query *queries,
                                                    char *out)
{
    float scale = task.scale * LOG2_E;
    int32_t dim = task.kv.head_dim;

#pragma unroll 4
    for (unsigned i = this_thread(); i < S::QUERIES * S::DIM / 2; i += THREADS) {
        unsigned row = i / (S::DIM / 2), at = i % (S::DIM / 2) * 2;
        const float *q = task.q + queries[row].row * task.q_stride + (int64_t)queries[row].head * dim + at;

        *(uint32_t *)(out + row_piece_at<S>(row, at / PIECE_HALVES) + at % PIECE_HALVES * HALF_BYTES) =
            at < dim ? pair_of_floats<S>(q[0] * scale, q[1] * scale) : 0;
    }
}

/* ---- a step -------------------------------------------------------------------------------------------------- */

/*
 * Of row tiles of 16 queries. With g = lane / 4 and t = lane % 4, a lane has of each its queries g and g + 8 (half
 * 0 and 1), and of each 8 columns 2t and 2t + 1, as mma's d has them; columns are positions, of scores, or
 * dimensions.
 */
template <typename S> struct half_softmax {
    float max; /* of query g + 8 t of all tiles: max_of knows the others' */
    float sum[S::ROW_TILES][2];
    float out[S::ROW_TILES][S::COLUMN_TILES][4];
};

template <typename S> static __device__ __forceinline__ void clear(struct half_softmax<S> *softmax)
{
    memset(softmax->sum, 0, sizeof(softmax->sum));
    memset(softmax->out, 0, sizeof(softmax->out));
    softmax->max = NO_SCORE;
}

/* The maximum of query g + 8 i, of all the lanes that have it. */
template <typename S> static __device__ __forceinline__ float max_of(const struct half_softmax<S> &softmax, int i)
{
    static_assert(2 * S::ROW_TILES <= 4, "a lane each");
    return __shfl_sync(ALL_LANES, softmax.max, i, 4);
}

/* Of dimensions [16 k, 16 k + 16) of a KV block's keys, as two mma read them, of 8 positions each. */
template <typename S>
static __device__ __forceinline__ void load_keys(uint32_t words[4], const char *keys, int k)
{
    const unsigned lane = this_lane();

    if (S::HAS_PAIRS)
#pragma unroll
        for (int i = 0; i < 4; i++)
            words[i] = *(const uint32_t *)(keys + (32 * k + i % 2 * 16) * PIECE +
                                           key_piece_at<S>(lane % 4 * 4 + i / 2 * 2 + lane / 16) + lane / 4 % 4 * 4);
    else
        ldmatrix_x4_trans(words, keys + 32 * k * PIECE + key_piece_at<S>(lane % 16 * 2 + lane / 16));
}

/* q: of the warp's queries. keys: those of the first of BLOCKS KV blocks. */
template <typename S, int BLOCKS>
static __device__ __forceinline__ void find_scores(float scores[S::ROW_TILES][2 * BLOCKS][4], const char *q,
                                                   const char *keys)
{
    const unsigned lane = this_lane();

    memset(scores, 0, S::ROW_TILES * sizeof(scores[0]));
#pragma unroll
    for (int k = 0; k < S::DIM / 16; k++) {
        uint32_t a[S::ROW_TILES][4];

#pragma unroll
        for (int m = 0; m < S::ROW_TILES; m++)
            ldmatrix_x4(a[m], q + row_piece_at<S>(m * ROW_TILE + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            uint32_t words[4];

            load_keys<S>(words, keys + b * S::KEY_PIECES * PIECE, k);
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; m++) {
                multiply<S>(scores[m][2 * b], a[m], words);
                multiply<S>(scores[m][2 * b + 1], a[m], words + 2);
            }
        }
    }
}

/* -infinity where a query does not see a position, whatever lies there. position: of the first of all. */
template <int ROW_TILES, int BLOCKS>
static __device__ __forceinline__ void hide(float scores[ROW_TILES][2 * BLOCKS][4], const struct query *queries,
                                            int32_t position)
{
    const unsigned lane = this_lane();

    position += lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; i++) {
        const struct query &query = queries[i * 8 + lane / 4];
        const int32_t first = query.first - position, end = query.end - position;

#pragma unroll
        for (int n = 0; n < 2 * BLOCKS; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (n * 8 + e < first || n * 8 + e >= end)
                    scores[i / 2][n][i % 2 * 2 + e] = -INFINITY;
    }
}

/* The greatest of a query's scores; passes over NaN. */
template <int COUNT> static __device__ __forceinline__ float max_score(const float scores[COUNT][4], int half)
{
    float max = NO_SCORE;

#pragma unroll
    for (int n = 0; n < COUNT; n++)
        max = fmaxf(max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 1));
    return fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 2));
}

/* The weights of a row tile and KV block, as an mma reads them. */
template <typename S>
static __device__ __forceinline__ void find_weights(uint32_t weights[4], const float (*scores)[4],
                                                    const float max[2], int block)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float *pair = scores[2 * block + i / 2] + i % 2 * 2;

        weights[i] = pair_of_floats<S>(exp2_approx(pair[0] - max[i % 2]), exp2_approx(pair[1] - max[i % 2]));
    }
}

/* max: of a step's scores; then of all so far, for which what has been added up is scaled. */
template <typename S>
static __device__ __forceinline__ void raise_max(struct half_softmax<S> *softmax, float max[S::ROW_TILES][2])
{
    float factors[S::ROW_TILES][2];
    bool is_raised = false;

#pragma unroll
    for (int i = 0; i < 2 * S::ROW_TILES; i++) {
        const int m = i / 2, h = i % 2;
        float old = max_of<S>(*softmax, i), raised = fmaxf(max[m][h], old);

        max[m][h] = raised;
        factors[m][h] = exp2_approx(old - raised);
        is_raised |= factors[m][h] != 1;
        softmax->max = threadIdx.x % 4 == i ? raised : softmax->max;
    }
    if (!__any_sync(ALL_LANES, is_raised))
        return;
#pragma unroll
    for (int m = 0; m < S::ROW_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            softmax->sum[m][h] *= factors[m][h];
#pragma unroll
            for (int n = 0; n < S::COLUMN_TILES; n++) {
                softmax->out[m][n][2 * h] *= factors[m][h];
                softmax->out[m][n][2 * h + 1] *= factors[m][h];
            }
        }
}

/* All ones where the numbers of a word, of positions `at` and at + 1, are of `range`. */
static __device__ __forceinline__ uint32_t mask_pair(struct range range, int32_t at)
{
    return (at >= range.first && at < range.end ? 0xffffu : 0) |
           (at + 1 >= range.first && at + 1 < range.end ? 0xffff0000u : 0);
}

/* Of the lane's words 0, 1 of a block's values. */
static __device__ __forceinline__ void mask_positions(uint32_t masks[2], struct range range, int32_t position,
                                                      unsigned lane)
{
#pragma unroll
    for (int w = 0; w < 2; w++)
        masks[w] = mask_pair(range, position + w * 8 + (int32_t)(lane % 4) * 2);
}

/* Whether there is a value that is not finite among those of a step that some query sees. */
template <typename S>
static __device__ __forceinline__ bool has_infinite(const char *values, int first_column, int32_t dim,
                                                    const struct seen &seen, int32_t start)
{
    const int rows = STEP_BLOCKS * S::VALUE_ROWS, pieces = S::COLUMN_TILES * 8 / S::PIECE_DIMS;
    const uint32_t exponents = S::HAS_PAIRS ? 0x7f807f80 : 0x7c007c00, least = S::HAS_PAIRS ? 0x00800080 : 0x04000400;
    uint32_t found = 0;

#pragma unroll 4
    for (int i = threadIdx.x % WARP; i < rows * pieces; i += WARP) {
        int row = i / pieces, piece = first_column / S::PIECE_DIMS + i % pieces;
        int32_t at = start + row * (STEP / rows);
        uint4 x = *(const uint4 *)(values + value_piece_at<S>(row, piece));
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
        const uint32_t mask = mask_pair(seen.any, at), seen_bits = S::HAS_PAIRS ? mask : mask % 2 ? ~0u : 0;

        if (piece * S::PIECE_DIMS < dim)
#pragma unroll
            for (int w = 0; w < 4; w++)
                found |= (words[w] & seen_bits & exponents) + least; /* an exponent of all ones goes over */
    }
    return __any_sync(ALL_LANES, (found & 0x80008000) != 0);
}

/* The sums of the weights of a step, of KV blocks that some query sees: as those of values that are 1. */
template <typename S>
static __device__ __forceinline__ void add_weights(struct half_softmax<S> *softmax,
                                                   const uint32_t weights[STEP_BLOCKS][S::ROW_TILES][4],
                                                   const struct seen &seen, int32_t start)
{
    const uint32_t one = S::HAS_PAIRS ? 0x3f803f80 : 0x3c003c00, ones[2] = {one, one};

#pragma unroll
    for (int m = 0; m < S::ROW_TILES; m++) {
        float sums[4] = {softmax->sum[m][0], 0, softmax->sum[m][1], 0}; /* of two columns, of which one is wanted */

#pragma unroll
        for (int b = 0; b < STEP_BLOCKS; b++)
            if (sees_block(seen, start, b))
                multiply<S>(sums, weights[b][m], ones);
        softmax->sum[m][0] = sums[0];
        softmax->sum[m][1] = sums[2];
    }
}

/* Of dimensions [column, column + 16) of block b of a step's values, as two mma read them, of 8 each. */
template <typename S>
static __device__ __forceinline__ void load_values(uint32_t words[4], const char *values, int b, int column)
{
    const unsigned lane = this_lane();

    if (S::HAS_PAIRS)
#pragma unroll
        for (int i = 0; i < 4; i++)
            words[i] = *(const uint32_t *)(values + (b * S::VALUE_ROWS + i % 2 * 4) * S::VALUE_PIECES * PIECE +
                                           value_piece_at<S>(lane % 4, column / 4 + i / 2 * 2 + lane / 16) +
                                           lane / 4 % 4 * 4);
    else
        ldmatrix_x4_trans(words,
                          values + value_piece_at<S>(b * KV_BLOCK_TOKENS + lane % 16, column / 8 + lane / 16));
}

/* The warp's dimensions of a step, from first_column on, of values that all its queries see. */
template <typename S>
static __device__ __forceinline__ void add_whole(struct half_softmax<S> *softmax,
                                                 const uint32_t weights[STEP_BLOCKS][S::ROW_TILES][4],
                                                 const char *values, int first_column)
{
#pragma unroll
    for (int b = 0; b < STEP_BLOCKS; b++)
#pragma unroll
        for (int n = 0; n < S::COLUMN_TILES; n += 2) {
            uint32_t words[4];

            load_values<S>(words, values, b, first_column + n * 8);
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; m++) {
                multiply<S>(softmax->out[m][n], weights[b][m], words);
                multiply<S>(softmax->out[m][n + 1], weights[b][m], words + 2);
            }
        }
}

/*
 * The same where some query does not see all of the step. What nobody sees is zeros here. Mostly one pass does;
 * where some see an infinite value and others must not, each query has a pass of its own, which keeps its result
 * alone.
 */
template <typename S>
static __device__ __forceinline__ void add_some(struct half_softmax<S> *softmax,
                                                const uint32_t weights[STEP_BLOCKS][S::ROW_TILES][4],
                                                const char *values, int first_column, int32_t dim,
                                                const struct query *queries, const struct seen &seen,
                                                int32_t start)
{
    const bool is_same = seen.any.first == seen.all.first && seen.any.end == seen.all.end;
    const bool is_apart = !is_same && has_infinite<S>(values, first_column, dim, seen, start);

#pragma unroll 1
    for (int pass = 0; pass < (is_apart ? S::ROW_TILES * ROW_TILE : 1); pass++) {
        struct range range = seen.any;

        if (is_apart) {
            range.first = queries[pass].first;
            range.end = queries[pass].end;
        }
#pragma unroll
        for (int b = 0; b < STEP_BLOCKS; b++) {
            const unsigned lane = this_lane();
            uint32_t masks[2];

            if (!sees_block(seen, start, b))
                continue;
            mask_positions(masks, range, start + b * KV_BLOCK_TOKENS, lane);
#pragma unroll
            for (int n = 0; n < S::COLUMN_TILES; n += 2) {
                uint32_t words[4];

                load_values<S>(words, values, b, first_column + n * 8);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    words[i] &= masks[i % 2];
#pragma unroll
                for (int m = 0; m < S::ROW_TILES; m++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float sums[4];

                        memcpy(sums, softmax->out[m][n + i], sizeof(sums));
                        multiply<S>(sums, weights[b][m], words + 2 * i);
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            if (!is_apart || pass == m * ROW_TILE + e / 2 * 8 + lane / 4)
                                softmax->out[m][n + i][e] = sums[e];
                    }
            }
        }
    }
}

/* ---- tiles --------------------------------------------------------------------------------------------------- */

/* What two softmaxes over other positions are multiplied by, to be added; *max: of the first, then of both. */
struct half_factors {
    float old_one, new_one;
};

static __device__ __forceinline__ struct half_factors merge_max(float *max, float new_max)
{
    float both = fmaxf(*max, new_max);
    struct half_factors factors = {exp2_approx(*max - both), exp2_approx(new_max - both)};

    *max = both;
    return factors;
}

static __device__ __forceinline__ float merge(struct half_factors factors, float old_one, float new_one)
{
    return fmaf(new_one, factors.new_one, old_one * factors.old_one);
}

/* All zeros are the same one: which it would be may depend on tiles that a row does not see. */
static __device__ __forceinline__ float2 scaled(float2 out, float inverse)
{
    return make_float2(out.x * inverse + 0.0f, out.y * inverse + 0.0f);
}

/* The position behind a step's is another tile's. */
static __device__ __forceinline__ bool ends_tile(int32_t start)
{
    return (start + STEP) % TILE == 0;
}

static __host__ __device__ __forceinline__ int32_t half_part_floats(int32_t head_dim)
{
    return head_dim + HALF_PART_FLOATS;
}

/* ---- few queries --------------------------------------------------------------------------------------------- */

/* Dynamic shared memory, before the heads. */
template <typename S> struct few_memory {
    char slabs[S::SLABS * S::SLAB_BYTES];
    char q[S::QUERIES * S::DIM * HALF_BYTES];
    uint4 weights[STEP_BLOCKS][WARP];
    float max[WARPS][FEW_QUERIES]; /* of the scores of a warp */
};

/* The tile that ends, to rows or to its part; the next begins. */
template <typename S>
static __device__ __forceinline__ void end_few_tile(const struct attention_task &task, const struct query *queries,
                                                    int32_t number, struct half_softmax<S> *rows,
                                                    struct half_softmax<S> *tile)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int32_t dim = task.kv.head_dim, column = warp * S::COLUMN_TILES * 8 + lane % 4 * 2;

    float max[2] = {max_of<S>(*tile, 0), max_of<S>(*tile, 1)};
    float row_max[2] = {max_of<S>(*rows, 0), max_of<S>(*rows, 1)};

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const struct query &query = queries[h * 8 + lane / 4];

        if (query.first >= (number + 1) * TILE || query.end <= number * TILE)
            continue;
        if (query.outcome == WRITTEN) {
            float raised = row_max[h];
            struct half_factors factors = merge_max(&raised, max[h]);

            rows->max = lane % 4 == h ? raised : rows->max;
            rows->sum[0][h] = merge(factors, rows->sum[0][h], tile->sum[0][h]);
#pragma unroll
            for (int n = 0; n < S::COLUMN_TILES; n++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++)
                    rows->out[0][n][e] = merge(factors, rows->out[0][n][e], tile->out[0][n][e]);
        } else if (query.outcome == PARTS) {
            float *part =
                task.parts + (query.part + (int64_t)number * task.num_heads) * half_part_floats(task.kv.head_dim);

#pragma unroll
            for (int n = 0; n < S::COLUMN_TILES; n++)
                if (column + n * 8 < dim)
                    *(float2 *)(part + column + n * 8) =
                        make_float2(tile->out[0][n][2 * h], tile->out[0][n][2 * h + 1]);
            if (column == 0)
                *(float2 *)(part + dim) = make_float2(max[h], tile->sum[0][h]);
        }
    }
    clear<S>(tile);
}

template <typename S>
static __device__ __forceinline__ void put_few(const struct attention_task &task, const struct query *queries,
                                               const struct half_softmax<S> &rows)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int32_t dim = task.kv.head_dim, column = warp * S::COLUMN_TILES * 8 + lane % 4 * 2;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const struct query &query = queries[h * 8 + lane / 4];
        float *out = task.out + ((int64_t)query.row * task.num_heads + query.head) * dim + column;
        float inverse = 1.0f / rows.sum[0][h];

        if (query.outcome == WRITTEN)
#pragma unroll
            for (int n = 0; n < S::COLUMN_TILES; n++)
                if (column + n * 8 < dim)
                    *(float2 *)(out + n * 8) =
                        scaled(make_float2(rows.out[0][n][2 * h], rows.out[0][n][2 * h + 1]), inverse);
    }
}

template <typename S>
static __device__ __forceinline__ void attend_few_queries(const struct attention_task &task,
                                                          const struct half_work<S::QUERIES> &work,
                                                          struct few_memory<S> *memory)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const struct seen &seen = work.seen[0];
    struct half_softmax<S> rows, tile;

    begin_slabs<S>(task, work.source, memory->slabs, seen.any.first / STEP);
    load_queries<S>(task, work.queries, memory->q);
    clear<S>(&rows);
    clear<S>(&tile);
#pragma unroll 1
    for (int32_t start = seen.any.first / STEP * STEP; start < seen.any.end; start += STEP) {
        const bool is_whole = sees_all(seen, start), is_seen = sees_block(seen, start, warp);
        const char *keys =
            take_slab<S, false>(task, work.source, memory->slabs, start / STEP) + warp * S::KEY_PIECES * PIECE;
        float scores[1][2][4], max[1][2];
        uint32_t weights[STEP_BLOCKS][1][4];

        if (is_seen) {
            find_scores<S, 1>(scores, memory->q, keys);
            if (!is_whole)
                hide<1, 1>(scores, work.queries, start + warp * KV_BLOCK_TOKENS);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            max[0][h] = is_seen ? max_score<2>(scores[0], h) : NO_SCORE;
            if (lane % 4 == 0)
                memory->max[warp][h * 8 + lane / 4] = max[0][h];
        }
        __syncthreads();
#pragma unroll
        for (int h = 0; h < 2; h++) {
            max[0][h] = NO_SCORE;
#pragma unroll
            for (int w = 0; w < WARPS; w++)
                max[0][h] = fmaxf(max[0][h], memory->max[w][h * 8 + lane / 4]);
        }
        raise_max<S>(&tile, max);
        if (is_seen) {
            find_weights<S>(weights[0][0], scores[0], max[0], 0);
            memory->weights[warp][lane] = make_uint4(weights[0][0][0], weights[0][0][1], weights[0][0][2],
                                                     weights[0][0][3]);
        }

        const char *values = take_slab<S, true>(task, work.source, memory->slabs, start / STEP);

#pragma unroll
        for (int b = 0; b < STEP_BLOCKS; b++) /* junk where nobody sees the block */
            memcpy(weights[b][0], &memory->weights[b][lane], sizeof(weights[b][0]));
        add_weights<S>(&tile, weights, seen, start);
        if (is_whole)
            add_whole<S>(&tile, weights, values, warp * S::COLUMN_TILES * 8);
        else
            add_some<S>(&tile, weights, values, warp * S::COLUMN_TILES * 8, task.kv.head_dim, work.queries, seen,
                        start);
        if (ends_tile(start) || start + STEP >= seen.any.end)
            end_few_tile<S>(task, work.queries, start / TILE, &rows, &tile);
    }
    put_few<S>(task, work.queries, rows);
}

template <typename S>
static __global__ void __launch_bounds__(THREADS, S::DIM > 128 ? 2 : 3) few_half(const struct attention_task task)
{
    __shared__ struct half_work<S::QUERIES> work;
    struct few_memory<S> *memory = (struct few_memory<S> *)dynamic_shared();
    int32_t *heads = (int32_t *)(memory + 1);

    begin_work(task, &work.unit, &work.num_heads, heads);
    __syncthreads();
    for (int32_t chunk = work.unit.slot; chunk * S::QUERIES < work.unit.num_rows * work.num_heads;
         chunk += work.unit.num_slots) {
        if (threadIdx.x < WARP) {
            struct query query =
                find_query<true>(task, work.unit, heads, work.num_heads, chunk * S::QUERIES, S::QUERIES);
            struct seen seen = see(query);

            if (threadIdx.x < S::QUERIES)
                work.queries[threadIdx.x] = query;
            if (threadIdx.x == 0) {
                work.seen[0] = seen;
                work.source = find_source(task, work.unit, seen.any);
            }
        }
        __syncthreads();
        if (work.seen[0].any.end)
            attend_few_queries<S>(task, work, memory);
        __syncthreads();
    }
}

/* ---- many queries -------------------------------------------------------------------------------------------- */

template <typename S> struct many_memory {
    char slabs[S::SLABS * S::SLAB_BYTES];
    char q[S::QUERIES * S::DIM * HALF_BYTES];
    float2 totals[S::QUERIES]; /* maximum and sum over the tiles before, whose out lies in task.out */
};

/* The tile that ends; the next begins. queries and totals: the warp's. */
template <typename S>
static __device__ __forceinline__ void end_many_tile(const struct attention_task &task, const struct query *queries,
                                                     bool is_first, bool is_last, float2 *totals,
                                                     struct half_softmax<S> *tile)
{
    const unsigned lane = this_lane();
    const int32_t dim = unforeseen(task.kv.head_dim), column = lane % 4 * 2;
    struct half_factors factors[2 * S::ROW_TILES];

#pragma unroll
    for (int i = 0; i < 2 * S::ROW_TILES; i++) {
        float2 total = is_first ? make_float2(NO_SCORE, 0) : totals[i * 8 + lane / 4];

        factors[i] = merge_max(&total.x, max_of<S>(*tile, i));
        total.y = merge(factors[i], total.y, tile->sum[i / 2][i % 2]);
        __syncwarp(); /* its other lanes have read it */
        if (lane % 4 == 0)
            totals[i * 8 + lane / 4] = total;
        tile->sum[i / 2][i % 2] = total.y;
    }
#pragma unroll
    for (int i = 0; i < 2 * S::ROW_TILES; i++) {
        const struct query &query = queries[i * 8 + lane / 4];
        float *out = task.out + ((int64_t)query.row * task.num_heads + query.head) * dim + column;
        float inverse = 1.0f / tile->sum[i / 2][i % 2];

        if (query.outcome != WRITTEN)
            continue;
#pragma unroll
        for (int n = 0; n < S::COLUMN_TILES; n++) {
            const float *from = tile->out[i / 2][n] + i % 2 * 2;

            if (n % 4 == 0)
                out += unforeseen(0); /* so no more of them are on their way than there are registers */
            if (column + n * 8 < dim) {
                float2 x = is_first ? make_float2(0, 0) : *(float2 *)(out + n * 8);

                x = make_float2(merge(factors[i], x.x, from[0]), merge(factors[i], x.y, from[1]));
                *(float2 *)(out + n * 8) = is_last ? scaled(x, inverse) : x;
            }
        }
    }
    clear<S>(tile);
}

template <typename S>
static __device__ __forceinline__ void attend_many_queries(const struct attention_task &task,
                                                           const struct half_work<S::QUERIES> &work,
                                                           struct many_memory<S> *memory)
{
    const struct range &blocks = work.source.range;
    struct half_softmax<S> tile;

    begin_slabs<S>(task, work.source, memory->slabs, blocks.first / STEP_BLOCKS);
    load_queries<S>(task, work.queries, memory->q);
    clear<S>(&tile);
#pragma unroll 1
    for (int32_t start = blocks.first / STEP_BLOCKS * STEP; start < blocks.end * KV_BLOCK_TOKENS; start += STEP) {
        const unsigned warp = this_thread() / WARP, first_query = warp * S::ROW_TILES * ROW_TILE;
        const struct query *queries = work.queries + first_query;
        const char *q = memory->q + first_query * S::DIM * HALF_BYTES;
        const struct seen &seen = work.seen[warp];
        const bool is_seen = sees_some(seen, start), is_whole = sees_all(seen, start);
        const char *keys = take_slab<S, false>(task, work.source, memory->slabs, start / STEP);
        uint32_t weights[STEP_BLOCKS][S::ROW_TILES][4];

        if (is_seen) {
            float scores[S::ROW_TILES][2 * STEP_BLOCKS][4], max[S::ROW_TILES][2];

            find_scores<S, STEP_BLOCKS>(scores, q, keys);
            if (!is_whole)
                hide<S::ROW_TILES, STEP_BLOCKS>(scores, queries, start);
#pragma unroll
            for (int i = 0; i < 2 * S::ROW_TILES; i++)
                max[i / 2][i % 2] = max_score<2 * STEP_BLOCKS>(scores[i / 2], i % 2);
            raise_max<S>(&tile, max);
#pragma unroll
            for (int i = 0; i < STEP_BLOCKS * S::ROW_TILES; i++)
                find_weights<S>(weights[i / S::ROW_TILES][i % S::ROW_TILES], scores[i % S::ROW_TILES],
                                max[i % S::ROW_TILES], i / S::ROW_TILES);
        }

        const char *values = take_slab<S, true>(task, work.source, memory->slabs, start / STEP);

        if (is_seen) {
            add_weights<S>(&tile, weights, seen, start);
            if (is_whole)
                add_whole<S>(&tile, weights, values, 0);
            else
                add_some<S>(&tile, weights, values, 0, task.kv.head_dim, queries, seen, start);
        }

        const bool is_last = start + STEP >= blocks.end * KV_BLOCK_TOKENS;

        if (ends_tile(start) || is_last)
            end_many_tile<S>(task, queries, start / TILE == blocks.first * KV_BLOCK_TOKENS / TILE, is_last,
                             memory->totals + first_query, &tile);
    }
}

template <typename S>
static __global__ void __launch_bounds__(THREADS, 2) many_half(const struct attention_task task)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int32_t warp_queries = S::ROW_TILES * ROW_TILE;
    __shared__ struct half_work<S::QUERIES> work;
    struct many_memory<S> *memory = (struct many_memory<S> *)dynamic_shared();
    int32_t *heads = (int32_t *)(memory + 1);

    begin_work(task, &work.unit, &work.num_heads, heads);
    __syncthreads();

    while (work.unit.slot * S::QUERIES < work.unit.num_rows * work.num_heads) {
        const int32_t first = work.unit.slot * S::QUERIES + warp * warp_queries;
        struct query query = find_query<false>(task, work.unit, heads, work.num_heads, first, warp_queries);
        struct seen seen = see(query);

        if (first >= work.unit.num_rows * work.num_heads) /* the others may be on their way without this warp's */
            seen.any = {INT32_MAX, 0};
        if (lane < warp_queries)
            work.queries[warp * warp_queries + lane] = query;
        if (lane == 0)
            work.seen[warp] = seen;
        __syncthreads();
        if (threadIdx.x == 0) {
            struct range all = work.seen[0].any;

            for (int w = 1; w < WARPS; w++) {
                all.first = min(all.first, work.seen[w].any.first);
                all.end = max(all.end, work.seen[w].any.end);
            }
            work.source = find_source(task, work.unit, all);
        }
        __syncthreads();
        attend_many_queries<S>(task, work, memory);
        __syncthreads();
        if (threadIdx.x == 0)
            work.unit.slot += work.unit.num_slots; /* in shared memory, as no register is left for it */
        __syncthreads();
    }
}

/* ---- parts --------------------------------------------------------------------------------------------------- */

/* A block of threads to a row and head: a thread has two dimensions, and the sum, which all have. */
static __global__ void __launch_bounds__(THREADS) merge_half(const struct attention_task task)
{
    int32_t dim = task.kv.head_dim, at = threadIdx.x * 2;
    struct parts parts;

    if (!find_parts(task, TILE, half_part_floats(dim), &parts))
        return;

    const float *part = parts.first;
    float max = NO_SCORE, sum = 0;
    float2 out = make_float2(0, 0);

#pragma unroll 8
    for (int32_t t = parts.first_tile; t < parts.end_tile; t++) {
        float2 max_sum = *(const float2 *)(part + dim), x = at < dim ? *(const float2 *)(part + at) : out;
        struct half_factors factors = merge_max(&max, max_sum.x);

        sum = merge(factors, sum, max_sum.y);
        out.x = merge(factors, out.x, x.x);
        out.y = merge(factors, out.y, x.y);
        part += (int64_t)task.num_heads * half_part_floats(dim);
    }
    if (at < dim)
        *(float2 *)(task.out + ((int64_t)parts.row * task.num_heads + parts.head) * dim + at) =
            scaled(out, 1.0f / sum);
}

/* ---- the host ------------------------------------------------------------------------------------------------ */

/* A row: for heads of up to so many dimensions. */
struct half_kernel {
    int32_t most_dim, queries; /* of a block */
    void (*kernels[2])(const struct attention_task task); /* the second for KV_BFLOAT16 */
    size_t shared_bytes, own_bytes; /* besides the heads; and without asking */
};

#define FEW(dim, slabs)                                                                                            \
    {dim,                                                                                                          \
     few_shape<dim, slabs>::QUERIES,                                                                               \
     {few_half<few_shape<dim, slabs>>, few_half<slab_in_pairs<few_shape<dim, slabs>>>},                            \
     sizeof(struct few_memory<few_shape<dim, slabs>>),                                                             \
     sizeof(struct half_work<few_shape<dim, slabs>::QUERIES>)}
#define MANY(dim, row_tiles, slabs)                                                                                \
    {dim,                                                                                                          \
     many_shape<dim, row_tiles, slabs>::QUERIES,                                                                   \
     {many_half<many_shape<dim, row_tiles, slabs>>, many_half<slab_in_pairs<many_shape<dim, row_tiles, slabs>>>},  \
     sizeof(struct many_memory<many_shape<dim, row_tiles, slabs>>),                                                \
     sizeof(struct half_work<many_shape<dim, row_tiles, slabs>::QUERIES>)}

static const struct half_kernel few_kernels[] = {FEW(64, 4), FEW(128, 4), FEW(MAX_HEAD_DIM, 2)};
static const struct half_kernel many_kernels[] = {MANY(64, 2, 3), MANY(96, 2, 3), MANY(128, 2, 2),
                                                  MANY(MAX_HEAD_DIM, 1, 2)};

static cudaError_t prepare(const struct cuda_state *state, const struct half_kernel &k)
{
    cudaError_t error = allow_all_shared(state, k.kernels[0], k.own_bytes);

    return error == cudaSuccess ? allow_all_shared(state, k.kernels[1], k.own_bytes) : error;
}

cudaError_t attention_half_prepare(const struct cuda_state *state)
{
    cudaError_t error = cudaSuccess;

    for (const struct half_kernel &k : few_kernels)
        if (error == cudaSuccess)
            error = prepare(state, k);
    for (const struct half_kernel &k : many_kernels)
        if (error == cudaSuccess)
            error = prepare(state, k);
    return error;
}

static const struct half_kernel *kernel_for(const struct half_kernel *kernels, int32_t head_dim)
{
    while (kernels->most_dim < head_dim)
        kernels++;
    return kernels;
}

/* Of a launch. */
static size_t shared_bytes(const struct half_kernel *k, int32_t num_heads)
{
    return k->shared_bytes + num_heads * sizeof(int32_t);
}

static void launch_half(struct cuda_state *state, const struct half_kernel *k, const struct attention_task &task,
                        int32_t groups)
{
    dim3 grid((unsigned)task.num_slots * (unsigned)task.kv.num_kv_heads, (unsigned)groups);

    launch(k->kernels[task.kv.type == KV_BFLOAT16], grid, dim3(THREADS), shared_bytes(k, task.num_heads), state->stream,
           task);
    note_launch(state);
}

static void launch_few(struct cuda_state *state, const struct attention_task &task, int32_t, int32_t groups)
{
    launch_half(state, kernel_for(few_kernels, task.kv.head_dim), task, groups);
}

static void launch_many(struct cuda_state *state, const struct attention_task &task)
{
    launch_half(state, kernel_for(many_kernels, task.kv.head_dim), task, 1);
}

static void launch_merge(struct cuda_state *state, const struct attention_task &task)
{
    int32_t threads = divide_up(task.kv.head_dim, 2 * WARP) * WARP;

    launch(merge_half, dim3((unsigned)task.batch.rows * (unsigned)task.num_heads), dim3((unsigned)threads), 0,
           state->stream, task);
    note_launch(state);
}

static int32_t many_queries(const struct cuda_state *state, int32_t head_dim, int32_t num_heads)
{
    const struct half_kernel *k = kernel_for(many_kernels, head_dim);

    return (int32_t)shared_bytes(k, num_heads) <= rest_of_shared(state, k->own_bytes) ? k->queries : 0;
}

const struct attention_way attention_half = {TILE,         FEW_QUERIES,      16,         4,           64,
                                             many_queries, half_part_floats, launch_few, launch_many, launch_merge};
