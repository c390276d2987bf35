/*
 * attention_tile: how a block of threads attends to tiles. A chain of fmas is one thread's, in ref's order.
 *
 * Keys and values come to shared memory in slabs, a few of which are on their way while one is used: 16 dimensions
 * of all keys of a tile, 16 after 16, then the values of some KV blocks, then the next tile's keys. Codes come as
 * they are, to slabs of half the size, and become halves in one more when they are used; the scales of KV_INT8 come
 * with the first of a tile's slabs.
 *
 *  scores   a thread has some positions and some queries, and goes on along the dimensions from slab to slab
 *  weights  exp(score - max), in shared memory; the max of a tile and query is that of a team of threads
 *  values   a thread has some dimensions and the same queries, and goes on along the positions from slab to slab
 *
 * KV_BFLOAT16 lies in pairs, dimensions of a key and positions of a value, of which the second comes first
 * (numerics.h). 16 dimensions of a KV block are as many bytes, in one piece, as of halves: slabs are the same.
 */
#ifndef KERNELS_CUDA_ATTENTION_TILE_CUH
#define KERNELS_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/exp.cuh"
#include "kernels/cuda/kv_codes.cuh"

enum {
    HALF_BYTES = 2,
    COPY_BYTES = 16, /* of cp_async_16 */
    TILE_BLOCKS = KV_TILE_TOKENS / KV_BLOCK_TOKENS,
    SLAB_DIMS = 16,
    SLAB_KEY_BYTES = SLAB_DIMS * KV_BLOCK_TOKENS * HALF_BYTES, /* of one KV block */
    SLAB_VALUES = SLAB_DIMS * KV_TILE_TOKENS, /* numbers of a slab of values, at most */
    TILE_SCALES = 2 * KV_TILE_TOKENS,         /* of keys, then of values */
};

/*
 * How a block shares out its queries: to teams of threads, each with some queries of its own, a thread of which has
 * some positions when there are scores, and some dimensions when there are values.
 */
template <int queries, int teams, int dims, int stages> struct shape {
    static const int QUERIES = queries;
    static const int TEAMS = teams;
    static const int DIMS = dims;           /* of a thread; one whose first is behind the last has none */
    static const int STAGES = stages;       /* slabs in shared memory */
    static const int OWN = queries / teams; /* queries of a team */
    static const int TEAM = THREADS / teams;
    static const int POSITIONS = KV_TILE_TOKENS / TEAM;
    static const int CHAINS = (OWN * SUM_LANES + TEAM - 1) / TEAM;   /* of a thread, of the sums of its queries */
    static const int Q_STRIDE = queries + (queries >= 8 ? 4 : 0);    /* floats; 4 for other banks */
    static const int WEIGHTS = POSITIONS * OWN + (OWN >= 4 ? 4 : 0); /* floats of a thread's positions; likewise */
    static const bool HAS_PAIRS = false;                             /* KV_BFLOAT16 */
    static const int TOGETHER = 1; /* numbers of a chain that lie side by side, the last comes first */
    static const int KEY_STRIDE = SLAB_KEY_BYTES + 32; /* of KV blocks in a slab; likewise */
    static const int SLAB_BYTES = TILE_BLOCKS * KEY_STRIDE;

    static_assert(QUERIES <= MAX_BLOCK_QUERIES && OWN <= MAX_OWN && TEAM % WARP == 0 && TEAM % OWN == 0, "");
    static_assert(KV_BLOCK_TOKENS % POSITIONS == 0, "a thread's positions are of one KV block");
};

template <typename S> struct in_pairs : S {
    static const bool HAS_PAIRS = true;
    static const int TOGETHER = 2;
    static const int KEY_STRIDE = SLAB_KEY_BYTES + 64;
    static const int SLAB_BYTES = TILE_BLOCKS * KEY_STRIDE;
};

/* Dynamic shared memory. */
struct shared_arrays {
    float *q;       /* [head_dim][Q_STRIDE]: scaled */
    float *weights; /* [THREADS][WEIGHTS]: by thread, position, query of its own */
    char *slabs;    /* [STAGES][SLAB_BYTES]; of codes, half as many bytes each, then one of halves, then scales */
    int32_t *heads; /* [num_heads]: those that read the KV head */
};

/* ---- numbers in vectors -------------------------------------------------------------------------------------- */

template <int n> static __device__ __forceinline__ void load_floats(float *out, const float *p)
{
    static_assert(n == 1 || n == 2 || n == 4 || n == 8, "");
    if (n == 1)
        out[0] = p[0];
    if (n == 2) {
        float2 x = *(const float2 *)p;

        out[0] = x.x;
        out[1] = x.y;
    }
#pragma unroll
    for (int i = 0; i < n / 4; i++) {
        float4 x = ((const float4 *)p)[i];

        out[4 * i] = x.x;
        out[4 * i + 1] = x.y;
        out[4 * i + 2] = x.z;
        out[4 * i + 3] = x.w;
    }
}

template <int n> static __device__ __forceinline__ void store_floats(float *p, const float *x)
{
    static_assert(n == 1 || n == 2 || n == 4 || n == 8, "");
    if (n == 1)
        p[0] = x[0];
    if (n == 2)
        *(float2 *)p = make_float2(x[0], x[1]);
#pragma unroll
    for (int i = 0; i < n / 4; i++)
        ((float4 *)p)[i] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
}

template <typename S> static __device__ __forceinline__ void floats_of_word(float *out, uint32_t word)
{
    if (S::HAS_PAIRS) {
        out[0] = __uint_as_float(word << 16);
        out[1] = __uint_as_float(word & 0xffff0000);
    } else {
        out[0] = float_of_half((uint16_t)word);
        out[1] = float_of_half((uint16_t)(word >> 16));
    }
}

/* Of 16 bits. */
template <typename S, int n> static __device__ __forceinline__ void load_numbers(float *out, const char *p)
{
    static_assert(n == 2 || n == 4 || n % 8 == 0, "");
    if (n == 2)
        floats_of_word<S>(out, *(const uint32_t *)p);
    if (n == 4) {
        uint2 x = *(const uint2 *)p;

        floats_of_word<S>(out, x.x);
        floats_of_word<S>(out + 2, x.y);
    }
#pragma unroll
    for (int i = 0; i < n / 8; i++) {
        uint4 x = ((const uint4 *)p)[i];

        floats_of_word<S>(out + 8 * i, x.x);
        floats_of_word<S>(out + 8 * i + 2, x.y);
        floats_of_word<S>(out + 8 * i + 4, x.z);
        floats_of_word<S>(out + 8 * i + 6, x.w);
    }
}

/* As products read it. */
template <typename S> static __device__ __forceinline__ float factor_of(float x)
{
    return S::HAS_PAIRS ? float_of_bf16(bf16_of_float(x)) : x;
}

/* ---- slabs --------------------------------------------------------------------------------------------------- */

/* Slabs of the tiles of [first, end), in the order of use. */
struct slabs {
    const char *k, *v;     /* of the KV head, in block 0 */
    const int32_t *blocks; /* of the request */
    int64_t group_stride;
    int32_t head_dim, first, end;
    int32_t block_bytes; /* of the KV head */
    enum kv_type type;
    int32_t tile, slab; /* to be fetched next */
    char *memory;
    float *scales; /* of KV_INT8: [2][TILE_SCALES], of a tile and the next one */
    int32_t fetched, used; /* stages of `memory` that come next */
};

/* 1 where numbers are of 8 bits: by so much bytes of halves are shifted down. */
template <typename S> static __device__ __forceinline__ int32_t has_codes(const struct slabs &slabs)
{
    return !S::HAS_PAIRS && has_codes(slabs.type);
}

template <typename S> static __device__ __forceinline__ bool has_scales(const struct slabs &slabs)
{
    return !S::HAS_PAIRS && slabs.type == KV_INT8;
}

/* KV blocks of a tile: [first, end) of its own count. */
struct block_range {
    int32_t first, end;
};

static __device__ __forceinline__ struct block_range blocks_of_tile(int32_t first, int32_t end, int32_t tile)
{
    int32_t start = tile * KV_TILE_TOKENS;
    int32_t last = min(end - start, (int32_t)KV_TILE_TOKENS) - 1;
    struct block_range range = {max(first - start, 0) / KV_BLOCK_TOKENS, last / KV_BLOCK_TOKENS + 1};

    return range;
}

/* KV blocks whose values are one slab. */
static __device__ __forceinline__ int32_t value_blocks(int32_t head_dim)
{
    return min(SLAB_VALUES / (KV_BLOCK_TOKENS * head_dim), (int32_t)TILE_BLOCKS);
}

/* Of block b of the tile, in bytes from block 0. */
static __device__ __forceinline__ int64_t block_at(const struct slabs &slabs, int32_t b)
{
    return kv_block_at(slabs.group_stride, slabs.block_bytes, slabs.blocks[slabs.tile * TILE_BLOCKS + b]);
}

template <typename S>
static __device__ __forceinline__ void fetch_keys(const struct slabs &slabs, struct block_range range, char *to)
{
    int32_t codes = has_codes<S>(slabs), at = threadIdx.x * COPY_BYTES & ((SLAB_KEY_BYTES >> codes) - 1);
    int32_t first = threadIdx.x * COPY_BYTES << codes; /* in halves, of all threads' */
    const char *from = slabs.k + slabs.slab * (SLAB_KEY_BYTES >> codes) + at;

    static_assert((SLAB_KEY_BYTES & (SLAB_KEY_BYTES - 1)) == 0 && SLAB_KEY_BYTES == WARP * COPY_BYTES, "");
    for (int32_t b = range.first + first / SLAB_KEY_BYTES; b < range.end; b += WARPS << codes)
        cp_async_16(to + b * (S::KEY_STRIDE >> codes) + at, from + block_at(slabs, b));
}

/* Those of a tile, of its blocks in `range`. */
static __device__ __forceinline__ void fetch_scales(const struct slabs &slabs, struct block_range range)
{
    const int pieces = KV_BLOCK_TOKENS * (int)sizeof(float) / COPY_BYTES;
    int32_t b = threadIdx.x / (2 * pieces), piece = threadIdx.x % pieces;
    bool is_values = threadIdx.x / pieces % 2 != 0;
    float *to = slabs.scales + slabs.tile % 2 * TILE_SCALES + is_values * KV_TILE_TOKENS + b * KV_BLOCK_TOKENS;

    static_assert(TILE_BLOCKS * 2 * pieces == THREADS, "a copy each");
    if (b >= range.first && b < range.end)
        cp_async_16((char *)to + piece * COPY_BYTES, (is_values ? slabs.v : slabs.k) + block_at(slabs, b) +
                                                         slabs.head_dim * KV_BLOCK_TOKENS + piece * COPY_BYTES);
}

template <typename S>
static __device__ __forceinline__ void fetch_values(const struct slabs &slabs, int32_t first, int32_t end, char *to)
{
    int32_t bytes = KV_BLOCK_TOKENS * slabs.head_dim * HALF_BYTES >> has_codes<S>(slabs);

#pragma unroll 1
    for (int32_t b = first; b < end; b++) {
        const char *from = slabs.v + block_at(slabs, b);

#pragma unroll 2
        for (int32_t at = threadIdx.x * COPY_BYTES; at < bytes; at += THREADS * COPY_BYTES)
            cp_async_16(to + (b - first) * bytes + at, from + at);
    }
}

/* The next slab is on its way; after the last, nothing is. */
template <typename S> static __device__ __forceinline__ void fetch_slab(struct slabs *slabs)
{
    if (slabs->tile * KV_TILE_TOKENS < slabs->end) {
        struct block_range range = blocks_of_tile(slabs->first, slabs->end, slabs->tile);
        char *to = slabs->memory + slabs->fetched * (S::SLAB_BYTES >> has_codes<S>(*slabs));
        int32_t key_slabs = slabs->head_dim / SLAB_DIMS, per_slab = value_blocks(slabs->head_dim);
        int32_t first = range.first + (slabs->slab - key_slabs) * per_slab, end = min(first + per_slab, range.end);

        if (slabs->slab < key_slabs)
            fetch_keys<S>(*slabs, range, to);
        else
            fetch_values<S>(*slabs, first, end, to);
        if (slabs->slab == 0 && has_scales<S>(*slabs))
            fetch_scales(*slabs, range);
        slabs->slab++;
        if (slabs->slab > key_slabs && end == range.end) {
            slabs->slab = 0;
            slabs->tile++;
        }
        slabs->fetched = slabs->fetched + 1 < S::STAGES ? slabs->fetched + 1 : 0;
    }
    cp_async_commit();
}

/* All threads: codes of a slab as halves of another. stride: of SLAB_KEY_BYTES of halves. */
static __device__ __forceinline__ void widen_slab(enum kv_type type, const char *codes, int32_t stride,
                                                  char *halves)
{
#pragma unroll
    for (int32_t i = threadIdx.x * COPY_BYTES; i < SLAB_VALUES * HALF_BYTES; i += THREADS * COPY_BYTES) {
        int32_t at = i / SLAB_KEY_BYTES * stride + i % SLAB_KEY_BYTES;

        *(uint4 *)(halves + at) = halves_of_codes(type, *(const uint2 *)(codes + at / 2));
    }
}

/* All threads: the slab to be used next is there, so is what they wrote before, and the one before it may go. */
template <typename S> static __device__ __forceinline__ const char *next_slab(struct slabs *slabs, bool has_keys)
{
    const char *slab = slabs->memory + slabs->used * (S::SLAB_BYTES >> has_codes<S>(*slabs));

    static_assert(S::STAGES * S::SLAB_BYTES / 2 >= S::SLAB_BYTES + 2 * TILE_SCALES * (int)sizeof(float), "");
    cp_async_wait<S::STAGES - 2>();
    __syncthreads();
    fetch_slab<S>(slabs);
    slabs->used = slabs->used + 1 < S::STAGES ? slabs->used + 1 : 0;
    if (has_codes<S>(*slabs)) {
        char *halves = slabs->memory + S::STAGES * S::SLAB_BYTES / 2;

        widen_slab(slabs->type, slab, has_keys ? S::KEY_STRIDE : SLAB_KEY_BYTES, halves);
        __syncthreads();
        slab = halves;
    }
    return slab;
}

template <typename S>
static __device__ __forceinline__ struct slabs begin_slabs(const struct attention_task &task,
                                                           const struct work &work, char *memory)
{
    int64_t head = kv_block_at(task.kv, 0, work.unit.kv_head);
    struct slabs slabs;

    slabs.k = (const char *)task.kv.k + head;
    slabs.v = (const char *)task.kv.v + head;
    slabs.blocks = task.batch.block_tables + (int64_t)work.unit.request * task.batch.block_table_stride;
    slabs.group_stride = task.kv.group_stride;
    slabs.head_dim = task.kv.head_dim;
    slabs.block_bytes = kv_block_bytes(task.kv);
    slabs.type = task.kv.type;
    slabs.first = work.first;
    slabs.end = work.end;
    slabs.tile = work.first / KV_TILE_TOKENS;
    slabs.slab = 0;
    slabs.memory = memory;
    slabs.scales = (float *)(memory + S::STAGES * S::SLAB_BYTES / 2 + S::SLAB_BYTES);
    slabs.fetched = slabs.used = 0;
#pragma unroll 1
    for (int s = 0; s < S::STAGES - 1; s++)
        fetch_slab<S>(&slabs);
    return slabs;
}

/* ---- a tile -------------------------------------------------------------------------------------------------- */

/* A thread, in its team. */
struct place {
    int32_t member;          /* which of the team's threads it is */
    const struct query *own; /* [OWN]: the team's */
    int32_t first, end;      /* positions that all of them see */
    bool is_needed;          /* some of them is not dropped */
    bool has_dims;           /* of its own */
    int32_t chain_query;     /* whose sums it adds up */
    float *weights;          /* of the team, in shared memory: [TEAM][WEIGHTS] */
};

template <typename S>
static __device__ __forceinline__ struct place find_place(const struct work &work, float *weights, int32_t head_dim)
{
    int32_t team = threadIdx.x / S::TEAM, member = threadIdx.x % S::TEAM;
    struct place place;

    place.member = member;
    place.own = work.queries + team * S::OWN;
    place.first = 0;
    place.end = INT32_MAX;
    place.is_needed = false;
    place.has_dims = member * S::DIMS < head_dim;
    place.chain_query = member % S::OWN;
    place.weights = weights + team * S::TEAM * S::WEIGHTS;
#pragma unroll
    for (int u = 0; u < S::OWN; u++) {
        place.first = max(place.first, place.own[u].first);
        place.end = min(place.end, place.own[u].end);
        place.is_needed |= place.own[u].outcome != DROPPED;
    }
    return place;
}

/* All threads: the queries, scaled, to shared memory. */
template <typename S>
static __device__ __forceinline__ void load_queries(const struct attention_task &task, const struct work &work,
                                                    float *out)
{
    int32_t dim = task.kv.head_dim;

    for (int u = threadIdx.x / WARP; u < S::QUERIES; u += WARPS) {
        const float *q = task.q + work.queries[u].row * task.q_stride + (int64_t)work.queries[u].head * dim;

        for (int32_t i = threadIdx.x % WARP; i < dim; i += WARP)
            out[i * S::Q_STRIDE + u] = factor_of<S>(q[i] * task.scale);
    }
}

/* keys: of the thread's positions, q: of its queries, in the first of SLAB_DIMS dimensions. */
template <typename S>
static __device__ __forceinline__ void add_scores(float (&scores)[S::POSITIONS][S::OWN], const char *keys,
                                                  const float *q)
{
#pragma unroll 4 / S::TOGETHER
    for (int i = 0; i < SLAB_DIMS; i += S::TOGETHER) {
        float k[S::POSITIONS * S::TOGETHER], x[S::OWN];

        load_numbers<S, S::POSITIONS * S::TOGETHER>(k, keys + i * KV_BLOCK_TOKENS * HALF_BYTES);
#pragma unroll
        for (int n = S::TOGETHER - 1; n >= 0; n--) {
            load_floats<S::OWN>(x, q + (i + n) * S::Q_STRIDE);
#pragma unroll
            for (int p = 0; p < S::POSITIONS; p++)
#pragma unroll
                for (int u = 0; u < S::OWN; u++)
                    scores[p][u] = fmaf(x[u], k[p * S::TOGETHER + n], scores[p][u]);
        }
    }
}

/* The maxima of the queries' scores over the positions of a warp; where teams have several, to shared memory. */
template <typename S>
static __device__ __forceinline__ void find_max(const struct place &place,
                                                const float (&scores)[S::POSITIONS][S::OWN], int32_t position,
                                                float (&max)[S::OWN], float *warp_max)
{
#pragma unroll
    for (int u = 0; u < S::OWN; u++) {
        int32_t first = place.own[u].first, end = place.own[u].end;

        max[u] = NO_SCORE;
#pragma unroll
        for (int p = 0; p < S::POSITIONS; p++)
            if (position + p >= first && position + p < end)
                max[u] = fmaxf(max[u], scores[p][u]); /* passes over NaN, as ref does */
#pragma unroll
        for (int width = WARP / 2; width; width /= 2)
            max[u] = fmaxf(max[u], __shfl_xor_sync(ALL_LANES, max[u], width));
        if (S::TEAM > WARP && threadIdx.x % WARP == 0)
            warp_max[u] = max[u];
    }
}

/* The maxima of a team, from those of its warps. */
template <typename S> static __device__ __forceinline__ void join_max(const struct work &work, float (&max)[S::OWN])
{
    int32_t first_warp = threadIdx.x / S::TEAM * (S::TEAM / WARP);

#pragma unroll
    for (int u = 0; u < S::OWN; u++)
#pragma unroll
        for (int w = 0; w < S::TEAM / WARP; w++)
            max[u] = fmaxf(max[u], work.max[first_warp + w][u]);
}

template <typename S> static __device__ __forceinline__ float weight_of(float x)
{
    return S::HAS_PAIRS && x < BFLOAT16_EXP_LOWEST ? 0.0f : factor_of<S>(exp_cuda(x));
}

/* exp(score - max); 0 where a query does not see the position, whatever lies there. */
template <typename S>
static __device__ __forceinline__ void put_weights(const struct place &place,
                                                   const float (&scores)[S::POSITIONS][S::OWN], int32_t position,
                                                   const float (&max)[S::OWN])
{
    float weights[S::POSITIONS][S::OWN];

#pragma unroll
    for (int u = 0; u < S::OWN; u++) {
        int32_t first = place.own[u].first, end = place.own[u].end;

#pragma unroll
        for (int p = 0; p < S::POSITIONS; p++) {
            float weight = weight_of<S>(scores[p][u] - max[u]); /* of junk too: no branches */

            weights[p][u] = position + p >= first && position + p < end ? weight : 0.0f;
        }
    }
#pragma unroll
    for (int p = 0; p < S::POSITIONS; p++)
        store_floats<S::OWN>(place.weights + place.member * S::WEIGHTS + p * S::OWN, weights[p]);
}

/* Both multiply by what KV_INT8 has for the thread's positions: its scores, and its weights where they lie. */
template <typename S>
static __device__ __forceinline__ void scale_scores(float (&scores)[S::POSITIONS][S::OWN], const float *scales)
{
    float by[S::POSITIONS];

    load_floats<S::POSITIONS>(by, scales);
#pragma unroll
    for (int p = 0; p < S::POSITIONS; p++)
#pragma unroll
        for (int u = 0; u < S::OWN; u++)
            scores[p][u] *= by[p];
}

template <typename S> static __device__ __forceinline__ void scale_weights(float *weights, const float *scales)
{
#pragma unroll 1
    for (int p = 0; p < S::POSITIONS; p++)
#pragma unroll
        for (int u = 0; u < S::OWN; u++)
            weights[p * S::OWN + u] *= scales[p];
}

/* Where the weights of position `position` of the tile lie. */
template <typename S> static __device__ __forceinline__ int32_t weights_at(int32_t position)
{
    return position / S::POSITIONS * S::WEIGHTS + position % S::POSITIONS * S::OWN;
}

/* The values of one KV block, of the thread's dimensions, whose first position is `position`. What a query does not
 * see may be infinite. row_bytes: of a position. */
template <typename S>
static __device__ __forceinline__ void add_values(const struct place &place, float (&out)[S::OWN][S::DIMS],
                                                  const char *values, int32_t row_bytes, const float *weights,
                                                  int32_t position)
{
    if (position >= place.first && position + KV_BLOCK_TOKENS <= place.end) {
#pragma unroll
        for (int p = 0; p < KV_BLOCK_TOKENS; p += S::TOGETHER) {
            float v[S::DIMS * S::TOGETHER], w[S::OWN];

            load_numbers<S, S::DIMS * S::TOGETHER>(v, values + p * row_bytes);
#pragma unroll
            for (int n = S::TOGETHER - 1; n >= 0; n--) {
                load_floats<S::OWN>(w, weights + weights_at<S>(p + n));
#pragma unroll
                for (int u = 0; u < S::OWN; u++)
#pragma unroll
                    for (int d = 0; d < S::DIMS; d++)
                        out[u][d] = fmaf(w[u], v[d * S::TOGETHER + n], out[u][d]);
            }
        }
        return;
    }
#pragma unroll 1
    for (int p = 0; p < KV_BLOCK_TOKENS; p += S::TOGETHER) {
        float v[S::DIMS * S::TOGETHER], w[S::OWN];

        load_numbers<S, S::DIMS * S::TOGETHER>(v, values + p * row_bytes);
#pragma unroll
        for (int n = S::TOGETHER - 1; n >= 0; n--) {
            int32_t at = position + p + n;

            load_floats<S::OWN>(w, weights + weights_at<S>(p + n));
#pragma unroll
            for (int u = 0; u < S::OWN; u++)
                if (at >= place.own[u].first && at < place.own[u].end)
#pragma unroll
                    for (int d = 0; d < S::DIMS; d++)
                        out[u][d] = fmaf(w[u], v[d * S::TOGETHER + n], out[u][d]);
        }
    }
}

/* The sums of the weights by position % SUM_LANES: chain c of a thread is lane chain_lane(c) of its chain_query. */
template <typename S> static __device__ __forceinline__ int32_t chain_lane(const struct place &place, int c)
{
    return (place.member + c * S::TEAM) / S::OWN;
}

template <typename S>
static __device__ __forceinline__ void add_weights(const struct place &place, struct block_range range,
                                                   float (&sums)[S::CHAINS])
{
    static_assert((int)SUM_LANES == (int)KV_BLOCK_TOKENS, "a lane is the same token of each KV block");
#pragma unroll
    for (int c = 0; c < S::CHAINS; c++) {
        int32_t lane = chain_lane<S>(place, c);

        sums[c] = 0;
        if (lane < SUM_LANES)
            for (int32_t b = range.first; b < range.end; b++)
                sums[c] += place.weights[weights_at<S>(b * KV_BLOCK_TOKENS + lane) + place.chain_query];
    }
}

/* ---- softmax over tiles -------------------------------------------------------------------------------------- */

/* What a thread has of its team's queries, over some positions. */
template <typename S> struct softmax {
    float max[S::OWN];
    float sums[S::CHAINS];
    float out[S::OWN][S::DIMS];
};

template <typename S> static __device__ __forceinline__ void clear(struct softmax<S> *softmax)
{
#pragma unroll
    for (int u = 0; u < S::OWN; u++) {
        softmax->max[u] = NO_SCORE;
#pragma unroll
        for (int d = 0; d < S::DIMS; d++)
            softmax->out[u][d] = 0;
    }
#pragma unroll
    for (int c = 0; c < S::CHAINS; c++)
        softmax->sums[c] = 0;
}

/* What two softmaxes over other positions are multiplied by, to be added; *max: of the first, then of both. */
struct factors {
    float old_one, new_one;
};

static __device__ __forceinline__ struct factors merge_max(float *max, float new_max)
{
    float both = new_max > *max ? new_max : *max;
    struct factors factors = {exp_cuda(*max - both), exp_cuda(new_max - both)};

    *max = both;
    return factors;
}

static __device__ __forceinline__ float merge(struct factors factors, float old_one, float new_one)
{
    return fmaf(new_one, factors.new_one, old_one * factors.old_one);
}

/* Query u of the team goes on with its next tile. */
template <typename S>
static __device__ __forceinline__ void merge_tile(const struct place &place, int u, struct softmax<S> *rows,
                                                  const struct softmax<S> &tile)
{
    struct factors factors = merge_max(&rows->max[u], tile.max[u]);

#pragma unroll
    for (int d = 0; d < S::DIMS; d++)
        rows->out[u][d] = merge(factors, rows->out[u][d], tile.out[u][d]);
    if (u == place.chain_query)
#pragma unroll
        for (int c = 0; c < S::CHAINS; c++)
            rows->sums[c] = merge(factors, rows->sums[c], tile.sums[c]);
}

/* A part: out: [head_dim], sums: [SUM_LANES], max. */
template <typename S>
static __device__ __forceinline__ void put_part(const struct place &place, int u, const struct softmax<S> &tile,
                                                int32_t head_dim, float *part)
{
    if (place.has_dims)
        store_floats<S::DIMS>(part + place.member * S::DIMS, tile.out[u]);
    if (u == place.chain_query)
#pragma unroll
        for (int c = 0; c < S::CHAINS; c++)
            if (chain_lane<S>(place, c) < SUM_LANES)
                part[head_dim + chain_lane<S>(place, c)] = tile.sums[c];
    if (place.member == 0)
        part[head_dim + SUM_LANES] = tile.max[u];
}

template <typename S>
static __device__ __forceinline__ void put_tile(const struct attention_task &task, const struct place &place,
                                                int32_t number, struct softmax<S> *rows,
                                                const struct softmax<S> &tile)
{
    int32_t start = number * KV_TILE_TOKENS, dim = task.kv.head_dim;

#pragma unroll
    for (int u = 0; u < S::OWN; u++) {
        const struct query &query = place.own[u];

        if (query.first >= start + KV_TILE_TOKENS || query.end <= start)
            continue;
        if (query.outcome == WRITTEN)
            merge_tile<S>(place, u, rows, tile);
        else if (query.outcome == PARTS)
            put_part<S>(place, u, tile, dim,
                        task.parts + (query.part + (int64_t)number * task.num_heads) * part_floats(dim));
    }
}

/* SUM_LANES floats, as ref adds them up. */
static __device__ __forceinline__ float sum_lanes(const float *lanes)
{
    float sums[SUM_LANES];

#pragma unroll
    for (int i = 0; i < SUM_LANES; i++)
        sums[i] = lanes[i];
#pragma unroll
    for (int i = 0; i < 8; i++)
        sums[i] += sums[i + 8];
#pragma unroll
    for (int i = 0; i < 4; i++)
        sums[i] += sums[i + 4];
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* All threads: what their queries' softmaxes come to. Weights are not used any more: sums lie there. */
template <typename S>
static __device__ __forceinline__ void put_rows(const struct attention_task &task, const struct place &place,
                                                const struct softmax<S> &rows)
{
    int32_t dim = task.kv.head_dim;

    __syncthreads();
#pragma unroll
    for (int c = 0; c < S::CHAINS; c++)
        if (chain_lane<S>(place, c) < SUM_LANES)
            place.weights[place.chain_query * SUM_LANES + chain_lane<S>(place, c)] = rows.sums[c];
    __syncthreads();
    if (!place.has_dims)
        return;
#pragma unroll
    for (int u = 0; u < S::OWN; u++) {
        const struct query &query = place.own[u];
        int64_t head = (int64_t)query.row * task.num_heads + query.head;
        float inverse = 1.0f / sum_lanes(place.weights + u * SUM_LANES), out[S::DIMS];

        if (query.outcome != WRITTEN)
            continue;
#pragma unroll
        for (int d = 0; d < S::DIMS; d++)
            out[d] = rows.out[u][d] * inverse;
        store_floats<S::DIMS>(task.out + head * dim + place.member * S::DIMS, out);
    }
}

/* ---- all of it ----------------------------------------------------------------------------------------------- */

template <typename S>
static __device__ __forceinline__ void attend_tile(const struct place &place, const struct shared_arrays &arrays,
                                                   struct work *work, struct slabs *slabs, int32_t number,
                                                   struct softmax<S> *tile)
{
    struct block_range range = blocks_of_tile(work->first, work->end, number);
    int32_t dim = slabs->head_dim, per_slab = value_blocks(dim);
    int32_t position = place.member * S::POSITIONS, block = position / KV_BLOCK_TOKENS; /* in the tile */
    bool has_keys = place.is_needed && block >= range.first && block < range.end;
    const float *q = arrays.q + (place.own - work->queries);
    const float *scales = slabs->scales + number % 2 * TILE_SCALES + position; /* of KV_INT8 */
    float scores[S::POSITIONS][S::OWN];

#pragma unroll
    for (int p = 0; p < S::POSITIONS; p++)
#pragma unroll
        for (int u = 0; u < S::OWN; u++)
            scores[p][u] = 0;
    clear<S>(tile);
    for (int32_t i = 0; i < dim; i += SLAB_DIMS) {
        const char *slab = next_slab<S>(slabs, true);

        if (has_keys)
            add_scores<S>(scores,
                          slab + block * S::KEY_STRIDE + position % KV_BLOCK_TOKENS * (HALF_BYTES * S::TOGETHER),
                          q + i * S::Q_STRIDE);
    }

    position += number * KV_TILE_TOKENS;
    if (has_scales<S>(*slabs))
        scale_scores<S>(scores, scales);
    if (place.is_needed)
        find_max<S>(place, scores, position, tile->max, work->max[threadIdx.x / WARP]);
    if (S::TEAM > WARP) {
        __syncthreads();
        join_max<S>(*work, tile->max);
    }
    if (place.is_needed)
        put_weights<S>(place, scores, position, tile->max);
    if (has_scales<S>(*slabs)) {
        __syncthreads();
        if (place.is_needed)
            add_weights<S>(place, range, tile->sums);
        __syncthreads();
        if (place.is_needed)
            scale_weights<S>(place.weights + place.member * S::WEIGHTS, scales + KV_TILE_TOKENS);
    }

    for (int32_t first = range.first; first < range.end; first += per_slab) {
        const char *values = next_slab<S>(slabs, false) + place.member * S::DIMS * (HALF_BYTES * S::TOGETHER);

        if (!place.is_needed || !place.has_dims)
            continue;
        for (int32_t b = first; b < min(first + per_slab, range.end); b++) {
            add_values<S>(place, tile->out, values, dim * HALF_BYTES,
                          place.weights + weights_at<S>(b * KV_BLOCK_TOKENS),
                          number * KV_TILE_TOKENS + b * KV_BLOCK_TOKENS);
            values += KV_BLOCK_TOKENS * dim * HALF_BYTES;
        }
    }
    if (place.is_needed && !has_scales<S>(*slabs))
        add_weights<S>(place, range, tile->sums);
}

#endif
