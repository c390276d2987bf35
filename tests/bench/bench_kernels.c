/*
 * bench_kernels: how fast the kernels are on the shapes of SmolLM2-135M, a JSON line each.
 *
 *   bench_kernels [isa]
 *
 * The best of several runs, since other programs may share the machine; for one thread its CPU time,
 * for more the time on the wall. Weights are copies taken in
 * turn, 96 MiB in all, so that one row reads them from memory as a decode step does.
 */
#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"

#include <stdio.h>
#include <time.h>

enum { COPIES_BYTES = 96 << 20, MAX_COPIES = 512 };

static const int64_t budget_ns = 150 * 1000 * 1000; /* of one line */

static int64_t now_ns(int threads)
{
    struct timespec t;

    if (threads > 1)
        return clock_now_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Seconds of the fastest of the calls of work(args, i), i = 0, 1, …, that fit in the budget. */
static double best_seconds(int threads, void (*work)(void *args, int i), void *args)
{
    int64_t best = INT64_MAX, end = clock_now_ns() + budget_ns;

    for (int i = 0; i < 3 || clock_now_ns() < end; i++) {
        int64_t before = now_ns(threads);

        work(args, i);
        best = MIN(best, now_ns(threads) - before);
    }
    return (double)best * 1e-9;
}

/* ---- matmul -------------------------------------------------------------------------------------- */

struct matmul {
    struct device *dev;
    struct activations a;
    struct matrix copies[MAX_COPIES];
    int num_copies, per_call;
    float *out;
    double *sum; /* not NULL: matmul_groups */
    int32_t group_k;
};

static void do_matmul(void *arg, int i)
{
    struct matmul *m = arg;
    const struct kernels *kernels = device_kernels(m->dev);

    for (int j = 0; j < m->per_call; j++) {
        const struct matrix *w = &m->copies[(i * m->per_call + j) % m->num_copies];

        if (m->group_k)
            kernels->matmul_groups_float(m->dev, m->out, &m->a, w, m->group_k);
        else
            kernels->matmul(m->dev, m->out, w->n, &m->a, w);
    }
}

static void bench_matmul(const char *isa, int threads, enum tensor_type type, int32_t n, int32_t k,
                         int32_t group_k, int32_t rows)
{
    struct random random = {1};
    struct matmul *m = mem_new(struct matmul);
    char *tensor = random_weights(&random, type, n, k);

    m->dev = open_device(isa, threads);

    const struct kernels *kernels = device_kernels(m->dev);
    int64_t bytes = kernels->matrix_bytes(type, n, k);

    m->group_k = group_k;
    m->num_copies = rows > 8 ? 1 : (int)MIN(COPIES_BYTES / bytes + 1, (int64_t)MAX_COPIES);
    m->per_call = (int)MAX(1, MIN((int64_t)m->num_copies, (8 << 20) / bytes / rows));
    for (int i = 0; i < m->num_copies; i++)
        matrix_init(&m->copies[i], m->dev, type, tensor, k, 0, n, 0, k);
    activations_init(&m->a, &random, rows, k);
    kernels->quantize(m->dev, &m->a);
    m->out = mem_new_array(float, (size_t)rows * n);
    m->sum = mem_new_array(double, (size_t)rows * n);

    double seconds = best_seconds(threads, do_matmul, m) / m->per_call;

    printf("{\"kernel\": \"%s\", \"isa\": \"%s\", \"threads\": %d, \"type\": \"%s\", \"rows\": %d, "
           "\"n\": %d, \"k\": %d, \"us\": %.1f, \"GOP/s\": %.1f, \"GB/s\": %.2f}\n",
           group_k ? "matmul_groups" : "matmul", kernels->name, threads,
           tensor_type_info(type)->name, rows, n, k, seconds * 1e6,
           2e-9 * rows * n * k / seconds, 1e-9 * (double)bytes / seconds);
    fflush(stdout);
    for (int i = 0; i < m->num_copies; i++)
        matrix_close(&m->copies[i], m->dev);
    activations_close(&m->a);
    mem_free(m->out);
    mem_free(m->sum);
    device_close(m->dev);
    mem_free(tensor);
    mem_free(m);
}

/* ---- attention ------------------------------------------------------------------------------------- */

struct attention {
    struct device *dev;
    struct attention_args args;
};

static void do_attention(void *arg, int i)
{
    struct attention *attention = arg;

    (void)i;
    device_kernels(attention->dev)->attention(attention->dev, &attention->args);
}

/* The last `rows` of `length` tokens, of each of `requests` requests. */
static void bench_attention(const char *isa, int threads, int32_t requests, int32_t rows,
                            int32_t length)
{
    enum { HEADS = 9, KV_HEADS = 3, DIM = 64 };
    struct random random = {1};
    int32_t blocks = length / KV_BLOCK_TOKENS, total = requests * rows;
    size_t halves = (size_t)requests * blocks * KV_HEADS * KV_BLOCK_TOKENS * DIM;
    struct kv_layer kv = {mem_new_array(uint16_t, halves), mem_new_array(uint16_t, halves),
                          requests * blocks, KV_HEADS, DIM};
    int32_t *row_start = mem_new_array(int32_t, requests + 1);
    int32_t *tables = mem_new_array(int32_t, requests * blocks);
    int32_t *positions = mem_new_array(int32_t, total);
    float *q = mem_new_array(float, total * HEADS * DIM), *out = mem_new_array(float, total * HEADS * DIM);
    int32_t kv_head_of[HEADS];
    double pairs = 0; /* of a query and a key */

    for (size_t i = 0; i < halves; i++) {
        kv.k[i] = float_to_half(random_float(&random, -1, 1));
        kv.v[i] = float_to_half(random_float(&random, -1, 1));
    }
    for (int32_t i = 0; i < requests * blocks; i++)
        tables[i] = i;
    for (int32_t i = 0; i <= requests; i++)
        row_start[i] = i * rows;
    for (int32_t i = 0; i < total; i++) {
        positions[i] = length - rows + i % rows;
        pairs += HEADS * (positions[i] + 1);
    }
    for (int32_t h = 0; h < HEADS; h++)
        kv_head_of[h] = h * KV_HEADS / HEADS;
    random_hidden(&random, q, (int64_t)total * HEADS * DIM);

    struct batch_view batch = {total, requests, row_start, positions, tables, blocks};
    struct attention attention = {
        open_device(isa, threads),
        {.out = out, .q = q, .q_stride = HEADS * DIM, .kv = &kv, .batch = &batch,
         .num_heads = HEADS, .kv_head_of = kv_head_of, .scale = 0.125f},
    };
    double seconds = best_seconds(threads, do_attention, &attention);

    printf("{\"kernel\": \"attention\", \"isa\": \"%s\", \"threads\": %d, \"requests\": %d, "
           "\"rows\": %d, \"length\": %d, \"us\": %.1f, \"GFLOP/s\": %.2f, \"GB/s\": %.2f}\n",
           device_kernels(attention.dev)->name, threads, requests, rows, length, seconds * 1e6,
           pairs * DIM * 4 * 1e-9 / seconds, (double)halves * 4e-9 / seconds);
    fflush(stdout);
    device_close(attention.dev);
    mem_free(kv.k);
    mem_free(kv.v);
    mem_free(row_start);
    mem_free(tables);
    mem_free(positions);
    mem_free(q);
    mem_free(out);
}

int main(int argc, char **argv)
{
    static const struct {
        enum tensor_type type;
        int32_t n, k, group_k;
    } shapes[] = {
        {TYPE_Q4_1, 960, 576, 0},    {TYPE_Q4_1, 3072, 576, 0}, {TYPE_Q4_1, 576, 576, 192},
        {TYPE_Q4_1, 576, 1536, 192}, {TYPE_Q8_0, 8192, 576, 0}, {TYPE_Q5_0, 1536, 576, 0},
        {TYPE_Q4_K, 1536, 768, 0},   {TYPE_Q6_K, 1536, 768, 0}, {TYPE_F32, 1536, 576, 0},
    };
    static const int32_t rows[] = {1, 4, 8, 32, 512};
    const char *isa = argc > 1 ? argv[1] : NULL;

    for (int threads = 1; threads <= 2; threads++) {
        for (size_t s = 0; s < COUNT_OF(shapes); s++)
            for (size_t r = 0; r < COUNT_OF(rows); r++)
                bench_matmul(isa, threads, shapes[s].type, shapes[s].n, shapes[s].k,
                             shapes[s].group_k, rows[r]);
        bench_attention(isa, threads, 1, 512, 512);
        bench_attention(isa, threads, 1, 1, 512);
        bench_attention(isa, threads, 32, 1, 512);
    }
    return 0;
}
