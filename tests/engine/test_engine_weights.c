/* Sleep and other weights through the whole engine, on one rank and on several: streams go on. */
#include "tests/support/expect.h"

#include "engine/cmd/cmd.h"
#include "engine/engine.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/config/config.h"
#include "proto/model/model_file.h"
#include "tests/support/tiny_model.h"

#include <poll.h>
#include <unistd.h>

enum { MAX_TOKENS = 200, MAX_REPLIES = 8 };

/* ---- an engine ------------------------------------------------------------------------------ */

struct reply {
    request_id id;
    int32_t tokens[MAX_TOKENS];
    int32_t num_tokens;
    enum finish_reason finish; /* FINISH_NONE: it goes on */
};

struct bench;

struct answer {
    const struct bench *bench;
    bool is_there;
    enum status status;
    char text[2048];
};

struct bench {
    struct config config;
    struct model_file *file;
    struct engine *engine;
    struct reply replies[MAX_REPLIES];
    int32_t num_replies, num_ended;
};

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

/* flags: as on the command line, separated by blanks. */
static struct bench *open_engine(const char *path, const char *flags)
{
    AUTO_MEM char *text =
        mem_printf("--threads 1 --log-level error --num-gpu-blocks-override 1000 %s", flags);
    char *argv[32] = {(char *)"test", (char *)"--model", (char *)path};
    struct bench *b = mem_new(struct bench);
    int argc = 3;

    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    expect_ok(config_parse(&b->config, NULL, argc, argv));
    expect_ok(model_file_open(path, &b->file));
    expect_ok(engine_new(&b->config, b->file, NULL, NULL, &b->engine));
    return b;
}

static void close_engine(struct bench *b)
{
    engine_free(b->engine);
    model_file_free(b->file);
    config_close(&b->config);
    mem_free(b);
}

/* ---- requests ------------------------------------------------------------------------------- */

static struct reply *submit(struct bench *b, int32_t max_tokens)
{
    enum { NUM_PROMPT = 40 };
    struct reply *reply = &b->replies[b->num_replies++];
    token_id prompt[NUM_PROMPT];
    struct sampling_params params;

    assert_true(b->num_replies <= MAX_REPLIES && max_tokens <= MAX_TOKENS);
    for (int32_t i = 0; i < NUM_PROMPT; i++)
        prompt[i] = 20 + i * 7 % 200;
    sampling_params_init(&params);
    params.max_tokens = max_tokens;
    params.ignore_eos = true;
    params.temperature = 0;
    expect_ok(engine_submit(
        b->engine,
        &(struct submission){.prompt = prompt, .num_prompt = NUM_PROMPT, .params = &params},
        &reply->id));
    return reply;
}

static void take_event(struct bench *b, const struct engine_event *event)
{
    for (int32_t i = 0; i < b->num_replies; i++) {
        struct reply *reply = &b->replies[i];

        if (reply->id != event->id)
            continue;
        assert_int_equal(reply->finish, FINISH_NONE);
        for (int32_t t = 0; t < event->num_tokens; t++)
            reply->tokens[reply->num_tokens++] = event->tokens[t];
        assert_int_equal(event->num_output_tokens, reply->num_tokens);
        reply->finish = event->finish;
        b->num_ended += event->finish != FINISH_NONE;
    }
}

static void take_outputs(struct bench *b)
{
    struct pollfd fd = {.fd = engine_fd(b->engine), .events = POLLIN};
    struct engine_output *output;

    poll(&fd, 1, 100);
    while ((output = engine_poll(b->engine))) {
        for (int32_t i = 0; i < output->num_events; i++)
            take_event(b, &output->events[i]);
        engine_output_free(output);
    }
}

#define wait_until(condition)                                                                      \
    for (int64_t deadline_ns = clock_deadline_ns(60000); !(condition); take_outputs(b))            \
    assert_true(clock_now_ns() < deadline_ns)

/* ---- orders --------------------------------------------------------------------------------- */

static void listen(void *user, enum status status, const char *text)
{
    struct answer *answer = user;

    assert_false(answer->is_there);
    answer->is_there = true;
    answer->status = status;
    snprintf(answer->text, sizeof answer->text, "%s", text);
}

static struct answer call(struct bench *b, const char *name, const char *args)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_call_workers(b->engine, name, args, listen, &answer));
    wait_until(answer.is_there);
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
    struct bench *b = open_engine(path, "");
    struct reply *alone = submit(b, MAX_TOKENS);

    wait_until(alone->finish == FINISH_LENGTH);
    memcpy(tokens, alone->tokens, sizeof alone->tokens);
    close_engine(b);
}

static void expect_said(struct bench *b, const int32_t *tokens)
{
    struct reply *reply = submit(b, MAX_TOKENS);

    wait_until(reply->finish != FINISH_NONE);
    assert_int_equal(reply->finish, FINISH_LENGTH);
    assert_memory_equal(reply->tokens, tokens, sizeof reply->tokens);
}

static const char *const ROWS[] = {"", "--tp 2 --no-async-scheduling", "--tp 2"};

/* ---- sleep ------------------------------------------------------------------------------------ */

static void a_stream_goes_on_after_sleep_as_if_nothing_had_been(void **state)
{
    int32_t tokens[MAX_TOKENS], num_tokens;

    (void)state;
    say_alone(model_path, tokens);
    for (size_t row = 0; row < COUNT_OF(ROWS); row++) {
        struct bench *b = open_engine(model_path, ROWS[row]);
        struct reply *stream = submit(b, MAX_TOKENS), *late;

        wait_until(stream->num_tokens > 5);
        for (int level = 1; level <= 2; level++) {
            AUTO_MEM char *args = mem_printf("{\"level\": %d}", level);

            call_well(b, "sleep", args);
            assert_true(is_asleep(b));
            num_tokens = stream->num_tokens;
            late = submit(b, 20);
            for (int i = 0; i < 3; i++)
                take_outputs(b);
            assert_int_equal(stream->num_tokens, num_tokens);
            assert_int_equal(late->num_tokens, 0);
            call_well(b, "wake_up", "{}");
            assert_false(is_asleep(b));
            wait_until(late->finish == FINISH_LENGTH);
            assert_memory_equal(late->tokens, tokens, 20 * sizeof *tokens);
        }
        wait_until(stream->finish == FINISH_LENGTH);
        assert_memory_equal(stream->tokens, tokens, sizeof tokens);
        close_engine(b);
    }
}

static void a_rank_that_ends_while_all_sleep_is_replaced_and_all_wake(void **state)
{
    int32_t tokens[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    for (int level = 1; level <= 2; level++) {
        struct bench *b = open_engine(model_path, "--tp 2");
        AUTO_MEM char *args = mem_printf("{\"level\": %d}", level);
        struct answer answer = {.bench = b};

        call_well(b, "sleep", args);
        expect_ok(engine_restart_worker(b->engine, 1, listen, &answer));
        wait_until(answer.is_there);
        if (answer.status != OK)
            fail_msg("level %d: %s", level, answer.text);
        assert_false(is_asleep(b));
        expect_said(b, tokens);
        close_engine(b);
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
        struct bench *b = open_engine(model_path, ROWS[row]);
        struct reply *across;

        expect_said(b, tokens);
        load(b, other_path);
        expect_said(b, tokens);
        across = submit(b, MAX_TOKENS);
        wait_until(across->num_tokens > 5);
        call_well(b, "reload_weights", "{\"phase\": \"swap\"}");
        expect_said(b, other); /* no prefix of the old weights is left */
        wait_until(across->finish == FINISH_LENGTH);
        call_well(b, "reload_weights", "{\"phase\": \"rollback\"}");
        expect_said(b, tokens);
        call_well(b, "reload_weights", "{\"phase\": \"drop\"}");
        expect_said(b, tokens);
        close_engine(b);
    }
}

static struct answer reload(struct bench *b, const char *path)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_reload_weights(b->engine, path, listen, &answer));
    wait_until(answer.is_there);
    return answer;
}

static void a_reload_is_one_order_and_streams_go_on_meanwhile(void **state)
{
    int32_t tokens[MAX_TOKENS], other[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    say_alone(other_path, other);
    for (size_t row = 0; row < COUNT_OF(ROWS); row++) {
        struct bench *b = open_engine(model_path, ROWS[row]);
        struct reply *across = submit(b, MAX_TOKENS);
        struct engine_stats before, after;
        struct answer answer;

        wait_until(across->num_tokens > 2);
        engine_stats(b->engine, &before);
        answer = reload(b, other_path);
        if (answer.status != OK)
            fail_msg("%s", answer.text);
        engine_stats(b->engine, &after);
        assert_int_equal(after.weights_version, 1);
        assert_string_not_equal(after.fingerprint, before.fingerprint);
        assert_non_null(strstr(answer.text, after.fingerprint));
        expect_said(b, other);
        wait_until(across->finish == FINISH_LENGTH);

        answer = reload(b, model_path); /* the old ones, beside, are no obstacle */
        if (answer.status != OK)
            fail_msg("%s", answer.text);
        engine_stats(b->engine, &after);
        assert_int_equal(after.weights_version, 2);
        assert_string_equal(after.fingerprint, before.fingerprint);
        expect_said(b, tokens);
        close_engine(b);
    }
}

static void a_reload_that_fails_leaves_all_as_it_was(void **state)
{
    int32_t tokens[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    for (size_t row = 0; row < COUNT_OF(ROWS); row += 2) {
        struct bench *b = open_engine(model_path, ROWS[row]);
        struct answer answer = reload(b, "/no/such/file");

        assert_int_not_equal(answer.status, OK);
        assert_string_equal(answer.text,
                            "rank 0: /no/such/file: No such file or directory");
        answer = call(b, "reload_weights", "{\"phase\": \"status\"}");
        assert_non_null(strstr(answer.text, "\"spare\":\"none\""));
        expect_said(b, tokens);
        assert_int_equal(reload(b, "not UTF-8: \xff").status, ERR_INVALID);
        expect_ok(engine_reload_weights(b->engine, other_path, listen, &answer));
        answer.is_there = false;
        close_engine(b); /* in the midst of it */
        assert_true(answer.is_there);
        if (answer.status != OK)
            assert_int_equal(answer.status, ERR_CLOSED);
    }
}

static void a_rank_that_is_replaced_has_the_weights_of_the_others(void **state)
{
    struct bench *b = open_engine(model_path, "--tp 2");
    struct answer answer = {.bench = b};
    int32_t other[MAX_TOKENS];

    (void)state;
    say_alone(other_path, other);
    load(b, other_path);
    call_well(b, "reload_weights", "{\"phase\": \"swap\"}");
    call_well(b, "reload_weights", "{\"phase\": \"drop\"}");
    expect_ok(engine_restart_worker(b->engine, 1, listen, &answer));
    wait_until(answer.is_there);
    if (answer.status != OK)
        fail_msg("%s", answer.text);
    expect_said(b, other);
    close_engine(b);
}

static void no_rank_swaps_where_one_can_not(void **state)
{
    struct bench *b = open_engine(model_path, "--tp 2");
    struct answer restart = {.bench = b}, answer;
    int32_t tokens[MAX_TOKENS];

    (void)state;
    say_alone(model_path, tokens);
    answer = call(b, "reload_weights", "{\"phase\": \"swap\"}");
    assert_int_equal(answer.status, ERR_MISMATCH);
    assert_string_equal(answer.text, "rank 0: no weights were loaded before");
    load(b, other_path);
    expect_ok(engine_restart_worker(b->engine, 1, listen, &restart)); /* it has not loaded them */
    wait_until(restart.is_there);
    assert_int_equal(restart.status, OK);
    answer = call(b, "reload_weights", "{\"phase\": \"swap\"}");
    assert_int_equal(answer.status, ERR_MISMATCH);
    assert_string_equal(answer.text, "rank 1: no weights were loaded before");
    answer = call(b, "reload_weights", "{\"phase\": \"load\", \"path\": \"/no/such\"}");
    assert_int_not_equal(answer.status, OK);
    answer = call(b, "no_such_call", "{}");
    assert_int_equal(answer.status, ERR_NOT_FOUND);
    expect_said(b, tokens);
    close_engine(b);
}

static void ranks_tell_where_their_threads_are(void **state)
{
    (void)state;
    for (size_t row = 0; row < COUNT_OF(ROWS); row += 2) {
        struct bench *b = open_engine(model_path, ROWS[row]);

        call_well(b, "stacks", "{}");
        close_engine(b);
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
