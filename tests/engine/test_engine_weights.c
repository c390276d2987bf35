/* Sleep and other weights through the whole engine, on one rank and on several: streams go on. */
#include "tests/engine/engine_bench.h"

#include "engine/cmd/cmd.h"
#include "proto/base/log.h"
#include "tests/support/tiny_model.h"

#include <unistd.h>

enum { NUM_PROMPT = 40, MAX_TOKENS = 200 };

static char model_path[64], other_path[64];

static int make_models(void **state)
{
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/tandem-test-sleep-%d.gguf", (int)getpid());
    snprintf(other_path, sizeof other_path, "/tmp/tandem-test-sleep-%d-other.gguf", (int)getpid());
    tiny_model_write(model_path, NULL);
    tiny_model_write(other_path, &(struct tiny_model_options){.seed = 99});
    return 0;
}

static int remove_models(void **state)
{
    (void)state;
    unlink(other_path);
    return unlink(model_path);
}

/* ---- orders --------------------------------------------------------------------------------- */

static struct answer call(struct bench *b, const char *name, const char *args)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_call_workers(b->engine, name, args, bench_listen, &answer));
    wait_until(b, answer.is_there);
    return answer;
}

static void call_well(struct bench *b, const char *name, const char *args)
{
    struct answer answer = call(b, name, args);

    if (answer.status != OK)
        fail_msg("%s %s: %s", name, args, answer.text);
    assert_int_equal(answer.text[0], '[');
}

static bool is_asleep(const struct bench *b)
{
    struct engine_stats stats;

    engine_stats(b->engine, &stats);
    return stats.is_asleep;
}

static void load(struct bench *b, const char *path)
{
    AUTO_MEM char *args = mem_printf("{\"phase\": \"load\", \"path\": \"%s\"}", path);

    call_well(b, "reload_weights", args);
}

/* What a model says, by itself. */
static void say_alone(const char *path, int32_t *tokens)
{
    struct bench *b = bench_new(path, "");
    struct reply *alone = bench_submit(b, NUM_PROMPT, MAX_TOKENS);

    wait_until(b, alone->finish == FINISH_LENGTH);
    memcpy(tokens, alone->tokens, MAX_TOKENS * sizeof *tokens);
    bench_free(b);
}

static void expect_said(struct bench *b, const int32_t *tokens)
{
    struct reply *reply = bench_submit(b, NUM_PROMPT, MAX_TOKENS);

    wait_until(b, reply->finish != FINISH_NONE);
    assert_int_equal(reply->finish, FINISH_LENGTH);
    assert_memory_equal(reply->tokens, tokens, MAX_TOKENS * sizeof *tokens);
}

static const char *const ROWS[] = {"", "--tp 2 --no-async-scheduling", "--tp 2"};

/* ---- sleep ------------------------------------------------------------------------------------ */

static void a_stream_goes_on_after_sleep_as_if_nothing_had_been(void **state)
{
    int32_t tokens[MAX_TOKENS], num_tokens;

    (void)state;
    say_alone(model_path, tokens);
    for (size_t row = 0; row < COUNT_OF(ROWS); row++) {
        struct bench *b = bench_new(model_path, ROWS[row]);
        struct reply *stream = bench_submit(b, NUM_PROMPT, MAX_TOKENS), *late;

        wait_until(b, stream->num_tokens > 5);
        for (int level = 1; level <= 2; level++) {
            AUTO_MEM char *args = mem_printf("{\"level\": %d}", level);

            call_well(b, "sleep", args);
            assert_true(is_asleep(b));
            num_tokens = stream->num_tokens;
            late = bench_submit(b, NUM_PROMPT, 20);
            for (int i = 0; i < 3; i++)
                bench_take_outputs(b);
            assert_int_equal(stream->num_tokens, num_tokens);
            assert_int_equal(late->num_tokens, 0);
            call_well(b, "wake_up", "{}");
            assert_false(is_asleep(b));
            wait_until(b, late->finish == FINISH_LENGTH);
            assert_memory_equal(late->tokens, tokens, 20 * sizeof *tokens);
        }
        wait_until(b, stream->finish == FINISH_LENGTH);
        assert_memory_equal(stream->tokens, tokens, sizeof tokens);
        bench_free(b);
    }
}

static void a_rank_that_ends_while_all_sleep_is_replaced_and_all_wake(void **state)
{
    int32_t tokens[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    for (int level = 1; level <= 2; level++) {
        struct bench *b = bench_new(model_path, "--tp 2");
        AUTO_MEM char *args = mem_printf("{\"level\": %d}", level);
        struct answer answer = {.bench = b};

        call_well(b, "sleep", args);
        expect_ok(engine_restart_worker(b->engine, 1, bench_listen, &answer));
        wait_until(b, answer.is_there);
        if (answer.status != OK)
            fail_msg("level %d: %s", level, answer.text);
        assert_false(is_asleep(b));
        expect_said(b, tokens);
        bench_free(b);
    }
}

/* ---- other weights ---------------------------------------------------------------------------- */

static void new_weights_answer_from_the_swap_on_and_the_old_ones_after_a_rollback(void **state)
{
    int32_t tokens[MAX_TOKENS], other[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    say_alone(other_path, other);
    assert_memory_not_equal(tokens, other, sizeof tokens);
    for (size_t row = 0; row < COUNT_OF(ROWS); row++) {
        struct bench *b = bench_new(model_path, ROWS[row]);
        struct reply *across;

        expect_said(b, tokens);
        load(b, other_path);
        expect_said(b, tokens);
        across = bench_submit(b, NUM_PROMPT, MAX_TOKENS);
        wait_until(b, across->num_tokens > 5);
        call_well(b, "reload_weights", "{\"phase\": \"swap\"}");
        expect_said(b, other); /* no prefix of the old weights is left */
        wait_until(b, across->finish == FINISH_LENGTH);
        call_well(b, "reload_weights", "{\"phase\": \"rollback\"}");
        expect_said(b, tokens);
        call_well(b, "reload_weights", "{\"phase\": \"drop\"}");
        expect_said(b, tokens);
        bench_free(b);
    }
}

static struct answer reload(struct bench *b, const char *path)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_reload_weights(b->engine, path, bench_listen, &answer));
    wait_until(b, answer.is_there);
    return answer;
}

static void a_reload_is_one_order_and_streams_go_on_meanwhile(void **state)
{
    int32_t tokens[MAX_TOKENS], other[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    say_alone(other_path, other);
    for (size_t row = 0; row < COUNT_OF(ROWS); row++) {
        struct bench *b = bench_new(model_path, ROWS[row]);
        struct reply *across = bench_submit(b, NUM_PROMPT, MAX_TOKENS);
        struct engine_stats before, after;
        struct answer answer;

        wait_until(b, across->num_tokens > 2);
        engine_stats(b->engine, &before);
        answer = reload(b, other_path);
        if (answer.status != OK)
            fail_msg("%s", answer.text);
        engine_stats(b->engine, &after);
        assert_int_equal(after.weights_version, 1);
        assert_string_not_equal(after.fingerprint, before.fingerprint);
        assert_non_null(strstr(answer.text, after.fingerprint));
        expect_said(b, other);
        wait_until(b, across->finish == FINISH_LENGTH);

        answer = reload(b, model_path); /* the old ones, beside, are no obstacle */
        if (answer.status != OK)
            fail_msg("%s", answer.text);
        engine_stats(b->engine, &after);
        assert_int_equal(after.weights_version, 2);
        assert_string_equal(after.fingerprint, before.fingerprint);
        expect_said(b, tokens);
        bench_free(b);
    }
}

static void a_reload_that_fails_leaves_all_as_it_was(void **state)
{
    int32_t tokens[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    for (size_t row = 0; row < COUNT_OF(ROWS); row += 2) {
        struct bench *b = bench_new(model_path, ROWS[row]);
        struct answer answer = reload(b, "/no/such/file");

        assert_int_not_equal(answer.status, OK);
        assert_string_equal(answer.text, "/no/such/file: No such file or directory");
        answer = call(b, "reload_weights", "{\"phase\": \"status\"}");
        assert_non_null(strstr(answer.text, "\"spare\":\"none\""));
        expect_said(b, tokens);
        expect_fails(engine_reload_weights(b->engine, "not UTF-8: \xff", bench_listen, &answer), ERR_INVALID,
                     "is not UTF-8");
        expect_ok(engine_reload_weights(b->engine, other_path, bench_listen, &answer));
        answer.is_there = false;
        bench_free(b); /* in the midst of it */
        assert_true(answer.is_there);
        if (answer.status != OK)
            assert_int_equal(answer.status, ERR_CLOSED);
    }
}

static void a_rank_that_is_replaced_has_the_weights_of_the_others(void **state)
{
    struct bench *b = bench_new(model_path, "--tp 2");
    struct answer answer = {.bench = b};
    int32_t other[MAX_TOKENS];

    (void)state;
    say_alone(other_path, other);
    load(b, other_path);
    call_well(b, "reload_weights", "{\"phase\": \"swap\"}");
    call_well(b, "reload_weights", "{\"phase\": \"drop\"}");
    expect_ok(engine_restart_worker(b->engine, 1, bench_listen, &answer));
    wait_until(b, answer.is_there);
    if (answer.status != OK)
        fail_msg("%s", answer.text);
    expect_said(b, other);
    bench_free(b);
}

static void no_rank_swaps_where_one_can_not(void **state)
{
    struct bench *b = bench_new(model_path, "--tp 2");
    struct answer restart = {.bench = b}, answer;
    int32_t tokens[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    answer = call(b, "reload_weights", "{\"phase\": \"swap\"}");
    assert_int_equal(answer.status, ERR_MISMATCH);
    assert_string_equal(answer.text, "rank 0: no weights were loaded before");
    load(b, other_path);
    expect_ok(engine_restart_worker(b->engine, 1, bench_listen, &restart)); /* it has not loaded them */
    wait_until(b, restart.is_there);
    assert_int_equal(restart.status, OK);
    answer = call(b, "reload_weights", "{\"phase\": \"swap\"}");
    assert_int_equal(answer.status, ERR_MISMATCH);
    assert_string_equal(answer.text, "rank 1: no weights were loaded before");
    answer = call(b, "reload_weights", "{\"phase\": \"load\", \"path\": \"/no/such\"}");
    assert_int_not_equal(answer.status, OK);
    answer = call(b, "no_such_call", "{}");
    assert_int_equal(answer.status, ERR_NOT_FOUND);
    expect_said(b, tokens);
    bench_free(b);
}

static void ranks_tell_where_their_threads_are(void **state)
{
    (void)state;
    for (size_t row = 0; row < COUNT_OF(ROWS); row += 2) {
        struct bench *b = bench_new(model_path, ROWS[row]);

        call_well(b, "stacks", "{}");
        bench_free(b);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "worker") == 0)
        return cmd_worker(argc - 1, argv + 1);
    log_set_level(LOG_NONE); /* ranks are replaced here on purpose */

    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_goes_on_after_sleep_as_if_nothing_had_been),
        cmocka_unit_test(a_rank_that_ends_while_all_sleep_is_replaced_and_all_wake),
        cmocka_unit_test(new_weights_answer_from_the_swap_on_and_the_old_ones_after_a_rollback),
        cmocka_unit_test(a_reload_is_one_order_and_streams_go_on_meanwhile),
        cmocka_unit_test(a_reload_that_fails_leaves_all_as_it_was),
        cmocka_unit_test(a_rank_that_is_replaced_has_the_weights_of_the_others),
        cmocka_unit_test(no_rank_swaps_where_one_can_not),
        cmocka_unit_test(ranks_tell_where_their_threads_are),
    };

    return cmocka_run_group_tests(tests, make_models, remove_models);
}
