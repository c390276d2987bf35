/* The program as a user runs it: `tandem bench`, at small sizes. Times are nobody's promise here. */
#include "tests/support/expect.h"
#include "tests/support/one_core.h"
#include "tests/support/tiny_model.h"

#include "proto/base/memory.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs `tandem bench ARGUMENTS`; appends stdout and stderr. */
static int run(const char *arguments, struct bytes *out)
{
    AUTO_MEM char *command =
        mem_printf("'%s' bench %s 2>&1", getenv("TANDEM_PROGRAM"), arguments);
    FILE *pipe = popen(command, "r");
    size_t n;
    int status;

    assert_non_null(pipe);
    while ((n = fread(bytes_reserve(out, 4096), 1, 4096, pipe)) > 0)
        out->size += n;
    status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Exactly these keys (NULL at the end), with numbers above zero. The caller owns the result. */
static json_t *expect_figures(const char *arguments, const char *const *keys)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};
    size_t num_keys = 0;

    assert_int_equal(run(arguments, &out), 0);
    json_t *figures = json_loads(bytes_text(&out), 0, NULL);
    assert_true(json_is_object(figures));
    for (; keys[num_keys]; num_keys++)
        assert_true(json_number_value(json_object_get(figures, keys[num_keys])) > 0);
    assert_int_equal(json_object_size(figures), num_keys);
    return figures;
}

#define EXPECT_FIGURES(arguments, ...)                                                             \
    expect_figures(arguments, (const char *const[]){__VA_ARGS__, NULL})

static void expect_refusal(const char *arguments, const char *words)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};

    assert_int_equal(run(arguments, &out), 2);
    if (!strstr(bytes_text(&out), words))
        fail_msg("'%s' was expected in: %s", words, bytes_text(&out));
}

static void step_measures_both_halves_in_sync_and_async(void **state)
{
    (void)state;
    json_decref(EXPECT_FIGURES("step --running 3 --json", "schedule_us", "update_us", "total_us"));
    json_decref(EXPECT_FIGURES("step --running 40 --no-async-scheduling --json", "schedule_us",
                               "update_us", "total_us"));
}

static void admit_takes_prompts_of_any_length(void **state)
{
    (void)state;
    json_decref(EXPECT_FIGURES("admit --prompt-tokens 1 --json", "us"));
    json_decref(EXPECT_FIGURES("admit --prompt-tokens 100 --json", "us"));
}

static void wire_of_256_decodes_is_less_than_2_kb(void **state)
{
    json_t *figures;

    (void)state;
    json_decref(EXPECT_FIGURES("wire --running 1 --json", "bytes", "encode_us", "decode_us"));
    figures = EXPECT_FIGURES("wire --running 256 --json", "bytes", "encode_us", "decode_us");
    assert_true(json_number_value(json_object_get(figures, "bytes")) < 2000);
    json_decref(figures);
}

static void rpc_goes_through_processes(void **state)
{
    json_t *figures;

    (void)state;
    figures = EXPECT_FIGURES("rpc --running 5 --ranks 2 --json", "p50_us", "p99_us");
    assert_true(json_number_value(json_object_get(figures, "p50_us")) <=
                json_number_value(json_object_get(figures, "p99_us")));
    json_decref(figures);
}

static void people_get_a_line_a_figure(void **state)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};

    (void)state;
    assert_int_equal(run("admit --prompt-tokens 20", &out), 0);
    assert_non_null(strstr(bytes_text(&out), "from a decoded submission to its first step\n"));
}

static void help_names_the_benches_that_are_for_people(void **state)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};

    (void)state;
    assert_int_equal(run("--help", &out), 0);
    assert_non_null(strstr(bytes_text(&out), "\n  rpc "));
    assert_null(strstr(bytes_text(&out), "null-worker"));
    assert_int_equal(run("step --help", &out), 0);
    assert_non_null(strstr(bytes_text(&out), "--running N"));
    assert_non_null(strstr(bytes_text(&out), "schedule_us"));
}

static void what_cannot_be_measured_is_refused(void **state)
{
    (void)state;
    expect_refusal("", "usage: tandem bench NAME");
    expect_refusal("stop", "'stop' is no bench; did you mean 'step'?");
    expect_refusal("step --running 0", "--running must be 1 to 16384, not 0");
    expect_refusal("wire --running 16385", "not 16385");
    expect_refusal("admit --prompt-tokens -5", "--prompt-tokens must be 1 to 1048576, not -5");
    expect_refusal("rpc --ranks 65", "--ranks must be 1 to 64, not 65");
    expect_refusal("admit --running 5", "option --running is unknown");
    expect_refusal("null-worker", "--engine is missing");
}

static void simulate_finds_no_difference_and_names_its_seed(void **state)
{
    AUTO_CLOSE(bytes) struct bytes out = {0}, again = {0};
    json_t *figures;

    (void)state;
    assert_int_equal(run("simulate --seed 400 --steps 2000 --json", &out), 0);
    assert_int_equal(run("simulate --seed 400 --steps 2000 --json", &again), 0);
    assert_string_equal(bytes_text(&out), bytes_text(&again));
    figures = json_loads(bytes_text(&out), 0, NULL);
    assert_int_equal(json_object_size(figures), 4);
    assert_true(json_integer_value(json_object_get(figures, "steps")) >= 2000);
    assert_true(json_is_integer(json_object_get(figures, "differences")));
    assert_int_equal(json_integer_value(json_object_get(figures, "differences")), 0);
    assert_true(json_integer_value(json_object_get(figures, "faults_injected")) > 0);
    assert_int_equal(json_integer_value(json_object_get(figures, "seed")), 400);
    json_decref(figures);
    expect_refusal("simulate --steps 0", "--steps must be 1 to");
}

static char *write_model(const struct tiny_model_options *options)
{
    char *path = mem_printf("/tmp/tandem-bench-%d.gguf", getpid());

    tiny_model_write(path, options);
    return path;
}

/* The figures of `bench model` on this file. */
static json_t *model_figures(const char *path, const char *arguments)
{
    AUTO_MEM char *command = mem_printf("model --model %s --rounds 2 --json %s", path, arguments);
    AUTO_CLOSE(bytes) struct bytes out = {0};

    if (run(command, &out) != 0)
        fail_msg("%s", bytes_text(&out));
    json_t *figures = json_loads(bytes_text(&out), 0, NULL);
    assert_true(json_is_object(figures));
    return figures;
}

static double number(const json_t *figures, const char *key)
{
    assert_true(json_is_number(json_object_get(figures, key)));
    return json_number_value(json_object_get(figures, key));
}

static void model_measures_both_phases_and_what_memory_allows(void **state)
{
    AUTO_MEM char *path = write_model(NULL);
    json_t *figures = model_figures(path, "--prefill 20 --decode 9 --batch 3 --threads 1 --isa sse2");

    (void)state;
    assert_true(number(figures, "prefill_tok_s") > 0 && number(figures, "decode_tok_s") > 0);
    assert_true(number(figures, "whole_tok_s") > 0 && number(figures, "bandwidth_gb_s") > 0);
    assert_string_equal(json_string_value(json_object_get(figures, "isa")), "sse2");
    assert_true(number(figures, "threads") == 1 && number(figures, "tp") == 1);
    /* 2 layers, 2 KV heads of 32, halves, keys and values; a context of 25 in the middle. */
    assert_true(number(figures, "step_kv_bytes") == 3 * 25 * 2 * 2 * 32 * 2 * 2);
    assert_float_equal(number(figures, "bandwidth_limit_tok_s"),
                       3 * 1e9 * number(figures, "bandwidth_gb_s") /
                           (number(figures, "step_weight_bytes") + number(figures, "step_kv_bytes")),
                       1e-3 * number(figures, "bandwidth_limit_tok_s"));
    json_decref(figures);
    unlink(path);
}

static void model_takes_either_phase_alone_and_a_whole_context(void **state)
{
    AUTO_MEM char *path = write_model(&(struct tiny_model_options){.max_position = 64});
    json_t *prefill = model_figures(path, "--prefill 64 --decode 0");
    json_t *decode = model_figures(path, "--prefill 1 --decode 63 --tp 2 --threads 1");

    (void)state;
    assert_true(number(prefill, "prefill_tok_s") > 0 && number(prefill, "decode_tok_s") == 0);
    assert_true(number(prefill, "prompt_tokens") == 63 && number(prefill, "output_tokens") == 1);
    assert_true(number(decode, "decode_tok_s") > 0 && number(decode, "tp") == 2);
    json_decref(prefill);
    json_decref(decode);
    unlink(path);
}

/* Of a step's bytes an embedding table counts where it is the output matrix too, and once. */
static void model_counts_the_weights_that_a_step_reads(void **state)
{
    AUTO_MEM char *tied_path = write_model(NULL);
    json_t *tied = model_figures(tied_path, "--decode 0 --prefill 4 --threads 1");
    AUTO_MEM char *untied_path = write_model(&(struct tiny_model_options){.untied = true});
    json_t *untied = model_figures(untied_path, "--decode 0 --prefill 4 --threads 1");

    (void)state;
    assert_true(number(tied, "step_weight_bytes") > 0);
    assert_true(number(tied, "step_weight_bytes") == number(untied, "step_weight_bytes"));
    json_decref(tied);
    json_decref(untied);
    unlink(untied_path);
}

/* gemma3's first layer looks back no further than 16 tokens. */
static void model_counts_no_more_of_the_kv_than_a_window(void **state)
{
    AUTO_MEM char *path = write_model(&(struct tiny_model_options){.architecture = "gemma3"});
    json_t *figures = model_figures(path, "--prefill 100 --decode 1 --threads 1 --no-exact-sums");

    (void)state;
    assert_true(number(figures, "step_kv_bytes") == (101 + 16) * 2 * 32 * 2 * 2);
    json_decref(figures);
    unlink(path);
}

/* The program inherits the mask: cores that it may not use get no threads. */
static void model_has_as_many_threads_as_cores_that_it_may_use(void **state)
{
    AUTO_MEM char *path = write_model(NULL);
    cpu_set_t before;

    (void)state;
    keep_one_core(&before);
    json_t *figures = model_figures(path, "--prefill 4 --decode 2 --executor multiproc");
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_true(number(figures, "threads") == 1);
    json_decref(figures);
    unlink(path);
}

static void model_refuses_what_does_not_fit(void **state)
{
    AUTO_MEM char *path = write_model(&(struct tiny_model_options){.max_position = 64});
    AUTO_MEM char *too_long = mem_printf("model --model %s --prefill 60 --decode 5", path);

    (void)state;
    expect_refusal("model", "--model FILE");
    expect_refusal(too_long, "--prefill 60 and --decode 5 do not fit in the 64 positions");
    expect_refusal("model --model x --batch 0", "--batch must be 1 to");
    unlink(path);
}

/* Lines of JSON, as an array. The caller owns it. */
static json_t *json_lines(const char *text)
{
    json_t *lines = json_array();

    while (*text) {
        json_error_t error;
        json_t *line = json_loads(text, JSON_DISABLE_EOF_CHECK, &error);

        assert_non_null(line);
        json_array_append_new(lines, line);
        text += error.position;
        text += strspn(text, "\n");
    }
    return lines;
}

static void kernels_are_lines_behind_the_limits_of_their_run(void **state)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};
    size_t i, num_limits = 0;
    json_t *line;

    (void)state;
    assert_int_equal(run("kernels --kernel add_norm --isa sse2 --threads 2 --run-ms 1 --json", &out), 0);
    json_t *lines = json_lines(bytes_text(&out));

    json_array_foreach(lines, i, line) {
        assert_string_equal(json_string_value(json_object_get(line, "isa")), "sse2");
        if (json_object_get(line, "limit")) {
            assert_int_equal(num_limits, i);
            num_limits++;
            continue;
        }
        assert_string_equal(json_string_value(json_object_get(line, "kernel")), "add_norm");
        assert_true(number(line, "us") > 0 && number(line, "gb_s") > 0 && number(line, "share") > 0);
    }
    assert_int_equal(num_limits, 2 * 5);
    assert_int_equal(json_array_size(lines), num_limits + 2 * 2 * 8); /* threads, models, rows */
    json_decref(lines);
}

static void kernels_refuses_one_that_there_is_not(void **state)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};

    (void)state;
    assert_int_equal(run("kernels --kernel rms --isa sse2 --threads 1 --run-ms 1", &out), 1);
    assert_non_null(strstr(bytes_text(&out), "no kernel 'rms' is measured"));
    expect_refusal("kernels --isa avx9000", "avx9000");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(step_measures_both_halves_in_sync_and_async),
    cmocka_unit_test(admit_takes_prompts_of_any_length),
    cmocka_unit_test(wire_of_256_decodes_is_less_than_2_kb),
    cmocka_unit_test(rpc_goes_through_processes),
    cmocka_unit_test(simulate_finds_no_difference_and_names_its_seed),
    cmocka_unit_test(model_measures_both_phases_and_what_memory_allows),
    cmocka_unit_test(model_takes_either_phase_alone_and_a_whole_context),
    cmocka_unit_test(model_counts_the_weights_that_a_step_reads),
    cmocka_unit_test(model_counts_no_more_of_the_kv_than_a_window),
    cmocka_unit_test(model_has_as_many_threads_as_cores_that_it_may_use),
    cmocka_unit_test(model_refuses_what_does_not_fit),
    cmocka_unit_test(kernels_are_lines_behind_the_limits_of_their_run),
    cmocka_unit_test(kernels_refuses_one_that_there_is_not),
    cmocka_unit_test(people_get_a_line_a_figure),
    cmocka_unit_test(help_names_the_benches_that_are_for_people),
    cmocka_unit_test(what_cannot_be_measured_is_refused),
};

TEST_MAIN(tests)
