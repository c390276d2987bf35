/* The pace of prompts, on a machine of known prices. */
#include "tests/support/expect.h"

#include "engine/core/pacing.h"
#include "proto/base/memory.h"

/* What a step takes: a + b * rows + g * (positions that tokens of prompts look back to). */
struct machine {
    double a_ns, b_ns, g_ns;
};

static const struct machine small_cpu = {1.3e6, 0.25e6, 140};

static int64_t step_ns(const struct machine *m, int32_t rows, int32_t prompt_tokens, int32_t context)
{
    return (int64_t)(m->a_ns + m->b_ns * (rows + prompt_tokens) + m->g_ns * prompt_tokens * context);
}

/* Steps as core schedules them, each observed when the next has been scheduled. */
struct run {
    struct pacing pacing;
    int32_t num_decoding;
    int32_t before, before_decoding; /* tokens and rows of the step in flight; -1: there is none */
    int64_t before_ns;
};

static int64_t step(struct run *run, const struct machine *m, int32_t left, int32_t waiting,
                    int32_t context, int32_t *tokens_out)
{
    int32_t limit = left ? pacing_limit(&run->pacing, run->num_decoding, waiting) : 0;
    int32_t most = MIN(limit, 2048), tokens = MIN(most, left);

    if (run->before >= 0)
        pacing_observe(&run->pacing, run->before_decoding, run->before, run->before_ns);
    run->before = tokens;
    run->before_decoding = run->num_decoding;
    run->before_ns = step_ns(m, run->num_decoding, tokens, context);
    *tokens_out = tokens;
    return run->before_ns;
}

static struct run begin(double slowdown, int32_t num_decoding)
{
    struct run run = {.num_decoding = num_decoding, .before = -1};
    int32_t tokens;

    pacing_init(&run.pacing, slowdown);
    for (int i = 0; i < 50; i++)
        step(&run, &small_cpu, 0, 0, 0, &tokens);
    return run;
}

static void a_long_prompt_keeps_steps_within_the_bound(void **state)
{
    static const int32_t rows[] = {1, 8, 64};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct run run = begin(2, rows[i]);
        int64_t idle_ns = step_ns(&small_cpu, rows[i], 0, 0);
        int32_t done = 0, num_steps = 0, num_long = 0;

        while (done < 4000) {
            int32_t tokens;
            int64_t ns = step(&run, &small_cpu, 4000 - done, 1, done, &tokens);

            num_long += ns > 2 * idle_ns;
            assert_true(ns < 3 * idle_ns);
            done += tokens;
            assert_true(++num_steps < 5000);
        }
        assert_true(num_long * 50 <= num_steps); /* the price of a token is first a guess */
    }
}

/* Steps take up to 12 % more or less than they should. */
static int64_t vary(struct run *run, uint32_t *random)
{
    *random = *random * 1664525 + 1013904223;
    run->before_ns += run->before_ns * (int64_t)(*random >> 24) / 1067 - run->before_ns * 128 / 1067;
    return run->before_ns;
}

static void one_step_in_a_hundred_is_too_long_where_steps_vary(void **state)
{
    struct run run = begin(2, 8);
    int64_t idle_ns = step_ns(&small_cpu, 8, 0, 0);
    int32_t num_steps = 0, num_long = 0;
    uint32_t random = 1;

    (void)state;
    for (int i = 0; i < 4000; i++) {
        int32_t tokens;

        step(&run, &small_cpu, 4000, 1, 1000, &tokens);

        bool is_long = vary(&run, &random) > 2 * idle_ns;

        if (i < 1000 || !tokens) /* what a step takes is being learnt, or measured */
            continue;
        num_steps++;
        num_long += is_long;
    }
    assert_in_range(1000 * num_long / num_steps, 1, 20);
}

static void a_bound_leaves_prompts_their_share(void **state)
{
    struct run run = begin(2, 8);
    int64_t with_prompt_ns = 0;
    int32_t done = 0;

    (void)state;
    while (done < 1000) {
        int32_t tokens;

        with_prompt_ns += step(&run, &small_cpu, 1000 - done, 1, done, &tokens);
        done += tokens;
    }
    /* Alone it would take its tokens' time; beside 8 that decode about twice that and a little. */
    assert_true(with_prompt_ns < 3 * step_ns(&small_cpu, 0, 1000, 500));
}

static void a_burst_is_not_held_up(void **state)
{
    struct run run = begin(2, 1);
    int32_t tokens, most = 0;

    (void)state;
    for (int i = 0; i < 20; i++) {
        step(&run, &small_cpu, 256 * 128, 255, 64, &tokens);
        most = MAX(most, tokens);
    }
    assert_true(most >= 1000);
}

static void nothing_is_limited_where_nothing_decodes_or_nobody_asked(void **state)
{
    struct pacing pacing;

    (void)state;
    pacing_init(&pacing, 2);
    assert_int_equal(pacing_limit(&pacing, 0, 5), INT32_MAX);
    pacing_init(&pacing, 0);
    pacing_observe(&pacing, 8, 0, 1000000);
    assert_int_equal(pacing_limit(&pacing, 8, 1), INT32_MAX);
    assert_int_equal(pacing.limit, -1);
}

/* A prompt moves on whatever was measured: time that stands still, a step that took a minute. */
static void a_prompt_is_never_starved(void **state)
{
    static const int64_t times[] = {0, 1, 60000000000, -5};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(times); i++)
        for (size_t j = 0; j < COUNT_OF(times); j++) {
            struct pacing pacing;
            int32_t num_empty = 0;

            pacing_init(&pacing, 1);
            for (int n = 0; n < 640; n++) {
                int32_t limit = pacing_limit(&pacing, 3, 1);

                assert_true(limit >= 0);
                num_empty += limit == 0;
                pacing_observe(&pacing, 3, MIN(limit, 2048), limit ? times[i] : times[j]);
            }
            assert_true(num_empty <= 640 / PACING_PERIOD + 2);
        }
}

static void what_decoding_takes_is_measured_anew_when_other_rows_decode(void **state)
{
    struct run run = begin(2, 4);
    int32_t tokens, num_measured = 0;

    (void)state;
    run.num_decoding = 16;
    for (int i = 0; i < 30; i++) {
        step(&run, &small_cpu, 4000, 1, 0, &tokens);
        num_measured += tokens == 0;
    }
    assert_int_equal(num_measured, 1);
    assert_float_equal(run.pacing.decode_ns, (double)step_ns(&small_cpu, 16, 0, 0), 1);
}

static void one_step_that_was_held_up_does_not_end_the_pace(void **state)
{
    struct run run = begin(2, 8);
    int32_t tokens, before;

    (void)state;
    for (int i = 0; i < 50; i++)
        step(&run, &small_cpu, 4000, 1, 0, &tokens);
    before = tokens;
    run.before_ns *= 10;
    for (int i = 0; i < 2; i++) {
        step(&run, &small_cpu, 4000, 1, 0, &tokens);
        assert_in_range(tokens, before / 2, before);
    }
    for (int i = 0; i < 8; i++)
        step(&run, &small_cpu, 4000, 1, 0, &tokens);
    assert_in_range(tokens, before - 1, before + 1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_long_prompt_keeps_steps_within_the_bound),
    cmocka_unit_test(one_step_in_a_hundred_is_too_long_where_steps_vary),
    cmocka_unit_test(a_bound_leaves_prompts_their_share),
    cmocka_unit_test(a_burst_is_not_held_up),
    cmocka_unit_test(nothing_is_limited_where_nothing_decodes_or_nobody_asked),
    cmocka_unit_test(a_prompt_is_never_starved),
    cmocka_unit_test(what_decoding_takes_is_measured_anew_when_other_rows_decode),
    cmocka_unit_test(one_step_that_was_held_up_does_not_end_the_pace),
};
TEST_MAIN(tests)
