#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"

#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <math.h>

/* A few requests with a paged cache whose blocks lie in no order. */
struct model {
    int32_t dim, num_heads, num_kv_heads, window;
    int32_t num_requests;
    const int32_t *lengths; /* tokens of each request */
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
        int32_t blocks = (model->lengths[i] + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;

        num_blocks += blocks;
        cache->stride = MAX(cache->stride, blocks + 1);
    }

    size_t count = (size_t)num_blocks * model->num_kv_heads * KV_BLOCK_TOKENS * model->dim;

    cache->kv = (struct kv_layer){mem_new_array(uint16_t, count), mem_new_array(uint16_t, count),
                                  num_blocks, model->num_kv_heads, model->dim};
    /* What an earlier request left: nothing of it may show. */
    memset(cache->kv.k, 0x7e, count * 2);
    memset(cache->kv.v, 0x7e, count * 2);
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

/* Runs all requests in chunks into rows->out. */
static void run(struct device *dev, const struct model *model, struct rows *rows, int32_t chunk)
{
    const struct kernels *kernels = device_kernels(dev);
    struct cache cache;
    int32_t kv_head_of[64], longest = 0;

    cache_init(&cache, model);
    for (int h = 0; h < model->num_heads; h++)
        kv_head_of[h] = h * model->num_kv_heads / model->num_heads;
    for (int i = 0; i < model->num_requests; i++)
        longest = MAX(longest, model->lengths[i]);
    for (int32_t done = 0; done < longest; done += chunk) {
        struct batch batch;

        batch_init(&batch, model, &cache, done, chunk);

        AUTO_MEM float *q = pick_rows(&batch, rows->q, rows->width_q);
        AUTO_MEM float *k = pick_rows(&batch, rows->k, rows->width_kv);
        AUTO_MEM float *v = pick_rows(&batch, rows->v, rows->width_kv);
        AUTO_MEM float *out = mem_new_array(float, (size_t)batch.view.rows * rows->width_q + 1);
        struct attention_args args = {.out = out, .q = q, .q_stride = rows->width_q, .kv = &cache.kv,
                                      .batch = &batch.view, .num_heads = model->num_heads,
                                      .kv_head_of = kv_head_of, .scale = 0.125f,
                                      .window = model->window};

        kernels->kv_store(dev, &cache.kv, &batch.view, k, rows->width_kv, v, rows->width_kv);
        kernels->attention(dev, &args);
        for (int32_t r = 0; r < batch.view.rows; r++)
            memcpy(rows->out + (int64_t)batch.rows[r] * rows->width_q,
                   out + (int64_t)r * rows->width_q, rows->width_q * sizeof(float));
        mem_free(batch.rows);
    }
    cache_close(&cache);
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
static const struct model models[] = {
    {64, 9, 3, 0, 4, lengths},  /* SmolLM2 */
    {256, 4, 1, 40, 3, lengths}, /* Gemma 3, a local layer */
    {80, 2, 2, 0, 4, lengths},
    {16, 5, 1, 1, 2, lengths},  /* sees itself alone */
    {64, 3, 1, 0, 1, long_lengths},
};

static void attention_has_the_bits_of_the_specification_whatever_the_chunk(void **state)
{
    static const int32_t chunks[] = {1200, 64, 7, 1};

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
            for (size_t c = 0; c < COUNT_OF(chunks); c++) {
                struct device *dev = open_device(*isa, 1 + (int)c % 3);
                char *what = mem_printf("%s, model %zu in chunks of %d", *isa, m, chunks[c]);

                memset(rows.out, 0, count * sizeof(float));
                run(dev, &models[m], &rows, chunks[c]);
                expect_same_floats(what, rows.out, want, (int64_t)count);
                mem_free(what);
                device_close(dev);
            }
        mem_free(want);
        rows_close(&rows);
    }
}

/* Softmax in doubles over the halves that the cache holds. */
static void attention_is_right(void **state)
{
    const struct model *model = &models[0];
    struct rows rows;
    struct device *dev = open_device(NULL, 1);

    (void)state;
    rows_init(&rows, model);
    run(dev, model, &rows, 1200);
    for (int32_t p = 0; p < 150; p += 13)
        for (int h = 0; h < 9; h++) {
            double s[150], out[64] = {0}, sum = 0, max = -INFINITY;
            const float *q = rows.q + (p * 9 + h) * 64;

            for (int j = 0; j <= p; j++) {
                s[j] = 0;
                for (int i = 0; i < 64; i++)
                    s[j] += 0.125 * q[i] *
                            half_to_float(float_to_half(rows.k[(j * 3 + h / 3) * 64 + i]));
                max = s[j] > max ? s[j] : max;
            }
            for (int j = 0; j <= p; j++) {
                double e = exp(s[j] - max);

                sum += e;
                for (int i = 0; i < 64; i++)
                    out[i] += e * half_to_float(float_to_half(rows.v[(j * 3 + h / 3) * 64 + i]));
            }
            for (int i = 0; i < 64; i++)
                assert_true(fabs(rows.out[(p * 9 + h) * 64 + i] - out[i] / sum) < 1e-4);
        }
    rows_close(&rows);
    device_close(dev);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(attention_has_the_bits_of_the_specification_whatever_the_chunk),
    cmocka_unit_test(attention_is_right),
};
TEST_MAIN(tests)
