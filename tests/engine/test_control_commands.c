/* Which row a control command is, and its arguments as the row says. */
#include "tests/support/expect.h"

#include "engine/control/commands.h"

#include <stdio.h>

static const struct control_command *find(const char *name, const char *args_text, size_t *num_words)
{
    json_t *args = args_text ? json_loads(args_text, 0, NULL) : NULL;
    const struct control_command *command = NULL;

    expect_ok(control_command_find(name, args, &command, num_words));
    json_decref(args);
    return command;
}

/* The arguments as compact JSON with sorted keys; the sentence where they are refused. */
static char *read_args(const char *name, const char *args_text)
{
    json_t *args = json_loads(args_text, JSON_DECODE_ANY, NULL), *read = NULL;
    const struct control_command *command;
    size_t num_words;
    char *text;

    expect_ok(control_command_find(name, args, &command, &num_words));
    if (control_args_read(command, args, num_words, &read) == OK)
        text = json_dumps(read, JSON_COMPACT | JSON_SORT_KEYS);
    else
        text = mem_strdup(fail_text());
    json_decref(read);
    json_decref(args);
    return text;
}

static void expect_args(const char *name, const char *args_text, const char *wanted)
{
    AUTO_MEM char *text = read_args(name, args_text);

    assert_string_equal(text, wanted);
}

static void every_row_looks_or_acts_and_says_what_for(void **state)
{
    (void)state;
    for (size_t i = 0; i < control_num_commands; i++) {
        const struct control_command *command = &control_commands[i];
        size_t num_words;

        assert_true((command->look == NULL) != (command->act == NULL));
        assert_true(*command->help);
        assert_in_range(command->role, ROLE_READ, ROLE_ADMIN);
        /* Who may only read changes nothing. */
        assert_int_equal(command->role == ROLE_READ, command->look != NULL);
        assert_ptr_equal(find(command->name, NULL, &num_words), command);
        assert_int_equal(num_words, 0);
        for (const struct control_arg *arg = command->args; arg->name; arg++) {
            assert_int_equal(arg->kind == CONTROL_WORD, arg->words != NULL);
            if (arg->kind == CONTROL_FILE)
                assert_ptr_equal(arg, command->args); /* ctl makes its path whole */
            else
                assert_true(arg->kind == CONTROL_TEXT || arg->words || arg->most > arg->least);
        }
    }
}

static void a_name_may_be_two_words(void **state)
{
    (void)state;
    size_t num_words;

    assert_string_equal(find("config", "[\"get\", \"tp\"]", &num_words)->name, "config get");
    assert_int_equal(num_words, 1);
    assert_string_equal(find("config set", "{}", &num_words)->name, "config set");
    assert_int_equal(num_words, 0);
    /* A row of one word wins. */
    assert_string_equal(find("abort", "[\"get\"]", &num_words)->name, "abort");
    assert_int_equal(num_words, 0);
}

static void an_unknown_name_is_told_the_nearest(void **state)
{
    (void)state;
    const struct control_command *command;
    json_t *args = json_loads("[\"strat\"]", 0, NULL);
    size_t n;

    expect_fails(control_command_find("statu", NULL, &command, &n), ERR_INVALID,
                 "'statu' is no command; did you mean 'status'?");
    expect_fails(control_command_find("trace", args, &command, &n), ERR_INVALID,
                 "'trace strat' is no command; did you mean 'trace start'?");
    expect_fails(control_command_find("", NULL, &command, &n), ERR_INVALID,
                 "'' is no command; 'help' lists them");
    json_decref(args);
}

static void arguments_come_as_words_or_by_name(void **state)
{
    (void)state;
    expect_args("drain", "[]", "{}");
    expect_args("drain", "[\"--wait\", \"2.5\"]", "{\"wait\":2.5}");
    expect_args("drain", "[\"--wait\", \"100s\"]", "{\"wait\":100.0}");
    expect_args("drain", "[\"--wait=2\"]", "{\"wait\":2.0}");
    expect_args("drain", "{\"wait\": 2}", "{\"wait\":2.0}");
    expect_args("config", "[\"set\", \"tp\", \"4\"]", "{\"name\":\"tp\",\"value\":\"4\"}");
    expect_args("config set", "{\"name\": \"tp\", \"value\": 4}", "{\"name\":\"tp\",\"value\":\"4\"}");
    expect_args("config set", "{\"name\": \"x\", \"value\": true}",
                "{\"name\":\"x\",\"value\":\"true\"}");
    expect_args("restart-worker", "[\"3\"]", "{\"rank\":3}");
    expect_args("sleep", "[\"2\"]", "{\"level\":2}");
}

static void what_does_not_fit_its_row_is_refused_with_how_it_should_be(void **state)
{
    (void)state;
    static const struct {
        const char *name, *args, *sentence;
    } rows[] = {
        {"drain", "[\"5\"]", "'5' is one word too many; usage: drain [--wait SECONDS]"},
        {"drain", "[\"--wait\"]", "--wait needs a value; usage: drain [--wait SECONDS]"},
        {"drain", "[\"--wiat\", \"5\"]", "--wiat is unknown; usage: drain [--wait SECONDS]"},
        {"drain", "[\"--wait\", \"nan\"]", "wait must be a number; usage: drain [--wait SECONDS]"},
        {"drain", "{\"wait\": -1}",
         "wait must be 0 to 86400, not -1; usage: drain [--wait SECONDS]"},
        {"drain", "{\"wait\": [5]}", "wait must be a number; usage: drain [--wait SECONDS]"},
        {"drain", "{\"until\": 5}", "'until' is unknown; usage: drain [--wait SECONDS]"},
        {"drain", "5", "arguments are an object or a list of words; usage: drain [--wait SECONDS]"},
        {"drain", "[5]", "word 1 is no text; usage: drain [--wait SECONDS]"},
        {"restart-worker", "[]", "rank is missing; usage: restart-worker RANK"},
        {"restart-worker", "[\"1.5\"]", "rank must be an integer; usage: restart-worker RANK"},
        {"restart-worker", "[\"256\"]",
         "rank must be 0 to 255, not 256; usage: restart-worker RANK"},
        {"pause", "[\"wai\"]",
         "mode must be one of abort wait keep, not 'wai'; usage: pause [abort|wait|keep]"},
        {"pause", "[\"\"]",
         "mode must be one of abort wait keep, not ''; usage: pause [abort|wait|keep]"},
        {"drain", "[\"--wait=1\", \"--wait=1\"]",
         "wait is given twice; usage: drain [--wait SECONDS]"},
        {"abort", "{\"id\": {}}", "id must be text; usage: abort ID"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_args(rows[i].name, rows[i].args, rows[i].sentence);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_row_looks_or_acts_and_says_what_for),
    cmocka_unit_test(a_name_may_be_two_words),
    cmocka_unit_test(an_unknown_name_is_told_the_nearest),
    cmocka_unit_test(arguments_come_as_words_or_by_name),
    cmocka_unit_test(what_does_not_fit_its_row_is_refused_with_how_it_should_be),
};
TEST_MAIN(tests)
