/* The program as a user runs it: `tandem tokenize` on a tiny model. */
#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "tests/support/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

struct place {
    char folder[64];
    char *model;
};

static int make_place(void **state)
{
    struct place *place = mem_new(struct place);

    strcpy(place->folder, "/tmp/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(place->folder));
    place->model = mem_printf("%s/tiny.gguf", place->folder);
    tiny_model_write(place->model, NULL);
    *state = place;
    return 0;
}

static int remove_place(void **state)
{
    struct place *place = *state;

    unlink(place->model);
    rmdir(place->folder);
    mem_free(place->model);
    mem_free(place);
    return 0;
}

/* Runs `tandem ARGUMENTS` with `input` (printf's words) on stdin; appends stdout and stderr. */
static int run(const char *arguments, const char *input, struct bytes *out)
{
    const char *program = getenv("TANDEM_PROGRAM");
    AUTO_MEM char *command = mem_printf("printf '%s' | '%s' %s 2>&1", input, program, arguments);
    FILE *pipe;
    size_t n;
    int status;

    assert_non_null(program);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    while ((n = fread(bytes_reserve(out, 4096), 1, 4096, pipe)) > 0)
        out->size += n;
    status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void expect_run(const struct place *place, const char *options, const char *input,
                       int exit_status, const char *output)
{
    AUTO_MEM char *arguments = mem_printf("tokenize --model %s %s", place->model, options);
    AUTO_CLOSE(bytes) struct bytes out = {0};

    assert_int_equal(run(arguments, input, &out), exit_status);
    assert_string_equal(bytes_text(&out), output);
}

static void each_line_is_answered_by_a_line(void **state)
{
    expect_run(*state, "",
               "{\"text\": \"<|im_start|>!\", \"parse_special\": true}\\n\\n"
               "{\"text\": \"\", \"add_special\": false}",
               0, "{\"ids\":[1,36]}\n{\"ids\":[]}\n");
}

static void ids_go_back_to_text(void **state)
{
    expect_run(*state, "--decode",
               "{\"ids\": [1, 36]}\\n{\"ids\": [1, 36, 3], \"show_special\": false}\\n", 0,
               "{\"text\":\"<|im_start|>!\"}\n{\"text\":\"!\\u0000\"}\n");
}

static void a_bad_line_is_named_and_the_others_go_on(void **state)
{
    expect_run(*state, "", "{\"text\": \"!\"]\\n[]\\n{\"text\": 1}\\n{\"text\": \"!\"}\\n", 1,
               "{\"error\":{\"code\":\"invalid\",\"message\":"
               "\"line 1, column 13: '}' expected near ']'\"}}\n"
               "{\"error\":{\"code\":\"invalid\",\"message\":\"line 2: an object is expected\"}}\n"
               "{\"error\":{\"code\":\"invalid\",\"message\":\"line 3: \\\"text\\\" must be a "
               "string\"}}\n"
               "{\"ids\":[36]}\n"
               "tandem tokenize: 3 lines refused\n");
    expect_run(*state, "", "{\"text\": \"\\377\"}\\n", 1,
               "{\"error\":{\"code\":\"invalid\",\"message\":\"line 1, column 11: byte 0xff is no "
               "UTF-8\"}}\n"
               "tandem tokenize: 1 line refused\n");
    expect_run(*state, "--decode", "{\"ids\": [0.5]}\\n{\"ids\": [36]}", 1,
               "{\"error\":{\"code\":\"invalid\",\"message\":\"line 1: \\\"ids\\\"[0] must be an "
               "integer\"}}\n"
               "{\"text\":\"!\"}\n"
               "tandem tokenize: 1 line refused\n");
}

static void an_id_out_of_range_is_refused_with_the_range(void **state)
{
    const struct place *place = *state;
    AUTO_MEM char *arguments = mem_printf("tokenize --decode --model %s", place->model);
    AUTO_CLOSE(bytes) struct bytes out = {0};

    assert_int_equal(run(arguments, "{\"ids\": [36, 1000000]}", &out), 1);
    assert_non_null(strstr(bytes_text(&out), "[1] is 1000000; the vocabulary has 0 to 2"));
}

static void a_wrong_command_line_exits_with_2_and_helps(void **state)
{
    (void)state;
    static const struct {
        const char *arguments, *says;
    } rows[] = {
        {"", "usage: tandem COMMAND"},
        {"tokenise", "did you mean 'tokenize'?"},
        {"xyzzy-and-more", "'tandem --help' lists the commands"},
        {"tokenize", "--model FILE is missing"},
        {"tokenize --modal x", "tandem tokenize: option --modal is unknown; did you mean --model?"},
        {"tokenize --mod x", "tandem tokenize: option --mod is unknown"},
        {"tokenize --model x y", "tandem tokenize: 'y' is not an option"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_CLOSE(bytes) struct bytes out = {0};

        assert_int_equal(run(rows[i].arguments, "", &out), 2);
        if (!strstr(bytes_text(&out), rows[i].says))
            fail_msg("'tandem %s' lacks \"%s\": %s", rows[i].arguments, rows[i].says,
                     bytes_text(&out));
    }
}

static void help_and_version_are_answers(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    assert_int_equal(run("--help", "", &out), 0);
    assert_int_equal(run("--version", "", &out), 0);
    assert_int_equal(run("tokenize --model x --help", "", &out), 0);
    assert_non_null(strstr(bytes_text(&out), "usage: tandem tokenize --model FILE"));
}

static void a_model_that_is_not_there_is_named(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    assert_int_equal(run("tokenize --model /nowhere.gguf", "", &out), 1);
    assert_non_null(strstr(bytes_text(&out), "/nowhere.gguf"));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(each_line_is_answered_by_a_line),
    cmocka_unit_test(ids_go_back_to_text),
    cmocka_unit_test(a_bad_line_is_named_and_the_others_go_on),
    cmocka_unit_test(an_id_out_of_range_is_refused_with_the_range),
    cmocka_unit_test(a_wrong_command_line_exits_with_2_and_helps),
    cmocka_unit_test(help_and_version_are_answers),
    cmocka_unit_test(a_model_that_is_not_there_is_named),
};

int main(void)
{
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
