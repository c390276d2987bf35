/* What a rank holds between steps: sleep, other weights beside those in use, and calls by name. */
#include "tests/support/expect.h"

#include "tests/support/plan_sheet.h"
#include "proto/base/clock.h"
#include "proto/base/file_read.h"
#include "tests/support/tiny_model.h"
#include "worker/reload.h"
#include "worker/worker.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <unistd.h>

enum { NUM_BLOCKS = 1024, NUM_PROMPT = 20, NUM_TOKENS = 8 };

static char model_path[64], other_path[64], cut_path[64], deeper_path[64], gemma_path[64];
static int32_t prompt[NUM_PROMPT];
static const int32_t blocks[] = {0, 1, 2, 3, 4, 5, 6, 7};

static void name_file(char *path, const char *name)
{
    snprintf(path, 64, "/tmp/tandem-test-weights-%d-%s.gguf", (int)getpid(), name);
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

static int make_models(void **state)
{
    struct tiny_model_options options = {.hidden_size = 256, .intermediate_size = 1024,
                                         .num_layers = 3};
    AUTO_CLOSE(bytes) struct bytes whole = {0};

    (void)state;
    name_file(model_path, "model");
    name_file(other_path, "other");
    name_file(cut_path, "cut");
    name_file(deeper_path, "deeper");
    name_file(gemma_path, "gemma");
    tiny_model_write(model_path, &options);
    options.seed = 77;
    options.ffn_type = TYPE_Q8_0; /* of other tensor types, too */
    tiny_model_write(other_path, &options);
    tiny_model_build(&options, &whole);
    write_file(cut_path, whole.data, whole.size - whole.size / 4);
    options.num_layers = 4;
    tiny_model_write(deeper_path, &options);
    options.architecture = "gemma3";
    tiny_model_write(gemma_path, &options);
    for (int32_t i = 0; i < NUM_PROMPT; i++)
        prompt[i] = 40 + i * 3;
    return 0;
}

static int remove_models(void **state)
{
    (void)state;
    unlink(model_path);
    unlink(other_path);
    unlink(cut_path);
    unlink(deeper_path);
    unlink(gemma_path);
    return 0;
}

struct rank {
    struct model_file *file;
    struct worker *worker;
    int64_t step; /* the next */
    bool has_filler; /* slot 1 is known, too */
};

static void start(struct rank *rank)
{
    struct worker_memory memory;

    *rank = (struct rank){0};
    expect_ok(model_file_open(model_path, &rank->file));
    expect_ok(worker_new(&(struct worker_options){.world = 1,
                                                  .num_threads = 1,
                                                  .max_num_seqs = 4,
                                                  .max_batched_tokens = 64,
                                                  .max_model_len = 128},
                         rank->file, &rank->worker));
    expect_ok(worker_wait_loaded(rank->worker, &memory));
    expect_ok(worker_initialize_kv_cache(rank->worker, NUM_BLOCKS));
}

static void stop(struct rank *rank)
{
    worker_free(rank->worker);
    model_file_free(rank->file);
}

static int32_t run_step(struct rank *rank, const struct scheduler_output *plan)
{
    const struct model_runner_output *output;
    int64_t answered;

    expect_ok(worker_prepare_inputs(rank->worker, rank->step, plan));
    expect_ok(worker_execute_model(rank->worker, rank->step));
    expect_ok(worker_sample(rank->worker, rank->step, NULL));
    expect_ok(worker_collect(rank->worker, true, &answered, &output));
    assert_int_equal(answered, rank->step++);
    assert_int_equal(output->num_sampled, 1);
    return output->sampled_token_ids[0];
}

static void write_prefill(struct plan_sheet *sheet)
{
    plan_sheet_begin(sheet);
    plan_sheet_new(sheet,
                   &(struct new_request){.prompt_token_ids = prompt,
                                         .num_prompt_token_ids = NUM_PROMPT,
                                         .block_ids = blocks,
                                         .num_block_ids = 4},
                   NULL, NUM_PROMPT, true);
}

static void write_decode(struct plan_sheet *sheet, int32_t i)
{
    plan_sheet_begin(sheet);
    plan_sheet_row(sheet, 0, NUM_PROMPT + i - 1, 1, true, 0, 0);
}

/* A request from its prompt on; it stays where it is known. */
static void answer(struct rank *rank, int32_t *tokens)
{
    struct plan_sheet sheet;

    write_prefill(&sheet);
    for (int32_t i = 0; i < NUM_TOKENS; i++) {
        if (i > 0)
            write_decode(&sheet, i);
        tokens[i] = run_step(rank, &sheet.plan);
    }
}

/* In a step of another request, as steps have rows. */
static void forget(struct rank *rank)
{
    struct plan_sheet sheet;

    plan_sheet_begin(&sheet);
    plan_sheet_finish(&sheet, 0);
    if (rank->has_filler)
        plan_sheet_finish(&sheet, 1);
    rank->has_filler = true;
    plan_sheet_new(&sheet,
                   &(struct new_request){.slot = 1,
                                         .prompt_token_ids = prompt,
                                         .num_prompt_token_ids = 1,
                                         .block_ids = blocks + 7,
                                         .num_block_ids = 1},
                   NULL, 1, true);
    run_step(rank, &sheet.plan);
}

static json_t *call(struct rank *rank, const char *name, const char *args)
{
    AUTO_CLOSE(bytes) struct bytes reply = {0};
    struct worker_call call = {0};
    bool is_over = false;
    json_t *json;

    expect_ok(worker_call_begin(rank->worker, name, args, &call));
    expect_ok(worker_call_end(rank->worker, &call, true, &reply, &is_over));
    assert_true(is_over);
    assert_null(call.procedure);
    json = json_loads(bytes_text(&reply), 0, NULL);
    assert_true(json_is_object(json));
    return json;
}

static void call_only(struct rank *rank, const char *name, const char *args)
{
    json_decref(call(rank, name, args));
}

static int64_t number_of(struct rank *rank, const char *name, const char *args, const char *member)
{
    json_t *reply = call(rank, name, args);
    const json_t *value = json_object_get(reply, member);
    int64_t number = json_integer_value(value);

    assert_true(json_is_integer(value));
    json_decref(reply);
    return number;
}

static enum status try(struct rank *rank, const char *name, const char *args)
{
    AUTO_CLOSE(bytes) struct bytes reply = {0};
    struct worker_call call = {0};
    bool is_over = false;

    TRY(worker_call_begin(rank->worker, name, args, &call));
    return worker_call_end(rank->worker, &call, true, &reply, &is_over);
}

#define LOAD(path) load_args(path, "load")
static const char *load_args(const char *path, const char *phase)
{
    static char args[200];

    snprintf(args, sizeof args, "{\"phase\": \"%s\", \"path\": \"%s\"}", phase, path);
    return args;
}

/* KiB, from /proc/self/status. */
static int64_t memory_of(const char *name)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    const char *line;

    expect_ok(file_read("/proc/self/status", 65536, &text));
    line = strstr(bytes_text(&text), name);
    assert_non_null(line);
    return atoll(line + strlen(name));
}

/* ---- sleep ------------------------------------------------------------------------------------ */

static void after_sleep_and_wake_up_answers_are_the_same(void **state)
{
    int32_t before[NUM_TOKENS], after[NUM_TOKENS];
    struct plan_sheet sheet;
    struct rank rank;

    (void)state;
    start(&rank);
    answer(&rank, before);
    for (int level = 1; level <= 2; level++) {
        AUTO_MEM char *args = mem_printf("{\"level\": %d}", level);

        call_only(&rank, "sleep", args);
        write_prefill(&sheet);
        expect_fails(worker_prepare_inputs(rank.worker, rank.step, &sheet.plan), ERR_MISMATCH,
                     "is asleep");
        assert_int_equal(number_of(&rank, "sleep", args, "kv_cache_bytes"), 0); /* again */
        assert_int_equal(number_of(&rank, "sleep", "{\"level\": 1}", "level"), level);
        call_only(&rank, "wake_up", "{}");
        assert_int_equal(number_of(&rank, "wake_up", "{}", "level"), 0);
        write_decode(&sheet, NUM_TOKENS); /* its KV is gone */
        expect_fails(worker_prepare_inputs(rank.worker, rank.step, &sheet.plan), ERR_MISMATCH,
                     "slot 0 is not known here");
        answer(&rank, after);
        assert_memory_equal(after, before, sizeof before);
    }
    call_only(&rank, "sleep", "{}"); /* from 1 to 2 */
    assert_true(number_of(&rank, "sleep", "{\"level\": 2}", "weight_bytes") > 0);
    call_only(&rank, "wake_up", "{}");
    answer(&rank, after);
    assert_memory_equal(after, before, sizeof before);
    stop(&rank);
}

static void sleep_gives_memory_back(void **state)
{
    int32_t tokens[NUM_TOKENS];
    int64_t size, resident, kv, weights;
    struct rank rank;

    (void)state;
    start(&rank);
    answer(&rank, tokens);
    size = memory_of("VmSize:");
    kv = number_of(&rank, "sleep", "{\"level\": 1}", "kv_cache_bytes");
    assert_true(kv >= NUM_BLOCKS * 4096);
    assert_true(memory_of("VmSize:") <= size - kv / 1024 * 9 / 10);
    resident = memory_of("VmRSS:");
    weights = number_of(&rank, "sleep", "{\"level\": 2}", "weight_bytes");
    assert_true(weights > 8 << 20);
    assert_true(memory_of("VmRSS:") <= resident - weights / 1024 * 8 / 10);
    assert_int_equal(number_of(&rank, "wake_up", "{}", "weight_bytes"), weights);
    answer(&rank, tokens);
    stop(&rank);
}

static void sleep_is_refused_with_a_step_in_hand_and_at_other_levels(void **state)
{
    const struct model_runner_output *output;
    struct plan_sheet sheet;
    struct rank rank;
    int64_t step;

    (void)state;
    start(&rank);
    expect_fails(try(&rank, "sleep", "{\"level\": 3}"), ERR_INVALID, "level 3; there are 1 and 2");
    write_prefill(&sheet);
    expect_ok(worker_prepare_inputs(rank.worker, 0, &sheet.plan));
    expect_fails(try(&rank, "sleep", "{}"), ERR_MISMATCH, "sleep while a step is in hand");
    expect_ok(worker_execute_model(rank.worker, 0));
    expect_fails(try(&rank, "sleep", "{}"), ERR_MISMATCH, "sleep while a step is in hand");
    expect_ok(worker_sample(rank.worker, 0, NULL));
    expect_ok(worker_collect(rank.worker, true, &step, &output));
    expect_ok(try(&rank, "sleep", "{}"));
    stop(&rank); /* asleep */
}

static void a_rank_does_not_wake_up_with_other_weights(void **state)
{
    int32_t before[NUM_TOKENS], after[NUM_TOKENS];
    struct rank rank;
    char byte, other;
    int fd;

    (void)state;
    start(&rank);
    answer(&rank, before);
    call_only(&rank, "sleep", "{\"level\": 2}");
    fd = open(model_path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, model_file_bytes(rank.file) - 1), 1);
    other = (char)(byte + 1);
    assert_int_equal(pwrite(fd, &other, 1, model_file_bytes(rank.file) - 1), 1);
    expect_fails(try(&rank, "wake_up", "{}"), ERR_CORRUPT, "the model's file has changed");
    assert_int_equal(pwrite(fd, &byte, 1, model_file_bytes(rank.file) - 1), 1);
    close(fd);
    expect_ok(try(&rank, "wake_up", "{}"));
    answer(&rank, after);
    assert_memory_equal(after, before, sizeof before);
    stop(&rank);
}

/* ---- other weights ---------------------------------------------------------------------------- */

static void other_weights_answer_otherwise_until_they_are_rolled_back(void **state)
{
    int32_t before[NUM_TOKENS], other[NUM_TOKENS], after[NUM_TOKENS];
    struct plan_sheet sheet;
    struct rank rank;
    char first[17];

    (void)state;
    start(&rank);
    answer(&rank, before);
    strcpy(first, worker_weights(rank.worker).fingerprint);
    expect_fails(try(&rank, "reload_weights", "{\"phase\": \"swap\"}"), ERR_MISMATCH,
                 "no weights were loaded before");
    expect_fails(try(&rank, "reload_weights", "{\"phase\": \"rollback\"}"), ERR_MISMATCH,
                 "no weights were replaced before");
    call_only(&rank, "reload_weights", LOAD(other_path));
    assert_string_equal(worker_weights(rank.worker).fingerprint, first);
    assert_int_equal(worker_weights(rank.worker).spare, SPARE_LOADED);
    expect_fails(try(&rank, "reload_weights", LOAD(other_path)), ERR_MISMATCH, "drop them first");
    forget(&rank);
    answer(&rank, after); /* only loaded */
    assert_memory_equal(after, before, sizeof before);

    expect_fails(try(&rank, "reload_weights", "{\"phase\": \"swap\", \"fingerprint\": \"12\"}"),
                 ERR_MISMATCH, "swap of weights to weights of fingerprint 12");
    call_only(&rank, "reload_weights", "{\"phase\": \"swap\"}");
    assert_string_not_equal(worker_weights(rank.worker).fingerprint, first);
    assert_string_equal(worker_weights(rank.worker).spare_fingerprint, first);
    write_decode(&sheet, NUM_TOKENS); /* its KV is of the others */
    expect_fails(worker_prepare_inputs(rank.worker, rank.step, &sheet.plan), ERR_MISMATCH,
                 "slot 0 is not known here");
    answer(&rank, other);
    assert_memory_not_equal(other, before, sizeof before);

    call_only(&rank, "reload_weights", "{\"phase\": \"rollback\"}");
    assert_string_equal(worker_weights(rank.worker).fingerprint, first);
    answer(&rank, after);
    assert_memory_equal(after, before, sizeof before);

    call_only(&rank, "reload_weights", "{\"phase\": \"swap\"}");
    answer(&rank, after);
    assert_memory_equal(after, other, sizeof other);
    assert_true(number_of(&rank, "reload_weights", "{\"phase\": \"drop\"}", "weight_bytes") > 0);
    assert_int_equal(number_of(&rank, "reload_weights", "{\"phase\": \"drop\"}", "weight_bytes"), 0);
    expect_fails(try(&rank, "reload_weights", "{\"phase\": \"rollback\"}"), ERR_MISMATCH,
                 "no weights were replaced");

    /* Asleep and awake again they are the new ones. */
    call_only(&rank, "sleep", "{\"level\": 2}");
    call_only(&rank, "wake_up", "{}");
    answer(&rank, after);
    assert_memory_equal(after, other, sizeof other);
    stop(&rank);
}

static void a_file_that_does_not_hold_together_or_fit_changes_nothing(void **state)
{
    const struct {
        const char *path;
        enum status status;
        const char *part;
    } files[] = {
        {cut_path, ERR_CORRUPT, cut_path},
        {deeper_path, ERR_MISMATCH, "num_layers is 3 here, 4 there"},
        {gemma_path, ERR_MISMATCH, "the architecture is llama here, gemma3 there"},
        {"/tmp/no/such/file", ERR_NOT_FOUND, "/tmp/no/such/file: No such file"},
    };
    int32_t before[NUM_TOKENS], after[NUM_TOKENS];
    struct rank rank;

    (void)state;
    start(&rank);
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        answer(&rank, before);
        expect_fails(try(&rank, "reload_weights", LOAD(files[i].path)), files[i].status,
                     files[i].part);
        assert_int_equal(worker_weights(rank.worker).spare, SPARE_REFUSED);
        assert_non_null(strstr(worker_weights(rank.worker).refusal, files[i].part));
        expect_fails(try(&rank, "reload_weights", "{\"phase\": \"swap\"}"), ERR_MISMATCH,
                     "no weights were loaded");
        forget(&rank);
        answer(&rank, after);
        assert_memory_equal(after, before, sizeof before);
        call_only(&rank, "sleep", "{}"); /* forgets requests */
        rank.has_filler = false;
        call_only(&rank, "wake_up", "{}");
    }
    expect_fails(try(&rank, "reload_weights", "{\"phase\": \"load\"}"), ERR_INVALID, "the path");
    expect_fails(try(&rank, "reload_weights", "{\"phase\": \"lod\"}"), ERR_INVALID,
                 "reload_weights has no phase 'lod'");
    expect_fails(try(&rank, "reload_wights", "{}"), ERR_NOT_FOUND,
                 "no call is named 'reload_wights'");
    expect_fails(try(&rank, "reload_weights", "no JSON"), ERR_INVALID, "no phase ''");
    call_only(&rank, "reload_weights", LOAD(other_path)); /* a refusal is no obstacle */
    stop(&rank); /* with other weights beside */
}

static void every_difference_is_told_with_both_values(void **state)
{
    const struct {
        struct tiny_model_options options;
        const char *part;
    } others[] = {
        {{.hidden_size = 128}, "hidden_size is 64 here, 128 there"},
        {{.intermediate_size = 512}, "intermediate_size is 256 here, 512 there"},
        {{.num_heads = 8}, "num_heads is 4 here, 8 there"},
        {{.num_kv_heads = 4}, "num_kv_heads is 2 here, 4 there"},
        {{.head_dim = 64}, "head_dim is 32 here, 64 there"},
        {{.max_position = 512}, "max_position is 1024 here, 512 there"},
    };
    AUTO_FREE(model_file) struct model_file *running = NULL;
    char path[64];

    (void)state;
    name_file(path, "one");
    tiny_model_write(path, NULL);
    expect_ok(model_file_open(path, &running));
    expect_ok(reload_check_fit(running, running));
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        AUTO_FREE(model_file) struct model_file *other = NULL;

        unlink(path);
        tiny_model_write(path, &others[i].options);
        expect_ok(model_file_open(path, &other));
        expect_fails(reload_check_fit(running, other), ERR_MISMATCH, others[i].part);
    }
    unlink(path);
}

/* The mail says that it is over; steps neither wait for it nor take it for an answer. */
static void steps_go_on_while_weights_are_loaded(void **state)
{
    int32_t before[NUM_TOKENS], during[NUM_TOKENS];
    int64_t deadline_ns = clock_deadline_ns(60000);
    struct rank rank;

    (void)state;
    start(&rank);
    answer(&rank, before);
    for (int round = 0; round < 3; round++) {
        call_only(&rank, "reload_weights", load_args(other_path, "begin"));
        do {
            forget(&rank);
            answer(&rank, during);
            assert_memory_equal(during, before, sizeof before);
            call_only(&rank, "reload_weights", "{\"phase\": \"status\"}");
        } while (worker_weights(rank.worker).spare == SPARE_LOADING &&
                 clock_now_ns() < deadline_ns);
        assert_int_equal(worker_weights(rank.worker).spare, SPARE_LOADED);
        call_only(&rank, "reload_weights", "{\"phase\": \"drop\"}");
    }
    stop(&rank);
}

static void what_would_cross_a_load_is_refused(void **state)
{
    struct rank rank;

    (void)state;
    start(&rank);
    expect_ok(worker_load_weights(rank.worker, other_path));
    expect_fails(worker_sleep(rank.worker, 1), ERR_MISMATCH, "while weights are being loaded");
    expect_fails(worker_swap_weights(rank.worker, NULL), ERR_MISMATCH, "weights are being loaded");
    expect_fails(worker_load_weights(rank.worker, other_path), ERR_MISMATCH,
                 "weights are being loaded");
    stop(&rank); /* given up */
}

/* As the wire loop does: it parks until the descriptor is readable. */
static void the_end_of_a_change_is_announced_by_the_descriptor(void **state)
{
    struct worker_call call = {0};
    AUTO_CLOSE(bytes) struct bytes reply = {0};
    struct rank rank;
    bool is_over;

    (void)state;
    start(&rank);
    for (int round = 0; round < 2; round++) {
        struct pollfd fd = {.fd = worker_output_fd(rank.worker), .events = POLLIN};

        expect_ok(worker_call_begin(rank.worker, round == 0 ? "reload_weights" : "sleep",
                                    round == 0 ? LOAD(other_path) : "{\"level\": 2}", &call));
        expect_ok(worker_call_end(rank.worker, &call, false, &reply, &is_over));
        while (!is_over) {
            assert_int_equal(poll(&fd, 1, 60000), 1);
            expect_ok(worker_call_end(rank.worker, &call, false, &reply, &is_over));
        }
    }
    assert_non_null(strstr(bytes_text(&reply), "\"loaded\""));
    assert_non_null(strstr(bytes_text(&reply), "\"level\":2"));
    stop(&rank);
}

/* ---- stacks ----------------------------------------------------------------------------------- */

static void a_rank_tells_where_its_threads_are(void **state)
{
    struct rank rank;
    json_t *reply;
    const char *text;

    (void)state;
    start(&rank);
    reply = call(&rank, "stacks", "{}");
    assert_int_equal(json_integer_value(json_object_get(reply, "pid")), getpid());
    text = json_string_value(json_object_get(reply, "text"));
    assert_non_null(text);
    assert_non_null(strstr(text, " device, "));
    json_decref(reply);
    stop(&rank);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(sleep_gives_memory_back),
        cmocka_unit_test(after_sleep_and_wake_up_answers_are_the_same),
        cmocka_unit_test(sleep_is_refused_with_a_step_in_hand_and_at_other_levels),
        cmocka_unit_test(a_rank_does_not_wake_up_with_other_weights),
        cmocka_unit_test(other_weights_answer_otherwise_until_they_are_rolled_back),
        cmocka_unit_test(a_file_that_does_not_hold_together_or_fit_changes_nothing),
        cmocka_unit_test(every_difference_is_told_with_both_values),
        cmocka_unit_test(steps_go_on_while_weights_are_loaded),
        cmocka_unit_test(what_would_cross_a_load_is_refused),
        cmocka_unit_test(the_end_of_a_change_is_announced_by_the_descriptor),
        cmocka_unit_test(a_rank_tells_where_its_threads_are),
    };

    return cmocka_run_group_tests(tests, make_models, remove_models);
}
