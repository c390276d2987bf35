/* Orders that are answered, and the limits of the queue, through the whole engine. */
#include "tests/support/expect.h"

#include "engine/engine.h"
#include "proto/base/clock.h"
#include "proto/config/config.h"
#include "proto/model/model_file.h"
#include "tests/support/tiny_model.h"

#include <poll.h>
#include <unistd.h>

/* A long request goes on for seconds: nobody gets to its end by chance. */
enum { LONG = 4000, MAX_REPLIES = 8 };

/* ---- an engine ------------------------------------------------------------------------------ */

struct reply {
    request_id id;
    int32_t tokens[LONG];
    int32_t num_tokens;
    enum finish_reason finish; /* FINISH_NONE: it goes on */
};

struct bench;

struct answer {
    const struct bench *bench;
    bool is_there;
    enum status status;
    char text[128];
    int32_t num_ended; /* requests, by then */
};

struct bench {
    struct config config;
    struct model_file *file;
    struct engine *engine;
    struct reply replies[MAX_REPLIES];
    int32_t num_replies, num_ended;
};

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

/* flags: as on the command line, separated by blanks. */
static struct bench *open_engine(const char *flags)
{
    AUTO_MEM char *text =
        mem_printf("--threads 1 --log-level error --num-gpu-blocks-override 1000 %s", flags);
    char *argv[32] = {(char *)"test", (char *)"--model", model_path};
    struct bench *b = mem_new(struct bench);
    int argc = 3;

    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    expect_ok(config_parse(&b->config, NULL, argc, argv));
    expect_ok(model_file_open(model_path, &b->file));
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

static struct reply *submit(struct bench *b, int32_t num_prompt, int32_t max_tokens)
{
    struct reply *reply = &b->replies[b->num_replies++];
    token_id prompt[64];
    struct sampling_params params;

    assert_true(b->num_replies <= MAX_REPLIES && num_prompt <= 64);
    for (int32_t i = 0; i < num_prompt; i++)
        prompt[i] = 20 + i * 7 % 200;
    sampling_params_init(&params);
    params.max_tokens = max_tokens;
    params.ignore_eos = true;
    params.temperature = 0;
    expect_ok(engine_submit(
        b->engine,
        &(struct submission){.prompt = prompt, .num_prompt = num_prompt, .params = &params},
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
    answer->num_ended = answer->bench->num_ended;
    snprintf(answer->text, sizeof answer->text, "%s", text);
}

static struct answer pause_engine(struct bench *b, enum pause_mode mode)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_pause(b->engine, mode, true, listen, &answer));
    wait_until(answer.is_there);
    return answer;
}

static void resume(struct bench *b)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_resume(b->engine, listen, &answer));
    wait_until(answer.is_there);
    assert_int_equal(answer.status, OK);
    assert_false(engine_is_paused(b->engine));
}

static struct answer reset(struct bench *b, bool reset_running)
{
    struct answer answer = {.bench = b};

    expect_ok(engine_reset_prefix_cache(b->engine, reset_running, listen, &answer));
    wait_until(answer.is_there);
    return answer;
}

static void a_pause_aborts_what_is_inside_and_lets_newcomers_wait(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct bench *b = open_engine(MODES[mode]);
        struct reply *inside = submit(b, 40, LONG - 1), *late;

        assert_false(engine_is_paused(b->engine));
        wait_until(inside->num_tokens > 2);

        struct answer answer = pause_engine(b, PAUSE_ABORT);

        assert_int_equal(answer.status, OK);
        assert_int_equal(answer.num_ended, 1); /* told before the answer */
        assert_int_equal(inside->finish, FINISH_ABORT);
        assert_true(engine_is_paused(b->engine));

        late = submit(b, 40, 3);
        assert_int_equal(pause_engine(b, PAUSE_WAIT).status,
                         OK); /* behind it, and nothing to wait for */
        assert_int_equal(late->num_tokens, 0);
        resume(b);
        wait_until(late->finish == FINISH_LENGTH);
        close_engine(b);
    }
}

static void a_pause_may_wait_for_what_runs(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct bench *b = open_engine(MODES[mode]);
        struct reply *inside = submit(b, 40, 60), *late;
        struct answer answer = {.bench = b}, given_up = {.bench = b};

        wait_until(inside->num_tokens > 0);
        expect_ok(engine_pause(b->engine, PAUSE_WAIT, true, listen, &answer));
        late = submit(b, 40, LONG - 1);
        wait_until(answer.is_there);
        assert_int_equal(answer.status, OK);
        assert_int_equal(inside->finish, FINISH_LENGTH);
        assert_int_equal(inside->num_tokens, 60);
        assert_int_equal(late->num_tokens, 0);

        resume(b);
        wait_until(late->num_tokens > 0);
        expect_ok(engine_pause(b->engine, PAUSE_WAIT, true, listen, &given_up));
        resume(b);
        assert_true(given_up.is_there);
        assert_int_equal(given_up.status, ERR_ABORTED);
        assert_string_equal(given_up.text, "the engine was resumed before it had paused");
        close_engine(b);
    }
}

/* Frozen, and its KV lost on the way: it says what it would have said. */
static void a_frozen_request_goes_on_as_if_nothing_had_been(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct bench *b = open_engine(MODES[mode]);
        struct reply *frozen = submit(b, 40, LONG - 1), *alone;
        int32_t num_tokens;

        for (int round = 0; round < 2; round++) {
            num_tokens = frozen->num_tokens;
            wait_until(frozen->num_tokens > num_tokens + 20);
            assert_int_equal(pause_engine(b, PAUSE_KEEP).status, OK);
            assert_true(engine_is_paused(b->engine));
            num_tokens = frozen->num_tokens;
            if (round > 0)
                assert_int_equal(reset(b, true).status, OK);
            take_outputs(b);
            assert_int_equal(frozen->num_tokens, num_tokens);
            resume(b);
        }
        wait_until(frozen->num_tokens > num_tokens + 20);
        pause_engine(b, PAUSE_ABORT);
        assert_int_equal(frozen->finish, FINISH_ABORT);
        resume(b);

        alone = submit(b, 40, frozen->num_tokens);
        wait_until(alone->finish == FINISH_LENGTH);
        assert_memory_equal(alone->tokens, frozen->tokens,
                            sizeof *alone->tokens * (size_t)frozen->num_tokens);
        close_engine(b);
    }
}

static void a_reset_says_why_it_was_refused(void **state)
{
    struct bench *b = open_engine("");
    struct reply *running = submit(b, 40, LONG - 1);
    struct engine_stats stats;

    (void)state;
    wait_until(running->num_tokens > 0);

    struct answer answer = reset(b, false);

    assert_int_equal(answer.status, ERR_FULL);
    assert_string_equal(answer.text, "the prefix cache is in use: 1 requests run");
    assert_int_equal(reset(b, true).status, OK);
    engine_stats(b->engine, &stats);
    assert_int_equal(stats.num_preemptions, 1);
    wait_until(running->num_tokens > 40);
    pause_engine(b, PAUSE_ABORT);
    assert_int_equal(reset(b, false).status, OK);
    close_engine(b);
}

static void an_engine_that_ends_answers_what_is_open(void **state)
{
    struct bench *b = open_engine("");
    struct reply *running = submit(b, 40, LONG - 1);
    struct answer answer = {.bench = b};

    (void)state;
    wait_until(running->num_tokens > 0);
    expect_ok(engine_pause(b->engine, PAUSE_WAIT, true, listen, &answer));
    take_outputs(b);
    close_engine(b);
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
    struct bench *b = open_engine("--max-num-queued-reqs 3");
    struct engine_stats stats;

    (void)state;
    pause_engine(b, PAUSE_WAIT);
    expect_ok(engine_check_admission(b->engine, 3));
    submit(b, 40, 3);
    expect_ok(engine_check_admission(b->engine, 2));
    expect_fails(engine_check_admission(b->engine, 3), ERR_FULL,
                 "The server is busy: 1 requests are unfinished, --max-num-queued-reqs is 3; try "
                 "again later");
    expect_fails(engine_check_admission(b->engine, 4), ERR_INVALID,
                 "4 sequences are asked for, --max-num-queued-reqs is 3");
    submit(b, 40, 3);
    submit(b, 40, 3);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL, "busy");
    engine_stats(b->engine, &stats);
    assert_int_equal(stats.admission_rejections[LIMIT_QUEUED_REQS], 2);
    assert_int_equal(stats.admission_rejections[LIMIT_QUEUED_TOKENS], 0);
    resume(b);
    wait_until(b->num_ended == 3);
    expect_ok(engine_check_admission(b->engine, 3));
    close_engine(b);
}

static void a_queue_has_room_for_so_many_tokens_of_prompts(void **state)
{
    struct bench *b = open_engine("--max-num-queued-tokens 60 --max-num-queued-reqs 3");
    struct engine_stats stats;
    struct reply *first;

    (void)state;
    pause_engine(b, PAUSE_WAIT);
    first = submit(b, 40, LONG - 1);
    expect_ok(engine_check_admission(b->engine, 1)); /* one more, be it as long as it may */
    submit(b, 20, 3);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL,
                 "The server has a backlog: prompts of 60 tokens wait, --max-num-queued-tokens is "
                 "60; try again later");
    engine_abort(b->engine, b->replies[1].id);
    wait_until(b->num_ended == 1);
    expect_ok(engine_check_admission(b->engine, 1));
    submit(b, 40, 3);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL, "80 tokens");
    engine_stats(b->engine, &stats);
    assert_int_equal(stats.admission_rejections[LIMIT_QUEUED_TOKENS], 2);
    resume(b);
    wait_until(b->num_ended == 2 && first->num_tokens > 0);
    expect_ok(engine_check_admission(b->engine, 2)); /* what has begun to answer is no backlog */
    expect_fails(engine_check_admission(b->engine, 3), ERR_FULL, "1 requests are unfinished");
    close_engine(b);
}

static void settings_that_are_live_count_from_now_on(void **state)
{
    (void)state;
    struct bench *b = open_engine("--max-num-queued-reqs 1 --max-num-active-seqs 1");
    struct reply *first = submit(b, 40, LONG - 1), *second = submit(b, 40, LONG - 1);
    struct answer answer = {.bench = b};
    struct config changed = b->config;

    wait_until(first->num_tokens > 2);
    expect_fails(engine_check_admission(b->engine, 1), ERR_FULL, "--max-num-queued-reqs is 1");
    assert_int_equal(second->num_tokens, 0);
    changed.max_num_queued_reqs = 3;
    changed.max_num_active_seqs = 2;
    expect_ok(engine_retune(b->engine, &changed, listen, &answer));
    wait_until(answer.is_there && second->num_tokens > 2);
    assert_int_equal(answer.status, OK);
    expect_ok(engine_check_admission(b->engine, 1));
    close_engine(b);
}

static void whoever_looks_sees_when_a_step_ended(void **state)
{
    (void)state;
    struct bench *b = open_engine(MODES[0]);
    int64_t begin_ns = clock_now_ns();
    struct reply *reply = submit(b, 40, 30);
    struct engine_stats stats;

    wait_until(reply->finish != FINISH_NONE);
    engine_stats(b->engine, &stats);
    assert_true(stats.progress_ns > begin_ns && stats.progress_ns <= clock_now_ns());
    close_engine(b);
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
