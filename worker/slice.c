#include "worker/slice.h"

#include "proto/base/memory.h"
#include "proto/base/rounding.h"
#include "worker/philox.h"
#include "worker/wide.h"

#include <math.h>

/* Tokens [64 b, 64 b + 64) are block b, wherever slices begin. */
enum { BLOCK = 64 };

/* The tokens of a slice in one block, at their places; -inf elsewhere and where there is no number.
 */
struct block {
    float x[BLOCK];
    float max;
    int32_t first_token; /* of the block, not of the slice */
};

/* x[i] = from[i] / temperature, -inf for what is no number; returns the largest. */
WIDE static float scale(const float *from, float temperature, float *x)
{
    float max[16], most;

    if (temperature == 1)
        for (int i = 0; i < BLOCK; i++) /* false for NaN */
            x[i] = from[i] > -INFINITY ? from[i] : -INFINITY;
    else
        for (int i = 0; i < BLOCK; i++)
            x[i] = from[i] / temperature > -INFINITY ? from[i] / temperature : -INFINITY;
    for (int j = 0; j < 16; j++)
        max[j] = x[j] > x[j + 16] ? x[j] : x[j + 16];
    for (int j = 0; j < 16; j++)
        max[j] = max[j] > x[j + 32] ? max[j] : x[j + 32];
    for (int j = 0; j < 16; j++)
        max[j] = max[j] > x[j + 48] ? max[j] : x[j + 48];
    for (int j = 0; j < 8; j++)
        max[j] = max[j] > max[j + 8] ? max[j] : max[j + 8];
    for (int j = 0; j < 4; j++)
        max[j] = max[j] > max[j + 4] ? max[j] : max[j + 4];
    most = max[0] > max[1] ? max[0] : max[1];
    most = most > max[2] ? most : max[2];
    return most > max[3] ? most : max[3];
}

static void load(const struct slice *slice, int32_t b, struct block *block)
{
    int32_t at = b * BLOCK - slice->first_token;
    float part[BLOCK];
    const float *from = part;

    block->first_token = b * BLOCK;
    if (at >= 0 && at + BLOCK <= slice->num_tokens)
        from = slice->logits + at;
    else
        for (int32_t i = 0; i < BLOCK; i++)
            part[i] = at + i >= 0 && at + i < slice->num_tokens ? slice->logits[at + i] : -INFINITY;
    block->max = scale(from, slice->temperature, block->x);
}

static int32_t first_block(const struct slice *slice)
{
    return slice->first_token / BLOCK;
}

static int32_t end_block(const struct slice *slice)
{
    return divide_up(slice->first_token + slice->num_tokens, BLOCK);
}

int32_t slice_num_blocks(int32_t first_token, int32_t num_tokens)
{
    return divide_up(first_token + num_tokens, BLOCK) - first_token / BLOCK;
}

static struct candidate candidate_at(const struct block *block, int32_t i)
{
    return (struct candidate){block->x[i], block->first_token + i};
}

/* Can the block have a token that is kept? */
static bool is_block_kept(const struct block *block, struct candidate cut)
{
    return block->max > -INFINITY && block->max >= cut.logit;
}

/* ---- the best ------------------------------------------------------------------------------- */

struct candidate slice_best(const struct slice *slice)
{
    struct candidate best = {-INFINITY, -1};
    struct block block;

    for (int32_t b = first_block(slice); b < end_block(slice); b++) {
        load(slice, b, &block);
        if (block.max <= best.logit)
            continue;
        int32_t i = 0;

        while (block.x[i] != block.max)
            i++;
        best = candidate_at(&block, i);
    }
    return best;
}

static void swap(struct candidate *a, struct candidate *b)
{
    struct candidate held = *a;

    *a = *b;
    *b = held;
}

/* The middle of first, last and the one between them, a good guess at the middle of all. */
static struct candidate guess_pivot(const struct candidate *candidates, int32_t first, int32_t last)
{
    struct candidate a = candidates[first], b = candidates[first + (last - first) / 2],
                     c = candidates[last];

    if (candidate_comes_before(b, a) == candidate_comes_before(a, c))
        return a;
    return candidate_comes_before(a, b) == candidate_comes_before(b, c) ? b : c;
}

static void sort_down_to(struct candidate *candidates, int32_t n, int32_t k)
{
    candidates_heapify(candidates, n);
    for (int32_t i = 0; i < k; i++)
        candidates_pop(candidates, n - i);
    /* the k first lie at the end */
    for (int32_t i = 0; i < k && i < n - 1 - i; i++)
        swap(&candidates[i], &candidates[n - 1 - i]);
}

void candidates_select(struct candidate *candidates, int32_t n, int32_t k)
{
    int32_t first = 0, last = n - 1;

    /* A row may be made so that guesses are bad: after these the rest is sorted. */
    for (int32_t guesses = 0; first < last && k > first && k <= last; guesses++) {
        if (guesses == 40) {
            sort_down_to(candidates + first, last + 1 - first, k - first);
            return;
        }
        struct candidate pivot = guess_pivot(candidates, first, last);
        int32_t i = first, j = last;

        while (i <= j) {
            while (candidate_comes_before(candidates[i], pivot))
                i++;
            while (candidate_comes_before(pivot, candidates[j]))
                j--;
            if (i <= j)
                swap(&candidates[i++], &candidates[j--]);
        }
        if (k <= j)
            last = j;
        else if (k > i)
            first = i;
        else
            return;
    }
}

static void sift_down(struct candidate *heap, int32_t n, int32_t at)
{
    struct candidate moving = heap[at];

    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && candidate_comes_before(heap[child + 1], heap[child]))
            child++;
        if (!candidate_comes_before(heap[child], moving))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

void candidates_heapify(struct candidate *heap, int32_t n)
{
    for (int32_t at = n / 2 - 1; at >= 0; at--)
        sift_down(heap, n, at);
}

struct candidate candidates_pop(struct candidate *heap, int32_t n)
{
    struct candidate first = heap[0];

    heap[0] = heap[n - 1];
    heap[n - 1] = first;
    sift_down(heap, n - 1, 0);
    return first;
}

/* Every block's largest logit: among the k largest of these are k tokens, so no token below them is
 * among the k first. Keeps what `cut` keeps. */
static struct candidate raise_cut(const struct slice *slice, struct candidate cut, int32_t k,
                                  struct candidate *blocks)
{
    struct block block;
    int32_t n = 0;

    for (int32_t b = first_block(slice); b < end_block(slice); b++) {
        load(slice, b, &block);
        if (is_block_kept(&block, cut))
            blocks[n++] = (struct candidate){block.max, b};
    }
    if (n < k)
        return cut;
    candidates_select(blocks, n, k);

    float least = INFINITY;

    for (int32_t i = 0; i < k; i++)
        least = fminf(least, blocks[i].logit);
    return least > cut.logit ? keep_from(least) : cut;
}

int32_t slice_top(const struct slice *slice, struct candidate cut, int32_t k, struct candidate *out,
                  struct candidate *blocks)
{
    struct block block;
    int32_t n = 0;

    cut = raise_cut(slice, cut, k, blocks);
    for (int32_t b = first_block(slice); b < end_block(slice); b++) {
        load(slice, b, &block);
        if (!is_block_kept(&block, cut))
            continue;
        for (int32_t i = 0; i < BLOCK; i++)
            if (block.x[i] > -INFINITY && is_kept(candidate_at(&block, i), cut))
                out[n++] = candidate_at(&block, i);
    }
    if (n <= k)
        return n;
    candidates_select(out, n, k);
    return k;
}

/* ---- weights -------------------------------------------------------------------------------- */

/* out[i] = the weight of x[i]; returns the sum of those that are `least` or larger. */
WIDE static uint64_t weigh(const float *x, float least, float max, double magic, uint64_t *out)
{
    uint64_t sum = 0;

    for (int i = 0; i < BLOCK; i++)
        out[i] = on_grid(exp_down((double)x[i] - max), magic);
    for (int i = 0; i < BLOCK; i++)
        sum += x[i] >= least ? out[i] : 0;
    return sum;
}

uint64_t slice_sum(const struct slice *slice, float least, float max, int32_t grid_bits)
{
    double magic = magic_of(grid_bits);
    struct block block;
    uint64_t weights[BLOCK], sum = 0;

    for (int32_t b = first_block(slice); b < end_block(slice); b++) {
        load(slice, b, &block);
        if (block.max >= least && block.max > -INFINITY)
            sum += weigh(block.x, least, max, magic, weights);
    }
    return sum;
}

WIDE static int32_t count_above(const float *x, float logit)
{
    int32_t n = 0;

    for (int i = 0; i < BLOCK; i++)
        n += x[i] > logit;
    return n;
}

int32_t slice_count_above(const struct slice *slice, float logit)
{
    struct block block;
    int32_t n = 0;

    for (int32_t b = first_block(slice); b < end_block(slice); b++) {
        load(slice, b, &block);
        n += block.max > logit ? count_above(block.x, logit) : 0;
    }
    return n;
}

WIDE static void make_keys(const float *x, uint32_t *out)
{
    for (int i = 0; i < BLOCK; i++)
        out[i] = key_of_logit(x[i]);
}

void slice_count_bins(const struct slice *slice, float least, uint32_t prefix, int32_t shift,
                      float max, int32_t grid_bits, struct bin *bins)
{
    double magic = magic_of(grid_bits);
    uint64_t weights[BLOCK], first = prefix, end = first + ((uint64_t)NUM_BINS << shift);
    uint32_t keys[BLOCK];
    struct block block;

    first = MAX(first, (uint64_t)key_of_logit(least));
    first = MAX(first, (uint64_t)key_of_logit(-INFINITY) + 1);
    for (int32_t b = first_block(slice); b < end_block(slice); b++) {
        load(slice, b, &block);
        if (key_of_logit(block.max) < first)
            continue;
        make_keys(block.x, keys);
        weigh(block.x, -INFINITY, max, magic, weights);
        for (int32_t i = 0; i < BLOCK; i++) {
            if (keys[i] < first || keys[i] >= end)
                continue;
            struct bin *bin = &bins[keys[i] >> shift & (NUM_BINS - 1)];

            bin->count++;
            bin->weight += weights[i];
        }
    }
}

int32_t slice_nth_equal(const struct slice *slice, float logit, int32_t count)
{
    struct block block;

    for (int32_t b = first_block(slice); count > 0 && b < end_block(slice); b++) {
        load(slice, b, &block);
        for (int32_t i = 0; i < BLOCK; i++)
            if (block.x[i] == logit && --count == 0)
                return block.first_token + i;
    }
    return -1;
}

/* ---- the draw ------------------------------------------------------------------------------- */

struct draw {
    uint64_t seed;
    int64_t position;
    struct drawn best;
    uint32_t words[BLOCK]; /* of the block: word t % 64 is token t's */
};

static void offer(struct draw *draw, struct candidate c, uint32_t bits)
{
    if (bits < least_bits(draw->best.value - c.logit))
        return;
    struct drawn drawn = {c.logit + gumbel(bits), c.token};

    if (drawn_is_better(drawn, draw->best))
        draw->best = drawn;
}

/* Makes the block's words; returns how many are this or larger. */
WIDE static int32_t make_words(uint64_t seed, uint64_t position, uint64_t first_counter,
                               uint32_t least, uint32_t *words)
{
    int32_t n = 0;

    philox4x32_row(seed, position, first_counter, words);
    for (int i = 0; i < BLOCK; i++)
        n += words[i] >= least;
    return n;
}

static void draw_block(struct draw *draw, const struct block *block, struct candidate cut)
{
    /* Less than this lifts not even the largest logit above what we have. */
    uint32_t least = least_bits(draw->best.value - block->max);

    if (make_words(draw->seed, (uint64_t)draw->position, (uint64_t)block->first_token / 4, least,
                   draw->words) == 0)
        return;
    for (int32_t i = 0; i < BLOCK; i++)
        if (draw->words[i] >= least && block->x[i] > -INFINITY &&
            is_kept(candidate_at(block, i), cut))
            offer(draw, candidate_at(block, i), draw->words[i]);
}

struct drawn slice_draw(const struct slice *slice, struct candidate cut, uint64_t seed,
                        int64_t position)
{
    struct draw draw = {.seed = seed, .position = position, .best = {-INFINITY, -1}};
    struct block block;

    for (int32_t b = first_block(slice); b < end_block(slice); b++) {
        load(slice, b, &block);
        if (is_block_kept(&block, cut) && block.max + MAX_GUMBEL >= draw.best.value)
            draw_block(&draw, &block, cut);
    }
    return draw.best;
}

struct drawn candidates_draw(const struct candidate *candidates, int32_t n, uint64_t seed,
                             int64_t position)
{
    struct draw draw = {.seed = seed, .position = position, .best = {-INFINITY, -1}};

    for (int32_t i = 0; i < n; i++) {
        struct candidate c = candidates[i];

        if (c.logit + MAX_GUMBEL < draw.best.value)
            continue;
        philox4x32(seed, (uint64_t)position, (uint64_t)c.token / 4, draw.words);
        offer(&draw, c, draw.words[c.token % 4]);
    }
    return draw.best;
}
