#include "kernels/bench/limits.h"

#include "kernels/cpu/team.h"
#include "kernels/device.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

enum { NUM_RUNS = 12, MAX_READ_BYTES = 512 << 20, READ_UNIT = 4096, PREFETCH = 8192 };
enum { NUM_LOOPS = 100000, CHAINS = 12 };

int64_t limit_clock_ns(int32_t num_threads)
{
    struct timespec t;

    if (num_threads > 1)
        return clock_now_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Seconds of the fastest run. */
static double best_seconds(struct team *team, void (*part)(void *args, int32_t thread), void *args)
{
    int32_t num_threads = team_num_threads(team);
    int64_t best = INT64_MAX;

    for (int i = 0; i < NUM_RUNS; i++) {
        int64_t start = limit_clock_ns(num_threads);

        team_run(team, part, args);
        best = MIN(best, limit_clock_ns(num_threads) - start);
    }
    return (double)best * 1e-9;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* What a thread may have in flight from memory does not depend on the kernels' instruction set, so the
 * widest loads that there are will do. A sum of all words, so that every byte is wanted; bytes: a multiple
 * of READ_UNIT. */
#define READ_ALL(name, isa_target, vector_bytes)                                                   \
    isa_target static uint64_t name(const char *p, int64_t bytes)                                  \
    {                                                                                              \
        typedef uint64_t words __attribute__((vector_size(vector_bytes), aligned(vector_bytes)));  \
        words sums[4] = {{0}}, sum;                                                                \
        uint64_t total = 0;                                                                        \
                                                                                                   \
        for (const char *end = p + bytes; p < end; p += sizeof sums)                               \
            for (int j = 0; j < 4; j++) {                                                          \
                const char *at = p + j * (int)sizeof(words);                                       \
                                                                                                   \
                __builtin_prefetch(at + PREFETCH, 0, 3); /* past the end it does no harm */        \
                sums[j] += *(const words *)at;                                                     \
            }                                                                                      \
        sum = sums[0] + sums[1] + sums[2] + sums[3];                                               \
        for (size_t j = 0; j < sizeof sum / sizeof sum[0]; j++)                                    \
            total += sum[j];                                                                       \
        return total;                                                                              \
    }

READ_ALL(read_any, , 16)
#if defined(__x86_64__)
READ_ALL(read_avx512, __attribute__((target("avx512f"))), 64)
READ_ALL(read_avx2, __attribute__((target("avx2"))), 32)
#endif

static uint64_t (*reader(void))(const char *p, int64_t bytes)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return read_avx512;
    if (__builtin_cpu_supports("avx2"))
        return read_avx2;
#endif
    return read_any;
}

struct read_job {
    char *array;
    int64_t units; /* of READ_UNIT */
    int32_t num_threads;
    uint64_t (*read)(const char *p, int64_t bytes);
    _Atomic uint64_t sum; /* nobody's, but the compiler can't know */
};

static void share(const struct read_job *job, int32_t thread, char **begin_out, int64_t *bytes_out)
{
    int64_t first = job->units * thread / job->num_threads;
    int64_t end = job->units * (thread + 1) / job->num_threads;

    *begin_out = job->array + first * READ_UNIT;
    *bytes_out = (end - first) * READ_UNIT;
}

/* Each thread's share lies where the thread runs. */
static void write_part(void *args, int32_t thread)
{
    char *begin;
    int64_t bytes;

    share(args, thread, &begin, &bytes);
    memset(begin, 1, (size_t)bytes);
}

static void read_part(void *args, int32_t thread)
{
    struct read_job *job = args;
    char *begin;
    int64_t bytes;

    share(job, thread, &begin, &bytes);
    job->sum += job->read(begin, bytes);
}

static int64_t read_bytes(void)
{
    int64_t available = (int64_t)sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);

    return MAX(MIN(available / 4, (int64_t)MAX_READ_BYTES), (int64_t)READ_UNIT) / READ_UNIT * READ_UNIT;
}

enum status limit_read_gb_s(int32_t num_threads, double *gb_s_out)
{
    int64_t bytes = read_bytes();
    struct read_job job = {.units = bytes / READ_UNIT, .num_threads = num_threads,
                           .read = reader()};
    AUTO_FREE(team) struct team *team = NULL;
    void *array;

    TRY(team_new(num_threads, &team));
    TRY(mem_map((size_t)bytes, "memory to read", &array));
    mem_expect_full(array, (size_t)bytes);
    job.array = array;
    team_run(team, write_part, &job);
    *gb_s_out = 1e-9 * (double)bytes / best_seconds(team, read_part, &job);
    mem_unmap(array, (size_t)bytes);
    return OK;
}

/* ---- threads --------------------------------------------------------------------------------- */

enum { NUM_BARRIERS = 1000 };

static void do_nothing(void *args, int32_t thread)
{
    (void)args;
    (void)thread;
}

enum status limit_barrier_us(int32_t num_threads, double *us_out)
{
    AUTO_FREE(team) struct team *team = NULL;
    int64_t best = INT64_MAX;

    *us_out = 0;
    if (num_threads == 1)
        return OK;
    TRY(team_new(num_threads, &team));
    for (int i = 0; i < NUM_RUNS; i++) {
        int64_t start = clock_now_ns();

        for (int j = 0; j < NUM_BARRIERS; j++)
            team_run(team, do_nothing, NULL);
        best = MIN(best, clock_now_ns() - start);
    }
    *us_out = (double)best * 1e-3 / NUM_BARRIERS;
    return OK;
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

/*
 * Loops of CHAINS instructions that do not wait for each other. Assembly, as compilers merge
 * chains that are equal; its operands stay in registers.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#define LOOP(name, isa_target, type, instruction)                                                  \
    __attribute__((target(isa_target))) static void name(void)                                     \
    {                                                                                              \
        type acc[CHAINS] = {{0}}, a = {0}, b = {0}, t;                                             \
        for (int i = 0; i < NUM_LOOPS; i++) {                                                      \
            _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++)                              \
                __asm__ volatile(instruction : "+v"(acc[j]), "=&v"(t) : "v"(a), "v"(b));           \
        }                                                                                          \
        (void)t;                                                                                   \
    }

LOOP(int8_avx512, "avx512f,avx512vnni", __m512i, "vpdpbusd %2, %3, %0")
LOOP(int8_avxvnni, "avxvnni", __m256i, "%{vex%} vpdpbusd %2, %3, %0")
LOOP(int8_avx2, "avx2", __m256i, "vpmaddubsw %2, %3, %1\n\tvpaddw %1, %0, %0")
LOOP(int8_sse2, "sse2", __m128i, "movdqa %2, %1\n\tpmaddwd %3, %1\n\tpaddd %1, %0")
LOOP(float_avx512, "avx512f", __m512, "vfmadd231ps %2, %3, %0")
LOOP(pairs_avx512, "avx512bf16", __m512, "vdpbf16ps %2, %3, %0")
LOOP(float_avx2, "avx2,fma", __m256, "vfmadd231ps %2, %3, %0")
LOOP(float_sse2, "sse2", __m128, "movaps %2, %1\n\tmulps %3, %1\n\taddps %1, %0")
#endif

static const struct arithmetic {
    const char *isa;
    void (*int8)(void), (*floats)(void), (*pairs)(void);
    int int8_ops, float_ops, pair_ops; /* of one instruction, or of those in its place */
} rows[] = {
#if defined(__x86_64__)
    {"amx", int8_avx512, float_avx512, float_avx512, 64 * 2, 16 * 2, 16 * 2}, /* of its vectors, which do few rows */
    {"avx512bf16", int8_avx512, float_avx512, pairs_avx512, 64 * 2, 16 * 2, 32 * 2},
    {"avx512", int8_avx512, float_avx512, float_avx512, 64 * 2, 16 * 2, 16 * 2},
    {"avxvnni", int8_avxvnni, float_avx2, float_avx2, 32 * 2, 8 * 2, 8 * 2},
    {"avx2", int8_avx2, float_avx2, float_avx2, 32 * 2, 8 * 2, 8 * 2},
    {"sse2", int8_sse2, float_sse2, float_sse2, 8 * 2, 4 * 2, 4 * 2},
#endif
    {NULL},
};

static void run_loop(void *args, int32_t thread)
{
    void (**loop)(void) = args;

    (void)thread;
    (*loop)();
}

static enum status measure(void (*loop)(void), int ops, int32_t num_threads, double *gop_s_out)
{
    AUTO_FREE(team) struct team *team = NULL;

    TRY(team_new(num_threads, &team));
    *gop_s_out = 1e-9 * ops * (double)CHAINS * NUM_LOOPS * num_threads /
                 best_seconds(team, run_loop, &loop);
    return OK;
}

enum status limit_arithmetic_gop_s(const char *isa, int32_t num_threads, struct arithmetic_limits *out)
{
    const struct arithmetic *row = rows;

    *out = (struct arithmetic_limits){0};
    while (row->isa && strcmp(row->isa, isa) != 0)
        row++;
    if (!row->isa)
        return OK;
    TRY(measure(row->int8, row->int8_ops, num_threads, &out->int8));
    TRY(measure(row->floats, row->float_ops, num_threads, &out->floats));
    return measure(row->pairs, row->pair_ops, num_threads, &out->bfloat16);
}

enum status limit_gpu_read_gb_s(const char *module, double *gb_s_out)
{
    struct device *dev;
    enum status status;

    TRY(device_open(&(struct device_options){.name = "cuda", .num_threads = 1, .module = module}, &dev));
    status = dev->ops->limit_read_gb_s(dev, gb_s_out);
    device_close(dev);
    return status;
}

const char *limit_isa(const char *wanted)
{
    return wanted ? wanted : device_isas()[0];
}
