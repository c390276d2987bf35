/*
 * bench_kernels: how fast the kernels are on the shapes of SmolLM2-135M, a JSON line each.
 *
 *   bench_kernels [isa [attention]]
 *
 * The best of several runs, since other programs may share the machine; for one thread its CPU time,
 * for more the time on the wall. Weights, and the cache of steps of one row, are copies taken in turn,
 * 96 MiB in all, so that they are read from memory as a decode step does. Shares of attention are those
 * of what FMAs alone and reading alone reach in the same run.
 */
#include "tests/kernels/arrays.h"
#include "tests/support/expect.h"

#include "kernels/cpu/team.h"

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

/* ---- what the machine can do ---------------------------------------------------------------------- */

enum { READ_BYTES = COPIES_BYTES };

struct limits {
    struct team *team;
    int threads;
    const char *isa;
    const char *memory; /* [READ_BYTES] */
};

static const int64_t fma_rounds = 20000;

#if defined(__x86_64__)
/* Twelve chains of FMAs that depend on nothing else; the asm keeps gcc from merging them. */
#define FMA_CHAINS(name, isa, bytes, constraint, instruction)                                      \
    __attribute__((target(isa))) static void name(void)                                            \
    {                                                                                              \
        typedef float vector __attribute__((vector_size(bytes)));                                  \
        vector acc[12] = {{0}}, x = {0};                                                           \
                                                                                                   \
        for (int64_t i = 0; i < fma_rounds; i++) {                                                 \
            _Pragma("GCC unroll 12") for (int j = 0; j < 12; j++)                                  \
                __asm__ volatile(instruction : "+" constraint(acc[j]) : constraint(x));            \
        }                                                                                          \
    }
FMA_CHAINS(fma_avx512, "avx512f", 64, "v", "vfmadd231ps %1, %1, %0")
FMA_CHAINS(fma_avx2, "avx2,fma", 32, "x", "vfmadd231ps %1, %1, %0")
#endif

/* Operations of one round of a thread; 0: no figure for this instruction set. */
static int64_t do_fmas(const char *isa)
{
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0)
        return fma_avx512(), fma_rounds * 12 * 32;
    if (strcmp(isa, "avx2") == 0)
        return fma_avx2(), fma_rounds * 12 * 16;
#endif
    return 0;
}

static void fma_part(void *arg, int32_t thread)
{
    struct limits *limits = arg;

    (void)thread;
    do_fmas(limits->isa);
}

static void read_part(void *arg, int32_t thread)
{
    typedef int64_t eight __attribute__((vector_size(64)));
    struct limits *limits = arg;
    const eight *memory = (const void *)limits->memory;
    int64_t count = READ_BYTES / sizeof(eight), end = count * (thread + 1) / limits->threads;
    eight sum[4] = {{0}};

    for (int64_t i = count * thread / limits->threads; i + 4 <= end; i += 4)
        for (int j = 0; j < 4; j++) {
            __builtin_prefetch(&memory[i + j + 64]);
            sum[j] += memory[i + j];
        }
    __asm__ volatile("" : : "m"(sum)); /* somebody might want it */
}

static void do_fma_parts(void *arg, int i)
{
    struct limits *limits = arg;

    (void)i;
    team_run(limits->team, fma_part, limits);
}

static void do_read_parts(void *arg, int i)
{
    struct limits *limits = arg;

    (void)i;
    team_run(limits->team, read_part, limits);
}

/* What all threads of a device can do at most: floating-point operations and bytes read, a second. */
static void bench_limits(const char *isa, int threads, double *flops_out, double *bytes_out)
{
    struct device *dev = open_device(isa, threads);
    void *memory;
    struct limits limits = {.threads = threads, .isa = device_kernels(dev)->name};

    expect_ok(device_alloc(dev, READ_BYTES, "memory to read", &memory));
    device_expect_full(dev, memory, READ_BYTES);
    memset(memory, 1, READ_BYTES);
    limits.memory = memory;
    expect_ok(team_new(threads, &limits.team));
    *flops_out = (double)do_fmas(limits.isa) * threads / best_seconds(threads, do_fma_parts, &limits);
    *bytes_out = READ_BYTES / best_seconds(threads, do_read_parts, &limits);
    printf("{\"limits\": \"fma, read\", \"isa\": \"%s\", \"threads\": %d, \"GFLOP/s\": %.1f, "
           "\"GB/s\": %.1f}\n", limits.isa, threads, *flops_out * 1e-9, *bytes_out * 1e-9);
    team_free(limits.team);
    device_free(dev, memory, READ_BYTES);
    device_close(dev);
}

/* ---- attention ------------------------------------------------------------------------------------- */

/* The last `rows` of `length` tokens, of each of `requests` requests. */
struct attention_case {
    const char *model;
    int32_t heads, kv_heads, dim, window;
    int32_t requests, rows, length;
};

struct attention {
    struct device *dev;
    struct attention_args args;
    struct kv_layer copies[MAX_COPIES]; /* layers, taken in turn */
    int num_copies;
};

static void do_attention(void *arg, int i)
{
    struct attention *attention = arg;

    attention->args.kv = &attention->copies[i % attention->num_copies];
    device_kernels(attention->dev)->attention(attention->dev, &attention->args);
}

static int64_t kv_half_bytes(const struct attention_case *c)
{
    return (int64_t)c->requests * c->length * c->kv_heads * c->dim * 2;
}

static uint16_t *random_halves(struct random *random, struct device *dev, int64_t bytes)
{
    void *memory;

    expect_ok(device_alloc(dev, bytes, "k or v", &memory));
    device_expect_full(dev, memory, bytes);
    for (uint16_t *half = memory; half < (uint16_t *)memory + bytes / 2; half++)
        *half = (uint16_t)((random_u32(random) & 0x83ff) | 0x3400); /* 0.25 … 0.5, either sign */
    return memory;
}

/* The blocks of all requests in no order, as they are after a while. */
static int32_t *random_tables(struct random *random, int32_t count)
{
    int32_t *tables = mem_new_array(int32_t, count);

    for (int32_t i = 0; i < count; i++) {
        int32_t other = (int32_t)(random_u32(random) % (uint32_t)(i + 1));

        tables[i] = tables[other];
        tables[other] = i;
    }
    return tables;
}

static void bench_attention(const char *isa, int threads, const struct attention_case *c,
                            double most_flops, double most_bytes)
{
    struct random random = {1};
    int32_t blocks = c->length / KV_BLOCK_TOKENS, total = c->requests * c->rows;
    int64_t kv_bytes = 2 * kv_half_bytes(c);
    int32_t *row_start = mem_new_array(int32_t, c->requests + 1);
    int32_t *tables = random_tables(&random, c->requests * blocks);
    int32_t *positions = mem_new_array(int32_t, total), *kv_head_of = mem_new_array(int32_t, c->heads);
    float *q = mem_new_array(float, total * c->heads * c->dim);
    float *out = mem_new_array(float, total * c->heads * c->dim);
    struct batch_view batch = {total, c->requests, row_start, positions, tables, blocks};
    struct attention *attention = mem_new(struct attention);
    double pairs = 0; /* of a query and a key */

    for (int32_t i = 0; i <= c->requests; i++)
        row_start[i] = i * c->rows;
    for (int32_t i = 0; i < total; i++) {
        positions[i] = c->length - c->rows + i % c->rows;
        pairs += c->heads * (c->window ? MIN(positions[i] + 1, c->window) : positions[i] + 1);
    }
    for (int32_t h = 0; h < c->heads; h++)
        kv_head_of[h] = h * c->kv_heads / c->heads;
    random_hidden(&random, q, (int64_t)total * c->heads * c->dim);
    attention->dev = open_device(isa, threads);
    attention->num_copies = c->rows > 8 ? 1 : (int)MIN(COPIES_BYTES / kv_bytes + 1, (int64_t)MAX_COPIES);
    for (int i = 0; i < attention->num_copies; i++)
        attention->copies[i] = (struct kv_layer){
            random_halves(&random, attention->dev, kv_bytes / 2),
            random_halves(&random, attention->dev, kv_bytes / 2), c->requests * blocks, c->kv_heads,
            c->dim};
    attention->args = (struct attention_args){
        .out = out, .q = q, .q_stride = c->heads * c->dim, .batch = &batch, .num_heads = c->heads,
        .kv_head_of = kv_head_of, .scale = 0.125f, .window = c->window};

    double seconds = best_seconds(threads, do_attention, attention);
    double flops = pairs * c->dim * 4 / seconds;
    double bytes = (double)kv_bytes / seconds;

    if (c->window && c->rows == 1)
        bytes *= (double)c->window / c->length;
    printf("{\"kernel\": \"attention\", \"isa\": \"%s\", \"threads\": %d, \"model\": \"%s\", "
           "\"requests\": %d, \"rows\": %d, \"length\": %d, \"us\": %.1f, "
           "\"GFLOP/s\": %.1f, \"of fma\": %.2f, \"GB/s\": %.2f, \"of read\": %.2f}\n",
           device_kernels(attention->dev)->name, threads, c->model, c->requests, c->rows, c->length,
           seconds * 1e6, flops * 1e-9, most_flops > 0 ? flops / most_flops : 0,
           bytes * 1e-9, bytes / most_bytes);
    fflush(stdout);
    for (int i = 0; i < attention->num_copies; i++) {
        device_free(attention->dev, attention->copies[i].k, kv_bytes / 2);
        device_free(attention->dev, attention->copies[i].v, kv_bytes / 2);
    }
    device_close(attention->dev);
    mem_free(attention);
    mem_free(row_start);
    mem_free(tables);
    mem_free(positions);
    mem_free(kv_head_of);
    mem_free(q);
    mem_free(out);
}

static void bench_attentions(const char *isa, int threads)
{
    static const struct attention_case cases[] = {
        {"SmolLM2", 9, 3, 64, 0, 1, 512, 512},    {"SmolLM2", 9, 3, 64, 0, 1, 4096, 4096},
        {"SmolLM2", 9, 3, 64, 0, 1, 1, 512},      {"SmolLM2", 9, 3, 64, 0, 1, 1, 2048},
        {"SmolLM2", 9, 3, 64, 0, 1, 1, 8000},     {"SmolLM2", 9, 3, 64, 0, 8, 1, 512},
        {"SmolLM2", 9, 3, 64, 0, 8, 1, 2048},     {"SmolLM2", 9, 3, 64, 0, 8, 1, 8000},
        {"SmolLM2", 9, 3, 64, 0, 32, 1, 512},     {"SmolLM2", 9, 3, 64, 0, 32, 1, 2048},
        {"SmolLM2", 9, 3, 64, 0, 256, 1, 512},    {"Gemma 3", 4, 1, 256, 512, 1, 512, 512},
        {"Gemma 3", 4, 1, 256, 512, 1, 2048, 2048}, {"Gemma 3", 4, 1, 256, 512, 1, 1, 2048},
        {"Gemma 3", 4, 1, 256, 0, 1, 1, 2048},    {"Gemma 3", 4, 1, 256, 0, 8, 1, 2048},
    };
    double flops, bytes;

    bench_limits(isa, threads, &flops, &bytes);
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        bench_attention(isa, threads, &cases[i], flops, bytes);
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
    bool all = argc < 3;

    for (int threads = 1; threads <= 2; threads++) {
        for (size_t s = 0; all && s < COUNT_OF(shapes); s++)
            for (size_t r = 0; r < COUNT_OF(rows); r++)
                bench_matmul(isa, threads, shapes[s].type, shapes[s].n, shapes[s].k,
                             shapes[s].group_k, rows[r]);
        bench_attentions(isa, threads);
    }
    return 0;
}
