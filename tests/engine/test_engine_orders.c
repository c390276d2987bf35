/* Orders that are answered, and the limits of the queue, through the whole engine. */
#include "tests/engine/engine_bench.h"

#include "tests/support/tiny_model.h"

#include <unistd.h>

/* A long request goes on for seconds: nobody gets to its end by chance. */
enum { LONG = MAX_OUTPUT };

static char model_path[64];
static const char *const MODES[] = {"--async-scheduling", "--no-async-scheduling"};

static int make_model(void **state)
{
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/tandem-test-orders-%d.gguf", (int)getpid());
    tiny_model_write(model_path, &(struct tiny_model_options){.max_position = 2 * LONG});
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    return unlink(model_path);
}

/* ---- orders --------------------------------------------------------------------------------- */

static struct answer pause_engine(struct bench *b, enum pause_mode mode)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_pause(b->engine, mode, true, bench_listen, &answer));
    wait_until(b, answer.is_there);
    return answer;
}

static void resume(struct bench *b)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_resume(b->engine, bench_listen, &answer));
    wait_until(b, answer.is_there);
    assert_int_equal(answer.status, OK);
    assert_false(engine_is_paused(b->engine));
}

static struct answer reset(struct bench *b, bool reset_running)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_reset_prefix_cache(b->engine, reset_running, bench_listen, &answer));
    wait_until(b, answer.is_there);
    return answer;
}

static void a_pause_aborts_what_is_inside_and_lets_newcomers_wait(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct bench *b = bench_new(model_path, MODES[mode]);
        struct reply *inside = bench_submit(b, 40, LONG - 1), *late;

        assert_false(engine_is_paused(b->engine));
        wait_until(b, inside->num_tokens > 2);

        struct answer answer = pause_engine(b, PAUSE_ABORT);

        assert_int_equal(answer.status, OK);
        assert_int_equal(answer.num_ended, 1); /* told before the answer */
        assert_int_equal(inside->finish, FINISH_ABORT);
        assert_true(engine_is_paused(b->engine));

        late = bench_submit(b, 40, 3);
        assert_int_equal(pause_engine(b, PAUSE_WAIT).status,
                         OK); /* behind it, and nothing to wait for */
        assert_int_equal(late->num_tokens, 0);
        resume(b);
        wait_until(b, late->finish == FINISH_LENGTH);
        bench_free(b);
    }
}

static void a_pause_may_wait_for_what_runs(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct bench *b = bench_new(model_path, MODES[mode]);
        struct reply *inside = bench_submit(b, 40, 60), *late;
        struct answer answer = {.bench = b}, given_up = {.bench = b};

        wait_until(b, inside->num_tokens > 0);
        expect_ok(engine_pause(b->engine, PAUSE_WAIT, true, bench_listen, &answer));
        late = bench_submit(b, 40, LONG - 1);
        wait_until(b, answer.is_there);
        assert_int_equal(answer.status, OK);
        assert_int_equal(inside->finish, FINISH_LENGTH);
        assert_int_equal(inside->num_tokens, 60);
        assert_int_equal(late->num_tokens, 0);

        resume(b);
        wait_until(b, late->num_tokens > 0);
        expect_ok(engine_pause(b->engine, PAUSE_WAIT, true, bench_listen, &given_up));
        resume(b);
        assert_true(given_up.is_there);
        assert_int_equal(given_up.status, ERR_ABORTED);
        assert_string_equal(given_up.text, "the engine was resumed before it had paused");
        bench_free(b);
    }
}

/* Frozen, and its KV lost on the way: it says what it would have said. */
static void a_frozen_request_goes_on_as_if_nothing_had_been(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct bench *b = bench_new(model_path, MODES[mode]);
        struct reply *frozen = bench_submit(b, 40, LONG - 1), *alone;
        int32_t num_tokens;

        for (int round = 0; round < 2; round++) {
            num_tokens = frozen->num_tokens;
            wait_until(b, frozen->num_tokens > num_tokens + 20);
            assert_int_equal(pause_engine(b, PAUSE_KEEP).status, OK);
            assert_true(engine_is_paused(b->engine));
            num_tokens = frozen->num_tokens;
            if (round > 0)
                assert_int_equal(reset(b, true).status, OK);
            bench_take_outputs(b);
            assert_int_equal(frozen->num_tokens, num_tokens);
            resume(b);
        }
        wait_until(b, frozen->num_tokens > num_tokens + 20);
        pause_engine(b, PAUSE_ABORT);
        assert_int_equal(frozen->finish, FINISH_ABORT);
        resume(b);

        alone = bench_submit(b, 40, frozen->num_tokens);
        wait_until(b, alone->finish == FINISH_LENGTH);
        assert_memory_equal(alone->tokens, frozen->tokens,
                            sizeof *alone->tokens * (size_t)frozen->num_tokens);
        bench_free(b);
    }
}

static void a_reset_says_why_it_was_refused(void **state)
{
    struct bench *b = bench_new(model_path, "");
    struct reply *running = bench_submit(b, 40, LONG - 1);
    struct engine_stats stats;

    (void)state;
    wait_until(b, running->num_tokens > 0);

    struct answer answer = reset(b, false);

    assert_int_equal(answer.status, ERR_FULL);
    assert_string_equal(answer.text, "the prefix cache is in use: 1 requests run");
    assert_int_equal(reset(b, true).status, OK);
    engine_stats(b->engine, &stats);
    assert_int_equal(stats.num_preemptions, 1);
    wait_until(b, running->num_tokens > 40);
    pause_engine(b, PAUSE_ABORT);
    assert_int_equal(reset(b, false).status, OK);
    bench_free(b);
}

static void an_engine_that_ends_answers_what_is_open(void **state)
{
    struct bench *b = bench_new(model_path, "");
    struct reply *running = bench_submit(b, 40, LONG - 1);
    struct answer answer = {.bench = b};

    (void)state;
    wait_until(b, running->num_tokens > 0);
    expect_ok(engine_pause(b->engine, PAUSE_WAIT, true, bench_listen, &answer));
    bench_take_outputs(b);
    bench_free(b);
    assert_true(answer.is_there);
    assert_int_equal(answer.status, ERR_CLOSED);
    assert_string_equal(answer.text, "the engine stops");
}

static void pause_modes_have_names(void **state)
{
    enum pause_mode mode;

    (void)state;
    expect_ok(pause_mode_parse("keep", &mode));
    assert_int_equal(mode, PAUSE_KEEP);
    expect_fails(pause_mode_parse("freeze", &mode), ERR_INVALID,
                 "Invalid pause mode: 'freeze'; the modes are abort, wait and keep");
}

/* ---- limits --------------------------------------------------------------------------------- */

static void a_queue_has_room_for_so_many_requests(void **state)
{
    struct bench *b = bench_new(model_path, "--max-num-queued-reqs 3");
    struct engine_stats stats;

    (void)state;
    pause_engine(b, PAUSE_WAIT);
    expect_ok(engine_check_admission(b->engine, 3));
    bench_submit(b, 40, 3);
    expect_ok(engine_check_admission(b->engine, 2));
    expect_fails(engine_check_admission(b->engine, 3), ERR_FULL,
                 "The server is busy: 1 requests are unfinished, --max-num-queued-reqs is 3; try "
                 "again later");
    expect_fails(engine_check_admission(b->engine, 4), ERR_INVALID,
                 "4 sequences are asked for, --max-num-queued-reqs is 3");
    bench_submit(b, 40, 3);
    bench_submit(b, 40, 3);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL, "busy");
    engine_stats(b->engine, &stats);
    assert_int_equal(stats.admission_rejections[LIMIT_QUEUED_REQS], 2);
    assert_int_equal(stats.admission_rejections[LIMIT_QUEUED_TOKENS], 0);
    resume(b);
    wait_until(b, b->num_ended == 3);
    expect_ok(engine_check_admission(b->engine, 3));
    bench_free(b);
}

static void a_queue_has_room_for_so_many_tokens_of_prompts(void **state)
{
    struct bench *b = bench_new(model_path, "--max-num-queued-tokens 60 --max-num-queued-reqs 3");
    struct engine_stats stats;
    struct reply *first;

    (void)state;
    pause_engine(b, PAUSE_WAIT);
    first = bench_submit(b, 40, LONG - 1);
    expect_ok(engine_check_admission(b->engine, 1)); /* one more, be it as long as it may */
    bench_submit(b, 20, 3);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL,
                 "The server has a backlog: prompts of 60 tokens wait, --max-num-queued-tokens is "
                 "60; try again later");
    engine_abort(b->engine, b->replies[1].id);
    wait_until(b, b->num_ended == 1);
    expect_ok(engine_check_admission(b->engine, 1));
    bench_submit(b, 40, 3);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL, "80 tokens");
    engine_stats(b->engine, &stats);
    assert_int_equal(stats.admission_rejections[LIMIT_QUEUED_TOKENS], 2);
    resume(b);
    wait_until(b, b->num_ended == 2 && first->num_tokens > 0);
    expect_ok(engine_check_admission(b->engine, 2)); /* what has begun to answer is no backlog */
    expect_fails(engine_check_admission(b->engine, 3), ERR_FULL, "1 requests are unfinished");
    bench_free(b);
}

static void settings_that_are_live_count_from_now_on(void **state)
{
    (void)state;
    struct bench *b = bench_new(model_path, "--max-num-queued-reqs 1 --max-num-active-seqs 1");
    struct reply *first = bench_submit(b, 40, LONG - 1), *second = bench_submit(b, 40, LONG - 1);
    struct answer answer = {.bench = b};
    struct config changed = b->config;

    wait_until(b, first->num_tokens > 2);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL, "--max-num-queued-reqs is 1");
    assert_int_equal(second->num_tokens, 0);
    changed.max_num_queued_reqs = 3;
    changed.max_num_active_seqs = 2;
    expect_ok(engine_retune(b->engine, &changed, bench_listen, &answer));
    wait_until(b, answer.is_there && second->num_tokens > 2);
    assert_int_equal(answer.status, OK);
    expect_ok(engine_check_admission(b->engine, 1));
    bench_free(b);
}

static void whoever_looks_sees_when_a_step_ended(void **state)
{
    (void)state;
    struct bench *b = bench_new(model_path, MODES[0]);
    int64_t begin_ns = clock_now_ns();
    struct reply *reply = bench_submit(b, 40, 30);
    struct engine_stats stats;

    wait_until(b, reply->finish != FINISH_NONE);
    engine_stats(b->engine, &stats);
    assert_true(stats.progress_ns > begin_ns && stats.progress_ns <= clock_now_ns());
    bench_free(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_pause_aborts_what_is_inside_and_lets_newcomers_wait),
    cmocka_unit_test(a_pause_may_wait_for_what_runs),
    cmocka_unit_test(a_frozen_request_goes_on_as_if_nothing_had_been),
    cmocka_unit_test(a_reset_says_why_it_was_refused),
    cmocka_unit_test(an_engine_that_ends_answers_what_is_open),
    cmocka_unit_test(pause_modes_have_names),
    cmocka_unit_test(settings_that_are_live_count_from_now_on),
    cmocka_unit_test(whoever_looks_sees_when_a_step_ended),
    cmocka_unit_test(a_queue_has_room_for_so_many_requests),
    cmocka_unit_test(a_queue_has_room_for_so_many_tokens_of_prompts),
};

int main(void)
{
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
