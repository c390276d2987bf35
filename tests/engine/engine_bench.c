#include "tests/engine/engine_bench.h"

#include "proto/model/model_file.h"

#include <poll.h>

struct bench *bench_new(const char *model_path, const char *flags)
{
    AUTO_MEM char *text =
        mem_printf("--threads 1 --log-level error --num-gpu-blocks-override 1000 %s", flags);
    char *argv[32] = {(char *)"test", (char *)"--model", (char *)model_path};
    struct bench *b = mem_new(struct bench);
    int argc = 3;

    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    expect_ok(config_parse(&b->config, NULL, argc, argv));
    expect_ok(model_file_open(model_path, &b->file));
    expect_ok(engine_new(&b->config, b->file, NULL, NULL, &b->engine));
    return b;
}

void bench_free(struct bench *b)
{
    engine_free(b->engine);
    model_file_free(b->file);
    config_close(&b->config);
    mem_free(b);
}

struct reply *bench_submit(struct bench *b, int32_t num_prompt, int32_t max_tokens)
{
    struct reply *reply = &b->replies[b->num_replies++];
    token_id prompt[MAX_PROMPT];
    struct sampling_params params;

    assert_true(b->num_replies <= MAX_REPLIES && num_prompt <= MAX_PROMPT &&
                max_tokens <= MAX_OUTPUT);
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

void bench_take_outputs(struct bench *b)
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

void bench_listen(void *user, enum status status, const char *text)
{
    struct answer *answer = user;

    assert_false(answer->is_there);
    answer->is_there = true;
    answer->status = status;
    snprintf(answer->text, sizeof answer->text, "%s", text);
    answer->num_ended = answer->bench->num_ended;
}
