/* Tokens that a device draws where its logits lie, held against those that the host's sampler draws. The device is
 * that of the module that TANDEM_TEST_CUDA_MODULE names. */
#include "tests/support/expect.h"

#include "kernels/kernels.h"
#include "proto/base/memory.h"
#include "worker/device_draw.h"
#include "worker/sampler.h"

#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NO_MASK = -1, MASK_KINDS = 6, LOGIT_KINDS = 13 };

static struct device *device; /* NULL: not opened yet */
static uint64_t random_state = 1;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static int32_t below(int32_t n)
{
    return (int32_t)(next_random() % (uint32_t)n);
}

static float uniform(void)
{
    return (float)(next_random() >> 8) * 0x1p-24f;
}

static bool one_in(int32_t n)
{
    return below(n) == 0;
}

/* ---- rows ----------------------------------------------------------------------------------- */

/* Rows of one vocabulary, on the host and on the device. */
struct rows {
    int32_t num_tokens, max_rows, words;
    float *logits;                  /* [max_rows, num_tokens] */
    uint32_t *masks;                /* [max_rows, words] */
    struct sampling_params *params; /* [max_rows] */
    struct sampler_row *rows;
    struct sampler_result *results;
    struct draw_row *draws;
    int32_t *drawn, *last_tokens;
    struct draw_rows_args device;
    struct sampler *sampler;
};

static void open_device(int32_t ordinal)
{
    expect_ok(device_open(&(struct device_options){.name = "cuda",
                                                   .num_threads = 1,
                                                   .ordinal = ordinal,
                                                   .module = getenv("TANDEM_TEST_CUDA_MODULE")},
                          &device));
    assert_non_null(device_kernels(device)->draw_rows);
    assert_non_null(device_kernels(device)->take_last_tokens);
}

static void *on_device(int64_t bytes)
{
    void *p;

    if (!device)
        open_device(0);
    expect_ok(device_alloc(device, bytes, "rows of a test", &p));
    return p;
}

static struct rows *rows_new(int32_t num_tokens, int32_t max_rows)
{
    struct rows *r = mem_new(struct rows);
    int64_t n = max_rows;

    r->num_tokens = num_tokens;
    r->max_rows = max_rows;
    r->words = divide_up(num_tokens, 32);
    r->logits = mem_new_array(float, (size_t)(n * num_tokens));
    r->masks = mem_new_array(uint32_t, (size_t)(n * r->words));
    r->params = mem_new_array(struct sampling_params, (size_t)n);
    r->rows = mem_new_array(struct sampler_row, (size_t)n);
    r->results = mem_new_array(struct sampler_result, (size_t)n);
    r->draws = mem_new_array(struct draw_row, (size_t)n);
    r->drawn = mem_new_array(int32_t, (size_t)n);
    r->last_tokens = mem_new_array(int32_t, (size_t)n);
    r->device = (struct draw_rows_args){
        .num_tokens = num_tokens,
        .logits = on_device(n * num_tokens * (int64_t)sizeof(float)),
        .draws = on_device(n * (int64_t)sizeof *r->draws),
        .masks = on_device(n * r->words * (int64_t)sizeof *r->masks),
        .words = r->words,
        .drawn = on_device(n * (int64_t)sizeof(int32_t)),
        .last_tokens = on_device(n * (int64_t)sizeof(int32_t)),
    };
    r->sampler = sampler_new(&(struct sampler_options){
        .vocab_size = num_tokens, .num_tokens = num_tokens, .max_rows = max_rows, .world = 1});
    return r;
}

static void rows_free(struct rows *r)
{
    const void *memory[] = {r->device.logits, r->device.draws, r->device.masks, r->device.drawn,
                            r->device.last_tokens};
    int64_t n = r->max_rows;
    const int64_t bytes[] = {n * r->num_tokens * (int64_t)sizeof(float), n * (int64_t)sizeof *r->draws,
                             n * r->words * (int64_t)sizeof *r->masks, n * (int64_t)sizeof(int32_t),
                             n * (int64_t)sizeof(int32_t)};

    for (size_t i = 0; i < COUNT_OF(memory); i++)
        device_free(device, (void *)memory[i], bytes[i]);
    sampler_free(r->sampler);
    mem_free(r->logits);
    mem_free(r->masks);
    mem_free(r->params);
    mem_free(r->rows);
    mem_free(r->results);
    mem_free(r->draws);
    mem_free(r->drawn);
    mem_free(r->last_tokens);
    mem_free(r);
}
DEFINE_AUTO_FREE(rows)

/* As a model's: most of them near each other, few far above. */
static float likely_logit(float scale)
{
    float u = uniform() + 1e-7f;

    return -logf(u) * scale + uniform();
}

static float make_logit(int32_t kind, float scale)
{
    switch (kind) {
    case 0:
        return 3; /* all draw alike */
    case 1:
        return roundf(uniform() * scale); /* many equals */
    case 2:
        return one_in(3) ? one_in(2) ? NAN : -INFINITY : uniform() * scale;
    case 3:
        return one_in(300) ? -0.0f : one_in(2) ? 0 : -uniform() * scale;
    case 4:
        return 1 + (float)below(1 << 16) * 0x1p-23f; /* flat, and hardly two alike */
    case 5:
        return (uniform() - 0.5f) * 1e30f;
    case 6:
        return (uniform() * 2 - 1) * 3.4e38f; /* overflow where the temperature is low */
    case 7:
        return one_in(100) ? INFINITY : uniform();
    case 8:
        return (uniform() - 0.5f) * 1e-40f;
    case 9:
        return one_in(50) ? 30 + uniform() : roundf(likely_logit(1));
    case 10:
        return one_in(10000) ? 20 : 10 + uniform(); /* as likely as all the small ones together */
    case 11:
        return 20 - (float)below(4) * 0.2f; /* each has a bin of its own */
    default:
        return likely_logit(scale / 8);
    }
}

static void make_logits(float *logits, int32_t n)
{
    int32_t kind = below(LOGIT_KINDS + 4);
    float scale = (float)(1 + below(40));

    for (int32_t t = 0; t < n; t++)
        logits[t] = make_logit(kind, scale);
}

static void make_mask(uint32_t *mask, int32_t n)
{
    int32_t words = divide_up(n, 32), kind = below(MASK_KINDS);

    for (int32_t w = 0; w < words; w++)
        mask[w] = kind < 3   ? 0 /* nothing, one, a few */
                  : kind < 5 ? UINT32_MAX /* all, all but a few */
                             : next_random();
    for (int32_t i = 0; i < 5; i++) {
        int32_t t = below(n);

        if (kind == 1 ? i == 0 : kind == 2)
            mask[t / 32] |= 1u << t % 32;
        else if (kind == 4)
            mask[t / 32] &= ~(1u << t % 32);
    }
}

static void make_params(struct sampling_params *params, int32_t n)
{
    static const float temperatures[] = {0, 1e-6f, 1e-3f, 0.01f, 0.1f, 0.3f, 0.7f, 1, 1, 1, 1.3f, 2, 10};
    const int32_t top_ks[] = {1, 2, 20, 50, 300, 1024, 1025, 5000, n - 1, n, 1 + below(n)};

    sampling_params_init(params);
    params->temperature = temperatures[below((int32_t)COUNT_OF(temperatures))];
    params->seed = (int64_t)((uint64_t)next_random() * next_random());
    if (one_in(2))
        params->top_k = MAX(top_ks[below((int32_t)COUNT_OF(top_ks))], 0);
    if (one_in(2))
        params->top_p = one_in(4) ? 0.01f : one_in(4) ? 0.999f : 1 - uniform() * uniform() * 0.9999f;
    if (one_in(3))
        params->min_p = one_in(8) ? 1 : uniform() * uniform() * 0.3f;
}

static void make_row(struct rows *r, int32_t i)
{
    struct sampling_params *params = &r->params[i];
    uint32_t *mask = r->masks + (int64_t)i * r->words;

    make_logits(r->logits + (int64_t)i * r->num_tokens, r->num_tokens);
    make_mask(mask, r->num_tokens);
    make_params(params, r->num_tokens);
    r->rows[i] = (struct sampler_row){
        .params = params,
        .position = one_in(4) ? (int64_t)next_random() << 20 : below(100000),
        .bitmask = one_in(3) ? mask : NULL,
    };
}

/* What the device is told of a row; its slot is its mirror image's place. */
static void tell_row(struct rows *r, int32_t i, int32_t num_rows)
{
    const struct sampling_params *params = &r->params[i];

    r->draws[i] = (struct draw_row){
        .temperature = params->temperature,
        .top_p = params->top_p,
        .min_p = params->min_p,
        .top_k = params->top_k,
        .seed = (uint64_t)params->seed,
        .position = r->rows[i].position,
        .mask = r->rows[i].bitmask ? i : NO_MASK,
        .slot = num_rows - 1 - i,
    };
}

static void draw_on_device(struct rows *r, int32_t num_rows)
{
    struct draw_rows_args *args = &r->device;
    int64_t n = num_rows;

    for (int32_t i = 0; i < num_rows; i++)
        tell_row(r, i, num_rows);
    expect_ok(device_write(device, (void *)args->logits, r->logits, n * r->num_tokens * (int64_t)sizeof(float)));
    expect_ok(device_write(device, (void *)args->draws, r->draws, n * (int64_t)sizeof *r->draws));
    expect_ok(device_write(device, (void *)args->masks, r->masks, n * r->words * (int64_t)sizeof *r->masks));
    args->rows = num_rows;
    device_kernels(device)->draw_rows(device, args);
    expect_ok(device_read(device, r->drawn, args->drawn, n * (int64_t)sizeof(int32_t)));
    expect_ok(device_read(device, r->last_tokens, args->last_tokens, n * (int64_t)sizeof(int32_t)));
}

static void check_row(const struct rows *r, int32_t i, int32_t num_rows)
{
    const struct sampling_params *p = &r->params[i];
    int32_t token = r->results[i].token, drawn = r->drawn[i];
    const float *logits = r->logits + (int64_t)i * r->num_tokens;

    if (drawn != token)
        fail_msg("row %d of %d, %d tokens: the device drew %d (%.9g), the host %d (%.9g): temperature %g top_k %d "
                 "top_p %.9g min_p %.9g%s",
                 i, num_rows, r->num_tokens, drawn, drawn < 0 ? 0 : logits[drawn], token,
                 token < 0 ? 0 : logits[token], p->temperature, p->top_k, p->top_p, p->min_p,
                 r->rows[i].bitmask ? ", masked" : "");
    assert_int_equal(r->last_tokens[num_rows - 1 - i], MAX(token, 0));
}

static void check_rows(struct rows *r, int32_t num_rows)
{
    expect_ok(sampler_run(r->sampler, r->logits, r->rows, num_rows, r->results));
    draw_on_device(r, num_rows);
    for (int32_t i = 0; i < num_rows; i++)
        check_row(r, i, num_rows);
}

/* ---- tests ---------------------------------------------------------------------------------- */

static void tokens_are_those_that_the_host_draws(void **state)
{
    static const struct {
        int32_t num_tokens, num_rows, times;
    } batches[] = {
        {1, 40, 1},    {2, 100, 1},   {31, 100, 2},   {63, 100, 2},   {64, 100, 2},  {65, 100, 2},
        {1000, 1, 50}, {1000, 7, 20}, {1000, 64, 8},  {1000, 300, 2}, {4097, 30, 3}, {5003, 30, 3},
        {32000, 1, 8}, {32000, 5, 8}, {32000, 20, 3}, {49152, 3, 4},  {50257, 4, 4},
    };

    (void)state;
    for (size_t b = 0; b < COUNT_OF(batches); b++) {
        AUTO_FREE(rows) struct rows *r = rows_new(batches[b].num_tokens, batches[b].num_rows);

        for (int32_t time = 0; time < batches[b].times; time++) {
            for (int32_t i = 0; i < batches[b].num_rows; i++)
                make_row(r, i);
            check_rows(r, batches[b].num_rows);
        }
    }
}

/* Where a cut leaves more than a block lists, where top_k meets equals, and where top_p does. */
static void long_cuts_are_the_hosts(void **state)
{
    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k;
    } cuts[] = {
        {1, 0.9f, 0, 0},       {1, 1, 0, 9000},      {1, 0.95f, 0, 9000},   {0.05f, 1, 0, 40},
        {1, 0.5f, 0.01f, 0},   {5, 0.99f, 0, 0},     {0.05f, 0.9f, 0, 400}, {0.01f, 0.8f, 0, 7000},
        {1, 0.3f, 0.001f, 50}, {1, 0.999f, 0, 4096}, {1, 0.999f, 0, 4097},  {1, 1e-6f, 0, 0},
    };
    AUTO_FREE(rows) struct rows *r = rows_new(20000, (int32_t)COUNT_OF(cuts));

    (void)state;
    for (int32_t kind = 0; kind < LOGIT_KINDS; kind++) {
        for (int32_t i = 0; i < (int32_t)COUNT_OF(cuts); i++) {
            make_row(r, i);
            r->rows[i].bitmask = NULL;
            r->params[i].temperature = cuts[i].temperature;
            r->params[i].top_p = cuts[i].top_p;
            r->params[i].min_p = cuts[i].min_p;
            r->params[i].top_k = cuts[i].top_k;
            for (int32_t t = 0; t < r->num_tokens; t++)
                r->logits[i * r->num_tokens + t] = make_logit(kind, 12);
        }
        check_rows(r, (int32_t)COUNT_OF(cuts));
    }
}

/* Nothing of what comes behind, though nothing in the bin of the cut tells it from that. */
static void a_cut_where_a_bin_ends_is_the_hosts(void **state)
{
    enum { ROWS = 20, TOKENS = 20000, LEVELS = 4 };
    AUTO_FREE(rows) struct rows *r = rows_new(TOKENS, ROWS);

    (void)state;
    for (int32_t i = 0; i < ROWS; i++) {
        make_row(r, i);
        r->rows[i].bitmask = NULL;
        sampling_params_init(&r->params[i]);
        r->params[i].seed = i;
        r->params[i].top_k = TOKENS / LEVELS * (1 + i % 3);
        r->params[i].top_p = i < ROWS / 2 ? 1 : 0.7f;
        for (int32_t t = 0; t < TOKENS; t++)
            r->logits[i * TOKENS + t] = 20 - (float)(t % LEVELS) * 0.2f;
    }
    check_rows(r, ROWS);
}

/* One token and many small ones, which together are as likely, and weigh about 2^32 each. */
static void small_weights_are_summed_up_exactly(void **state)
{
    enum { ROWS = 60, TOKENS = 20000 };
    AUTO_FREE(rows) struct rows *r = rows_new(TOKENS, ROWS);

    (void)state;
    for (int32_t i = 0; i < ROWS; i++) {
        make_row(r, i);
        r->rows[i].bitmask = NULL;
        sampling_params_init(&r->params[i]);
        r->params[i].seed = i;
        r->params[i].top_p = 0.6f;
        for (int32_t t = 0; t < TOKENS; t++)
            r->logits[i * TOKENS + t] = t == i * 300 ? 20 : 10 + uniform();
    }
    check_rows(r, ROWS);
}

/* Every seed and position has lots of its own. */
static void many_lots_are_the_hosts(void **state)
{
    enum { ROWS = 1500, TOKENS = 257 };
    AUTO_FREE(rows) struct rows *r = rows_new(TOKENS, ROWS);
    int32_t num_different = 0;

    (void)state;
    for (int32_t i = 0; i < ROWS; i++) {
        make_row(r, i);
        r->rows[i].bitmask = NULL;
        r->rows[i].position = i % 50;
        sampling_params_init(&r->params[i]);
        r->params[i].seed = i / 50 - 2;
        for (int32_t t = 0; t < TOKENS; t++)
            r->logits[i * TOKENS + t] = (float)(t % 16) / 4;
    }
    check_rows(r, ROWS);
    for (int32_t i = 1; i < ROWS; i++)
        num_different += r->drawn[i] != r->drawn[i - 1];
    assert_true(num_different > ROWS * 9 / 10);
}

static void rows_without_a_possible_token_say_so(void **state)
{
    enum { ROWS = 32, TOKENS = 70 };
    AUTO_FREE(rows) struct rows *r = rows_new(TOKENS, ROWS);

    (void)state;
    for (int32_t i = 0; i < ROWS; i++) {
        make_row(r, i);
        r->params[i].temperature = i % 4 ? 0.01f : 0;
        r->params[i].top_k = i & 4 ? 5 : 0;
        r->params[i].top_p = i & 8 ? 0.5f : 1;
        r->params[i].min_p = i & 16 ? 0.1f : 0;
        r->rows[i].bitmask = i % 4 == 1 ? r->masks + i * r->words : NULL;
        for (int32_t w = 0; w < r->words; w++)
            r->masks[i * r->words + w] = 0;
        for (int32_t t = 0; t < TOKENS; t++)
            r->logits[i * TOKENS + t] = i % 4 == 1 ? 1 : i % 4 == 2 ? -3e38f : t % 2 ? NAN : -INFINITY;
    }
    check_rows(r, ROWS);
    for (int32_t i = 0; i < ROWS; i++)
        assert_int_equal(r->drawn[i], -1);
}

static void no_rows_are_no_work(void **state)
{
    AUTO_FREE(rows) struct rows *r = rows_new(8, 1);

    (void)state;
    draw_on_device(r, 0);
    device_kernels(device)->take_last_tokens(device, r->device.drawn, 0, r->device.last_tokens);
    expect_ok(device_read(device, r->drawn, r->device.drawn, sizeof *r->drawn));
}

static void last_tokens_take_the_place_of_negative_ids(void **state)
{
    enum { ROWS = 1100, SLOTS = 300 };
    int32_t ids[ROWS], wanted[ROWS], last_tokens[SLOTS];
    int32_t *device_ids = on_device(sizeof ids), *device_last_tokens = on_device(sizeof last_tokens);

    (void)state;
    for (int32_t i = 0; i < SLOTS; i++)
        last_tokens[i] = below(100000);
    for (int32_t i = 0; i < ROWS; i++) {
        ids[i] = one_in(2) ? below(100000) : -1 - below(SLOTS);
        wanted[i] = ids[i] < 0 ? last_tokens[-1 - ids[i]] : ids[i];
    }
    expect_ok(device_write(device, device_ids, ids, sizeof ids));
    expect_ok(device_write(device, device_last_tokens, last_tokens, sizeof last_tokens));
    device_kernels(device)->take_last_tokens(device, device_ids, ROWS, device_last_tokens);
    expect_ok(device_read(device, ids, device_ids, sizeof ids));
    assert_memory_equal(ids, wanted, sizeof ids);
    device_free(device, device_ids, sizeof ids);
    device_free(device, device_last_tokens, sizeof last_tokens);
}

/* ---- several ranks -------------------------------------------------------------------------- */

enum { RANKS = 3, RANK_ROWS = 40, RANK_TOKENS = 5003, RANK_STEPS = 3 };

/* Where masks' words and logits' quads are cut, and one that holds little. */
static const int32_t first_tokens[RANKS + 1] = {0, 2021, 2023, RANK_TOKENS};

/* What lies in a rank's process. */
struct rank {
    int32_t rank;
    struct comm *host, *comm;
    struct device_draw *draw;
    float *logits; /* the device's: of its slice */
};

static void open_rank(struct rank *self, int fd, const char *by)
{
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    open_device(self->rank);
    expect_ok(comm_open(path, self->rank, RANKS, &self->host));
    expect_ok(comm_open_device(device, self->host,
                               &(struct comm_device_options){.rank = self->rank,
                                                             .is_one_host = true,
                                                             .by = by,
                                                             .nccl = getenv("TANDEM_TEST_NCCL"),
                                                             .timeout_ms = 20000},
                               &self->comm));
    expect_ok(device_draw_new(device,
                              &(struct device_draw_limits){.rows = RANK_ROWS,
                                                           .slots = RANK_ROWS,
                                                           .first_tokens = first_tokens,
                                                           .rank = self->rank,
                                                           .world = RANKS},
                              &self->draw));
    self->logits = on_device(RANK_ROWS * (int64_t)sizeof(float) * RANK_TOKENS);
}

/* The tokens of rows that all ranks have made alike. */
static const int32_t *draw_as_rank(struct rank *self, const struct rows *r, int64_t step)
{
    int32_t first = first_tokens[self->rank], own = first_tokens[self->rank + 1] - first, slots[RANK_ROWS];
    struct sampler_row rows[RANK_ROWS];
    int32_t last_tokens[RANK_ROWS];
    const int32_t *tokens;

    for (int32_t i = 0; i < RANK_ROWS; i++) {
        rows[i] = r->rows[i];
        if (rows[i].bitmask)
            rows[i].bitmask += first / 32;
        slots[i] = RANK_ROWS - 1 - i;
        expect_ok(device_write(device, self->logits + (int64_t)i * own,
                               r->logits + (int64_t)i * RANK_TOKENS + first, own * (int64_t)sizeof(float)));
    }
    expect_ok(device_draw_launch(self->draw, self->comm, step, self->logits, rows, slots, RANK_ROWS));
    expect_ok(device_read(device, last_tokens, device_draw_last_tokens(self->draw), sizeof last_tokens));
    tokens = device_draw_tokens(self->draw, step);
    for (int32_t i = 0; i < RANK_ROWS; i++)
        assert_int_equal(last_tokens[slots[i]], MAX(tokens[i], 0));
    return tokens;
}

static void play_rank(int32_t rank, int fd, const char *by)
{
    struct rank self = {.rank = rank};

    open_rank(&self, fd, by);
    assert_true(device_draw_can_meet(self.draw, self.comm));
    assert_false(device_draw_can_meet(self.draw, self.host));

    struct rows *r = rows_new(RANK_TOKENS, RANK_ROWS);

    for (int64_t step = 0; step < RANK_STEPS; step++) {
        for (int32_t i = 0; i < RANK_ROWS; i++)
            make_row(r, i);
        memcpy(r->drawn, draw_as_rank(&self, r, step), RANK_ROWS * sizeof *r->drawn);
        expect_ok(sampler_run(r->sampler, r->logits, r->rows, RANK_ROWS, r->results));
        for (int32_t i = 0; i < RANK_ROWS; i++) {
            r->last_tokens[RANK_ROWS - 1 - i] = MAX(r->drawn[i], 0);
            check_row(r, i, RANK_ROWS);
        }
    }
    rows_free(r);
    device_draw_free(self.draw);
    device_free(device, self.logits, RANK_ROWS * (int64_t)sizeof(float) * RANK_TOKENS);
    comm_close(self.comm);
    comm_close(self.host);
    device_close(device);
}

static void play_ranks(const char *by)
{
    char path[32];
    int fd = memfd_create("comm", 0), status;

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    expect_ok(comm_create(path, RANKS, 1 << 18, 0));
    for (int32_t rank = 0; rank < RANKS; rank++)
        if (fork() == 0) {
            alarm(100);
            dup2(STDERR_FILENO, STDOUT_FILENO); /* one process has tests to tell of */
            play_rank(rank, fd, by);
            _exit(0);
        }
    for (int32_t rank = 0; rank < RANKS; rank++) {
        wait(&status);
        assert_int_equal(status, 0);
    }
    close(fd);
}

/* The first tests: a process that has opened a device can't fork ranks. */
static void ranks_with_slices_draw_what_one_host_draws_of_all(void **state)
{
    (void)state;
    play_ranks("ipc");
}

static void so_do_ranks_that_put_them_together_by_nccl(void **state)
{
    (void)state;
    if (!getenv("TANDEM_TEST_NCCL")) {
        puts("# there may not be as many GPUs as ranks");
        skip();
    }
    setenv("EMULATED_CUDA_DEVICES", "3", 1);
    play_ranks("nccl");
}

static int close_device(void **state)
{
    (void)state;
    device_close(device);
    return 0;
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ranks_with_slices_draw_what_one_host_draws_of_all),
    cmocka_unit_test(so_do_ranks_that_put_them_together_by_nccl),
    cmocka_unit_test(tokens_are_those_that_the_host_draws),
    cmocka_unit_test(long_cuts_are_the_hosts),
    cmocka_unit_test(a_cut_where_a_bin_ends_is_the_hosts),
    cmocka_unit_test(small_weights_are_summed_up_exactly),
    cmocka_unit_test(many_lots_are_the_hosts),
    cmocka_unit_test(rows_without_a_possible_token_say_so),
    cmocka_unit_test(no_rows_are_no_work),
    cmocka_unit_test(last_tokens_take_the_place_of_negative_ids),
};

int main(void)
{
    if (!has_gpus())
        return 0;
    return cmocka_run_group_tests(tests, NULL, close_device);
}
