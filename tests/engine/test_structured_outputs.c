/* What a request says of the form of its answers. */
#include "tests/support/expect.h"

#include "engine/front/structured_outputs.h"

#include <stdio.h>

static struct arena arena;

static enum status read_body(const char *text, const struct grammar_spec **spec,
                             const char **param)
{
    json_error_t error;
    json_t *body = json_loads(text, JSON_ALLOW_NUL, &error);
    enum status status;

    if (!body)
        fail_msg("%s: %s", text, error.text);
    *spec = NULL;
    status = structured_outputs_read(body, &arena, spec, param);
    json_decref(body);
    return status;
}

static void every_form_is_read(void **state)
{
    static const struct {
        const char *body;
        enum grammar_kind kind;
        const char *text;
    } rows[] = {
        {"{\"response_format\": {\"type\": \"json_object\"}}", GRAMMAR_JSON_OBJECT, ""},
        {"{\"response_format\": {\"type\": \"json_object\", \"schema\": null}}", GRAMMAR_JSON_OBJECT, ""},
        {"{\"response_format\": {\"type\": \"json_object\", \"schema\": {\"type\": \"null\"}}}",
         GRAMMAR_JSON_SCHEMA, "{\"type\":\"null\"}"},
        {"{\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"n\", "
         "\"strict\": true, \"schema\": {\"type\": \"number\", \"multipleOf\": 0.1}}}}",
         GRAMMAR_JSON_SCHEMA, "{\"type\":\"number\",\"multipleOf\":0.1}"},
        {"{\"response_format\": {\"type\": \"structural_tag\", \"format\": {\"type\": \"any_text\"}}}",
         GRAMMAR_STRUCTURAL_TAG, "{\"type\":\"structural_tag\",\"format\":{\"type\":\"any_text\"}}"},
        {"{\"structured_outputs\": {\"json\": {\"b\": 1, \"a\": 2}}}", GRAMMAR_JSON_SCHEMA,
         "{\"b\":1,\"a\":2}"},
        {"{\"structured_outputs\": {\"json\": \"{\\\"type\\\": \\\"string\\\"}\"}}",
         GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\"}"},
        {"{\"structured_outputs\": {\"json\": true, \"regex\": null}}", GRAMMAR_JSON_SCHEMA, "true"},
        {"{\"structured_outputs\": {\"json_object\": true}}", GRAMMAR_JSON_OBJECT, ""},
        {"{\"structured_outputs\": {\"json_object\": false, \"regex\": \"a|b\"}}", GRAMMAR_REGEX,
         "a|b"},
        {"{\"structured_outputs\": {\"choice\": [\"a\", \"b\\\"\"]}}", GRAMMAR_CHOICE,
         "[\"a\",\"b\\\"\"]"},
        {"{\"structured_outputs\": {\"grammar\": \"root ::= \\\"a\\\"\"}}", GRAMMAR_EBNF,
         "root ::= \"a\""},
        {"{\"structured_outputs\": {\"grammar\": \"start: \\\"a\\\"\", \"_backend\": \"x\"}}",
         GRAMMAR_LARK, "start: \"a\""},
        {"{\"guided_grammar\": \"# a ::= b\\n// ::=\\nstart: \\\"a\\\"\"}", GRAMMAR_LARK,
         "# a ::= b\n// ::=\nstart: \"a\""},
        {"{\"guided_grammar\": \"# Lark\\n\\nroot ::= \\\"a\\\"\"}", GRAMMAR_EBNF,
         "# Lark\n\nroot ::= \"a\""},
        {"{\"structured_outputs\": {\"structural_tag\": \"{}\"}}", GRAMMAR_STRUCTURAL_TAG, "{}"},
        {"{\"guided_json\": {\"type\": \"null\"}}", GRAMMAR_JSON_SCHEMA, "{\"type\":\"null\"}"},
        {"{\"guided_regex\": \"x\"}", GRAMMAR_REGEX, "x"},
        {"{\"guided_choice\": [\"x\"]}", GRAMMAR_CHOICE, "[\"x\"]"},
        {"{\"guided_grammar\": \"start: \\\"a\\\"\"}", GRAMMAR_LARK, "start: \"a\""},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct grammar_spec *spec;
        const char *param;

        if (read_body(rows[i].body, &spec, &param) != OK)
            fail_msg("%s: %s", rows[i].body, fail_text());
        assert_non_null(spec);
        assert_int_equal(spec->kind, rows[i].kind);
        assert_string_equal(spec->text, rows[i].text);
        assert_int_equal(spec->size, strlen(rows[i].text));
    }
}

static void options_go_with_it(void **state)
{
    const struct grammar_spec *spec;
    const char *param;

    (void)state;
    expect_ok(read_body("{\"structured_outputs\": {\"json\": {}, \"disable_any_whitespace\": true, "
                        "\"disable_additional_properties\": true, \"whitespace_pattern\": \" ?\", "
                        "\"lenient\": true, \"backend\": \"xgrammar\"}}", &spec, &param));
    assert_true(spec->disable_any_whitespace && spec->disable_additional_properties);
    assert_true(spec->lenient);
    assert_string_equal(spec->whitespace_pattern, " ?");
    assert_string_equal(spec->backend, "xgrammar");
    expect_ok(read_body("{\"guided_json\": {}, \"guided_decoding_backend\": \"guidance\", "
                        "\"guided_whitespace_pattern\": \"\"}", &spec, &param));
    assert_string_equal(spec->backend, "llguidance");
    assert_string_equal(spec->whitespace_pattern, "");
    expect_ok(read_body("{\"structured_outputs\": {\"regex\": \"a\", \"backend\": \"auto\"}}", &spec,
                        &param));
    assert_null(spec->backend);
}

static void nothing_asked_is_nothing(void **state)
{
    static const char *const rows[] = {
        "{}",
        "{\"response_format\": {\"type\": \"text\"}}",
        "{\"response_format\": null, \"structured_outputs\": null, \"guided_json\": null}",
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct grammar_spec *spec;
        const char *param;

        expect_ok(read_body(rows[i], &spec, &param));
        assert_null(spec);
    }
}

static void what_is_wrong_is_named(void **state)
{
    static const struct {
        const char *body, *param, *sentence;
    } rows[] = {
        {"{\"response_format\": 1}", "response_format",
         "response_format must be an object whose type is text, json_object, json_schema or "
         "structural_tag."},
        {"{\"response_format\": {\"type\": \"xml\"}}", "response_format",
         "response_format must be an object whose type is text, json_object, json_schema or "
         "structural_tag."},
        {"{\"response_format\": {\"type\": \"json_schema\"}}", "response_format",
         "response_format of type json_schema needs json_schema, an object."},
        {"{\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": {}}}}",
         "response_format", "response_format.json_schema.name must be a text."},
        {"{\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"n\"}}}",
         "response_format", "response_format.json_schema.schema must be a JSON schema."},
        {"{\"response_format\": {\"type\": \"json_object\", \"schema\": \"{}\"}}", "response_format",
         "response_format.schema must be a JSON schema."},
        {"{\"structured_outputs\": []}", "structured_outputs",
         "structured_outputs must be an object."},
        {"{\"structured_outputs\": {}}", "structured_outputs",
         "You must use one kind of constraint for structured outputs: json, json_object, regex, "
         "choice, grammar or structural_tag."},
        {"{\"structured_outputs\": {\"json\": {}, \"regex\": \"a\"}}", "structured_outputs",
         "You can only use one kind of constraint for structured outputs; there are `json` and "
         "`regex`."},
        {"{\"structured_outputs\": {\"jsonn\": {}}}", "structured_outputs",
         "Unknown field `jsonn` in structured_outputs."},
        {"{\"structured_outputs\": {\"json\": 1}}", "structured_outputs",
         "json must be a JSON schema: an object, or the text of one."},
        {"{\"structured_outputs\": {\"json\": \"{\"}}", "structured_outputs",
         "json is no JSON at line 1, column 1: string or '}' expected near end of file."},
        {"{\"structured_outputs\": {\"json\": \"[]\"}}", "structured_outputs",
         "json must be the text of a JSON schema, an object."},
        {"{\"structured_outputs\": {\"regex\": \"\"}}", "structured_outputs", "regex cannot be empty."},
        {"{\"structured_outputs\": {\"regex\": \"a\\u0000b\"}}", "structured_outputs",
         "regex must not contain a NUL character."},
        {"{\"structured_outputs\": {\"choice\": []}}", "structured_outputs",
         "choice must be a list of texts, and not be empty."},
        {"{\"structured_outputs\": {\"choice\": [\"a\", 1]}}", "structured_outputs",
         "choice must hold texts that are not empty; element 1 is none."},
        {"{\"structured_outputs\": {\"json\": {}, \"lenient\": 1}}", "structured_outputs",
         "lenient must be true or false."},
        {"{\"guided_json\": {}, \"guided_regex\": \"a\"}", "guided_json",
         "You can only use one kind of constraint for structured outputs; there are `guided_json` "
         "and `guided_regex`."},
        {"{\"response_format\": {\"type\": \"json_object\"}, \"structured_outputs\": {\"json\": {}}}",
         "structured_outputs",
         "You can only use one kind of constraint for structured outputs; there are "
         "`response_format` and `structured_outputs`."},
        {"{\"response_format\": {\"type\": \"json_object\"}, \"guided_regex\": \"a\"}",
         "response_format",
         "You can only use one kind of constraint for structured outputs; there are "
         "`response_format` and `guided_regex`."},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct grammar_spec *spec;
        const char *param;

        expect_fails(read_body(rows[i].body, &spec, &param), ERR_INVALID, rows[i].sentence);
        assert_string_equal(param, rows[i].param);
        assert_null(spec);
    }
}

static void a_grammar_that_is_too_long_is_refused(void **state)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};
    const struct grammar_spec *spec;
    const char *param;

    (void)state;
    bytes_printf(&body, "{\"guided_regex\": \"");
    for (int32_t i = 0; i <= MAX_GRAMMAR_BYTES; i++)
        bytes_append(&body, "a", 1);
    bytes_printf(&body, "\"}");
    expect_fails(read_body(bytes_text(&body), &spec, &param), ERR_INVALID,
                 "guided_regex has 262145 bytes; a grammar has at most 262144.");
    assert_string_equal(param, "guided_regex");
}

static int close_arena(void **state)
{
    (void)state;
    arena_close(&arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_is_read),
        cmocka_unit_test(options_go_with_it),
        cmocka_unit_test(nothing_asked_is_nothing),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(a_grammar_that_is_too_long_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, close_arena);
}
