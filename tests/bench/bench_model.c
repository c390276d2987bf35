/*
 * bench_model: tokens per second of a model's forward pass on one rank.
 *
 *     bench_model FILE [THREADS [ISA]]
 *
 * prefill: 512 tokens of one request in one step. decode N: N requests with 512 tokens of context
 * each, one token a step. The best of several runs, since other processes only ever add time.
 */
#include "proto/base/clock.h"
#include "worker/models/model.h"

#include <stdio.h>

enum { CONTEXT = 512, MAX_REQUESTS = 32, DECODE_STEPS = 16, NUM_RUNS = 5 };

static const int32_t decode_batches[] = {1, 8, 32};

struct bench {
    struct model *model;
    float *logits; /* [MAX_REQUESTS, vocab_size] */
    int32_t vocab_size;
    int32_t ids[CONTEXT];
    int32_t positions[CONTEXT];
    int32_t row_start[MAX_REQUESTS + 1];
    int32_t logit_rows[MAX_REQUESTS];
    int32_t block_tables[MAX_REQUESTS][CONTEXT / KV_BLOCK_TOKENS + 2];
};

static void fill(struct bench *bench)
{
    int32_t stride = COUNT_OF(bench->block_tables[0]);

    for (int32_t i = 0; i < CONTEXT; i++)
        bench->ids[i] = (i * i + 7 * i + 100) % bench->vocab_size;
    for (int32_t i = 0; i < MAX_REQUESTS; i++)
        for (int32_t b = 0; b < stride; b++)
            bench->block_tables[i][b] = i * stride + b;
}

/* One step of `num_requests` requests with `each` rows each from position `first`: its seconds. */
static double step(struct bench *bench, int32_t num_requests, int32_t each, int32_t first)
{
    struct batch_view batch = {
        .rows = num_requests * each,
        .num_requests = num_requests,
        .row_start = bench->row_start,
        .positions = bench->positions,
        .block_tables = bench->block_tables[0],
        .block_table_stride = COUNT_OF(bench->block_tables[0]),
    };

    for (int32_t i = 0; i < batch.rows; i++)
        bench->positions[i] = first + i % each;
    for (int32_t i = 0; i < num_requests; i++)
        bench->logit_rows[i] = (i + 1) * each - 1;
    for (int32_t i = 0; i <= num_requests; i++)
        bench->row_start[i] = i * each;

    int64_t start = clock_now_ns();
    enum status status = model_forward(bench->model, &batch, bench->ids, bench->logit_rows,
                                       num_requests, bench->logits);

    ASSERT(status == OK, "%s", fail_text());
    return (double)(clock_now_ns() - start) / 1e9;
}

static double decode_seconds(struct bench *bench, int32_t num_requests)
{
    double seconds = 0;

    for (int32_t i = 0; i < DECODE_STEPS; i++)
        seconds += step(bench, num_requests, 1, CONTEXT + i);
    return seconds / DECODE_STEPS;
}

static void run(struct bench *bench)
{
    double best = 1e9;

    for (int i = 0; i < NUM_RUNS; i++)
        best = MIN(best, step(bench, 1, CONTEXT, 0));
    printf("prefill %d     %8.1f tokens/s  %8.2f ms\n", CONTEXT, CONTEXT / best, best * 1e3);
    for (size_t i = 0; i < COUNT_OF(decode_batches); i++) {
        int32_t n = decode_batches[i];

        best = 1e9;
        for (int j = 0; j < NUM_RUNS; j++)
            best = MIN(best, decode_seconds(bench, n));
        printf("decode batch %-2d %8.1f tokens/s  %8.2f ms a step\n", n, n / best, best * 1e3);
    }
}

static enum status bench_file(const char *path, int32_t num_threads, const char *isa)
{
    AUTO_FREE(model_file) struct model_file *file = NULL;
    AUTO_MEM struct bench *bench = mem_new(struct bench);
    struct device *dev;

    TRY(model_file_open(path, &file));
    TRY(device_open(&(struct device_options){"cpu", isa, num_threads}, &dev));

    int64_t start = clock_now_ns();

    TRY(model_load(dev, file,
                   &(struct model_options){
                       .world = 1,
                       .max_batched_tokens = CONTEXT,
                       .max_logit_rows = MAX_REQUESTS,
                       .max_position = CONTEXT + KV_BLOCK_TOKENS,
                   },
                   &bench->model));
    printf("%s, %s, %d threads: loaded in %.0f ms, weights %.1f MB, workspaces %.1f MB\n", path,
           device_kernels(dev)->name, num_threads, clock_ms(clock_now_ns() - start),
           (double)model_weight_bytes(bench->model) / 1e6,
           (double)model_workspace_bytes(bench->model) / 1e6);
    bench->vocab_size = model_file_config(file)->vocab_size;
    bench->logits = mem_array((size_t)MAX_REQUESTS * bench->vocab_size, sizeof(float));
    fill(bench);
    TRY(model_alloc_kv(bench->model, MAX_REQUESTS * (int32_t)COUNT_OF(bench->block_tables[0])));
    run(bench);

    mem_free(bench->logits);
    model_free(bench->model);
    device_close(dev);
    return OK;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_model FILE [THREADS [ISA]]\n");
        return 2;
    }
    if (bench_file(argv[1], argc > 2 ? atoi(argv[2]) : 1, argc > 3 ? argv[3] : NULL) != OK) {
        fprintf(stderr, "%s\n", fail_text());
        return 1;
    }
    return 0;
}
