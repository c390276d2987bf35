#include "tests/support/sampler_ranks.h"

#include "proto/base/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_WORLD = 8 };

struct rank {
    struct sampler_ranks *ranks;
    int32_t rank, first_token, num_tokens;
    struct comm *comm;
    struct device *device;
    struct sampler *sampler;
    float *logits; /* [max_rows, num_tokens] */
    struct sampler_row *rows;
    struct sampler_result *results;
};

struct sampler_ranks {
    int32_t world, vocab_size, max_rows;
    struct rank rank[MAX_WORLD];

    /* the run's */
    const float *logits;
    const struct sampler_row *rows;
    const struct logprob_query *queries; /* NULL: rows are sampled */
    int32_t num_rows;
    float *kept;
};

struct sampler_ranks *sampler_ranks_new(int32_t world, const int32_t *cuts, int32_t max_rows,
                                        int32_t max_candidates)
{
    struct sampler_ranks *ranks = mem_new(struct sampler_ranks);
    int fd = memfd_create("comm", 0);
    char path[32];

    ASSERT(world <= MAX_WORLD && fd >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ranks->world = world;
    ranks->vocab_size = cuts[world];
    ranks->max_rows = max_rows;
    ASSERT(comm_create(path, world, 1 << 16, 0) == OK);
    for (int32_t i = 0; i < world; i++) {
        struct rank *rank = &ranks->rank[i];

        rank->ranks = ranks;
        rank->rank = i;
        rank->first_token = cuts[i];
        rank->num_tokens = cuts[i + 1] - cuts[i];
        if (world > 1)
            ASSERT(comm_open(path, i, world, &rank->comm) == OK);
        /* Of two threads, and of one. */
        ASSERT(device_open(&(struct device_options){.name = "cpu", .num_threads = 2 - i % 2}, &rank->device) == OK);
        rank->sampler = sampler_new(&(struct sampler_options){
            .vocab_size = cuts[world],
            .first_token = rank->first_token,
            .num_tokens = rank->num_tokens,
            .max_rows = max_rows,
            .rank = i,
            .world = world,
            .comm = rank->comm,
            .device = rank->device,
        });
        if (max_candidates > 0)
            sampler_limit_candidates(rank->sampler, max_candidates);
        rank->logits = mem_new_array(float, (size_t)max_rows *(size_t)rank->num_tokens);
        rank->rows = mem_new_array(struct sampler_row, max_rows);
        rank->results = mem_new_array(struct sampler_result, max_rows);
    }
    close(fd);
    return ranks;
}

void sampler_ranks_free(struct sampler_ranks *ranks)
{
    if (!ranks)
        return;
    for (int32_t i = 0; i < ranks->world; i++) {
        sampler_free(ranks->rank[i].sampler);
        device_close(ranks->rank[i].device);
        comm_close(ranks->rank[i].comm);
        mem_free(ranks->rank[i].logits);
        mem_free(ranks->rank[i].rows);
        mem_free(ranks->rank[i].results);
    }
    mem_free(ranks);
}

static void *run(void *argument)
{
    struct rank *rank = argument;
    const struct sampler_ranks *ranks = rank->ranks;
    int64_t vocab_size = ranks->vocab_size, n = rank->num_tokens;
    enum status status;

    for (int32_t i = 0; i < ranks->num_rows; i++) {
        if (!ranks->queries)
            rank->rows[i] = ranks->rows[i];
        if (rank->rows[i].bitmask)
            rank->rows[i].bitmask += rank->first_token / 32;
        memcpy(rank->logits + i * n, ranks->logits + i * vocab_size + rank->first_token,
               sizeof(float) * (size_t)n);
    }
    status = ranks->queries
                 ? sampler_logprobs(rank->sampler, rank->logits, ranks->queries, ranks->num_rows,
                                    rank->results)
                 : sampler_run(rank->sampler, rank->logits, rank->rows, ranks->num_rows,
                               rank->results);
    ASSERT(status == OK, "%s", fail_text());
    for (int32_t i = 0; ranks->kept && i < ranks->num_rows; i++)
        sampler_kept(rank->sampler, i, ranks->kept + i * vocab_size + rank->first_token);
    return NULL;
}

static bool is_same(const struct sampler_result *a, const struct sampler_result *b)
{
    size_t n = (size_t)a->num_top;

    if (a->token != b->token || memcmp(&a->logprob, &b->logprob, sizeof a->logprob) != 0 ||
        a->rank != b->rank || a->num_top != b->num_top)
        return false;
    return n == 0 || (memcmp(a->top_tokens, b->top_tokens, n * sizeof *a->top_tokens) == 0 &&
                      memcmp(a->top_logprobs, b->top_logprobs, n * sizeof *a->top_logprobs) == 0);
}

/* What the ranks have been told, on all of them. */
static void run_all(struct sampler_ranks *ranks, const float *logits, int32_t num_rows,
                    struct sampler_result *results)
{
    pthread_t threads[MAX_WORLD];

    ASSERT(num_rows <= ranks->max_rows);
    ranks->logits = logits;
    ranks->num_rows = num_rows;
    for (int32_t i = 1; i < ranks->world; i++)
        ASSERT(pthread_create(&threads[i], NULL, run, &ranks->rank[i]) == 0);
    run(&ranks->rank[0]);
    for (int32_t i = 1; i < ranks->world; i++)
        pthread_join(threads[i], NULL);
    memcpy(results, ranks->rank[0].results, sizeof *results * (size_t)num_rows);
    for (int32_t rank = 1; rank < ranks->world; rank++)
        for (int32_t i = 0; i < num_rows; i++)
            ASSERT(is_same(&results[i], &ranks->rank[rank].results[i]), "row %d: rank %d differs",
                   i, rank);
}

void sampler_ranks_run(struct sampler_ranks *ranks, const float *logits,
                       const struct sampler_row *rows, int32_t num_rows,
                       struct sampler_result *results, float *kept)
{
    ranks->rows = rows;
    ranks->queries = NULL;
    ranks->kept = kept;
    run_all(ranks, logits, num_rows, results);
}

void sampler_ranks_logprobs(struct sampler_ranks *ranks, const float *logits,
                            const struct logprob_query *queries, int32_t num_rows,
                            struct sampler_result *results)
{
    for (int32_t i = 0; i < ranks->world; i++)
        memset(ranks->rank[i].rows, 0, sizeof *ranks->rank[i].rows * (size_t)num_rows);
    ranks->queries = queries;
    ranks->kept = NULL;
    run_all(ranks, logits, num_rows, results);
}
