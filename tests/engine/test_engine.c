/* The whole engine on one rank of this process: prompts in, tokens out. */
#include "tests/support/expect.h"

#include "engine/engine.h"
#include "proto/base/clock.h"
#include "proto/config/config.h"
#include "proto/model/model_file.h"
#include "tests/support/tiny_model.h"

#include <poll.h>
#include <unistd.h>

enum { NUM_REQUESTS = 32, MAX_PROMPT = 90, MAX_MODEL_LEN = 256 };

/* ---- an engine ------------------------------------------------------------------------------ */

struct bench {
    struct config config;
    struct model_file *file;
    struct engine *engine;
};

static char model_paths[2][64];

static int make_models(void **state)
{
    static const char *const architectures[] = {"llama", "gemma3"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        snprintf(model_paths[i], sizeof model_paths[i], "/tmp/tandem-test-engine-%d-%s.gguf",
                 (int)getpid(), architectures[i]);
        tiny_model_write(model_paths[i],
                         &(struct tiny_model_options){.architecture = architectures[i]});
    }
    return 0;
}

static int remove_models(void **state)
{
    (void)state;
    return unlink(model_paths[0]) | unlink(model_paths[1]);
}

/* flags: as on the command line, separated by blanks. */
static void open_engine(struct bench *b, const char *model_path, const char *flags)
{
    AUTO_MEM char *text = mem_printf("--max-model-len 256 --threads 1 --log-level error %s", flags);
    char *argv[32] = {(char *)"test", (char *)"--model", (char *)model_path};
    int argc = 3;

    *b = (struct bench){0};
    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    expect_ok(config_parse(&b->config, NULL, argc, argv));
    expect_ok(model_file_open(model_path, &b->file));
    expect_ok(engine_new(&b->config, b->file, NULL, NULL, &b->engine));
}

static void close_engine(struct bench *b)
{
    engine_free(b->engine);
    model_file_free(b->file);
    config_close(&b->config);
}

/* ---- requests ------------------------------------------------------------------------------- */

struct question {
    int32_t prompt[MAX_PROMPT];
    int32_t num_prompt;
    struct sampling_params params;
};

struct reply {
    request_id id;
    int32_t tokens[MAX_MODEL_LEN];
    float logprobs[MAX_MODEL_LEN];
    int32_t num_tokens;
    enum finish_reason finish;
    int32_t num_ends;
};

/* Half of them greedy, half of them drawn; some share the beginnings of their prompts. */
static void write_questions(struct question *questions)
{
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        struct question *q = &questions[i];

        q->num_prompt = 1 + (i * 37) % (MAX_PROMPT - 1);
        for (int32_t t = 0; t < q->num_prompt; t++)
            q->prompt[t] = t < 40 && i % 4 == 0 ? 30 + t : 20 + (i * 13 + t * 7) % 200;
        sampling_params_init(&q->params);
        q->params.max_tokens = 4 + i % 20;
        q->params.ignore_eos = true;
        q->params.logprobs = 0;
        q->params.temperature = i & 1 ? 0.9f : 0;
        q->params.seed = i & 1 ? 1000 + i : -1;
        q->params.top_k = i & 2 ? 50 : 0;
        q->params.repetition_penalty = i % 8 == 3 ? 1.3f : 1;
    }
}

static enum status submit(struct engine *engine, const struct question *q, request_id *id_out)
{
    return engine_submit(engine,
                         &(struct submission){.name = "q",
                                              .prompt = q->prompt,
                                              .num_prompt = q->num_prompt,
                                              .params = &q->params},
                         id_out);
}

static void take_event(const struct engine_event *event, struct reply *replies, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        struct reply *reply = &replies[i];

        if (reply->id != event->id)
            continue;
        assert_int_equal(reply->num_ends, 0);
        assert_true(event->now_ns >= event->queued_ns);
        for (int32_t t = 0; t < event->num_tokens; t++) {
            assert_true(reply->num_tokens < MAX_MODEL_LEN);
            if (event->logprobs)
                reply->logprobs[reply->num_tokens] = event->logprobs[t].logprob;
            reply->tokens[reply->num_tokens++] = event->tokens[t];
        }
        reply->finish = event->finish;
        reply->num_ends += event->finish != FINISH_NONE;
        return;
    }
    fail_msg("an event of request %ld, which nobody asked", (long)event->id);
}

static bool all_ended(const struct reply *replies, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (replies[i].num_ends == 0)
            return false;
    return true;
}

/* Until every reply has ended, or `until_tokens` of the first have come. */
static void wait_for(struct engine *engine, struct reply *replies, int32_t n, int32_t until_tokens)
{
    int64_t deadline_ns = clock_deadline_ns(60000);

    while (!all_ended(replies, n) && replies[0].num_tokens < until_tokens) {
        struct pollfd fd = {.fd = engine_fd(engine), .events = POLLIN};
        struct engine_output *output;

        assert_true(clock_now_ns() < deadline_ns);
        poll(&fd, 1, 1000);
        while ((output = engine_poll(engine))) {
            for (int32_t i = 0; i < output->num_events; i++)
                take_event(&output->events[i], replies, n);
            engine_output_free(output);
        }
    }
}

static void ask(struct engine *engine, const struct question *questions, struct reply *replies,
                int32_t n)
{
    memset(replies, 0, sizeof *replies * (size_t)n);
    for (int32_t i = 0; i < n; i++)
        expect_ok(submit(engine, &questions[i], &replies[i].id));
    wait_for(engine, replies, n, INT32_MAX);
}

/* ---- one answer ----------------------------------------------------------------------------- */

static void expect_same_replies(const struct reply *replies, const struct reply *alone,
                                const char *flags)
{
    for (int32_t i = 0; i < NUM_REQUESTS; i++)
        if (replies[i].num_tokens != alone[i].num_tokens || replies[i].finish != alone[i].finish ||
            memcmp(replies[i].tokens, alone[i].tokens, sizeof alone[i].tokens) != 0 ||
            memcmp(replies[i].logprobs, alone[i].logprobs, sizeof alone[i].logprobs) != 0)
            fail_msg("request %d answers otherwise with %s", i, flags);
}

static void a_request_has_one_answer(const char *model_path)
{
    static const struct {
        const char *flags;
        bool preempts;
    } rows[] = {
        {"--max-num-seqs 7 --max-num-batched-tokens 7", false},
        {"--max-num-seqs 32 --max-num-batched-tokens 64", false},
        {"--max-num-seqs 32 --max-num-batched-tokens 512", false},
        {"--max-num-seqs 32 --max-num-batched-tokens 512 --no-async-scheduling", false},
        {"--max-num-seqs 32 --max-num-batched-tokens 512 --no-enable-prefix-caching", false},
        {"--max-num-seqs 16 --max-num-batched-tokens 256 --no-enable-chunked-prefill", false},
        {"--max-num-seqs 16 --max-num-batched-tokens 64 --num-gpu-blocks-override 12", true},
        {"--max-num-seqs 16 --max-num-batched-tokens 64 --num-gpu-blocks-override 12 "
         "--no-async-scheduling --scheduling-policy priority",
         true},
    };
    struct question *questions = mem_new_array(struct question, NUM_REQUESTS);
    struct reply *alone = mem_new_array(struct reply, NUM_REQUESTS);
    struct reply *replies = mem_new_array(struct reply, NUM_REQUESTS);
    struct engine_stats stats;
    struct bench b;

    write_questions(questions);
    open_engine(&b, model_path, "--no-async-scheduling --no-enable-prefix-caching");
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        ask(b.engine, &questions[i], &alone[i], 1);
        assert_int_equal(alone[i].num_tokens, questions[i].params.max_tokens);
        assert_int_equal(alone[i].finish, FINISH_LENGTH);
    }
    close_engine(&b);

    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        open_engine(&b, model_path, rows[r].flags);
        ask(b.engine, questions, replies, NUM_REQUESTS);
        expect_same_replies(replies, alone, rows[r].flags);
        engine_stats(b.engine, &stats);
        if ((stats.num_preemptions > 0) != rows[r].preempts)
            fail_msg("%ld preemptions with %s", (long)stats.num_preemptions, rows[r].flags);
        close_engine(&b);
    }
    mem_free(questions);
    mem_free(alone);
    mem_free(replies);
}

static void a_llama_has_one_answer_however_it_is_scheduled(void **state)
{
    (void)state;
    a_request_has_one_answer(model_paths[0]);
}

static void a_gemma3_has_one_answer_however_it_is_scheduled(void **state)
{
    (void)state;
    a_request_has_one_answer(model_paths[1]);
}

/* ---- life ----------------------------------------------------------------------------------- */

static struct question long_question(void)
{
    struct question q = {.prompt = {40, 41, 42}, .num_prompt = 3};

    sampling_params_init(&q.params);
    q.params.temperature = 0;
    q.params.ignore_eos = true;
    return q; /* as many tokens as fit: 253 */
}

static void an_abort_ends_a_request_and_no_other(void **state)
{
    struct question questions[2] = {long_question(), long_question()};
    struct reply replies[2] = {0};
    struct bench b;

    (void)state;
    questions[1].params.max_tokens = 20;
    open_engine(&b, model_paths[0], "");
    expect_ok(submit(b.engine, &questions[0], &replies[0].id));
    expect_ok(submit(b.engine, &questions[1], &replies[1].id));
    wait_for(b.engine, replies, 2, 2);
    engine_abort(b.engine, replies[0].id);
    engine_abort(b.engine, replies[0].id);
    engine_abort(b.engine, 12345);
    wait_for(b.engine, replies, 2, INT32_MAX);
    assert_int_equal(replies[0].finish, FINISH_ABORT);
    assert_int_equal(replies[1].finish, FINISH_LENGTH);
    assert_int_equal(replies[1].num_tokens, 20);
    engine_abort(b.engine, replies[1].id);

    /* The engine is as it was. */
    questions[1].params.max_tokens = 5;
    ask(b.engine, &questions[1], replies, 1);
    assert_int_equal(replies[0].num_tokens, 5);
    close_engine(&b);
}

static void a_draining_engine_refuses_and_goes_on(void **state)
{
    struct question q = long_question();
    struct engine_stats stats;
    struct reply reply = {0};
    struct bench b;
    request_id id;

    (void)state;
    q.params.max_tokens = 20;
    open_engine(&b, model_paths[0], "");
    expect_ok(submit(b.engine, &q, &reply.id));
    engine_drain(b.engine);
    expect_fails(submit(b.engine, &q, &id), ERR_CLOSED, "shutting down");
    engine_stats(b.engine, &stats);
    assert_int_equal(stats.phase, PHASE_DRAINING);
    wait_for(b.engine, &reply, 1, INT32_MAX);
    assert_int_equal(reply.finish, FINISH_LENGTH);
    close_engine(&b);
}

static void an_engine_may_be_freed_with_requests_inside(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct question q = long_question();
        struct reply replies[8] = {0};
        struct bench b;

        open_engine(&b, model_paths[0], i & 1 ? "" : "--no-async-scheduling");
        for (int r = 0; r < 8; r++)
            expect_ok(submit(b.engine, &q, &replies[r].id));
        if (i & 2)
            wait_for(b.engine, replies, 8, 3);
        close_engine(&b);
    }
    engine_free(NULL);
}

static void stats_add_up(void **state)
{
    struct question *questions = mem_new_array(struct question, NUM_REQUESTS);
    struct reply *replies = mem_new_array(struct reply, NUM_REQUESTS);
    int64_t num_prompt = 0, num_tokens = 0;
    struct engine_stats stats;
    int64_t num_steps = 0;
    struct bench b;

    (void)state;
    write_questions(questions);
    open_engine(&b, model_paths[0], "--no-enable-prefix-caching");
    ask(b.engine, questions, replies, NUM_REQUESTS);
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        num_prompt += questions[i].num_prompt;
        num_tokens += replies[i].num_tokens;
    }
    engine_stats(b.engine, &stats);
    assert_int_equal(stats.phase, PHASE_READY);
    assert_int_equal(stats.num_ranks, 1);
    assert_int_equal(stats.num_ranks_alive, 1);
    assert_int_equal(stats.max_model_len, 256);
    assert_int_equal(engine_max_model_len(b.engine), 256);
    assert_int_equal(stats.prompt_tokens, num_prompt);
    assert_int_equal(stats.generation_tokens, num_tokens);
    /* The last token of a request is never computed. */
    assert_int_equal(stats.iteration_tokens_sum, num_prompt + num_tokens - NUM_REQUESTS);
    for (int32_t i = 0; i < NUM_STEP_SIZES; i++)
        num_steps += stats.steps_by_size[i];
    assert_int_equal(stats.num_steps, num_steps);
    assert_int_equal(stats.finished[FINISH_LENGTH], NUM_REQUESTS);
    assert_int_equal(stats.num_running + stats.num_waiting, 0);
    assert_int_equal(stats.num_kv_blocks_used, 0);
    assert_true(stats.num_kv_blocks > 0 && stats.num_steps > 0);
    close_engine(&b);
    mem_free(questions);
    mem_free(replies);
}

static void what_cannot_be_answered_is_refused_at_once(void **state)
{
    static int32_t prompt[256];
    static const struct {
        int32_t num_prompt, first_token, max_tokens;
        float temperature;
        const char *words;
    } rows[] = {
        {0, 40, 5, 0, "cannot be empty"},
        {256, 40, 5, 0, "(length 256) is longer than the maximum model length of 256"},
        {5, -1, 5, 0, "Token id -1 is out of vocabulary"},
        {5, 1 << 20, 5, 0, "Token id 1048576 is out of vocabulary"},
        {5, 40, 5, 9, "temperature must be in [0, 2]"},
        {100, 40, 100, 0, "needs 13 KV blocks of 16 tokens for 100 prompt and 100 output tokens; the KV "
                          "cache has 12"},
    };
    struct engine_stats stats;
    struct bench b;
    request_id id = 77;

    (void)state;
    open_engine(&b, model_paths[0], "--num-gpu-blocks-override 12");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct sampling_params params;

        sampling_params_init(&params);
        params.max_tokens = rows[i].max_tokens;
        params.temperature = rows[i].temperature;
        prompt[0] = rows[i].first_token;
        expect_fails(engine_submit(b.engine,
                                   &(struct submission){.prompt = prompt,
                                                        .num_prompt = rows[i].num_prompt,
                                                        .params = &params},
                                   &id),
                     ERR_INVALID, rows[i].words);
    }
    assert_int_equal(id, 77);
    assert_null(engine_poll(b.engine));
    engine_stats(b.engine, &stats);
    assert_int_equal(stats.num_running + stats.num_waiting, 0);
    close_engine(&b);
}

static void an_engine_that_cannot_start_says_why(void **state)
{
    static const struct {
        const char *flags, *words;
    } rows[] = {
        {"--max-model-len 4096", "--max-model-len 4096 is more than the 1024 positions"},
        {"--kv-cache-memory 16KiB", "one request of --max-model-len 256 tokens needs 0.125 MiB of KV "
                                    "cache, there are 0.016 MiB; lower --max-model-len to 32 or"},
        {"--kv-cache-memory 1KiB", "there are 0.001 MiB; raise --kv-cache-memory"},
        {"--max-model-len 0 --no-enable-chunked-prefill --max-num-batched-tokens 512",
         "without chunked prefill it must be at least the model's length, 1024"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_MEM char *text = mem_strdup(rows[i].flags);
        char *argv[16] = {(char *)"test", (char *)"--model", model_paths[0], (char *)"--log-level",
                          (char *)"error"};
        int argc = 5;
        struct engine *engine = NULL;
        struct model_file *file;
        struct config config;

        argv[argc++] = (char *)"--max-model-len";
        argv[argc++] = (char *)"256";
        for (char *save, *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save))
            argv[argc++] = w;
        expect_ok(config_parse(&config, NULL, argc, argv));
        expect_ok(model_file_open(model_paths[0], &file));
        assert_int_not_equal(engine_new(&config, file, NULL, NULL, &engine), OK);
        if (!strstr(fail_text(), rows[i].words))
            fail_msg("\"%s\" lacks \"%s\"", fail_text(), rows[i].words);
        assert_null(engine);
        model_file_free(file);
        config_close(&config);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_llama_has_one_answer_however_it_is_scheduled),
    cmocka_unit_test(a_gemma3_has_one_answer_however_it_is_scheduled),
    cmocka_unit_test(an_abort_ends_a_request_and_no_other),
    cmocka_unit_test(a_draining_engine_refuses_and_goes_on),
    cmocka_unit_test(an_engine_may_be_freed_with_requests_inside),
    cmocka_unit_test(stats_add_up),
    cmocka_unit_test(what_cannot_be_answered_is_refused_at_once),
    cmocka_unit_test(an_engine_that_cannot_start_says_why),
};

int main(void)
{
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
