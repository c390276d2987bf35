/*
 * Tokens from rows of logits, by the law of proto/base/sampling_law.h, whose words are used here. A row is dealt
 * out in pieces, so that few rows fill the device too. Three kernels:
 *
 *  find_best    The largest logit of each piece. Greedy rows need no more.
 *  scan_pieces  Where top_k or top_p cuts: how many tokens of each piece lie how far below the largest of the row,
 *               in 256 bins, and what they weigh. Where neither does, each piece draws.
 *  end_rows     A block for each row puts together what its pieces have found. Where there is a cut, that tells its
 *               bin, and how many tokens lie there and above: mostly few. They are listed, the cut is found among
 *               them, 8 bits of their order at a time, again by bins, and what is kept draws. Where they are too
 *               many for the list, each of these passes goes over the row.
 *
 * Counts and weights are whole numbers, and the largest is the largest in any order: how a row is dealt out does
 * not show.
 */
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/state.h"
#include "proto/base/sampling_law.h"

enum {
    PIECE_THREADS = 512,
    ROW_THREADS = 1024, /* of end_rows */
    SPAN_QUADS = 2,     /* that a thread has on their way at once */
    SPAN = SPAN_QUADS * QUAD,
    LEAST_PIECE = SPAN * PIECE_THREADS, /* tokens */
    PIECE_UNIT = 128,                   /* pieces begin at multiples: lines of logits, words of masks */
    NUM_BINS = 256,
    LANE_BINS = NUM_BINS / WARP,
    MAX_LISTED = 4096,
    LIFTS = 23, /* beyond the last the largest noise is needed, see least_bits */
};

/* Bins that say how far below the largest a token lies: so many to a unit, of x where the cut is one of weights, of
 * logits where it is one of counts. The last has all that lies 32 units below, or more. */
#define BINS_PER_UNIT 8.0f

/* What is drawn is the first. */
struct drawn {
    double value;  /* a logit, or x and its noise */
    int32_t token; /* -1: none */
};

/* By value: all pointers are the device's. */
struct draw_task {
    const float *logits; /* [rows, num_tokens] */
    const struct draw_row *draws;
    const uint32_t *masks;
    int32_t words, num_tokens;
    int32_t *drawn, *last_tokens;
    bool aligned;                 /* logits can be read as quads */
    int32_t pieces, piece_tokens; /* of a row; the last may be shorter */
    int32_t grid_bits;

    /* what pieces find, [rows, pieces] */
    struct drawn *best, *lots;
    uint32_t *counts;  /* [.., NUM_BINS] */
    uint64_t *weights; /* likewise */
};

/* Where tokens are read. */
struct row {
    const float *logits;
    const uint32_t *mask; /* NULL: all are allowed */
    float temperature;    /* 1: greedy too */
    int32_t end;          /* tokens from here on are not read */
    bool aligned;
};

/* How a row is drawn. */
struct choice {
    struct row row;
    const struct draw_row *draw; /* what is wanted of it once, or late */
    int32_t top_k;               /* 0: off */
    float top_p;                 /* 1: off */
    bool is_greedy;
    int32_t best;   /* the first token; -1: none can come */
    float max;      /* its x */
    uint64_t least; /* in order: what comes behind is out, by min_p, or because it can't come */
    float bins_per_x;
    int32_t grid_bits;
};

/* ---- tokens -------------------------------------------------------------------------------------------------- */

/* Of two tokens the one with the larger number comes first. */
static __device__ __forceinline__ uint64_t order_of(float x, int32_t token)
{
    return (uint64_t)key_of_logit(x) << 32 | ~(uint32_t)token;
}

static __device__ __forceinline__ int32_t token_of(uint64_t order)
{
    return (int32_t)~(uint32_t)order;
}

static __device__ __forceinline__ float x_of(uint64_t order)
{
    return logit_of_key((uint32_t)(order >> 32));
}

static __device__ __forceinline__ bool is_better(struct drawn a, struct drawn b)
{
    return b.token < 0 ? a.token >= 0
                       : a.token >= 0 && (a.value != b.value ? a.value > b.value : a.token < b.token);
}

/* In all lanes. */
static __device__ __forceinline__ struct drawn best_of_warp(struct drawn best)
{
#pragma unroll
    for (int width = WARP / 2; width; width /= 2) {
        struct drawn other;

        other.value = __shfl_xor_sync(ALL_LANES, best.value, width);
        other.token = __shfl_xor_sync(ALL_LANES, best.token, width);
        if (is_better(other, best))
            best = other;
    }
    return best;
}

/* In all threads. Once in a kernel. */
static __device__ __forceinline__ struct drawn best_of_block(struct drawn best)
{
    __shared__ struct drawn of_warps[ROW_THREADS / WARP];
    int32_t lane = (int32_t)threadIdx.x % WARP;

    best = best_of_warp(best);
    if (lane == 0)
        of_warps[threadIdx.x / WARP] = best;
    __syncthreads();
    if (lane < (int32_t)(blockDim.x / WARP))
        best = of_warps[lane];
    return best_of_warp(best);
}

/* Of what a row's pieces found; in all lanes. */
static __device__ __forceinline__ struct drawn best_of_pieces(const struct draw_task &task,
                                                              const struct drawn *found, int32_t row)
{
    struct drawn best = {-INFINITY, -1};

    for (int32_t i = (int32_t)threadIdx.x % WARP; i < task.pieces; i += WARP) {
        struct drawn other = found[(int64_t)row * task.pieces + i];

        if (is_better(other, best))
            best = other;
    }
    return best_of_warp(best);
}

/* ---- reading a row ------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ struct row row_at(const struct draw_task &task, const struct draw_row &draw,
                                                    int32_t index)
{
    struct row row;

    row.logits = task.logits + (int64_t)index * task.num_tokens;
    row.mask = draw.mask < 0 || !task.masks ? NULL : task.masks + (int64_t)draw.mask * task.words;
    row.temperature = draw.temperature < GREEDY_TEMPERATURE ? 1.0f : fmaxf(draw.temperature, LEAST_TEMPERATURE);
    row.end = task.num_tokens;
    row.aligned = task.aligned;
    return row;
}

/* Makes the row end where this block's piece does; returns where it begins. */
static __device__ __forceinline__ int32_t take_piece(const struct draw_task &task, struct row *row)
{
    int32_t begin = (int32_t)blockIdx.x % task.pieces * task.piece_tokens;

    row->end = min(begin + task.piece_tokens, task.num_tokens);
    return begin;
}

/* Logits of tokens [t, t + 4), t a multiple of 4; -inf for what is forbidden or not there. */
static __device__ __forceinline__ float4 load_logits(const struct row &row, int32_t t)
{
    int32_t left = row.end - t;
    uint32_t allowed = left >= QUAD ? 15u : left > 0 ? (1u << left) - 1 : 0;
    float4 x = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);

    if (row.mask && allowed)
        allowed &= row.mask[t / 32] >> t % 32;
    if (allowed == 0)
        return x;
    if (row.aligned && allowed == 15u)
        return load_quad(row.logits + t);
    if (allowed & 1u)
        x.x = row.logits[t];
    if (allowed & 2u)
        x.y = row.logits[t + 1];
    if (allowed & 4u)
        x.z = row.logits[t + 2];
    if (allowed & 8u)
        x.w = row.logits[t + 3];
    return x;
}

/* A thread's part of the SPAN * blockDim.x tokens from `first` on: quads, token_in_span tells whose. */
static __device__ __forceinline__ void load_span(const struct row &row, int32_t first, float *logits)
{
#pragma unroll
    for (int q = 0; q < SPAN_QUADS; q++) {
        float4 quad = load_logits(row, first + (int32_t)(q * blockDim.x + threadIdx.x) * QUAD);

        logits[q * QUAD] = quad.x;
        logits[q * QUAD + 1] = quad.y;
        logits[q * QUAD + 2] = quad.z;
        logits[q * QUAD + 3] = quad.w;
    }
}

static __device__ __forceinline__ int32_t token_in_span(int32_t first, int i)
{
    return first + (int32_t)(i / QUAD * blockDim.x + threadIdx.x) * QUAD + i % QUAD;
}

static __device__ __forceinline__ float scaled(const struct row &row, float logit)
{
    float x = row.temperature == 1.0f ? logit : logit / row.temperature;

    return x > -INFINITY ? x : -INFINITY; /* NaN too */
}

/* ---- bins ---------------------------------------------------------------------------------------------------- */

/* In shared memory, where atomics are of 32 bits. */
struct bins {
    uint32_t count[NUM_BINS];
    uint32_t low[NUM_BINS], high[NUM_BINS]; /* halves of the weight */
};

/* Tokens that a thread has counted and not yet added to their bin: flat rows have long runs of one bin. */
struct run {
    int32_t bin;
    uint32_t count;
    uint64_t weight;
};

static __device__ __forceinline__ void zero_bins(struct bins *bins)
{
    for (int32_t b = (int32_t)threadIdx.x; b < NUM_BINS; b += (int32_t)blockDim.x)
        bins->count[b] = bins->low[b] = bins->high[b] = 0;
}

static __device__ __forceinline__ void end_run(struct bins *bins, const struct run *run)
{
    if (run->count == 0)
        return;
    atomicAdd(&bins->count[run->bin], run->count);
    if (run->weight == 0)
        return;

    uint32_t low = (uint32_t)run->weight, before = atomicAdd(&bins->low[run->bin], low);
    uint32_t high = (uint32_t)(run->weight >> 32) + (before + low < before); /* each overflow carries once */

    if (high)
        atomicAdd(&bins->high[run->bin], high);
}

static __device__ __forceinline__ void count_token(struct bins *bins, struct run *run, int32_t bin, uint64_t weight)
{
    if (bin != run->bin) {
        end_run(bins, run);
        run->bin = bin;
        run->count = 0;
        run->weight = 0;
    }
    run->count++;
    run->weight += weight;
}

static __device__ __forceinline__ uint64_t bin_weight(const struct bins *bins, int32_t b)
{
    return (uint64_t)bins->high[b] << 32 | bins->low[b];
}

/* How far below the largest; the same for equals, and never less for what comes behind. */
static __device__ __forceinline__ int32_t bin_of(const struct choice &choice, float x)
{
    float below = (choice.max - x) * choice.bins_per_x;

    return below < NUM_BINS - 1 ? (int32_t)below : NUM_BINS - 1; /* inf - inf too */
}

static __device__ __forceinline__ uint64_t weigh(const struct choice &choice, float x)
{
    return choice.max - x >= 40.0f ? 0 : weight_of(x, choice.max, choice.grid_bits);
}

/* ---- lots ---------------------------------------------------------------------------------------------------- */

/* Of a block, in shared memory. */
struct urn {
    uint32_t bound;        /* key of what has been drawn at least, as a float */
    uint32_t least[LIFTS]; /* least_bits of whole numbers */
};

/* Rounded down: then a float knows a lift as well as least_bits wants it. */
static __device__ __forceinline__ uint32_t key_below(double value)
{
    float rounded = (float)value;
    uint32_t key = key_of_logit(rounded);

    return (double)rounded > value ? key - 1 : key;
}

/* Before a barrier. The largest is always kept, and has the least noise at least. */
static __device__ __forceinline__ void fill_urn(struct urn *urn, const struct choice &choice)
{
    if (threadIdx.x < LIFTS)
        urn->least[threadIdx.x] = least_bits((double)threadIdx.x);
    if (threadIdx.x == 0)
        urn->bound = key_below((double)choice.max + MIN_GUMBEL);
}

static __device__ __forceinline__ float bound_of(const struct urn *urn)
{
    return logit_of_key(*(const volatile uint32_t *)&urn->bound);
}

/* Whether these bits may lift x to the bound. */
static __device__ __forceinline__ bool may_win(const struct urn *urn, float bound, float x, uint32_t bits)
{
    float lift = bound - x;

    return !(lift > 0) || bits >= urn->least[(int32_t)fminf(lift, LIFTS - 1)];
}

static __device__ __forceinline__ void draw_lot(struct urn *urn, float x, int32_t token, uint32_t bits,
                                                struct drawn *best)
{
    struct drawn drawn = {(double)x + gumbel(bits), token};

    if (!is_better(drawn, *best))
        return;
    *best = drawn;
    atomicMax(&urn->bound, key_below(drawn.value));
}

/* words: [4], of the quad in which the token is. */
static __device__ __forceinline__ void draw_words(const struct choice &choice, int32_t token, uint32_t *words)
{
    philox4x32(choice.draw->seed, (uint64_t)choice.draw->position, (uint64_t)token / QUAD, words);
}

static __device__ __forceinline__ uint32_t pick(const uint32_t *words, int i)
{
    return i < 2 ? i == 0 ? words[0] : words[1] : i == 2 ? words[2] : words[3];
}

static __device__ __forceinline__ float pick(const float *x, int i)
{
    return i < 2 ? i == 0 ? x[0] : x[1] : i == 2 ? x[2] : x[3];
}

/* x: of tokens [token, token + 4), all kept but those behind `cut` or in bins behind last_bin. */
static __device__ __forceinline__ void draw_quad(struct urn *urn, const struct choice &choice, uint64_t cut,
                                                 int32_t last_bin, const float *x, int32_t token,
                                                 struct drawn *best)
{
    float most = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), bound = bound_of(urn);
    uint32_t words[QUAD], hopeful = 0;

    if (order_of(most, 0) < cut || bound - most > (float)MAX_GUMBEL)
        return;
    draw_words(choice, token, words);
#pragma unroll
    for (int i = 0; i < QUAD; i++)
        if (order_of(x[i], token + i) >= cut && may_win(urn, bound, x[i], words[i]))
            hopeful |= 1u << i;
    while (hopeful) { /* so that logarithms are in one place: few come here */
        int i = __ffs((int)hopeful) - 1;
        float lot = pick(x, i);

        hopeful &= hopeful - 1;
        if (bin_of(choice, lot) <= last_bin)
            draw_lot(urn, lot, token + i, pick(words, i), best);
    }
}

/* A thread's first, of those that the block reads from `begin` on. */
static __device__ __forceinline__ struct drawn draw_from_row(struct urn *urn, const struct choice &choice,
                                                             uint64_t cut, int32_t last_bin, int32_t begin)
{
    struct drawn best = {-INFINITY, -1};

    for (int32_t first = begin; first < choice.row.end; first += (int32_t)(SPAN * blockDim.x)) {
        float x[SPAN];

        load_span(choice.row, first, x);
#pragma unroll
        for (int i = 0; i < SPAN; i++)
            x[i] = scaled(choice.row, x[i]);
#pragma unroll
        for (int q = 0; q < SPAN_QUADS; q++)
            draw_quad(urn, choice, cut, last_bin, x + q * QUAD, token_in_span(first, q * QUAD), &best);
    }
    return best;
}

static __device__ __forceinline__ struct drawn draw_from_list(struct urn *urn, const struct choice &choice,
                                                              uint64_t cut, const uint64_t *list,
                                                              int32_t num_listed)
{
    struct drawn best = {-INFINITY, -1};

    for (int32_t i = (int32_t)threadIdx.x; i < num_listed; i += (int32_t)blockDim.x) {
        int32_t token = token_of(list[i]);
        uint32_t words[QUAD], bits;

        if (list[i] < cut)
            continue;
        draw_words(choice, token, words);
        bits = pick(words, token % QUAD);
        if (may_win(urn, bound_of(urn), x_of(list[i]), bits))
            draw_lot(urn, x_of(list[i]), token, bits, &best);
    }
    return best;
}

/* ---- pieces -------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ bool has_cut(const struct choice &choice)
{
    return choice.top_k > 0 || choice.top_p < 1;
}

static __device__ __forceinline__ struct choice choose(const struct draw_task &task, int32_t index)
{
    struct draw_row draw = task.draws[index];
    struct drawn best = best_of_pieces(task, task.best, index);
    struct choice choice;

    choice.row = row_at(task, draw, index);
    choice.draw = &task.draws[index];
    choice.top_k = draw.top_k > 0 && draw.top_k < task.num_tokens ? draw.top_k : 0;
    choice.top_p = draw.top_p;
    choice.is_greedy = draw.temperature < GREEDY_TEMPERATURE;
    choice.max = scaled(choice.row, (float)best.value);
    choice.best = choice.max > -INFINITY ? best.token : -1;
    choice.least = (uint64_t)(key_of_logit(-INFINITY) + 1) << 32;
    if (draw.min_p > 0)
        choice.least = max(choice.least, (uint64_t)key_of_logit(least_of_min_p(draw.min_p, choice.max)) << 32);
    choice.bins_per_x = choice.top_k > 0 ? BINS_PER_UNIT * choice.row.temperature : BINS_PER_UNIT;
    choice.grid_bits = task.grid_bits;
    return choice;
}

/* Of the logits before they are divided, which may make equals of more, and leaves the largest the largest. */
static __global__ void __launch_bounds__(PIECE_THREADS) find_best(struct draw_task task)
{
    int32_t index = (int32_t)blockIdx.x / task.pieces;
    struct row row = row_at(task, task.draws[index], index);
    int32_t begin = take_piece(task, &row), token = -1;
    float most = -INFINITY;

    for (int32_t first = begin; first < row.end; first += SPAN * PIECE_THREADS) {
        float logits[SPAN];

        load_span(row, first, logits);
#pragma unroll
        for (int i = 0; i < SPAN; i++)
            if (logits[i] > most) { /* false for NaN */
                most = logits[i];
                token = token_in_span(first, i);
            }
    }

    struct drawn best = best_of_block({(double)most, token});

    if (threadIdx.x == 0)
        task.best[blockIdx.x] = best;
}

static __device__ __forceinline__ void count_piece(const struct draw_task &task, const struct choice &choice,
                                                   int32_t begin)
{
    __shared__ struct bins bins;
    int64_t at = (int64_t)blockIdx.x * NUM_BINS;
    bool weighs = choice.top_k == 0; /* where counts decide, weights are wanted of few */
    struct run run = {-1, 0, 0};

    zero_bins(&bins);
    __syncthreads();
    for (int32_t first = begin; first < choice.row.end; first += SPAN * PIECE_THREADS) {
        float logits[SPAN];

        load_span(choice.row, first, logits);
#pragma unroll
        for (int i = 0; i < SPAN; i++) {
            float x = scaled(choice.row, logits[i]);

            if (order_of(x, 0) >= choice.least)
                count_token(&bins, &run, bin_of(choice, x), weighs ? weigh(choice, x) : 0);
        }
    }
    end_run(&bins, &run);
    __syncthreads();
    for (int32_t b = (int32_t)threadIdx.x; b < NUM_BINS; b += PIECE_THREADS) {
        task.counts[at + b] = bins.count[b];
        task.weights[at + b] = bin_weight(&bins, b);
    }
}

static __device__ __forceinline__ void draw_piece(const struct draw_task &task, const struct choice &choice,
                                                  int32_t begin)
{
    __shared__ struct urn urn;

    fill_urn(&urn, choice);
    __syncthreads();

    struct drawn best = best_of_block(draw_from_row(&urn, choice, choice.least, NUM_BINS, begin));

    if (threadIdx.x == 0)
        task.lots[blockIdx.x] = best;
}

static __global__ void __launch_bounds__(PIECE_THREADS) scan_pieces(struct draw_task task)
{
    struct choice choice = choose(task, (int32_t)blockIdx.x / task.pieces);
    int32_t begin = take_piece(task, &choice.row);

    if (choice.is_greedy || choice.best < 0)
        return;
    if (has_cut(choice))
        count_piece(task, choice, begin);
    else
        draw_piece(task, choice, begin);
}

/* ---- the cut ------------------------------------------------------------------------------------------------- */

/* Where it is looked for, in shared memory. */
struct search {
    struct bins bins;
    uint64_t weight; /* top_p's: of all that is chosen among */
    uint64_t above;  /* weight of the tokens above the bin in which the cut lies */
    uint32_t num_above;
    int32_t bin;
    uint32_t count; /* of the tokens in it */
};

/* Tokens that a search is among: of bins first_bin to last_bin, as bin_of says, and from `least` on in order. */
struct field {
    const uint64_t *list;
    int32_t num_listed; /* -1: the row is read */
    int32_t first_bin, last_bin;
    uint64_t least;
};

static __device__ __forceinline__ bool is_in_field(const struct choice &choice, const struct field &field,
                                                   uint64_t order)
{
    if (order < field.least)
        return false;

    int32_t bin = bin_of(choice, x_of(order));

    return bin >= field.first_bin && bin <= field.last_bin;
}

/*
 * The first warp finds the bin in which the cut lies, top_p's by weight, else top_k's; or the last with tokens,
 * where there are fewer than top_k keeps. Bins are in order. is_first: of this search, so that all that is chosen
 * among is in them.
 */
template <bool by_weight>
static __device__ __forceinline__ void take_bin(const struct choice &choice, struct search *search, bool is_first)
{
    int32_t lane = (int32_t)threadIdx.x, bin = -1;
    bool is_cut = false;
    uint64_t own = 0, before; /* weights: of this lane's bins, of all in lanes before it */
    uint32_t num_own = 0, num_before;
    uint64_t above = 0;
    uint32_t num_above = 0, count = 0;

    if (lane >= WARP)
        return;
    for (int i = 0; i < LANE_BINS; i++) {
        num_own += search->bins.count[lane * LANE_BINS + i];
        own += bin_weight(&search->bins, lane * LANE_BINS + i);
    }
    before = own;
    num_before = num_own;
#pragma unroll
    for (int width = 1; width < WARP; width *= 2) {
        uint64_t weight = __shfl_sync(ALL_LANES, before, max(lane - width, 0));
        uint32_t num = __shfl_sync(ALL_LANES, num_before, max(lane - width, 0));

        before += lane >= width ? weight : 0;
        num_before += lane >= width ? num : 0;
    }

    uint64_t all = __shfl_sync(ALL_LANES, before, WARP - 1);
    uint64_t chosen_among = by_weight && is_first ? all : search->weight;

    before += search->above - own;
    num_before += search->num_above - num_own;
    for (int i = 0; i < LANE_BINS && !is_cut; i++) {
        int32_t b = lane * LANE_BINS + i;

        if (search->bins.count[b] == 0)
            continue;
        bin = b;
        count = search->bins.count[b];
        above = before;
        num_above = num_before;
        before += bin_weight(&search->bins, b);
        num_before += count;
        is_cut = by_weight ? is_enough(choice.top_p, before, chosen_among)
                           : num_before >= (uint32_t)choice.top_k;
    }

    uint32_t cuts = __ballot_sync(ALL_LANES, is_cut), tokens = __ballot_sync(ALL_LANES, bin >= 0);

    __syncwarp(); /* all have read what one of them writes */
    if (lane == (cuts ? __ffs((int)cuts) - 1 : WARP - 1 - __clz((int)tokens))) {
        search->weight = chosen_among;
        search->above = above;
        search->num_above = num_above;
        search->bin = bin;
        search->count = count;
    }
}

/* Counts the tokens of the field that begin as `prefix` does, above the lowest shift + 8 bits, by their next 8. */
template <bool by_weight>
static __device__ __forceinline__ void count_order(const struct choice &choice, const struct field &field,
                                                   uint64_t prefix, int32_t shift, struct search *search,
                                                   struct run *run, uint64_t order)
{
    uint64_t next = (order ^ prefix) >> shift;

    if (next < NUM_BINS && is_in_field(choice, field, order))
        count_token(&search->bins, run, NUM_BINS - 1 - (int32_t)next,
                    by_weight ? weigh(choice, x_of(order)) : 0);
}

template <bool by_weight>
static __device__ __forceinline__ void count_field(const struct choice &choice, const struct field &field,
                                                   uint64_t prefix, int32_t shift, struct search *search)
{
    struct run run = {-1, 0, 0};

    for (int32_t i = (int32_t)threadIdx.x; i < field.num_listed; i += ROW_THREADS)
        count_order<by_weight>(choice, field, prefix, shift, search, &run, field.list[i]);
    if (field.num_listed < 0)
        for (int32_t first = 0; first < choice.row.end; first += SPAN * ROW_THREADS) {
            float logits[SPAN];

            load_span(choice.row, first, logits);
#pragma unroll
            for (int i = 0; i < SPAN; i++)
                count_order<by_weight>(choice, field, prefix, shift, search, &run,
                                       order_of(scaled(choice.row, logits[i]), token_in_span(first, i)));
        }
    end_run(&search->bins, &run);
}

/* Are all tokens of the bin kept? */
template <bool by_weight>
static __device__ __forceinline__ bool is_found(const struct choice &choice, const struct search *search)
{
    return by_weight ? search->count == 1 : search->num_above + search->count <= (uint32_t)choice.top_k;
}

/* Where the field is cut, in order; the search knows what is above it. Equals are told apart by top_p alone. */
template <bool by_weight>
static __device__ __forceinline__ uint64_t find_cut(const struct choice &choice, const struct field &field,
                                                    struct search *search, bool is_first)
{
    uint64_t prefix = 0;

    for (int32_t shift = 56; shift >= (by_weight ? 0 : 32); shift -= 8) {
        zero_bins(&search->bins);
        __syncthreads();
        count_field<by_weight>(choice, field, prefix, shift, search);
        __syncthreads();
        take_bin<by_weight>(choice, search, is_first && shift == 56);
        __syncthreads();
        prefix |= (uint64_t)(NUM_BINS - 1 - search->bin) << shift;
        if (is_found<by_weight>(choice, search))
            break;
    }
    return prefix;
}

/* The bins of all pieces. */
static __device__ __forceinline__ void gather_bins(const struct draw_task &task, struct bins *bins)
{
    for (int32_t b = (int32_t)threadIdx.x; b < NUM_BINS; b += ROW_THREADS) {
        int64_t at = (int64_t)blockIdx.x * task.pieces * NUM_BINS + b;
        uint32_t count = 0;
        uint64_t weight = 0;

        for (int32_t piece = 0; piece < task.pieces; piece++, at += NUM_BINS) {
            count += task.counts[at];
            weight += task.weights[at];
        }
        bins->count[b] = count;
        bins->low[b] = (uint32_t)weight;
        bins->high[b] = (uint32_t)(weight >> 32);
    }
}

/* list: [MAX_LISTED], in no order, of as many as are in the field. */
static __device__ __forceinline__ void list_field(const struct choice &choice, const struct field &field,
                                                  uint64_t *list, int32_t *num_listed)
{
    for (int32_t first = 0; first < choice.row.end; first += SPAN * ROW_THREADS) {
        float logits[SPAN];

        load_span(choice.row, first, logits);
#pragma unroll
        for (int i = 0; i < SPAN; i++) {
            uint64_t order = order_of(scaled(choice.row, logits[i]), token_in_span(first, i));

            if (is_in_field(choice, field, order))
                list[atomicAdd(num_listed, 1)] = order;
        }
    }
}

/* A row that top_k or top_p cuts; in all threads. */
static __device__ __forceinline__ int32_t draw_cut_row(const struct draw_task &task, const struct choice &choice)
{
    __shared__ struct search search;
    __shared__ struct urn urn;
    __shared__ uint64_t list[MAX_LISTED];
    __shared__ int32_t num_listed;
    struct field field = {list, -1, 0, 0, choice.least};

    fill_urn(&urn, choice);
    gather_bins(task, &search.bins);
    if (threadIdx.x == 0) {
        num_listed = 0;
        search.weight = search.above = 0;
        search.num_above = 0;
    }
    __syncthreads();
    if (choice.top_k > 0)
        take_bin<false>(choice, &search, true);
    else
        take_bin<true>(choice, &search, true);
    __syncthreads();
    field.last_bin = search.bin;
    if (search.num_above + search.count <= MAX_LISTED) {
        list_field(choice, field, list, &num_listed);
        __syncthreads();
        field.num_listed = num_listed;
    }
    field.first_bin = field.last_bin;
    if (choice.top_k > 0) {
        field.least = max(field.least, find_cut<false>(choice, field, &search, false));
        field.first_bin = 0; /* top_p chooses among all that is left; no weight is above, as none was counted */
    }
    if (choice.top_p < 1)
        field.least = max(field.least, find_cut<true>(choice, field, &search, choice.top_k > 0));

    struct drawn best = field.num_listed < 0 ? draw_from_row(&urn, choice, field.least, field.last_bin, 0)
                                             : draw_from_list(&urn, choice, field.least, list, field.num_listed);

    return best_of_block(best).token;
}

static __global__ void __launch_bounds__(ROW_THREADS) end_rows(struct draw_task task)
{
    struct choice choice = choose(task, (int32_t)blockIdx.x);
    int32_t token = choice.best;

    if (!choice.is_greedy && token >= 0)
        token = has_cut(choice) ? draw_cut_row(task, choice)
                                : best_of_pieces(task, task.lots, (int32_t)blockIdx.x).token;
    if (threadIdx.x == 0) {
        task.drawn[blockIdx.x] = token;
        task.last_tokens[task.draws[blockIdx.x].slot] = max(token, 0);
    }
}

/* ---- launches ------------------------------------------------------------------------------------------------ */

/* How rows are dealt out: two blocks to a processor, where the pieces don't get too small. */
static void deal_out(const struct cuda_state *state, struct draw_task *task, int32_t rows)
{
    int64_t most = divide_up(task->num_tokens, LEAST_PIECE);
    int64_t wanted = max((int64_t)1, min((int64_t)(2 * state->num_processors / rows), most));

    task->piece_tokens = (int32_t)round_up(divide_up_64(task->num_tokens, wanted), PIECE_UNIT);
    task->pieces = divide_up(task->num_tokens, task->piece_tokens);
}

/* Gives each kind of what pieces find its place in the scratch memory; returns for how many rows there is room. */
static int32_t share_scratch(const struct cuda_state *state, struct draw_task *task)
{
    int64_t piece_bytes = NUM_BINS * (int64_t)(sizeof *task->weights + sizeof *task->counts) +
                          2 * (int64_t)sizeof(struct drawn);
    int64_t rows = state->scratch_bytes / (piece_bytes * task->pieces), pieces = rows * task->pieces;

    task->weights = (uint64_t *)state->scratch;
    task->best = (struct drawn *)(task->weights + pieces * NUM_BINS);
    task->lots = task->best + pieces;
    task->counts = (uint32_t *)(task->lots + pieces);
    return (int32_t)min(rows, (int64_t)1 << 20);
}

extern "C" void draw_rows_cuda(struct device *dev, const struct draw_rows_args *args)
{
    struct cuda_state *state = state_of(dev);
    struct draw_task task = {};
    int32_t most;

    if (args->rows == 0)
        return;
    task.num_tokens = args->num_tokens;
    task.masks = args->masks;
    task.words = args->words;
    task.last_tokens = args->last_tokens;
    task.aligned = is_aligned(args->logits) && args->num_tokens % QUAD == 0;
    task.grid_bits = grid_bits_for(args->num_tokens);
    deal_out(state, &task, args->rows);
    most = share_scratch(state, &task);
    for (int32_t row = 0; row < args->rows; row += most) {
        int32_t rows = min(args->rows - row, most);
        dim3 pieces((unsigned)(rows * task.pieces));

        task.logits = args->logits + (int64_t)row * args->num_tokens;
        task.draws = args->draws + row;
        task.drawn = args->drawn + row;
        launch(find_best, pieces, dim3(PIECE_THREADS), 0, state->stream, task);
        note_launch(state);
        launch(scan_pieces, pieces, dim3(PIECE_THREADS), 0, state->stream, task);
        note_launch(state);
        launch(end_rows, dim3((unsigned)rows), dim3(ROW_THREADS), 0, state->stream, task);
        note_launch(state);
    }
}

/* A block for each row. */
static __global__ void __launch_bounds__(PIECE_THREADS) forbid(struct mask_rows_args args)
{
    int32_t index = args.draws[blockIdx.x].mask;
    float *logits = args.logits + (int64_t)blockIdx.x * args.num_tokens;
    const uint32_t *mask = args.masks + (int64_t)index * args.words;

    if (index < 0)
        return;
    for (int32_t t = (int32_t)threadIdx.x; t < args.num_tokens; t += PIECE_THREADS) {
        int32_t bit = args.first_token % 32 + t;

        if (!(mask[bit / 32] >> bit % 32 & 1u))
            logits[t] = -INFINITY;
    }
}

extern "C" void mask_rows_cuda(struct device *dev, const struct mask_rows_args *args)
{
    struct cuda_state *state = state_of(dev);

    if (args->rows == 0)
        return;
    launch(forbid, dim3((unsigned)args->rows), dim3(PIECE_THREADS), 0, state->stream, *args);
    note_launch(state);
}

static __global__ void __launch_bounds__(PIECE_THREADS) take_last(int32_t *ids, int32_t rows,
                                                                 const int32_t *last_tokens)
{
    int32_t row = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);

    if (row < rows && ids[row] < 0)
        ids[row] = last_tokens[-1 - ids[row]];
}

extern "C" void take_last_tokens_cuda(struct device *dev, int32_t *ids, int32_t rows, const int32_t *last_tokens)
{
    struct cuda_state *state = state_of(dev);

    if (rows == 0)
        return;
    launch(take_last, dim3((unsigned)divide_up(rows, PIECE_THREADS)), dim3(PIECE_THREADS), 0,
           state->stream, ids, rows, last_tokens);
    note_launch(state);
}
