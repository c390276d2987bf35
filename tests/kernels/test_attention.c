#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"
#include "tests/support/under_tsan.h"

#include "kernels/cpu/attention_tasks.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <math.h>

/* A few requests with a paged cache whose blocks lie in no order. */
struct model {
    int32_t dim, num_heads, num_kv_heads, window;
    int32_t num_requests;
    const int32_t *lengths; /* tokens of each request */
    enum kv_type type;
};

struct cache {
    struct kv_layer kv;
    int32_t *block_tables;
    int32_t stride;
};

enum { MAX_ROWS = 1200, MAX_REQUESTS = 4 };

struct batch {
    struct batch_view view;
    int32_t row_start[MAX_REQUESTS + 1], positions[MAX_ROWS];
    int32_t *rows; /* [view.rows] which row of the whole problem */
};

static void cache_init(struct cache *cache, const struct model *model)
{
    int32_t num_blocks = 1;

    cache->stride = 0;
    for (int i = 0; i < model->num_requests; i++) {
        int32_t blocks = divide_up(model->lengths[i], KV_BLOCK_TOKENS);

        num_blocks += blocks;
        cache->stride = MAX(cache->stride, blocks + 1);
    }

    int64_t stride = KV_GROUP_BLOCKS * model->num_kv_heads * kv_head_bytes(model->type, model->dim) / 2 + 32; /* a gap */
    size_t count = (size_t)kv_num_groups(num_blocks) * (size_t)stride;

    cache->kv = (struct kv_layer){mem_new_array(uint16_t, count), mem_new_array(uint16_t, count),
                                  num_blocks, model->num_kv_heads, model->dim, stride, model->type};
    /* What an earlier request left, NaN of every type: nothing of it may show. */
    memset(cache->kv.k, 0xff, count * 2);
    memset(cache->kv.v, 0xff, count * 2);
    cache->block_tables = mem_new_array(int32_t, MAX_REQUESTS * cache->stride);

    int32_t next = 0;

    for (int i = 0; i < model->num_requests; i++)
        for (int b = 0; b * KV_BLOCK_TOKENS < model->lengths[i]; b++)
            cache->block_tables[i * cache->stride + b] = num_blocks - 1 - next++;
}

static void cache_close(struct cache *cache)
{
    mem_free(cache->kv.k);
    mem_free(cache->kv.v);
    mem_free(cache->block_tables);
}

/* One array for all rows of all requests, request by request. */
struct rows {
    int32_t count, width_q, width_kv;
    float *q, *k, *v, *out;
};

/* The next `chunk` tokens of every request from `done` on, at most. */
static void batch_init(struct batch *batch, const struct model *model, const struct cache *cache,
                       int32_t done, int32_t chunk)
{
    int32_t rows = 0, whole = 0;

    batch->rows = mem_new_array(int32_t, MAX_ROWS);
    for (int i = 0; i < model->num_requests; i++) {
        batch->row_start[i] = rows;
        for (int32_t p = done; p < MIN(done + chunk, model->lengths[i]); p++) {
            batch->positions[rows] = p;
            batch->rows[rows++] = whole + p;
        }
        whole += model->lengths[i];
    }
    batch->row_start[model->num_requests] = rows;
    batch->view = (struct batch_view){rows, model->num_requests, batch->row_start,
                                      batch->positions, cache->block_tables, cache->stride};
}

static float *pick_rows(const struct batch *batch, const float *all, int32_t width)
{
    float *some = mem_new_array(float, (size_t)batch->view.rows * width + 1);

    for (int32_t r = 0; r < batch->view.rows; r++)
        memcpy(some + (int64_t)r * width, all + (int64_t)batch->rows[r] * width, width * sizeof(float));
    return some;
}

/* How requests are cut into steps: of `chunk` rows, each after as many of one row as `ones` says. */
struct cut {
    int32_t chunk, ones;
};

/* What args->out has come to, as quantize makes codes of it: the same by attention itself. */
static void check_quantized(struct device *dev, struct attention_args args, int32_t rows, int32_t dim)
{
    int32_t k = args.num_heads * dim, blocks = rows * k / 32;
    struct random random = {1};
    struct activations want, quantized;

    activations_init(&want, &random, rows, k);
    activations_init(&quantized, &random, rows, k);
    want.group = quantized.group = activation_group(dim);
    memcpy(want.x, args.out, (size_t)blocks * 32 * sizeof(float));
    quantize_ref(NULL, &want);
    args.out = quantized.x;
    args.quantized = &quantized;
    device_kernels(dev)->attention(dev, &args);
    expect_same_floats("scales", quantized.d, want.d, blocks);
    assert_memory_equal(quantized.q, want.q, (size_t)blocks * 32);
    assert_memory_equal(quantized.sums, want.sums, (size_t)blocks * 2 * sizeof(int16_t));
    activations_close(&want);
    activations_close(&quantized);
}

/* Runs all requests into rows->out. */
static void run_in_order(struct device *dev, const struct model *model, struct rows *rows, struct cut cut,
                         bool device_order)
{
    const struct kernels *kernels = device_kernels(dev);
    struct cache cache;
    int32_t kv_head_of[MAX_HEADS], longest = 0, chunk;

    cache_init(&cache, model);
    for (int h = 0; h < model->num_heads; h++)
        kv_head_of[h] = h * model->num_kv_heads / model->num_heads;
    for (int i = 0; i < model->num_requests; i++)
        longest = MAX(longest, model->lengths[i]);
    for (int32_t done = 0, step = 0; done < longest; done += chunk, step++) {
        struct batch batch;

        chunk = step % (cut.ones + 1) < cut.ones ? 1 : cut.chunk;
        batch_init(&batch, model, &cache, done, chunk);

        AUTO_MEM float *q = pick_rows(&batch, rows->q, rows->width_q);
        AUTO_MEM float *k = pick_rows(&batch, rows->k, rows->width_kv);
        AUTO_MEM float *v = pick_rows(&batch, rows->v, rows->width_kv);
        AUTO_MEM float *out = mem_new_array(float, (size_t)batch.view.rows * rows->width_q + 1);
        struct attention_args args = {.out = out, .q = q, .q_stride = rows->width_q, .kv = &cache.kv,
                                      .batch = &batch.view, .num_heads = model->num_heads,
                                      .kv_head_of = kv_head_of, .scale = 0.125f,
                                      .window = model->window, .device_order = device_order};

        kv_store_ref(&cache.kv, &batch.view, k, rows->width_kv, v, rows->width_kv);
        kernels->attention(dev, &args);
        if (done == 0 && model->dim % 32 == 0)
            check_quantized(dev, args, batch.view.rows, model->dim);
        for (int32_t r = 0; r < batch.view.rows; r++)
            memcpy(rows->out + (int64_t)batch.rows[r] * rows->width_q,
                   out + (int64_t)r * rows->width_q, rows->width_q * sizeof(float));
        mem_free(batch.rows);
    }
    cache_close(&cache);
}

static void run(struct device *dev, const struct model *model, struct rows *rows, int32_t chunk)
{
    run_in_order(dev, model, rows, (struct cut){chunk}, false);
}

static void rows_init(struct rows *rows, const struct model *model)
{
    struct random random = {(uint64_t)model->dim};

    rows->count = 0;
    for (int i = 0; i < model->num_requests; i++)
        rows->count += model->lengths[i];
    rows->width_q = model->num_heads * model->dim;
    rows->width_kv = model->num_kv_heads * model->dim;
    rows->q = mem_new_array(float, rows->count * rows->width_q);
    rows->k = mem_new_array(float, rows->count * rows->width_kv);
    rows->v = mem_new_array(float, rows->count * rows->width_kv);
    rows->out = mem_new_array(float, rows->count * rows->width_q);
    random_hidden(&random, rows->q, (int64_t)rows->count * rows->width_q);
    random_hidden(&random, rows->k, (int64_t)rows->count * rows->width_kv);
    random_hidden(&random, rows->v, (int64_t)rows->count * rows->width_kv);
}

static void rows_close(struct rows *rows)
{
    mem_free(rows->q);
    mem_free(rows->k);
    mem_free(rows->v);
    mem_free(rows->out);
}

static const int32_t lengths[] = {150, 1, 67, 16};
static const int32_t long_lengths[] = {600};
static const int32_t tile_lengths[] = {KV_TILE_TOKENS + 1, 2 * KV_TILE_TOKENS + 40};
static const struct model models[] = {
    {64, 9, 3, 0, 4, lengths, KV_BFLOAT16},   /* SmolLM2 */
    {256, 4, 1, 40, 3, lengths, KV_BFLOAT16}, /* Gemma 3, a local layer */
    {80, 2, 2, 0, 4, lengths, KV_BFLOAT16},
    {16, 5, 1, 1, 2, lengths, KV_BFLOAT16},  /* sees itself alone, be it the first of a pair or the second */
    {64, 3, 1, 0, 1, long_lengths, KV_BFLOAT16},
    {32, 4, 2, 0, 2, tile_lengths, KV_BFLOAT16},
    /* a window that begins in one tile, ends in another */
    {96, 2, 1, KV_TILE_TOKENS + 20, 2, tile_lengths, KV_BFLOAT16},
    {16, 14, 2, 251, 1, long_lengths, KV_BFLOAT16},
    {64, 9, 3, 0, 4, lengths, KV_FLOAT16},
    {32, 4, 2, 0, 2, tile_lengths, KV_FLOAT16},
    {96, 2, 1, KV_TILE_TOKENS + 20, 2, tile_lengths, KV_FLOAT16},
    {16, 14, 2, 250, 1, long_lengths, KV_FLOAT16},
    {80, 4, 2, 0, 4, lengths, KV_FP8},
    {256, 4, 1, 40, 3, lengths, KV_INT8},
    {16, 14, 2, 250, 1, long_lengths, KV_INT8}, /* scales of two tiles on their way to a GPU's shared memory */
    {32, 4, 2, KV_TILE_TOKENS + 20, 2, tile_lengths, KV_FP8},
};

/* Rows are alone in their step where a request begins and on both sides of where tiles do. All of them are so on one
 * thread, since more would mostly wait, and on CPUs: an emulated GPU takes as long for one as for many. */
static void attention_has_the_bits_of_the_specification_whatever_the_chunk(void **state)
{
    static const struct { struct cut cut; int32_t num_threads; } runs[] = {
        {{1200}, 2}, {{7}, 3}, {{46, 5}, 4}, {{1}, 1},
    };

    (void)state;
    for (size_t m = 0; m < COUNT_OF(models); m++) {
        struct rows rows;
        struct device *ref = open_device("ref", 1);

        rows_init(&rows, &models[m]);

        size_t count = (size_t)rows.count * rows.width_q;
        float *want = mem_new_array(float, count);

        run(ref, &models[m], &rows, 1200);
        memcpy(want, rows.out, count * sizeof(float));
        run(ref, &models[m], &rows, 50);
        expect_same_floats("ref in chunks of 50", rows.out, want, (int64_t)count);
        device_close(ref);
        for (const char *const *isa = tested_isas(); *isa; isa++)
            for (size_t r = 0; r < COUNT_OF(runs); r++) {
                if (runs[r].num_threads < FEWEST_THREADS || (runs[r].cut.chunk == 1 && strcmp(*isa, "cuda") == 0))
                    continue;

                struct device *dev = open_device(*isa, runs[r].num_threads);
                char *what = mem_printf("%s, model %zu in chunks of %d after %d of one row", *isa, m,
                                        runs[r].cut.chunk, runs[r].cut.ones);

                memset(rows.out, 0, count * sizeof(float));
                run_in_order(dev, &models[m], &rows, runs[r].cut, false);
                expect_same_floats(what, rows.out, want, (int64_t)count);
                mem_free(what);
                device_close(dev);
            }
        mem_free(want);
        rows_close(&rows);
    }
}

/* ---- a device's own order --------------------------------------------------------------------------- */

static const int32_t long_half_lengths[] = {620};
static const int32_t two_long_lengths[] = {530, 70};
static const int32_t code_lengths[] = {67, 16, 1};
static const struct half_model {
    struct model model;
    int32_t chunks[4];
} half_models[] = {
    {{64, 9, 3, 0, 4, lengths}, {1200, 64, 7}},            /* SmolLM2 */
    {{128, 8, 2, 0, 3, lengths}, {1200, 40, 19}},          /* Llama 3 and Qwen3: 4 heads of each */
    {{256, 4, 1, 40, 3, lengths}, {1200, 30}},             /* Gemma 3, a local layer */
    {{96, 3, 1, 0, 3, lengths}, {1200, 17}},
    {{80, 5, 2, 33, 3, lengths}, {1200, 23}},              /* filled up; heads are shared out unevenly */
    {{16, 5, 1, 1, 2, lengths}, {1200, 7}},                /* sees itself alone */
    {{64, 3, 1, 0, 1, long_half_lengths}, {1200, 100, 20}}, /* several tiles, in one block and in parts */
    {{32, 5, 2, 0, 2, two_long_lengths}, {1200, 250}},
    {{16, 14, 2, 250, 1, long_half_lengths}, {1200, 90, 15}},
    {{64, 9, 3, 0, 4, lengths, KV_FLOAT16}, {1200, 64, 7}},
    {{256, 4, 1, 40, 3, lengths, KV_FLOAT16}, {1200, 30}},
    {{80, 5, 2, 33, 3, lengths, KV_FLOAT16}, {1200, 23}},
    {{32, 5, 2, 0, 2, two_long_lengths, KV_FLOAT16}, {1200, 250}},
    {{64, 4, 2, 0, 3, code_lengths, KV_FP8}, {1200, 15}},
    {{96, 3, 1, 40, 2, code_lengths, KV_INT8}, {1200, 7}},
    {{128, 4, 1, 0, 2, code_lengths, KV_FP8}, {1200, 17}},
    {{80, 5, 2, 0, 3, code_lengths, KV_INT8}, {1200, 30}},
    {{256, 4, 1, 0, 2, code_lengths, KV_INT8}, {1200, 30}},
    {{16, 6, 2, 0, 1, long_half_lengths, KV_INT8}, {1200, 200, 20}},
};

/* What the cache holds of element i of a head. */
static double kept(enum kv_type type, const float *head, int32_t dim, int32_t i)
{
    float max = 0;

    if (type == KV_BFLOAT16)
        return float_of_bfloat16(bfloat16_of_float(head[i]));
    if (type == KV_FLOAT16)
        return half_to_float(float_to_half(head[i]));
    if (type == KV_FP8)
        return fp8_to_float(float_to_fp8(head[i]));
    for (int32_t j = 0; j < dim; j++)
        max = fmaxf(max, fabsf(head[j]));
    return rintf(head[i] * (127 / max)) * (double)(max / 127);
}

/* Keys or values as a cache of this type has them. */
static void keep(enum kv_type type, float *x, int64_t count, int32_t dim)
{
    float head[MAX_HEAD_DIM];

    for (int64_t first = 0; first < count; first += dim) {
        memcpy(head, x + first, (size_t)dim * sizeof(float));
        for (int32_t i = 0; i < dim; i++)
            x[first + i] = (float)kept(type, head, dim, i);
    }
}

/* As tensor cores read it. */
static float factor_of(enum kv_type type, float x)
{
    return type == KV_BFLOAT16 ? float_of_bfloat16(bfloat16_of_float(x)) : half_to_float(float_to_half(x));
}

/* The rule of kernels/cuda/attention_half.cu in doubles, of one row and head; but its weights are not rounded. k and v:
 * what is kept of the request and KV head. */
static void attend_by_rule(const struct model *model, const float *q, const float *k, const float *v, int64_t width_kv,
                           int32_t position, double *out)
{
    const float scale = 0.125f * 1.44269504088896341f;
    double scores[MAX_ROWS], sum = 0, max = -INFINITY;
    int32_t first = model->window ? MAX(position - model->window + 1, 0) : 0;

    memset(out, 0, (size_t)model->dim * sizeof(*out));
    for (int32_t j = first; j <= position; j++) {
        scores[j] = 0;
        for (int32_t i = 0; i < model->dim; i++)
            scores[j] += (double)factor_of(model->type, q[i] * scale) * k[j * width_kv + i];
        max = fmax(max, scores[j]);
    }
    for (int32_t j = first; j <= position; j++) {
        double weight = exp2(scores[j] - max);

        sum += weight;
        for (int32_t i = 0; i < model->dim; i++)
            out[i] += weight * v[j * width_kv + i];
    }
    for (int32_t i = 0; i < model->dim; i++)
        out[i] /= sum;
}

/* Of rows->out by that rule, as a part of the largest value. */
static double largest_error(const struct model *model, const struct rows *rows)
{
    int64_t num_values = (int64_t)rows->count * rows->width_kv, row = 0;
    AUTO_MEM float *k = mem_new_array(float, (size_t)num_values);
    AUTO_MEM float *v = mem_new_array(float, (size_t)num_values);
    double error = 0, most = 0;

    memcpy(k, rows->k, (size_t)num_values * sizeof(float));
    memcpy(v, rows->v, (size_t)num_values * sizeof(float));
    keep(model->type, k, num_values, model->dim);
    keep(model->type, v, num_values, model->dim);
    for (int64_t i = 0; i < num_values; i++) {
        k[i] = factor_of(model->type, k[i]);
        v[i] = factor_of(model->type, v[i]);
        most = fmax(most, fabs((double)v[i]));
    }
    for (int32_t request = 0; request < model->num_requests; request++) {
        int64_t first = row * rows->width_kv;

        for (int32_t position = 0; position < model->lengths[request]; position++, row++)
            for (int32_t h = 0; h < model->num_heads; h++) {
                int64_t at = row * rows->width_q + h * model->dim;
                int64_t kv = first + h * model->num_kv_heads / model->num_heads * model->dim;
                double want[MAX_HEAD_DIM];

                attend_by_rule(model, rows->q + at, k + kv, v + kv, rows->width_kv, position, want);
                for (int32_t i = 0; i < model->dim; i++)
                    error = isfinite(rows->out[at + i]) ? fmax(error, fabs(rows->out[at + i] - want[i])) : INFINITY;
            }
    }
    return error / most;
}

/* Weights are rounded by 2^-11 of each at most, or 2^-8 where they become bfloat16; out is off by twice that. */
static void a_gpus_own_order_gives_one_answer_by_its_rule(void **state)
{
    (void)state;
    for (size_t m = 0; m < COUNT_OF(half_models); m++) {
        const struct model *model = &half_models[m].model;
        const double bound = model->type == KV_BFLOAT16 ? 0x1p-7 : 0x1p-10;
        struct device *gpu = open_device("cuda", 1);
        struct rows rows;

        rows_init(&rows, model);

        size_t count = (size_t)rows.count * rows.width_q;
        AUTO_MEM float *want = mem_new_array(float, count);

        for (int c = 0; c < 4 && half_models[m].chunks[c]; c++) {
            AUTO_MEM char *what = mem_printf("model %zu in chunks of %d", m, half_models[m].chunks[c]);

            memset(rows.out, 0, count * sizeof(float));
            run_in_order(gpu, model, &rows, (struct cut){half_models[m].chunks[c]}, true);
            if (c > 0)
                expect_same_floats(what, rows.out, want, (int64_t)count);
            else if (largest_error(model, &rows) > bound)
                fail_msg("%s: off by %g", what, largest_error(model, &rows));
            memcpy(want, rows.out, count * sizeof(float));
        }
        device_close(gpu);
        rows_close(&rows);
    }
}

static void a_gpus_own_order_takes_codes_for_the_halves_next_to_them(void **state)
{
    (void)state;
    for (size_t m = 0; m < COUNT_OF(half_models); m++) {
        struct model model = half_models[m].model;
        struct rows rows;

        if (model.type == KV_BFLOAT16 || model.type == KV_FLOAT16)
            continue;

        struct device *gpu = open_device("cuda", 1);

        rows_init(&rows, &model);

        size_t count = (size_t)rows.count * rows.width_q;
        AUTO_MEM float *want = mem_new_array(float, count);

        run_in_order(gpu, &model, &rows, (struct cut){1200}, true);
        memcpy(want, rows.out, count * sizeof(float));
        keep(model.type, rows.k, (int64_t)rows.count * rows.width_kv, model.dim);
        keep(model.type, rows.v, (int64_t)rows.count * rows.width_kv, model.dim);
        model.type = KV_FLOAT16;
        run_in_order(gpu, &model, &rows, (struct cut){1200}, true);
        expect_same_floats("halves", rows.out, want, (int64_t)count);
        rows_close(&rows);
        device_close(gpu);
    }
}

static void a_gpus_own_order_does_not_look_at_other_requests(void **state)
{
    struct model model = half_models[0].model;
    struct rows rows, one;
    int64_t first = 0;

    (void)state;

    struct device *gpu = open_device("cuda", 1);

    rows_init(&rows, &model);
    run_in_order(gpu, &model, &rows, (struct cut){1200}, true);
    model.num_requests = 1;
    for (int i = 0; i < half_models[0].model.num_requests; i++) {
        AUTO_MEM float *out = mem_new_array(float, (size_t)lengths[i] * rows.width_q);

        model.lengths = &lengths[i];
        one = (struct rows){lengths[i], rows.width_q, rows.width_kv, rows.q + first * rows.width_q,
                            rows.k + first * rows.width_kv, rows.v + first * rows.width_kv, out};
        run_in_order(gpu, &model, &one, (struct cut){1200}, true);
        expect_same_floats("alone", out, rows.out + first * rows.width_q, (int64_t)lengths[i] * rows.width_q);
        first += lengths[i];
    }
    rows_close(&rows);
    device_close(gpu);
}

/* What a value that has become infinite does to others: nothing to rows before it, or to other dimensions, whatever
 * the chunk. One of int8 is no number in all of its head. */
static void a_gpus_own_order_keeps_infinite_values_from_those_who_do_not_see_them(void **state)
{
    enum { WHERE = 44, HEADS = 4, LENGTH = 200 };
    static const int32_t length[] = {LENGTH};
    static const struct cut cuts[] = {{LENGTH}, {20}, {19, 3}}; /* the last: rows 44 to 46, 66 to 68 alone */
    static const struct model windows[] = {
        {64, HEADS, 1, 0, 1, length, KV_BFLOAT16},
        {64, HEADS, 1, 25, 1, length, KV_BFLOAT16},
        {48, HEADS, 1, 0, 1, length, KV_BFLOAT16},
        {64, HEADS, 1, 0, 1, length, KV_FLOAT16},
        {64, HEADS, 1, 24, 1, length, KV_FLOAT16},
        {48, HEADS, 1, 0, 1, length, KV_FLOAT16}, /* keys come to lie where values were, and are fewer */
        {64, HEADS, 1, 24, 1, length, KV_INT8},
        {48, HEADS, 1, 100, 1, length, KV_INT8},
    };

    (void)state;
    for (size_t w = 0; w < COUNT_OF(windows); w++) {
        const struct model *model = &windows[w];
        struct device *gpu = open_device("cuda", 1);
        struct rows rows;

        rows_init(&rows, model);
        run_in_order(gpu, model, &rows, (struct cut){LENGTH}, true);

        int32_t dim = model->dim, count = LENGTH * HEADS * dim;
        AUTO_MEM float *finite = mem_new_array(float, (size_t)count);

        memcpy(finite, rows.out, (size_t)count * sizeof(float));
        rows.v[WHERE * dim + 5] = model->type == KV_FLOAT16 ? 1e6f : INFINITY; /* no half is so large */
        for (size_t c = 0; c < COUNT_OF(cuts); c++) {
            run_in_order(gpu, model, &rows, cuts[c], true);
            for (int32_t i = 0; i < count; i++) {
                int32_t row = i / (HEADS * dim);
                bool sees = row >= WHERE && (!model->window || row < WHERE + model->window);

                if (sees && (i % dim == 5 || model->type == KV_INT8))
                    assert_false(isfinite(rows.out[i]));
                else if (rows.out[i] != finite[i])
                    fail_msg("model %zu in chunks of %d: row %d, dimension %d is %g, not %g", w, cuts[c].chunk, row,
                             i % dim, (double)rows.out[i], (double)finite[i]);
            }
        }
        rows_close(&rows);
        device_close(gpu);
    }
}

/* Kernels of every width of a head that has one: in a block of few queries, and of many; and where a list of heads
 * leaves no room for many. */
static void a_gpu_of_less_shared_memory_has_the_same_bits(void **state)
{
    static const int32_t some_lengths[] = {24, 9}, chunks[] = {24, 1};
    static const struct { int32_t dim, num_heads; } shapes[] = {{64, 8}, {96, 8}, {128, 8}, {256, 8}, {256, 120}};

    (void)state;
    for (size_t s = 0; has_gpu_of_less_shared_memory() && s < 2 * COUNT_OF(shapes); s++)
        for (int device_order = 0; device_order < 2; device_order++)
            for (size_t c = 0; c < COUNT_OF(chunks); c++) {
                const struct model model = {shapes[s / 2].dim, shapes[s / 2].num_heads, 1, 0, 2, some_lengths,
                                            s % 2 ? KV_FLOAT16 : KV_BFLOAT16};
                struct device *gpu = open_device("cuda", 1), *other = open_device("cuda:1", 1);
                struct rows rows;

                rows_init(&rows, &model);

                int64_t count = (int64_t)rows.count * rows.width_q;
                AUTO_MEM float *want = mem_new_array(float, (size_t)count);

                run_in_order(gpu, &model, &rows, (struct cut){chunks[c]}, device_order);
                memcpy(want, rows.out, (size_t)count * sizeof(float));
                memset(rows.out, 0, (size_t)count * sizeof(float));
                run_in_order(other, &model, &rows, (struct cut){chunks[c]}, device_order);
                expect_same_floats("with less shared memory", rows.out, want, count);
                rows_close(&rows);
                device_close(other);
                device_close(gpu);
            }
}

static void a_cpu_keeps_to_the_specification_all_the_same(void **state)
{
    const struct model *model = &models[2];
    struct device *dev = open_device(NULL, 1);
    struct rows rows;

    (void)state;
    rows_init(&rows, model);
    run(dev, model, &rows, 1200);

    int64_t count = (int64_t)rows.count * rows.width_q;
    AUTO_MEM float *want = mem_new_array(float, (size_t)count);

    memcpy(want, rows.out, (size_t)count * sizeof(float));
    run_in_order(dev, model, &rows, (struct cut){64}, true);
    expect_same_floats("with device_order", rows.out, want, count);
    rows_close(&rows);
    device_close(dev);
}

/* Softmax in doubles over that. */
static void attention_is_right(void **state)
{
    (void)state;
    for (enum kv_type type = 0; type < NUM_KV_TYPES; type++) {
        struct model model = models[0];
        struct rows rows;
        struct device *dev = open_device(NULL, 1);

        model.type = type;
        rows_init(&rows, &model);
        run(dev, &model, &rows, 1200);
        for (int32_t p = 0; p < 150; p += 13)
            for (int h = 0; h < 9; h++) {
                double s[150], out[64] = {0}, sum = 0, max = -INFINITY, most = 0;
                float q[64];

                for (int i = 0; i < 64; i++) {
                    q[i] = 0.125f * rows.q[(p * 9 + h) * 64 + i];
                    if (type == KV_BFLOAT16)
                        q[i] = (float)kept(type, q, 64, i);
                }

                for (int j = 0; j <= p; j++) {
                    s[j] = 0;
                    for (int i = 0; i < 64; i++)
                        s[j] += (double)q[i] * kept(type, rows.k + (j * 3 + h / 3) * 64, 64, i);
                    max = s[j] > max ? s[j] : max;
                }
                for (int j = 0; j <= p; j++) {
                    double e = exp(s[j] - max);

                    sum += e;
                    for (int i = 0; i < 64; i++) {
                        double v = kept(type, rows.v + (j * 3 + h / 3) * 64, 64, i);

                        out[i] += e * v;
                        most = fmax(most, fabs(v));
                    }
                }
                /* Exponentials are rounded by 2^-8 of each at most, out and sum so by no more. */
                double bound = type == KV_BFLOAT16 ? most * 0x1p-7 : 1e-4;

                for (int i = 0; i < 64; i++)
                    assert_true(fabs(rows.out[(p * 9 + h) * 64 + i] - out[i] / sum) < bound);
            }
        rows_close(&rows);
        device_close(dev);
    }
}

/* A position that is no number, in one head of the values: its int8 scale is NaN, and fp8 says 480. */
static void what_is_no_number_shows_where_it_is_seen(void **state)
{
    enum { WHERE = 20, DIM = 80 }; /* of the first request of models[2]; each head has a KV head */
    static const float bad[] = {NAN, INFINITY};

    (void)state;
    for (enum kv_type type = KV_FP8; type < NUM_KV_TYPES; type++)
        for (int b = 0; b < 2; b++) {
            struct model model = models[2];
            struct rows rows;
            struct device *ref = open_device("ref", 1);

            model.type = type;
            rows_init(&rows, &model);
            rows.v[WHERE * rows.width_kv + DIM + 3] = bad[b];
            run(ref, &model, &rows, 1200);

            int64_t count = (int64_t)rows.count * rows.width_q;
            float *want = mem_new_array(float, count);

            memcpy(want, rows.out, (size_t)count * sizeof(float));
            for (int64_t i = 0; i < count; i++) {
                int64_t row = i / rows.width_q, head = i % rows.width_q / DIM;

                assert_int_equal(isnan(want[i]), type == KV_INT8 && head == 1 && row >= WHERE && row < 150);
            }
            for (const char *const *isa = tested_isas(); *isa; isa++) {
                struct device *dev = open_device(*isa, 1);

                run(dev, &model, &rows, 1200);
                for (int64_t i = 0; i < count; i++) /* NaN has several bits */
                    if (isnan(rows.out[i]) && isnan(want[i]))
                        rows.out[i] = want[i];
                expect_same_floats(*isa, rows.out, want, count);
                device_close(dev);
            }
            mem_free(want);
            rows_close(&rows);
            device_close(ref);
        }
}

/* Of KV_BFLOAT16: a score that is as far below the maximum as its number says, whose value is 1 in a dimension of its
 * own. */
static void what_is_far_below_the_maximum_weighs_nothing(void **state)
{
    enum { DIM = 16, LENGTH = 6 };
    static const float below[LENGTH] = {0, 33.75f, 34, 34.25f, 36, 100};
    static const int32_t length[] = {LENGTH};
    const struct model model = {DIM, 1, 1, 0, 1, length, KV_BFLOAT16};
    struct device *ref = open_device("ref", 1);
    struct rows rows;
    float want[LENGTH * DIM];

    (void)state;
    rows_init(&rows, &model);
    memset(rows.q, 0, sizeof(want));
    memset(rows.k, 0, sizeof(want));
    memset(rows.v, 0, sizeof(want));
    for (int32_t i = 0; i < LENGTH; i++) {
        rows.q[i * DIM] = 8; /* times the scale: 1 */
        rows.k[i * DIM] = -below[i];
        rows.v[i * DIM + i] = 1;
    }
    run(ref, &model, &rows, LENGTH);
    memcpy(want, rows.out, sizeof(want));
    for (int32_t i = 0; i < LENGTH; i++)
        assert_int_equal(want[(LENGTH - 1) * DIM + i] > 0, below[i] <= -BFLOAT16_EXP_LOWEST);
    for (const char *const *isa = tested_isas(); *isa; isa++) {
        struct device *dev = open_device(*isa, 1);

        run(dev, &model, &rows, LENGTH);
        expect_same_floats(*isa, rows.out, want, LENGTH * DIM);
        device_close(dev);
    }
    rows_close(&rows);
    device_close(ref);
}

/* ---- tasks ------------------------------------------------------------------------------------------ */

/* A step as attention_tasks sees it: no memory behind it. */
struct step {
    int32_t row_start[MAX_REQUESTS + 1], positions[MAX_ROWS], kv_head_of[MAX_HEADS];
    struct kv_layer kv;
    struct batch_view batch;
    struct attention_args args;
};

struct shape {
    const char *what;
    int32_t num_heads, num_kv_heads, window, num_threads;
    int32_t rows[MAX_REQUESTS], lengths[MAX_REQUESTS]; /* of each request: its last rows */
    bool is_shared; /* some unit is */
};

static void step_init(struct step *step, const struct shape *shape)
{
    int32_t rows = 0;

    for (int i = 0; i < MAX_REQUESTS; i++) {
        step->row_start[i] = rows;
        for (int32_t r = 0; r < shape->rows[i]; r++)
            step->positions[rows++] = shape->lengths[i] - shape->rows[i] + r;
    }
    step->row_start[MAX_REQUESTS] = rows;
    for (int32_t h = 0; h < shape->num_heads; h++)
        step->kv_head_of[h] = (shape->num_heads - 1 - h) % shape->num_kv_heads;
    step->kv = (struct kv_layer){.num_kv_heads = shape->num_kv_heads};
    step->batch = (struct batch_view){.rows = rows, .num_requests = MAX_REQUESTS,
                                      .row_start = step->row_start, .positions = step->positions};
    step->args = (struct attention_args){.kv = &step->kv, .batch = &step->batch,
                                         .num_heads = shape->num_heads,
                                         .kv_head_of = step->kv_head_of, .window = shape->window};
}

/* What the tasks of a step add up to. */
struct count {
    int32_t tiles[MAX_ROWS * MAX_HEADS]; /* done of a row and head */
    int32_t wanted[MAX_ROWS];
    uint8_t parts[MAX_PARTS];
    int32_t shared[MAX_SHARED]; /* tiles done of a unit; 0 again after the last */
    bool is_shared;
};

static void count_rows(struct count *count, const struct attention_tasks *tasks,
                       const struct attention_task *task)
{
    const struct attention_args *args = tasks->args;
    const struct attention_chunk *chunk = &task->chunk;

    for (int32_t row = chunk->first_row; row < chunk->first_row + chunk->num_rows; row++) {
        assert_true(attention_first_position(args, row) / KV_TILE_TOKENS >= chunk->first_tile);
        assert_true(args->batch->positions[row] / KV_TILE_TOKENS < chunk->first_tile + chunk->num_tiles);
        count->wanted[row] = chunk->num_tiles;
        for (int32_t i = task->group->first; i < task->group->first + task->group->count; i++) {
            assert_int_equal(args->kv_head_of[tasks->heads[i]], task->group->kv_head);
            count->tiles[row * args->num_heads + tasks->heads[i]] += task->num_tiles;
        }
    }
}

static void count_parts(struct count *count, const struct attention_task *task)
{
    int32_t num_queries = task->chunk.num_rows * task->group->count;
    int32_t first = task->first_part + (task->first_tile - task->chunk.first_tile) * num_queries;

    assert_true(num_queries <= MAX_QUERIES);
    if (task->shared < 0) {
        assert_int_equal(task->num_tiles, task->chunk.num_tiles);
        return;
    }
    count->is_shared = true;
    assert_true(task->num_tiles > 0 && task->shared < MAX_SHARED);
    count->shared[task->shared] += task->num_tiles;
    if (count->shared[task->shared] == task->chunk.num_tiles)
        count->shared[task->shared] = 0;
    assert_true(first + task->num_tiles * num_queries <= MAX_PARTS);
    for (int32_t i = first; i < first + task->num_tiles * num_queries; i++)
        assert_int_equal(count->parts[i]++, 0);
}

static void every_row_and_head_is_in_one_task_for_each_tile(void **state)
{
    static const struct shape shapes[] = {
        {"one long request", 9, 3, 0, 2, {1}, {8000}, true},
        {"one thread shares nothing", 9, 3, 0, 1, {1}, {8000}, false},
        {"few tiles", 9, 3, 0, 2, {1, 1, 1}, {256, 1, 17}, false},
        {"a long one among short ones", 4, 1, 0, 4, {1, 1, 1, 1}, {40, 9000, 3, 100}, true},
        {"a prompt", 9, 3, 0, 3, {600}, {600}, false},
        {"a window", 4, 1, 512, 2, {1}, {5000}, true},
        {"too many parts for all", 16, 4, 0, 4, {3, 3}, {30000, 30000}, true},
        {"more parts than there are", 16, 1, 0, 4, {6}, {900000}, false},
        {"more heads of a KV head than queries", 200, 1, 0, 2, {3}, {600}, false},
        {"a KV head that nobody reads", 2, 3, 0, 2, {1, 1}, {600, 20}, true},
        {"a request without rows", 3, 1, 0, 2, {0, 5, 0, 1}, {0, 900, 0, 900}, true},
    };

    (void)state;
    for (size_t s = 0; s < COUNT_OF(shapes); s++) {
        const struct shape *shape = &shapes[s];
        AUTO_MEM struct step *step = mem_new(struct step);
        AUTO_MEM struct attention_tasks *tasks = mem_new(struct attention_tasks);
        AUTO_MEM struct count *count = mem_new(struct count);
        struct attention_chunk cursor = attention_tasks_begin();
        struct attention_task task;

        step_init(step, shape);
        attention_tasks_init(tasks, &step->args, shape->num_threads);
        for (int64_t number = 0; number < tasks->num_tasks; number++) {
            assert_true(attention_tasks_find(tasks, number, &cursor, &task));
            count_rows(count, tasks, &task);
            count_parts(count, &task);
        }
        assert_false(attention_tasks_find(tasks, tasks->num_tasks, &cursor, &task));
        if (count->is_shared != shape->is_shared)
            fail_msg("%s: %d", shape->what, count->is_shared);
        for (int32_t i = 0; i < MAX_SHARED; i++)
            assert_int_equal(count->shared[i], 0);
        for (int32_t i = 0; i < step->batch.rows * shape->num_heads; i++)
            if (count->tiles[i] != count->wanted[i / shape->num_heads])
                fail_msg("%s: row %d, head %d: %d tiles", shape->what, i / shape->num_heads,
                         i % shape->num_heads, count->tiles[i]);
    }
}

/* A pattern: only tests of such names. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_and_head_is_in_one_task_for_each_tile),
        cmocka_unit_test(attention_has_the_bits_of_the_specification_whatever_the_chunk),
        cmocka_unit_test(attention_is_right),
        cmocka_unit_test(what_is_no_number_shows_where_it_is_seen),
        cmocka_unit_test(what_is_far_below_the_maximum_weighs_nothing),
        cmocka_unit_test(a_cpu_keeps_to_the_specification_all_the_same),
        cmocka_unit_test(a_gpus_own_order_gives_one_answer_by_its_rule),
        cmocka_unit_test(a_gpus_own_order_takes_codes_for_the_halves_next_to_them),
        cmocka_unit_test(a_gpus_own_order_does_not_look_at_other_requests),
        cmocka_unit_test(a_gpus_own_order_keeps_infinite_values_from_those_who_do_not_see_them),
        cmocka_unit_test(a_gpu_of_less_shared_memory_has_the_same_bits),
    };

    if (!getenv("TANDEM_TEST_CUDA_MODULE")) {
        puts("# TANDEM_TEST_CUDA_MODULE names no module: the tests of GPUs alone are skipped");
        cmocka_set_skip_filter("a_gpu*");
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
