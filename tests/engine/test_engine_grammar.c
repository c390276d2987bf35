/* Requests with grammars, through the whole engine: on one rank of this process, and on ranks that are
 * this program again. */
#include "tests/support/expect.h"

#include "engine/bench/toy_grammar.h"
#include "engine/cmd/cmd.h"
#include "engine/engine.h"
#include "proto/base/clock.h"
#include "proto/config/config.h"
#include "proto/model/model_file.h"
#include "tests/support/tiny_model.h"

#include <poll.h>
#include <unistd.h>

enum { NUM_REQUESTS = 12, MAX_PROMPT = 60, MAX_OUTPUT = 64, STOP_TOKEN = 2 };

/* ---- an engine ------------------------------------------------------------------------------ */

struct bench {
    struct config config;
    struct model_file *file;
    struct engine *engine;
    int32_t vocab_size;
};

static char model_path[64];

static int make_model(void **state)
{
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/tandem-test-grammar-%d.gguf", (int)getpid());
    tiny_model_write(model_path, NULL);
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    return unlink(model_path);
}

/* flags: as on the command line, separated by blanks. */
static void open_engine(struct bench *b, const char *flags)
{
    AUTO_MEM char *text = mem_printf("--max-model-len 256 --threads 1 --log-level error %s", flags);
    char *argv[32] = {(char *)"test", (char *)"--model", model_path};
    int argc = 3;

    *b = (struct bench){0};
    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    expect_ok(config_parse(&b->config, NULL, argc, argv));
    expect_ok(model_file_open(model_path, &b->file));
    expect_ok(engine_new(&b->config, b->file, NULL, NULL, &b->engine));
    b->vocab_size = model_file_config(b->file)->vocab_size;
}

static void close_engine(struct bench *b)
{
    engine_free(b->engine);
    model_file_free(b->file);
    config_close(&b->config);
}

/* ---- requests ------------------------------------------------------------------------------- */

struct reply {
    request_id id;
    int32_t tokens[MAX_OUTPUT];
    int32_t num_tokens;
    enum finish_reason finish; /* FINISH_NONE: it goes on */
    char error_text[160];
};

static struct toy_grammar_options language(const struct bench *b, int32_t number)
{
    return (struct toy_grammar_options){
        .seed = 77 + (uint64_t)number,
        .vocab_size = b->vocab_size,
        .num_tokens = 3 + number * 2,
        .stop_token = STOP_TOKEN,
    };
}

static bool has_grammar(int32_t number)
{
    return number % 3 != 2;
}

static void submit(struct bench *b, int32_t number, struct grammar *grammar, bool awaits_grammar,
                   struct reply *reply)
{
    static const token_id stop = STOP_TOKEN;
    token_id prompt[MAX_PROMPT];
    int32_t num_prompt = 1 + number * 23 % (MAX_PROMPT - 1);
    struct sampling_params params;

    sampling_params_init(&params);
    params.max_tokens = MAX_OUTPUT - 10;
    params.temperature = number & 1 ? 0.8f : 0;
    params.seed = number;
    for (int32_t i = 0; i < num_prompt; i++)
        prompt[i] = 20 + (number * 13 + i * 7) % 200;
    *reply = (struct reply){0};
    expect_ok(engine_submit(b->engine,
                            &(struct submission){.prompt = prompt,
                                                 .num_prompt = num_prompt,
                                                 .params = &params,
                                                 .eos_ids = &stop,
                                                 .num_eos_ids = 1,
                                                 .grammar = grammar,
                                                 .awaits_grammar = awaits_grammar},
                            &reply->id));
}

static void take_event(const struct engine_event *event, struct reply *replies, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        struct reply *reply = &replies[i];

        if (reply->id != event->id)
            continue;
        assert_int_equal(reply->finish, FINISH_NONE);
        for (int32_t t = 0; t < event->num_tokens; t++) {
            assert_true(reply->num_tokens < MAX_OUTPUT);
            reply->tokens[reply->num_tokens++] = event->tokens[t];
        }
        reply->finish = event->finish;
        if (event->error_text)
            snprintf(reply->error_text, sizeof reply->error_text, "%s", event->error_text);
    }
}

/* Until all of them have ended. */
static void wait_for(struct bench *b, struct reply *replies, int32_t n)
{
    int64_t deadline_ns = clock_deadline_ns(60000);

    for (int32_t num_ended = 0; num_ended < n;) {
        struct pollfd fd = {.fd = engine_fd(b->engine), .events = POLLIN};
        struct engine_output *output;

        assert_true(clock_now_ns() < deadline_ns);
        poll(&fd, 1, 1000);
        while ((output = engine_poll(b->engine))) {
            for (int32_t i = 0; i < output->num_events; i++)
                take_event(&output->events[i], replies, n);
            engine_output_free(output);
        }
        num_ended = 0;
        for (int32_t i = 0; i < n; i++)
            num_ended += replies[i].finish != FINISH_NONE;
    }
}

/* ---- what they are held to ------------------------------------------------------------------ */

static void expect_in_language(const struct bench *b, int32_t number, const struct reply *reply)
{
    struct toy_grammar_options options = language(b, number);
    AUTO_FREE(grammar) struct grammar *grammar = toy_grammar_new(&options);

    assert_int_equal(reply->finish, FINISH_STOP);
    assert_int_equal(reply->num_tokens, options.num_tokens + 1);
    for (int32_t i = 0; i < reply->num_tokens; i++)
        if (!grammar_accept(grammar, reply->tokens[i]))
            fail_msg("request %d: token %d, %d, is not in its language", number, i,
                     reply->tokens[i]);
    assert_true(grammar_is_terminated(grammar));
}

static void ask_all(struct bench *b, struct reply *replies)
{
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        struct toy_grammar_options options = language(b, i);

        submit(b, i, has_grammar(i) ? toy_grammar_new(&options) : NULL, false, &replies[i]);
    }
    wait_for(b, replies, NUM_REQUESTS);
}

static void expect_same_answers(const struct reply *replies, const struct reply *first,
                                const char *flags)
{
    for (int32_t i = 0; i < NUM_REQUESTS; i++)
        if (replies[i].num_tokens != first[i].num_tokens ||
            memcmp(replies[i].tokens, first[i].tokens,
                   sizeof(int32_t) * (size_t)first[i].num_tokens) != 0)
            fail_msg("request %d answers otherwise with %s", i, flags);
}

static void outputs_follow_their_grammars_however_they_are_scheduled(void **state)
{
    static const char *const rows[] = {
        "--no-async-scheduling --max-num-seqs 1",
        "--max-num-seqs 1",
        "--max-num-seqs 12 --no-async-scheduling",
        "--max-num-seqs 12",
        "--max-num-seqs 12 --max-num-batched-tokens 16",
        "--max-num-seqs 12 --max-num-batched-tokens 64 --num-gpu-blocks-override 8",
        "--max-num-seqs 12 --num-gpu-blocks-override 8 --no-async-scheduling",
        "--max-num-seqs 12 --executor multiproc",
        "--max-num-seqs 12 --tp 2",
        "--max-num-seqs 12 --tp 3 --no-async-scheduling",
    };
    struct reply first[NUM_REQUESTS], replies[NUM_REQUESTS];
    struct bench b;

    (void)state;
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        open_engine(&b, rows[r]);
        ask_all(&b, r == 0 ? first : replies);
        if (r > 0)
            expect_same_answers(replies, first, rows[r]);
        for (int32_t i = 0; i < NUM_REQUESTS; i++)
            if (has_grammar(i))
                expect_in_language(&b, i, r == 0 ? &first[i] : &replies[i]);
        close_engine(&b);
    }
}

static void a_request_waits_for_its_grammar_and_holds_nobody_up(void **state)
{
    struct toy_grammar_options options;
    struct reply replies[2] = {0};
    struct engine_stats stats;
    struct bench b;

    (void)state;
    open_engine(&b, "--max-num-seqs 1");
    submit(&b, 0, NULL, true, &replies[0]);
    submit(&b, 2, NULL, false, &replies[1]);
    wait_for(&b, &replies[1], 1);
    engine_stats(b.engine, &stats);
    assert_int_equal(stats.num_waiting_by_reason[WAITING_DEFERRED], 1);
    assert_int_equal(stats.num_waiting, 1);
    options = language(&b, 0);
    engine_set_grammar(b.engine, replies[0].id, toy_grammar_new(&options), OK, NULL);
    wait_for(&b, &replies[0], 1);
    expect_in_language(&b, 0, &replies[0]);
    close_engine(&b);
}

static void a_grammar_that_does_not_compile_ends_its_request_alone(void **state)
{
    struct reply replies[2] = {0};
    struct bench b;

    (void)state;
    open_engine(&b, "");
    submit(&b, 0, NULL, true, &replies[0]);
    submit(&b, 2, NULL, false, &replies[1]);
    engine_set_grammar(b.engine, replies[0].id, NULL, ERR_INVALID, "line 1: a bracket is missing");
    wait_for(&b, replies, 2);
    assert_int_equal(replies[0].finish, FINISH_ERROR);
    assert_int_equal(replies[0].num_tokens, 0);
    assert_string_equal(replies[0].error_text, "line 1: a bracket is missing");
    assert_int_equal(replies[1].finish, FINISH_LENGTH);
    close_engine(&b);
}

static void a_grammar_that_comes_too_late_is_thrown_away(void **state)
{
    struct toy_grammar_options options;
    struct reply replies[2] = {0};
    struct bench b;

    (void)state;
    open_engine(&b, "");
    options = language(&b, 0);
    submit(&b, 0, NULL, true, &replies[0]);
    submit(&b, 1, NULL, true, &replies[1]); /* the engine stops while it waits */
    engine_abort(b.engine, replies[0].id);
    wait_for(&b, &replies[0], 1);
    assert_int_equal(replies[0].finish, FINISH_ABORT);
    engine_set_grammar(b.engine, replies[0].id, toy_grammar_new(&options), OK, NULL);
    engine_set_grammar(b.engine, 4711, toy_grammar_new(&options), OK, NULL);
    close_engine(&b);
}

/* ---- masks that come late ------------------------------------------------------------------- */

/* A toy whose masks take time. */
struct late_grammar {
    struct grammar grammar;
    struct grammar *toy;
    int grammar_fd;
    bool is_slow;
    int32_t num_accepted, fails_at;
    int64_t ready_ns; /* of the present mask; 0: not asked for yet */
};

static struct late_grammar *late(struct grammar *grammar)
{
    return CONTAINER_OF(grammar, struct late_grammar, grammar);
}

static void late_begin_mask(struct grammar *grammar)
{
    struct late_grammar *self = late(grammar);
    int32_t ms = self->num_accepted % 3 == 1 ? 25 : self->num_accepted % 3; /* 25: the step does not wait */

    if (self->ready_ns == 0)
        self->ready_ns = clock_deadline_ns(ms);
}

static bool late_accept(struct grammar *grammar, token_id token)
{
    struct late_grammar *self = late(grammar);

    if (!grammar_accept(self->toy, token))
        return false;
    self->num_accepted++;
    self->ready_ns = 0;
    late_begin_mask(grammar);
    return true;
}

static bool late_is_ready(struct grammar *grammar)
{
    struct late_grammar *self = late(grammar);
    uint64_t one = 1;

    late_begin_mask(grammar);
    if (clock_now_ns() >= self->ready_ns)
        return true;
    /* Nobody else is there to wake the core, so it asks again at once. */
    assert_int_equal(write(self->grammar_fd, &one, sizeof one), sizeof one);
    return false;
}

static enum status late_fill_bitmask(struct grammar *grammar, uint32_t *words, int32_t num_words)
{
    struct late_grammar *self = late(grammar);

    if (self->num_accepted == self->fails_at)
        return fail(ERR_FULL, "the grammar takes too long");
    return grammar_fill_bitmask(self->toy, words, num_words);
}

static bool late_is_slow(const struct grammar *grammar)
{
    return CONTAINER_OF(grammar, const struct late_grammar, grammar)->is_slow;
}

static bool late_is_terminated(const struct grammar *grammar)
{
    return grammar_is_terminated(CONTAINER_OF(grammar, const struct late_grammar, grammar)->toy);
}

static void late_free(struct grammar *grammar)
{
    grammar_free(late(grammar)->toy);
    mem_free(late(grammar));
}

static struct grammar *late_new(const struct bench *b, int32_t number, bool is_slow)
{
    static const struct grammar_ops ops = {
        .name = "late",
        .accept = late_accept,
        .begin_mask = late_begin_mask,
        .is_ready = late_is_ready,
        .fill_bitmask = late_fill_bitmask,
        .is_slow = late_is_slow,
        .is_terminated = late_is_terminated,
        .free = late_free,
    };
    struct toy_grammar_options options = language(b, number);
    struct late_grammar *self = mem_new(struct late_grammar);

    *self = (struct late_grammar){.grammar = {&ops},
                                  .toy = toy_grammar_new(&options),
                                  .grammar_fd = engine_grammar_fd(b->engine),
                                  .is_slow = is_slow,
                                  .fails_at = -1};
    return &self->grammar;
}

static void steps_do_not_wait_for_a_late_mask_and_no_token_changes(void **state)
{
    static const char *const rows[] = {
        "--max-num-seqs 12 --no-async-scheduling",
        "--max-num-seqs 12",
        "--max-num-seqs 2 --no-enable-prefix-caching",
        "--max-num-seqs 12 --max-num-batched-tokens 64 --num-gpu-blocks-override 8",
    };
    struct reply first[NUM_REQUESTS], replies[NUM_REQUESTS];
    struct engine_stats stats;
    struct bench b;

    (void)state;
    open_engine(&b, "");
    ask_all(&b, first);
    close_engine(&b);
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        open_engine(&b, rows[r]);
        for (int32_t i = 0; i < NUM_REQUESTS; i++)
            submit(&b, i, has_grammar(i) ? late_new(&b, i, i % 2) : NULL, false, &replies[i]);
        wait_for(&b, replies, NUM_REQUESTS);
        engine_stats(b.engine, &stats);
        assert_true(stats.num_late_masks > 0);
        expect_same_answers(replies, first, rows[r]);
        close_engine(&b);
    }
}

static void a_grammar_that_fails_later_ends_its_request_alone(void **state)
{
    static const char *const rows[] = {"", "--no-async-scheduling"};

    (void)state;
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        struct reply replies[2] = {0};
        struct grammar *grammar;
        struct bench b;

        open_engine(&b, rows[r]);
        grammar = late_new(&b, 10, false);
        late(grammar)->fails_at = 3;
        submit(&b, 10, grammar, false, &replies[0]);
        submit(&b, 2, NULL, false, &replies[1]);
        wait_for(&b, replies, 2);
        assert_int_equal(replies[0].finish, FINISH_ERROR);
        assert_int_equal(replies[0].num_tokens, 3);
        assert_string_equal(replies[0].error_text, "the grammar takes too long");
        assert_int_equal(replies[1].finish, FINISH_LENGTH);
        close_engine(&b);
    }
}

/* ---- a backend that contradicts itself ------------------------------------------------------ */

static bool accept_nothing(struct grammar *grammar, token_id token)
{
    (void)grammar;
    return token < 0;
}

static enum status allow_all(struct grammar *grammar, uint32_t *words, int32_t num_words)
{
    (void)grammar;
    memset(words, 0xff, (size_t)num_words * sizeof *words);
    return OK;
}

static bool never(const struct grammar *grammar)
{
    (void)grammar;
    return false;
}

static void leave_alone(struct grammar *grammar)
{
    (void)grammar;
}

static void a_token_that_its_grammar_rejects_ends_its_request_alone(void **state)
{
    static const struct grammar_ops ops = {.name = "contrary",
                                           .accept = accept_nothing,
                                           .fill_bitmask = allow_all,
                                           .is_terminated = never,
                                           .free = leave_alone};
    static const char *const rows[] = {"", "--no-async-scheduling"};
    struct grammar contrary = {.ops = &ops};

    (void)state;
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        struct reply replies[2] = {0};
        struct bench b;

        open_engine(&b, rows[r]);
        submit(&b, 0, &contrary, false, &replies[0]);
        submit(&b, 2, NULL, false, &replies[1]);
        wait_for(&b, replies, 2);
        assert_int_equal(replies[0].finish, FINISH_ERROR);
        assert_int_equal(replies[0].num_tokens, 0);
        assert_non_null(strstr(replies[0].error_text, "the grammar does not allow token"));
        assert_int_equal(replies[1].finish, FINISH_LENGTH);
        close_engine(&b);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "worker") == 0)
        return cmd_worker(argc - 1, argv + 1);

    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_follow_their_grammars_however_they_are_scheduled),
        cmocka_unit_test(a_request_waits_for_its_grammar_and_holds_nobody_up),
        cmocka_unit_test(a_grammar_that_does_not_compile_ends_its_request_alone),
        cmocka_unit_test(a_grammar_that_comes_too_late_is_thrown_away),
        cmocka_unit_test(steps_do_not_wait_for_a_late_mask_and_no_token_changes),
        cmocka_unit_test(a_grammar_that_fails_later_ends_its_request_alone),
        cmocka_unit_test(a_token_that_its_grammar_rejects_ends_its_request_alone),
    };

    return cmocka_run_group_tests(tests, make_model, remove_model);
}
