/* Everything at once, by the numbers of a seed. */
#include "tests/engine/scheduler_bench.h"

static uint32_t random_below(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % n;
}

/* What a request answers, whatever happens around it: its tokens alone decide. */
static int32_t answer_alone(const struct wish *wish, int32_t *tokens_out)
{
    uint32_t hash = BENCH_FIRST_HASH;
    int32_t n = 0;

    for (int32_t i = 0; i < wish->num_prompt; i++)
        hash = bench_mix(hash, wish->prompt[i]);
    do {
        tokens_out[n] = bench_token_from(hash);
        hash = bench_mix(hash, tokens_out[n]);
    } while (tokens_out[n++] != EOS && n < wish->max_tokens);
    return n;
}

struct simulation {
    uint32_t seed;
    int32_t depth; /* steps in flight */
    struct wish wishes[MAX_REQUESTS];
    int32_t prompts[MAX_REQUESTS][100];
    bool aborted[MAX_REQUESTS];
};

static void add_at_random(struct bench *b, struct simulation *sim)
{
    request_id id = b->last_id + 1;
    int32_t family = (int32_t)random_below(&sim->seed, 3);
    struct wish *wish = &sim->wishes[id];

    *wish = (struct wish){
        .num_prompt = 1 + (int32_t)random_below(&sim->seed, 90),
        .max_tokens = 1 + (int32_t)random_below(&sim->seed, 40),
        .priority = (int32_t)random_below(&sim->seed, 3),
        .wants_prompt_logprobs = random_below(&sim->seed, 4) == 0,
        .prompt = sim->prompts[id],
    };
    /* Families share the beginnings of their prompts. */
    for (int32_t i = 0; i < wish->num_prompt; i++)
        sim->prompts[id][i] = i < 40 ? 10 + family * 100 + i : (int32_t)(10 + (id * 7 + i) % 900);
    bench_add(b, *wish);
}

/* An operator at his keys: pauses of both kinds, their ends, and resets. */
static void order_at_random(struct bench *b, struct simulation *sim)
{
    switch (random_below(&sim->seed, 60)) {
    case 0:
        scheduler_set_pause(b->scheduler, PAUSED_NEW);
        break;
    case 1:
        scheduler_set_pause(b->scheduler, PAUSED_ALL);
        break;
    case 2:
        assert_true(scheduler_reset_prefix_cache(b->scheduler, true));
        scheduler_check(b->scheduler);
        break;
    case 3:
        scheduler_reset_prefix_cache(b->scheduler, false);
        break;
    default:
        if (random_below(&sim->seed, 8) == 0)
            scheduler_set_pause(b->scheduler, UNPAUSED);
    }
}

static void simulate(const struct scheduler_options *options, uint32_t seed, int32_t depth)
{
    struct simulation *sim = mem_new(struct simulation);
    struct bench *b = bench_new(options);
    int32_t num_requests = 150, expected[MAX_OUTPUT];
    struct scheduler_stats stats;

    sim->seed = seed;
    sim->depth = depth;
    for (int turn = 0; b->last_id < num_requests || scheduler_num_unfinished(b->scheduler) > 0 ||
                       b->next_answer < b->next_step;
         turn++) {
        assert_true(turn < 50000);
        order_at_random(b, sim);
        while (b->last_id < num_requests && random_below(&sim->seed, 4) == 0)
            add_at_random(b, sim);
        if (b->last_id > 0 && random_below(&sim->seed, 40) == 0) {
            request_id id = 1 + random_below(&sim->seed, (uint32_t)b->last_id);

            sim->aborted[id] = sim->aborted[id] || bench_outcome(b, id)->num_ends == 0;
            bench_abort(b, id);
        }
        if (b->next_step - b->next_answer < sim->depth)
            bench_schedule(b);
        if (b->next_answer < b->next_step &&
            (b->next_step - b->next_answer == sim->depth || random_below(&sim->seed, 3) == 0))
            bench_answer(b, BY_HASH);
    }
    for (request_id id = 1; id <= num_requests; id++) {
        const struct outcome *outcome = bench_outcome(b, id);
        int32_t n = answer_alone(&sim->wishes[id], expected);

        assert_int_equal(outcome->num_ends, 1);
        assert_true(sim->aborted[id] ? outcome->finish == FINISH_ABORT && outcome->num_tokens <= n
                                     : outcome->num_tokens == n);
        assert_int_equal(outcome->has_prompt_logprobs,
                         sim->wishes[id].wants_prompt_logprobs && outcome->num_tokens > 0);
        assert_memory_equal(outcome->tokens, expected,
                            sizeof *expected * (size_t)outcome->num_tokens);
    }
    scheduler_get_stats(b->scheduler, &stats);
    assert_true(stats.num_preemptions > 0);
    bench_free(b);
    mem_free(sim);
}

static void whatever_happens_each_request_answers_as_if_it_were_alone(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 128; i++)
        simulate(
            &(struct scheduler_options){
                .max_num_seqs = i & 1 ? 8 : 3,
                .max_num_batched_tokens = i & 8 ? 150 : 20,
                .long_prefill_token_threshold = i & 2 ? 12 : 0,
                .enable_chunked_prefill = !(i & 8),
                .long_prefill_token_threshold_adaptive = i & 16,
                .decode_slowdown = i & 64 ? 1.5 : 0,
                .watermark = i & 32 ? 0.2 : 0,
                .enable_prefix_caching = i & 4,
                .max_model_len = 140,
                .num_blocks = 10,
                .block_size = BLOCK,
                .vocab_size = VOCAB,
                .policy = i & 2 ? POLICY_PRIORITY : POLICY_FCFS,
            },
            1000 + i, i & 1 ? 2 : 1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(whatever_happens_each_request_answers_as_if_it_were_alone),
};
TEST_MAIN(tests)
