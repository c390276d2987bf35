/* The program as a user runs it: `tandem bench`, at small sizes. Times are nobody's promise here. */
#include "tests/support/expect.h"

#include "proto/base/memory.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

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

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(step_measures_both_halves_in_sync_and_async),
    cmocka_unit_test(admit_takes_prompts_of_any_length),
    cmocka_unit_test(wire_of_256_decodes_is_less_than_2_kb),
    cmocka_unit_test(rpc_goes_through_processes),
    cmocka_unit_test(simulate_finds_no_difference_and_names_its_seed),
    cmocka_unit_test(people_get_a_line_a_figure),
    cmocka_unit_test(help_names_the_benches_that_are_for_people),
    cmocka_unit_test(what_cannot_be_measured_is_refused),
};

TEST_MAIN(tests)
