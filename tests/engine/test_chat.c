#include "tests/support/expect.h"

#include "engine/text/chat.h"

/* Messages (and the other parts, where they are JSON) through a template. */
static enum status render(const char *source, const char *messages, const char *tools,
                          const char *extra, struct bytes *out)
{
    AUTO_FREE(template) struct template *t = NULL;
    struct chat chat = {.messages = json_loads(messages, JSON_DECODE_ANY, NULL),
                        .tools = tools ? json_loads(tools, JSON_DECODE_ANY, NULL) : NULL,
                        .extra = extra ? json_loads(extra, JSON_DECODE_ANY, NULL) : NULL,
                        .bos_token = "<s>",
                        .add_generation_prompt = true};
    enum status status;

    expect_ok(template_new(source, strlen(source), &t));
    out->size = 0;
    status = chat_render(t, &chat, out);
    json_decref((json_t *)chat.messages);
    json_decref((json_t *)chat.tools);
    json_decref((json_t *)chat.extra);
    return status;
}

static void a_template_sees_what_it_sees_under_transformers(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    expect_ok(render("{{ bos_token }}{{ eos_token is defined }}{{ tools is none }}"
                     "{{ documents is none }}{{ add_generation_prompt }}{{ messages }}{{ mode }}",
                     "[{\"role\":\"user\",\"content\":\"hi\",\"name\":\"n\"}]", NULL,
                     "{\"mode\":\"fast\"}", &out));
    assert_string_equal(bytes_text(&out), "<s>FalseTrueTrueTrue"
                                          "[{'role': 'user', 'content': 'hi', 'name': 'n'}]fast");
    expect_ok(render("{{ tools | tojson }}", "[{\"role\":\"user\"}]", "[{\"a\":1}]", "null", &out));
    assert_string_equal(bytes_text(&out), "[{\"a\": 1}]");
}

static void a_content_becomes_one_text(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    expect_ok(
        render("{% for m in messages %}[{{ m.content }}]{% endfor %}",
               "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
               "{\"type\":\"text\",\"text\":\"b\"}]},"
               "{\"role\":\"assistant\",\"content\":[{\"type\":\"refusal\",\"refusal\":\"no\"}]},"
               "{\"role\":\"assistant\",\"content\":null},{\"role\":\"assistant\"},"
               "{\"role\":\"user\",\"content\":[]}]",
               NULL, NULL, &out));
    assert_string_equal(bytes_text(&out), "[a\nb][no][][][]");
}

static void arguments_of_a_tool_call_become_an_object(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    expect_ok(render("{{ messages[0].tool_calls[0].function.arguments.city }}",
                     "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
                     "\"arguments\":\"{\\\"city\\\": \\\"Rome\\\"}\"}}]}]",
                     NULL, NULL, &out));
    assert_string_equal(bytes_text(&out), "Rome");
}

/* What templates see of the arguments in a call, given as JSON. */
static void expect_arguments(const char *json, const char *seen)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};
    AUTO_MEM char *messages = mem_printf("[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":"
                                         "{\"name\":\"f\"%s}}]}]",
                                         json);

    expect_ok(render("{{ messages[0].tool_calls[0].function.arguments | tojson }}", messages, NULL,
                     NULL, &out));
    assert_string_equal(bytes_text(&out), seen);
}

static void arguments_that_are_no_object_are_an_empty_one(void **state)
{
    (void)state;
    expect_arguments("", "{}");
    expect_arguments(",\"arguments\":null", "{}");
    expect_arguments(",\"arguments\":\"\"", "{}");
    expect_arguments(",\"arguments\":\"{\\\"city\\\": \\\"Ro\"", "{}");
    expect_arguments(",\"arguments\":\"city=Rome\"", "{}");
    expect_arguments(",\"arguments\":\"[1]\"", "{}");
    expect_arguments(",\"arguments\":\"{\\\"a\\\": [1]}\"", "{\"a\": [1]}");
    expect_arguments(",\"arguments\":{\"a\":1}", "{\"a\": 1}");
}

static void a_message_without_calls_has_no_tool_calls(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    expect_ok(render("{% for m in messages %}{{ 'tool_calls' in m }} {% endfor %}",
                     "[{\"role\":\"assistant\",\"tool_calls\":null},"
                     "{\"role\":\"assistant\",\"tool_calls\":[]},"
                     "{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]",
                     NULL, NULL, &out));
    assert_string_equal(bytes_text(&out), "False False True ");
}

static void reasoning_is_found_by_the_names_that_templates_use(void **state)
{
    (void)state;
    static const struct {
        const char *fields, *seen;
    } rows[] = {
        {"\"reasoning\":\"r\"", "r r"},
        {"\"reasoning_content\":null,\"reasoning\":\"r\"", "r r"},
        {"\"thinking\":null,\"reasoning\":\"r\"", "r r"},
        {"\"thinking\":\"t\",\"reasoning\":\"r\"", "t t"},
        {"\"reasoning_content\":\"c\",\"thinking\":\"t\",\"reasoning\":\"r\"", "c t"},
        {"\"reasoning_content\":\"\",\"reasoning\":\"r\"", " "},
        {"\"reasoning\":null", "- -"},
        {"\"x\":0", "- -"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_CLOSE(bytes) struct bytes out = {0};
        AUTO_MEM char *messages =
            mem_printf("[{\"role\":\"assistant\",%s},{\"role\":\"user\",\"reasoning\":\"u\"}]",
                       rows[i].fields);

        expect_ok(render("{% for m in messages %}{{ m.reasoning_content | default('-') }} "
                         "{{ m.thinking | default('-') }}{% if loop.first %},{% endif %}"
                         "{% endfor %}",
                         messages, NULL, NULL, &out));
        AUTO_MEM char *seen = mem_printf("%s,- -", rows[i].seen);

        assert_string_equal(bytes_text(&out), seen);
    }
}

static void a_wrong_message_is_named_by_its_index(void **state)
{
    (void)state;
    static const struct {
        const char *messages, *tools, *extra;
        enum status status;
        const char *part;
    } rows[] = {
        {"{}", NULL, NULL, ERR_INVALID, "messages must be an array of at least one"},
        {"[]", NULL, NULL, ERR_INVALID, "messages must be an array of at least one"},
        {"[{\"role\":\"user\"}, 5]", NULL, NULL, ERR_INVALID, "messages[1] must be an object"},
        {"[{\"content\":\"\"}]", NULL, NULL, ERR_INVALID, "messages[0].role must be a string"},
        {"[{\"role\":\"user\",\"content\":7}]", NULL, NULL, ERR_INVALID,
         "messages[0].content must"},
        {"[{\"role\":\"user\",\"content\":[5]}]", NULL, NULL, ERR_INVALID,
         "messages[0].content[0] must be an object with a type"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]", NULL, NULL,
         ERR_UNSUPPORTED, "messages[0].content[0] is of type \"image_url\""},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", NULL, NULL, ERR_INVALID,
         "messages[0].content[0].text must be a string"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"refusal\",\"text\":\"no\"}]}]", NULL, NULL,
         ERR_INVALID, "messages[0].content[0].refusal must be a string"},
        {"[{\"role\":\"a\",\"tool_calls\":[{}]}]", NULL, NULL, ERR_INVALID,
         "messages[0].tool_calls[0] must be"},
        {"[{\"role\":\"a\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
         "\"{\\\"a\\\":99999999999999999999}\"}}]}]",
         NULL, NULL, ERR_INVALID, "messages[0].tool_calls[0].function.arguments has a number"},
        {"[{\"role\":\"a\",\"tool_calls\":{}}]", NULL, NULL, ERR_INVALID,
         "messages[0].tool_calls must be an array"},
        {"[{\"role\":\"a\"}]", "{}", NULL, ERR_INVALID, "tools must be an array"},
        {"[{\"role\":\"a\"}]", NULL, "[]", ERR_INVALID, "chat_template_kwargs must be an object"},
        {"[{\"role\":\"a\"}]", NULL, "{\"messages\":[]}", ERR_INVALID, "cannot set messages"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_CLOSE(bytes) struct bytes out = {0};

        expect_fails(render("x", rows[i].messages, rows[i].tools, rows[i].extra, &out),
                     rows[i].status, rows[i].part);
        assert_int_equal(out.size, 0);
    }
}

static void a_model_without_a_template_is_refused(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    expect_fails(chat_render(NULL, &(struct chat){0}, &out), ERR_UNSUPPORTED,
                 "pass --chat-template FILE");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_template_sees_what_it_sees_under_transformers),
    cmocka_unit_test(a_content_becomes_one_text),
    cmocka_unit_test(arguments_of_a_tool_call_become_an_object),
    cmocka_unit_test(arguments_that_are_no_object_are_an_empty_one),
    cmocka_unit_test(a_message_without_calls_has_no_tool_calls),
    cmocka_unit_test(reasoning_is_found_by_the_names_that_templates_use),
    cmocka_unit_test(a_wrong_message_is_named_by_its_index),
    cmocka_unit_test(a_model_without_a_template_is_refused),
};
TEST_MAIN(tests)
