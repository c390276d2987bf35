/* Whom a step serves, and how requests end. */
#include "tests/engine/scheduler_bench.h"

#include "engine/bench/toy_grammar.h"

/* ---- order and budget ----------------------------------------------------------------------- */

static void prompts_that_fit_are_scheduled_whole_and_in_order(void **state)
{
    (void)state;
    for (int caching = 0; caching < 2; caching++) {
        struct scheduler_options options = ROOMY;

        options.enable_prefix_caching = caching;
        struct bench *b = bench_new(&options);

        for (int i = 0; i < 10; i++)
            bench_add(b, (struct wish){.num_prompt = 10 + i, .max_tokens = 4});
        assert_int_equal(scheduler_num_waiting(b->scheduler), 10);

        const struct scheduler_output *plan = bench_schedule(b);

        expect_counts(plan, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
        assert_int_equal(plan->num_new_requests, 10);
        assert_int_equal(plan->total_num_scheduled_tokens, 145);
        assert_int_equal(plan->num_finished_slots, 0);
        assert_int_equal(scheduler_num_waiting(b->scheduler), 0);
        assert_int_equal(scheduler_num_running(b->scheduler), 10);
        bench_end(b);
        bench_free(b);
    }
}

static void every_request_is_counted_until_it_ends(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    for (int i = 0; i < 10; i++) {
        bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4});
        assert_int_equal(scheduler_num_waiting(b->scheduler), i + 1);
        assert_int_equal(scheduler_num_unfinished(b->scheduler), i + 1);
    }
    for (request_id id = 1; id <= 10; id++) {
        bench_abort(b, id);
        assert_int_equal(scheduler_num_unfinished(b->scheduler), 10 - id);
        assert_int_equal(scheduler_num_waiting(b->scheduler), 10 - id);
    }
    bench_free(b);
}

static void admission_stops_at_max_num_active_seqs(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.max_num_seqs = 8;
    options.max_num_active_seqs = 2;
    struct bench *b = bench_new(&options);

    for (int i = 0; i < 4; i++)
        bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 2});
    expect_counts(bench_schedule(b), 10, 10);
    assert_int_equal(scheduler_num_waiting(b->scheduler), 2);
    bench_answer(b, 50);
    expect_counts(bench_schedule(b), 1, 1);
    bench_answer(b, 50); /* both end */
    expect_row(bench_schedule(b), 0, 3, 10);
    bench_answer(b, 50);
    bench_end(b);
    bench_free(b);
}

static void no_more_run_than_max_num_seqs(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.max_num_seqs = 2;
    struct bench *b = bench_new(&options);

    for (int i = 0; i < 3; i++)
        bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 1});
    expect_counts(bench_schedule(b), 10, 10);
    bench_answer(b, 50);
    expect_row(bench_schedule(b), 0, 3, 10);
    bench_answer(b, 50);
    bench_free(b);
}

static void partial_prompts_share_the_budget(void **state)
{
    (void)state;
    for (int caching = 0; caching < 2; caching++) {
        struct scheduler_options options = ROOMY;

        options.long_prefill_token_threshold = 400;
        options.enable_prefix_caching = caching;
        struct bench *b = bench_new(&options);

        for (int i = 0; i < 3; i++)
            bench_add(b, (struct wish){.num_prompt = 800, .max_tokens = 4});
        expect_counts(bench_schedule(b), 400, 400, 224);
        bench_answer(b, 50);
        expect_counts(bench_schedule(b), 400, 400, 224);
        assert_int_equal(b->plans[1].samples[0] + b->plans[1].samples[1], 2);
        assert_int_equal(b->plans[1].samples[2], 0);
        bench_answer(b, 50);
        expect_counts(bench_schedule(b), 1, 1, 352);
        bench_end(b);
        bench_free(b);
    }
}

static void a_long_prompt_that_is_alone_has_the_whole_budget(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.long_prefill_token_threshold = 400;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 1500, .max_tokens = 4});
    expect_counts(bench_schedule(b), 1024);
    bench_answer(b, 50);
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4});
    expect_counts(bench_schedule(b), 400, 10);
    bench_end(b);
    bench_free(b);
}

static void long_prompts_get_no_less_than_a_fair_share_where_asked_for(void **state)
{
    static const struct {
        bool adaptive;
        int32_t threshold, num_tokens; /* of each of two prompts */
    } rows[] = {{false, 100, 100}, {true, 100, 512}, {true, 600, 600}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct scheduler_options options = ROOMY;

        options.long_prefill_token_threshold = rows[i].threshold;
        options.long_prefill_token_threshold_adaptive = rows[i].adaptive;
        struct bench *b = bench_new(&options);

        bench_add(b, (struct wish){.num_prompt = 1500, .max_tokens = 4});
        bench_add(b, (struct wish){.num_prompt = 1500, .max_tokens = 4});
        expect_counts(bench_schedule(b), rows[i].num_tokens,
                      MIN(rows[i].num_tokens, 1024 - rows[i].num_tokens));
        bench_end(b);
        bench_free(b);
    }
}

/* 10 blocks, two prompts of 6, in chunks of one block. */
static void a_prompt_is_admitted_when_all_of_it_fits_beside_those_before_it(void **state)
{
    struct scheduler_options options = ROOMY;
    struct scheduler_stats stats;

    (void)state;
    options.num_blocks = 10;
    options.long_prefill_token_threshold = BLOCK;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 6 * BLOCK, .max_tokens = 1});
    bench_add(b, (struct wish){.num_prompt = 6 * BLOCK, .max_tokens = 1});
    while (bench_outcome(b, 1)->num_ends == 0) {
        /* 9 to 5 blocks are free, and 5 to 0 of them promised to the first */
        expect_counts(bench_schedule(b), BLOCK);
        bench_answer(b, 50);
    }
    bench_run(b);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.num_preemptions, 0);
    bench_free(b);
}

static void a_watermark_of_blocks_is_left_to_those_that_run(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.num_blocks = 10;
    options.watermark = 0.25; /* 2 blocks */
    struct bench *b = bench_new(&options);

    bench_add(b,
              (struct wish){.num_prompt = 9 * BLOCK, .max_tokens = 1}); /* alone it may have all */
    bench_add(b, (struct wish){.num_prompt = 4 * BLOCK, .max_tokens = 4});
    bench_add(b, (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 1});
    expect_counts(bench_schedule(b), 9 * BLOCK);
    bench_answer(b, 50);

    const struct scheduler_output *plan = bench_schedule(b);

    assert_int_equal(plan->num_rows, 1); /* 6 are free, 5 + 2 are wanted */
    expect_row(plan, 0, 2, 4 * BLOCK);
    bench_answer(b, 50);
    bench_run(b);
    bench_free(b);
}

static void requests_wait_for_room_or_for_something_of_their_own(void **state)
{
    struct scheduler_options options = ROOMY;
    struct scheduler_stats stats;

    (void)state;
    options.max_num_seqs = 1;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4, .awaits_grammar = true});
    for (int i = 0; i < 3; i++)
        bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4});

    const struct scheduler_output *plan = bench_schedule(b);

    assert_int_equal(plan->num_rows, 1);
    expect_row(plan, 0, 2, 10); /* the first holds up nobody */
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.num_running, 1);
    assert_int_equal(stats.num_waiting, 2);
    assert_int_equal(stats.num_deferred, 1);
    bench_end(b);
    bench_free(b);
}

static void deferred_requests_come_back_to_their_places(void **state)
{
    struct scheduler_options options = ROOMY;
    static const request_id ready[] = {3, 1};

    (void)state;
    options.max_num_seqs = 1;
    struct bench *b = bench_new(&options);

    for (int i = 0; i < 4; i++)
        bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 1, .awaits_grammar = !(i & 1)});
    for (size_t i = 0; i < COUNT_OF(ready); i++)
        scheduler_set_grammar(b->scheduler, ready[i], NULL, OK, NULL, &b->events);
    for (request_id id = 1; id <= 4; id++) {
        expect_row(bench_schedule(b), 0, id, 10);
        bench_answer(b, 50);
    }
    bench_free(b);
}

static void equal_masks_of_a_step_are_one(void **state)
{
    static const uint64_t seeds[] = {1, 2, 1, 2, 3};
    static const int32_t rows[] = {0, 1, 0, 1, 2};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct grammar_output masks;
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    for (size_t i = 0; i < COUNT_OF(seeds); i++) {
        request_id id =
            bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4, .awaits_grammar = true});
        struct toy_grammar_options options = {
            .seed = seeds[i], .vocab_size = VOCAB, .num_tokens = 3, .stop_token = EOS};

        scheduler_set_grammar(b->scheduler, id, toy_grammar_new(&options), OK, NULL, &b->events);
    }
    scheduler_grammar_bitmask(b->scheduler, bench_schedule(b), &arena, &masks,
                              &b->events);
    expect_ok(grammar_output_check(&masks, 0, VOCAB));
    assert_int_equal(masks.num_rows, COUNT_OF(rows));
    assert_int_equal(masks.num_bitmask_rows, 3);
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(masks.bitmask_rows[i], rows[i]);
    bench_end(b);
    bench_free(b);
}

static void a_long_prompt_leads_and_short_ones_wait_behind_it(void **state)
{
    static const struct {
        bool chunked;
        int32_t threshold, num_rows, second; /* tokens of the second row */
    } rows[] = {
        {true, 0, 2, 224},
        {false, 0, 1, 0},
        {false, 400, 1, 0}, /* without chunks there is no part of a prompt */
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct scheduler_options options = ROOMY;

        options.enable_chunked_prefill = rows[i].chunked;
        options.long_prefill_token_threshold = rows[i].threshold;
        struct bench *b = bench_new(&options);

        for (int r = 0; r < 4; r++)
            bench_add(b, (struct wish){.num_prompt = r < 2 ? 800 : 10, .max_tokens = 4});

        const struct scheduler_output *plan = bench_schedule(b);

        assert_int_equal(plan->num_rows, rows[i].num_rows);
        expect_row(plan, 0, 1, 800);
        if (rows[i].second)
            expect_row(plan, 1, 2, rows[i].second);
        bench_end(b);
        bench_free(b);
    }
}

/* ---- ends ----------------------------------------------------------------------------------- */

static void requests_end_where_they_should(void **state)
{
    static const struct {
        struct wish wish;
        int32_t tokens[4]; /* what is sampled, step by step */
        int32_t num_tokens;
        enum finish_reason finish;
        int32_t stop_token;
    } rows[] = {
        {{.num_prompt = 5, .max_tokens = 4}, {50, EOS}, 2, FINISH_STOP, EOS},
        {{.num_prompt = 5, .max_tokens = 4, .stop_token = 42}, {50, 60, 42}, 3, FINISH_STOP, 42},
        {{.num_prompt = 5, .max_tokens = 2}, {50, 60}, 2, FINISH_LENGTH, -1},
        {{.num_prompt = 5, .max_tokens = 2},
         {50, EOS},
         2,
         FINISH_STOP,
         EOS}, /* before the length */
        {{.num_prompt = 5, .max_tokens = 3, .ignore_eos = true},
         {EOS, 50, EOS},
         3,
         FINISH_LENGTH,
         -1},
        {{.num_prompt = 5, .max_tokens = 3, .ignore_eos = true, .stop_token = 42},
         {EOS, 42},
         2,
         FINISH_STOP,
         42},
        /* the sampler keeps these away before min_tokens; one that comes all the same counts */
        {{.num_prompt = 5, .max_tokens = 4, .min_tokens = 3}, {EOS}, 1, FINISH_STOP, EOS},
        {{.num_prompt = 5, .max_tokens = 1, .min_tokens = 1}, {50}, 1, FINISH_LENGTH, -1},
        {{.num_prompt = 2046, .max_tokens = 9}, {50, 60}, 2, FINISH_LENGTH, -1}, /* the model's */
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct bench *b = bench_new(&ROOMY);
        struct outcome *outcome = bench_outcome(b, bench_add(b, rows[i].wish));

        while (scheduler_has_work(b->scheduler)) {
            bench_schedule(b);
            assert_true(outcome->num_tokens < 4);
            bench_answer(b, rows[i].tokens[outcome->num_tokens]);
        }
        assert_int_equal(outcome->num_ends, 1);
        assert_int_equal(outcome->finish, rows[i].finish);
        assert_int_equal(outcome->num_tokens, rows[i].num_tokens);
        assert_memory_equal(outcome->tokens, rows[i].tokens,
                            sizeof(int32_t) * (size_t)rows[i].num_tokens);
        assert_int_equal(outcome->stop_token, rows[i].stop_token);
        bench_free(b);
    }
}

static void a_row_without_a_token_ends_with_an_error_alone(void **state)
{
    struct bench *b = bench_new(&ROOMY);
    AUTO_CLOSE(answer) struct answer spoiled;
    request_id bad = bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 4});
    request_id picky = bench_add(
        b, (struct wish){.num_prompt = 5, .max_tokens = 4, .min_tokens = 1, .allowed_token = EOS});
    request_id good = bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});

    (void)state;
    bench_schedule(b);
    bench_make_answer(b, 50, &spoiled);
    spoiled.tokens[0] = spoiled.tokens[1] = -1;
    expect_ok(
        scheduler_update_from_output(b->scheduler, &b->plans[0], &spoiled.output, &b->events));
    b->next_answer++;
    bench_take_events(b);
    assert_int_equal(bench_outcome(b, bad)->finish, FINISH_ERROR);
    assert_int_equal(bench_outcome(b, bad)->error, ERR_INTERNAL);
    assert_non_null(strstr(bench_outcome(b, bad)->error_text, "no token can be sampled"));
    assert_int_equal(bench_outcome(b, picky)->error, ERR_INVALID); /* its client's doing */
    assert_int_equal(bench_outcome(b, good)->finish, FINISH_LENGTH);
    bench_free(b);
}

static void a_request_that_can_never_fit_is_refused_with_the_numbers(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.num_blocks = 4;
    struct bench *b = bench_new(&options);
    AUTO_FREE(request)
    struct request *fits = bench_make_request(b, &(struct wish){.num_prompt = 60, .max_tokens = 5});
    AUTO_FREE(request)
    struct request *too_long =
        bench_make_request(b, &(struct wish){.num_prompt = 60, .max_tokens = 6});

    expect_ok(request_check_fits(fits, 4, BLOCK)); /* the 65th token is never computed */
    expect_fails(request_check_fits(too_long, 4, BLOCK), ERR_INVALID,
                 "needs 5 KV blocks of 16 tokens for 60 prompt and 6 output tokens; the KV cache "
                 "has 4");
    bench_free(b);
}

/* ---- aborts and failures -------------------------------------------------------------------- */

static void an_aborted_request_ends_at_once_wherever_it_is(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.max_num_seqs = 2;
    struct bench *b = bench_new(&options);
    request_id idle = bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});
    request_id flying = bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});
    request_id waiting = bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});

    bench_schedule(b);
    bench_answer(b, 50);
    bench_abort(b, waiting);
    assert_int_equal(bench_outcome(b, waiting)->finish, FINISH_ABORT);
    assert_int_equal(bench_outcome(b, waiting)->num_tokens, 0);
    bench_abort(b, idle);
    assert_int_equal(bench_outcome(b, idle)->finish, FINISH_ABORT);

    bench_schedule(b);
    bench_abort(b, flying);
    assert_int_equal(bench_outcome(b, flying)->finish, FINISH_ABORT);
    assert_int_equal(scheduler_num_free_blocks(b->scheduler), options.num_blocks);
    bench_answer(b, 51); /* late: nobody's */
    assert_int_equal(bench_outcome(b, flying)->num_tokens, 1);

    bench_abort(b, flying);
    bench_abort(b, 99);
    bench_free(b);
}

static void an_answer_that_does_not_fit_is_refused_and_changes_nothing(void **state)
{
    static const struct {
        const char *words;
        int kind;
    } rows[] = {
        {"the answer is about 3 rows, the plan has 2", 0},
        {"the answer lacks the token of row 1, slot 1", 1},
        {"the answer lacks the token of row 0, slot 0", 2},
        {"token 1000 for slot 1, the vocabulary 1000 tokens", 3},
        {"logprobs", 4},
        {"3 of 2 rows were sampled", 5},
        {"sampled row 1 has -1 logprobs", 6},
        {"the answer has a token for position 6 of slot 1, due is 5", 7},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct bench *b = bench_new(&ROOMY);
        AUTO_CLOSE(answer) struct answer good;
        struct answer bad;

        bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
        bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
        bench_schedule(b);
        bench_make_answer(b, 50, &good);
        bad = good;
        bad.output.slots = bad.slots;
        bad.output.positions = bad.positions;
        bad.output.sampled_token_ids = bad.tokens;
        bad.output.logprob_counts = bad.counts;
        switch (rows[i].kind) {
        case 0:
            bad.output.num_rows = 3;
            break;
        case 1:
            bad.output.num_sampled = 1;
            break;
        case 2:
            bad.slots[0] = 1, bad.slots[1] = 0;
            break;
        case 3:
            bad.tokens[1] = VOCAB;
            break;
        case 7:
            bad.positions[1]++;
            break;
        case 4:
            bad.counts[1] = 1;
            break;
        case 5:
            bad.output.num_sampled = 3;
            break;
        case 6:
            bad.counts[1] = -1;
            break;
        }
        expect_fails(
            scheduler_update_from_output(b->scheduler, &b->plans[0], &bad.output, &b->events),
            ERR_MISMATCH, rows[i].words);
        assert_null(output_builder_take(&b->events));
        assert_int_equal(scheduler_num_running(b->scheduler), 2);

        expect_ok(
            scheduler_update_from_output(b->scheduler, &b->plans[0], &good.output, &b->events));
        b->next_answer++;
        bench_take_events(b);
        assert_int_equal(bench_outcome(b, 2)->finish, FINISH_LENGTH);
        bench_free(b);
    }
}

/* ---- the logprobs of prompts ---------------------------------------------------------------- */

#define expect_prompt_row(plan, i, row, length)                                                    \
    do {                                                                                           \
        assert_true((i) < (plan)->num_prompt_logprob_rows);                                        \
        assert_int_equal((plan)->prompt_logprob_rows[i], row);                                     \
        assert_int_equal((plan)->prompt_logprob_lengths[i], length);                               \
    } while (0)

static void prompts_logprobs_are_gathered_over_chunks(void **state)
{
    struct scheduler_options options = ROOMY;
    const struct scheduler_output *plan;

    (void)state;
    options.max_num_batched_tokens = 100;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 9});
    bench_add(b, (struct wish){.num_prompt = 191, .max_tokens = 2, .wants_prompt_logprobs = true});
    plan = bench_schedule(b);
    expect_counts(plan, 10, 90);
    assert_int_equal(plan->num_prompt_logprob_rows, 1);
    expect_prompt_row(plan, 0, 1, 90);
    bench_answer(b, 50);
    plan = bench_schedule(b);
    expect_counts(plan, 1, 99);
    expect_prompt_row(plan, 0, 1, 99);
    bench_answer(b, 50);
    plan = bench_schedule(b); /* tokens 189 and 190: the second foretells the answer */
    expect_counts(plan, 1, 2);
    expect_prompt_row(plan, 0, 1, 1);
    assert_false(bench_outcome(b, 2)->has_prompt_logprobs);
    bench_answer(b, 50);
    assert_true(bench_outcome(b, 2)->has_prompt_logprobs);
    plan = bench_schedule(b);
    expect_counts(plan, 1, 1);
    assert_int_equal(plan->num_prompt_logprob_rows, 0);
    bench_answer(b, 50);
    bench_end(b);
    bench_free(b);
}

static void a_prompt_of_one_token_has_no_logprobs_and_says_so(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    bench_add(b, (struct wish){.num_prompt = 1, .max_tokens = 1, .wants_prompt_logprobs = true});
    assert_int_equal(bench_schedule(b)->num_prompt_logprob_rows, 0);
    bench_answer(b, 50);
    assert_true(bench_outcome(b, 1)->has_prompt_logprobs);
    bench_free(b);
}

static void a_prompt_with_logprobs_is_computed_whole_though_it_is_cached(void **state)
{
    enum { NUM_PROMPT = 4 * BLOCK + 1 };
    struct scheduler_options options = ROOMY;
    int32_t prompt[NUM_PROMPT];
    struct scheduler_stats stats;

    (void)state;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    for (int32_t i = 0; i < NUM_PROMPT; i++)
        prompt[i] = 10 + i;
    for (int i = 0; i < 3; i++) {
        bench_add(b, (struct wish){.num_prompt = NUM_PROMPT,
                                   .max_tokens = 1,
                                   .prompt = prompt,
                                   .wants_prompt_logprobs = i == 1});
        expect_row(bench_schedule(b), 0, i + 1, i == 2 ? 1 : NUM_PROMPT);
        bench_answer(b, 50);
    }
    assert_true(bench_outcome(b, 2)->has_prompt_logprobs);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.at_first.requests, 2); /* the other did not ask the cache */
    bench_free(b);
}

/* Preempted behind its first chunk: what has been told is not asked for again, the rest comes. */
static void logprobs_outlive_a_preemption(void **state)
{
    struct scheduler_options options = ROOMY;
    const struct scheduler_output *plan;

    (void)state;
    options.num_blocks = 10;
    options.max_num_batched_tokens = 4 * BLOCK;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 2 * BLOCK, .max_tokens = 20 * BLOCK / 4});
    bench_schedule(b);
    bench_answer(b, 50);
    bench_add(b, (struct wish){.num_prompt = 7 * BLOCK, .max_tokens = 2, .wants_prompt_logprobs = true});
    plan = bench_schedule(b);
    expect_row(plan, 1, 2, 4 * BLOCK - 1);
    expect_prompt_row(plan, 0, 1, 4 * BLOCK - 1);
    bench_answer(b, 50);
    assert_true(scheduler_reset_prefix_cache(b->scheduler, true)); /* preempts all */
    plan = bench_schedule(b);
    expect_row(plan, 1, 2, 4 * BLOCK - (2 * BLOCK + 2));
    assert_int_equal(plan->num_prompt_logprob_rows, 0); /* these have been told */
    bench_run(b);
    assert_true(bench_outcome(b, 2)->has_prompt_logprobs);
    assert_int_equal(bench_outcome(b, 2)->finish, FINISH_LENGTH);
    bench_free(b);
}

static void an_answer_about_other_prompts_is_refused(void **state)
{
    static const char *const words[] = {
        "the answer has the logprobs of 0 prompts, the plan wants 1",
        "of 4 prompt tokens from 1 on of slot 1, due are 4 from 1 on of slot 0",
        "of 4 prompt tokens from 2 on of slot 0, due are 4 from 1 on of slot 0",
        "the answer has a logprob of token 1000, the vocabulary 1000 tokens",
        "the answer has a logprob of token -1, the vocabulary 1000 tokens",
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        struct bench *b = bench_new(&ROOMY);
        struct answer good;

        bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1, .wants_prompt_logprobs = true});
        bench_schedule(b);
        bench_make_answer(b, 50, &good);

        struct model_runner_output bad = good.output;
        int32_t value = i == 1 ? 1 : i == 2 ? 2 : i == 3 ? VOCAB : -1, ids[64];

        memcpy(ids, bad.prompt_logprob_token_ids, sizeof *ids * (size_t)bad.num_prompt_logprobs);
        ids[bad.num_prompt_logprobs - 1] = value;
        if (i == 0)
            bad.num_prompt_runs = bad.num_prompt_tokens = bad.num_prompt_logprobs = 0;
        else if (i == 1)
            bad.prompt_slots = &value;
        else if (i == 2)
            bad.prompt_positions = &value;
        else
            bad.prompt_logprob_token_ids = ids;
        expect_fails(scheduler_update_from_output(b->scheduler, &b->plans[0], &bad, &b->events),
                     ERR_MISMATCH, words[i]);
        assert_null(output_builder_take(&b->events));
        answer_close(&good);
        bench_answer(b, 50);
        assert_true(bench_outcome(b, 1)->has_prompt_logprobs);
        bench_free(b);
    }
}

static void steps_that_never_come_back_leave_nothing_behind(void **state)
{
    struct bench *b = bench_two_of_five_blocks(POLICY_FCFS, 0, 0);
    request_id last = bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 4});

    (void)state;
    bench_schedule(b);
    bench_abort(b, last);
    bench_schedule(b); /* preempts the second, whose row is in flight */
    scheduler_forget_in_flight(b->scheduler);
    scheduler_end_all(b->scheduler, ERR_CLOSED, "rank 1 has died", &b->events);
    bench_take_events(b);
    for (request_id id = 1; id < last; id++) {
        assert_int_equal(bench_outcome(b, id)->finish, FINISH_ERROR);
        assert_int_equal(bench_outcome(b, id)->error, ERR_CLOSED);
        assert_string_equal(bench_outcome(b, id)->error_text, "rank 1 has died");
    }
    bench_free(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(prompts_that_fit_are_scheduled_whole_and_in_order),
    cmocka_unit_test(every_request_is_counted_until_it_ends),
    cmocka_unit_test(admission_stops_at_max_num_active_seqs),
    cmocka_unit_test(no_more_run_than_max_num_seqs),
    cmocka_unit_test(partial_prompts_share_the_budget),
    cmocka_unit_test(a_long_prompt_that_is_alone_has_the_whole_budget),
    cmocka_unit_test(long_prompts_get_no_less_than_a_fair_share_where_asked_for),
    cmocka_unit_test(a_prompt_is_admitted_when_all_of_it_fits_beside_those_before_it),
    cmocka_unit_test(a_watermark_of_blocks_is_left_to_those_that_run),
    cmocka_unit_test(requests_wait_for_room_or_for_something_of_their_own),
    cmocka_unit_test(deferred_requests_come_back_to_their_places),
    cmocka_unit_test(equal_masks_of_a_step_are_one),
    cmocka_unit_test(a_long_prompt_leads_and_short_ones_wait_behind_it),
    cmocka_unit_test(requests_end_where_they_should),
    cmocka_unit_test(a_row_without_a_token_ends_with_an_error_alone),
    cmocka_unit_test(a_request_that_can_never_fit_is_refused_with_the_numbers),
    cmocka_unit_test(an_aborted_request_ends_at_once_wherever_it_is),
    cmocka_unit_test(an_answer_that_does_not_fit_is_refused_and_changes_nothing),
    cmocka_unit_test(prompts_logprobs_are_gathered_over_chunks),
    cmocka_unit_test(a_prompt_of_one_token_has_no_logprobs_and_says_so),
    cmocka_unit_test(a_prompt_with_logprobs_is_computed_whole_though_it_is_cached),
    cmocka_unit_test(logprobs_outlive_a_preemption),
    cmocka_unit_test(an_answer_about_other_prompts_is_refused),
    cmocka_unit_test(steps_that_never_come_back_leave_nothing_behind),
};
TEST_MAIN(tests)
