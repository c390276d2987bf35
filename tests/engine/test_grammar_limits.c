#include "tests/support/expect.h"

#include "engine/grammar/limits.h"
#include "proto/base/memory.h"

static enum status check_bytes(enum grammar_kind kind, const char *text, size_t size)
{
    struct grammar_spec spec = {.kind = kind, .text = text, .size = size};
    json_t *json = NULL;
    enum status status = limits_check(&spec, &json);

    if (status != OK)
        assert_null(json);
    json_decref(json);
    return status;
}

static enum status check(enum grammar_kind kind, const char *text)
{
    return check_bytes(kind, text, strlen(text));
}

/* `head`, `part` n times, `tail`; the caller's. */
static char *repeated(const char *head, const char *part, int n, const char *tail)
{
    struct bytes text = {0};

    bytes_printf(&text, "%s", head);
    for (int i = 0; i < n; i++)
        bytes_printf(&text, "%s", part);
    bytes_printf(&text, "%s", tail);
    (void)bytes_text(&text);
    return (char *)text.data;
}

static void what_is_no_text_is_refused(void **state)
{
    AUTO_MEM char *long_text = repeated("", "0123456789abcdef", (MAX_GRAMMAR_BYTES >> 4) + 1, "");
    enum grammar_kind kinds[] = {GRAMMAR_JSON_SCHEMA, GRAMMAR_REGEX, GRAMMAR_CHOICE,
                                 GRAMMAR_EBNF,        GRAMMAR_LARK,  GRAMMAR_STRUCTURAL_TAG};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        expect_fails(check(kinds[i], ""), ERR_INVALID, "the grammar is empty");
        expect_fails(check_bytes(kinds[i], "a\0b", 3), ERR_INVALID, "the grammar holds a NUL");
        expect_fails(check(kinds[i], "ab\xff"), ERR_INVALID,
                     "the grammar is no UTF-8: byte 0xff at line 1, column 3");
        expect_fails(check(kinds[i], long_text), ERR_FULL,
                     "the grammar has 262160 bytes, 262144 are allowed");
    }
    expect_ok(check(GRAMMAR_JSON_OBJECT, ""));
}

static void json_is_json_and_not_deep(void **state)
{
    AUTO_MEM char *deepest = repeated(
        "{\"const\":", "[", 63, "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}");
    AUTO_MEM char *too_deep = repeated("", "[", 100000, "");
    AUTO_MEM char *in_string = repeated("{\"const\":\"\\\"", "[", 100, "\"}");

    (void)state;
    expect_fails(check(GRAMMAR_JSON_SCHEMA, "{\"a\""), ERR_INVALID, "the schema is no JSON: ");
    expect_fails(check(GRAMMAR_JSON_SCHEMA, "{} {}"), ERR_INVALID, "the schema is no JSON: ");
    expect_fails(check(GRAMMAR_JSON_SCHEMA, "{\"a\":1,\"a\":2}"), ERR_INVALID,
                 "duplicate object key");
    expect_fails(check(GRAMMAR_JSON_SCHEMA, "[]"), ERR_INVALID,
                 "a schema is an object or a boolean");
    expect_fails(check(GRAMMAR_JSON_SCHEMA, too_deep), ERR_FULL, "nests more than 64 deep");
    expect_ok(check(GRAMMAR_JSON_SCHEMA, deepest));
    expect_ok(check(GRAMMAR_JSON_SCHEMA, in_string));
    expect_ok(check(GRAMMAR_JSON_SCHEMA, "true"));
    expect_fails(check(GRAMMAR_STRUCTURAL_TAG, "3"), ERR_INVALID, "a structural tag is an object");
}

static void choices_are_strings(void **state)
{
    (void)state;
    expect_ok(check(GRAMMAR_CHOICE, "[\"a\",\"\xc3\xa9\"]"));
    expect_fails(check(GRAMMAR_CHOICE, "[]"), ERR_INVALID, "has one at least");
    expect_fails(check(GRAMMAR_CHOICE, "\"a\""), ERR_INVALID, "a choice is a list of strings");
    expect_fails(check(GRAMMAR_CHOICE, "[\"a\",1]"), ERR_INVALID,
                 "item 1 of the choice is no string");
    expect_fails(check(GRAMMAR_CHOICE, "[\"\"]"), ERR_INVALID, "item 0 of the choice is empty");
    expect_fails(check(GRAMMAR_CHOICE, "[\"a\\u0000\"]"), ERR_INVALID, "holds a NUL");
}

static void bounds_of_a_schema_are_bounded_wherever_it_stands(void **state)
{
    static const struct {
        const char *text, *sentence; /* NULL: it passes */
    } rows[] = {
        {"{\"maxLength\":1048576}", NULL},
        {"{\"maxLength\":1048577}", "maxLength is 1048577 at the root, 1048576 are allowed"},
        {"{\"maxLength\":1e18}", "maxLength is 1e+18 at the root"},
        {"{\"items\":{\"minItems\":4097}}", "minItems is 4097 at /items, 4096 are allowed"},
        {"{\"properties\":{\"a\":{\"multipleOf\":10001}}}", "multipleOf is 10001 at /properties/a"},
        {"{\"anyOf\":[{},{\"maxItems\":5000}]}", "maxItems is 5000 at /anyOf/1"},
        {"{\"$ref\":\"#/x/0/y\",\"x\":[{\"y\":{\"maxItems\":5000}}]}", "maxItems is 5000 at /$ref"},
        {"{\"$ref\":\"#/a~1b~0\",\"a/b~\":{\"maxItems\":5000}}", "maxItems is 5000 at /$ref"},
        /* data is no schema, and a property may be named as it likes */
        {"{\"const\":{\"maxItems\":5000},\"default\":{\"maxItems\":5000}}", NULL},
        {"{\"properties\":{\"maxItems\":{\"type\":\"integer\"}}}", NULL},
        {"{\"$ref\":\"#\"}", NULL},
        {"{\"$ref\":\"#/nowhere\"}", NULL}, /* the library's to say */
        {"{\"pattern\":\"a{5000}\"}", "repeats something 5000 times, 4096 are allowed"},
        {"{\"patternProperties\":{\"a{5000}\":{}}}", "repeats something 5000 times"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (rows[i].sentence)
            expect_fails(check(GRAMMAR_JSON_SCHEMA, rows[i].text), ERR_FULL, rows[i].sentence);
        else
            expect_ok(check(GRAMMAR_JSON_SCHEMA, rows[i].text));
    }
}

static enum status check_members(const char *keyword, int n)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    bytes_printf(&text, "{\"%s\":{", keyword);
    for (int i = 0; i < n; i++)
        bytes_printf(&text, "%s\"p%d\":{}", i > 0 ? "," : "", i);
    bytes_printf(&text, "}}");
    return check(GRAMMAR_JSON_SCHEMA, bytes_text(&text));
}

static void properties_are_counted(void **state)
{
    (void)state;
    expect_ok(check_members("properties", 1000));
    expect_fails(check_members("properties", 1001), ERR_FULL,
                 "there are 1001 properties at the root, 1000 are allowed");
    expect_ok(check_members("patternProperties", 64));
    expect_fails(check_members("patternProperties", 65), ERR_FULL,
                 "there are 65 patternProperties at the root, 64 are allowed");
    expect_ok(check_members("$defs", 5000));
}

static void a_long_chain_of_references_is_walked(void **state)
{
    struct bytes text = {0};

    (void)state;
    bytes_printf(&text, "{\"$ref\":\"#/$defs/0\",\"$defs\":{");
    for (int i = 0; i < 6000; i++)
        bytes_printf(&text, "\"%d\":{\"$ref\":\"#/$defs/%d\"},", i, i + 1);
    bytes_printf(&text, "\"6000\":{\"maxItems\":5000}}}");
    expect_fails(check(GRAMMAR_JSON_SCHEMA, bytes_text(&text)), ERR_FULL,
                 "maxItems is 5000 at /$defs/6000");
    bytes_close(&text);
}

static void repetitions_inside_one_another_are_multiplied(void **state)
{
    static const struct {
        enum grammar_kind kind;
        const char *text, *sentence; /* NULL: it passes */
    } rows[] = {
        {GRAMMAR_REGEX, "a{4096}", NULL},
        {GRAMMAR_REGEX, "a{1,4097}", "repeats something 4097 times, 4096 are allowed"},
        {GRAMMAR_REGEX, "a{99999999999999999999}", "repeats something 1e+12 times"},
        {GRAMMAR_REGEX, "(a{256}){256}", NULL},
        {GRAMMAR_REGEX, "(a{256}b){257}", "inside one another make 65792, 65536 are allowed"},
        {GRAMMAR_REGEX, "((a{100}b)*{100}c){100}", "inside one another make 1000000"},
        {GRAMMAR_REGEX, "a{1000}b{1000}c{1000}", NULL}, /* side by side */
        {GRAMMAR_REGEX, "a{100}{100}{100}", "inside one another make 1000000"},
        {GRAMMAR_REGEX, "[{5000}]", NULL},
        {GRAMMAR_REGEX, "[](a]{5000}", "repeats something 5000 times"},
        {GRAMMAR_REGEX, "\\{5000}", NULL},
        {GRAMMAR_REGEX, "{a}{,}{}{5000", NULL},
        {GRAMMAR_REGEX, "(\\)a{256}){257}", "make 65792"},
        {GRAMMAR_EBNF, "root ::= (\"a\"{256}){257}", "make 65792"},
        {GRAMMAR_EBNF, "root ::= \"{5000}\" # a{5000}\n", NULL},
        {GRAMMAR_EBNF, "root ::= \"[\" (\"]\"{256}){257}", "make 65792"},
        {GRAMMAR_EBNF, "root ::= (\")\" \"a\"{256}){257}", "make 65792"},
        {GRAMMAR_LARK, "start: (/a{256}/){257}", "make 65792"},
        {GRAMMAR_LARK, "start: \"a\"~1..5000", "repeats something 5000 times"},
        {GRAMMAR_LARK, "start: /\"(a\\/{300})/{300}", "make 90000"},
        {GRAMMAR_LARK, "start: \"a{5000}\" // a{5000}\n", NULL},
        {GRAMMAR_LARK, "start: %json {\"maxItems\": 5000}\n", "maxItems is 5000 at the root"},
        {GRAMMAR_LARK, "start: %json {\"maxItems\": 50}\nb: \"a\"{5000}", "repeats something 5000"},
        {GRAMMAR_STRUCTURAL_TAG, "{\"format\":{\"type\":\"regex\",\"pattern\":\"a{5000}\"}}",
         "5000 times"},
        {GRAMMAR_STRUCTURAL_TAG, "{\"format\":{\"type\":\"repeat\",\"max\":5000}}", "5000 times"},
        {GRAMMAR_STRUCTURAL_TAG, "{\"format\":{\"grammar\":\"root ::= \\\"a\\\"{5000}\"}}",
         "5000 times"},
        {GRAMMAR_STRUCTURAL_TAG, "{\"a\":[{\"json_schema\":{\"maxItems\":5000}}]}",
         "maxItems is 5000"},
    };
    AUTO_MEM char *deep = repeated("", "(", 65, "");

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (rows[i].sentence)
            expect_fails(check(rows[i].kind, rows[i].text), ERR_FULL, rows[i].sentence);
        else
            expect_ok(check(rows[i].kind, rows[i].text));
    }
    expect_fails(check(GRAMMAR_REGEX, deep), ERR_FULL, "nests parentheses more than 64 deep");
}

static void rules_and_intersections_are_counted(void **state)
{
    AUTO_MEM char *ebnf = repeated("", "a ::= \"::=\"\n", 2001, "");
    AUTO_MEM char *lark = repeated("", "a: \"b:\"\n", 2001, "");
    AUTO_MEM char *few = repeated("", "a: \"b:\"\n", 2000, "");
    AUTO_MEM char *ands = repeated("A: /a&&/", " & /b/", 17, "\n");
    AUTO_MEM char *few_ands = repeated("A: /a&&/", " & /b/", 16, "\n");

    (void)state;
    expect_fails(check(GRAMMAR_EBNF, ebnf), ERR_FULL, "more than 2000 rules");
    expect_fails(check(GRAMMAR_LARK, lark), ERR_FULL, "more than 2000 rules");
    expect_ok(check(GRAMMAR_LARK, few));
    expect_fails(check(GRAMMAR_LARK, ands), ERR_FULL, "more than 16 intersections");
    expect_ok(check(GRAMMAR_LARK, few_ands));
}

static void lark_names_no_special_tokens(void **state)
{
    (void)state;
    expect_fails(check(GRAMMAR_LARK, "start: <|im_end|>"), ERR_INVALID,
                 "the grammar names a special token at byte 7");
    expect_ok(check(GRAMMAR_LARK, "start: \"<\" /<[0]>/"));
}

static void whitespace_patterns_are_checked_too(void **state)
{
    struct grammar_spec spec = {.kind = GRAMMAR_JSON_OBJECT, .whitespace_pattern = " {0,5000}"};
    json_t *json;

    (void)state;
    expect_fails(limits_check(&spec, &json), ERR_FULL, "repeats something 5000 times");
    spec.whitespace_pattern = "\xff";
    expect_fails(limits_check(&spec, &json), ERR_INVALID, "the whitespace pattern is no UTF-8");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_no_text_is_refused),
    cmocka_unit_test(json_is_json_and_not_deep),
    cmocka_unit_test(choices_are_strings),
    cmocka_unit_test(bounds_of_a_schema_are_bounded_wherever_it_stands),
    cmocka_unit_test(properties_are_counted),
    cmocka_unit_test(a_long_chain_of_references_is_walked),
    cmocka_unit_test(repetitions_inside_one_another_are_multiplied),
    cmocka_unit_test(rules_and_intersections_are_counted),
    cmocka_unit_test(lark_names_no_special_tokens),
    cmocka_unit_test(whitespace_patterns_are_checked_too),
};
TEST_MAIN(tests)
