/*
 * engine_bench: a whole engine on a tiny model, the replies to its requests, and the answers to its orders.
 *
 * Where ranks are processes, they are the test's own program again: its main() calls cmd_worker.
 */
#ifndef TESTS_ENGINE_ENGINE_BENCH_H
#define TESTS_ENGINE_ENGINE_BENCH_H

#include "tests/support/expect.h"

#include "engine/engine.h"
#include "proto/base/clock.h"
#include "proto/config/config.h"

enum { MAX_PROMPT = 64, MAX_OUTPUT = 4000, MAX_REPLIES = 8 };

struct reply {
    request_id id;
    int32_t tokens[MAX_OUTPUT];
    int32_t num_tokens;
    enum finish_reason finish; /* FINISH_NONE: it goes on */
};

struct bench {
    struct config config;
    struct model_file *file;
    struct engine *engine;
    struct reply replies[MAX_REPLIES];
    int32_t num_replies, num_ended;
};

/* flags: as on the command line, separated by blanks. */
struct bench *bench_new(const char *model_path, const char *flags);
void bench_free(struct bench *b);

/* Greedy; the shorter of two prompts is the beginning of the other. */
struct reply *bench_submit(struct bench *b, int32_t num_prompt, int32_t max_tokens);
/* What has come by now, or within 100 ms. */
void bench_take_outputs(struct bench *b);

/* For at most a minute. */
#define wait_until(b, condition)                                                                   \
    for (int64_t deadline_ns = clock_deadline_ns(60000); !(condition); bench_take_outputs(b))      \
    assert_true(clock_now_ns() < deadline_ns)

struct answer {
    const struct bench *bench;
    bool is_there;
    enum status status;
    char text[2048];
    int32_t num_ended; /* requests, by then */
};

/* Of an order, whose user is a struct answer: it comes once. */
void bench_listen(void *answer, enum status status, const char *text);

#endif
