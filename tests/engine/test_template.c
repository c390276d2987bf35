#include "tests/support/expect.h"

#include "engine/text/template.h"

#include <stdio.h>

enum { NOW_S = 1753500000 }; /* the same as in make.py */

static const struct template_limits reference_limits = {.now_s = NOW_S};

static enum status render_with(const char *source, size_t size, const json_t *context,
                               const struct template_limits *limits, struct bytes *out)
{
    AUTO_FREE(template) struct template *t = NULL;

    TRY(template_new(source, size, &t));
    return template_render(t, context, limits, out);
}

/* With an empty context; the text, which lives until the next call. */
static const char *render_text(const char *source)
{
    static struct bytes out;
    json_t *context = json_object();

    out.size = 0;
    expect_ok(render_with(source, strlen(source), context, &reference_limits, &out));
    json_decref(context);
    return bytes_text(&out);
}

static enum status try_render(const char *source, const struct template_limits *limits)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};
    json_t *context = json_pack("{s:[i,i,i]}", "numbers", 1, 2, 3);
    enum status status;

    bytes_append(&out, "kept", 4);
    status = render_with(source, strlen(source), context, limits, &out);
    json_decref(context);
    if (status != OK)
        assert_string_equal(bytes_text(&out), "kept");
    return status;
}

/* ---- the vectors -------------------------------------------------------------------------- */

static FILE *open_data(const char *name)
{
    const char *folder = getenv("TANDEM_TEST_DATA");
    AUTO_MEM char *path = mem_printf("%s/template/%s", folder ? folder : "tests/data", name);
    FILE *f = fopen(path, "r");

    if (!f)
        fail_msg("%s cannot be opened", path);
    return f;
}

static json_t *next_row(FILE *f)
{
    return json_loadf(f, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, NULL);
}

/* The bytes of a data file; a family's template has no NUL. */
static void read_data(const char *name, struct bytes *out)
{
    FILE *f = open_data(name);
    size_t n;

    while ((n = fread(bytes_reserve(out, 4096), 1, 4096, f)) > 0)
        out->size += n;
    fclose(f);
}

/* `row` says what must come of it: "expected" or "text", or an "error", true or its words. */
static bool is_as_expected(const json_t *row, enum status status, const struct bytes *out)
{
    const json_t *error = json_object_get(row, "error");
    const json_t *text = json_object_get(row, "expected");

    text = text ? text : json_object_get(row, "text");
    if (json_is_string(error))
        return status == ERR_INVALID && strcmp(fail_text(), json_string_value(error)) == 0;
    if (error)
        return status == ERR_INVALID || status == ERR_CORRUPT || status == ERR_UNSUPPORTED;
    return status == OK && out->size == json_string_length(text) &&
           memcmp(out->data, json_string_value(text), out->size) == 0;
}

static void explain(const json_t *row, const char *name, enum status status, struct bytes *out)
{
    char *wanted = json_dumps(row, JSON_COMPACT | JSON_ENCODE_ANY);

    print_error("%s: got %s \"%s\"\n  wanted %s\n", name,
                status == OK ? "the text" : status_name(status),
                status == OK ? bytes_text(out) : fail_text(), wanted);
    free(wanted);
}

/* Either the row has template and context, or it names a file and a conversation. */
static enum status render_row(const json_t *row, const json_t *conversations, struct bytes *out)
{
    const json_t *source = json_object_get(row, "template");
    const char *file = json_string_value(json_object_get(row, "file"));
    const char *title = json_string_value(json_object_get(row, "conversation"));

    if (source)
        return render_with(json_string_value(source), json_string_length(source),
                           json_object_get(row, "context"), &reference_limits, out);

    AUTO_MEM char *path = mem_printf("families/%s", file);
    AUTO_CLOSE(bytes) struct bytes text = {0};

    read_data(path, &text);
    return render_with((const char *)text.data, text.size, json_object_get(conversations, title),
                       &reference_limits, out);
}

static void every_case_renders_as_jinja2_does(void **state)
{
    (void)state;
    FILE *conversations_file = open_data("conversations.json"), *f = open_data("cases.jsonl");
    json_t *conversations = next_row(conversations_file), *row;
    int num_cases = 0, num_wrong = 0;

    setenv("TZ", "UTC", 1);
    for (; (row = next_row(f)); json_decref(row), num_cases++) {
        AUTO_CLOSE(bytes) struct bytes out = {0};
        enum status status = render_row(row, conversations, &out);

        if (is_as_expected(row, status, &out))
            continue;
        num_wrong++;
        explain(row, json_string_value(json_object_get(row, "name")), status, &out);
    }
    json_decref(conversations);
    fclose(conversations_file);
    fclose(f);
    assert_int_equal(num_wrong, 0);
    assert_true(num_cases > 400);
}

/* The first row has the template and its bos_token, the others conversations. */
static void check_chat(const char *name)
{
    FILE *f = open_data(name);
    json_t *first = next_row(f), *row;
    const json_t *source = json_object_get(first, "template");
    AUTO_FREE(template) struct template *t = NULL;
    int num_renders = 0, num_wrong = 0;

    expect_ok(template_new(json_string_value(source), json_string_length(source), &t));
    for (; (row = next_row(f)); json_decref(row)) {
        json_t *render;
        size_t i;

        json_array_foreach (json_object_get(row, "renders"), i, render) {
            AUTO_CLOSE(bytes) struct bytes out = {0};
            json_t *context =
                json_pack("{s:O, s:O, s:O}", "messages", json_object_get(row, "messages"),
                          "add_generation_prompt", json_object_get(render, "add_generation_prompt"),
                          "bos_token", json_object_get(first, "bos_token"));
            enum status status = template_render(t, context, NULL, &out);

            num_renders++;
            if (!is_as_expected(render, status, &out)) {
                num_wrong++;
                explain(render, json_string_value(json_object_get(row, "id")), status, &out);
            }
            json_decref(context);
        }
    }
    json_decref(first);
    fclose(f);
    assert_int_equal(num_wrong, 0);
    assert_true(num_renders > 50);
}

static void smollm2_conversations_are_those_of_transformers(void **state)
{
    (void)state;
    check_chat("chat_smollm2.jsonl");
}

static void gemma3_conversations_are_those_of_transformers(void **state)
{
    (void)state;
    check_chat("chat_gemma3.jsonl");
}

/* ---- refusals ----------------------------------------------------------------------------- */

static void a_mistake_is_named_with_line_and_column(void **state)
{
    (void)state;
    static const struct {
        const char *source;
        enum status status;
        const char *part;
    } rows[] = {
        {"a\n  {{ 1 + }}", ERR_CORRUPT, "line 2, column 10: expected an expression, found \"}}\""},
        {"{% if x %}", ERR_CORRUPT, "line 1, column 11: expected {% elif %}, found the end"},
        {"{% for x y %}", ERR_CORRUPT, "line 1, column 10: expected \"in\", found \"y\""},
        {"\n\n{# x", ERR_CORRUPT, "line 3, column 1: this comment has no end"},
        {"{{ 'x }}", ERR_CORRUPT, "column 4: this string has no end"},
        {"{{ a ? b }}", ERR_CORRUPT, "unexpected character \"?\""},
        {"{{ (1] }}", ERR_CORRUPT, "column 6: unexpected \"]\", expected \")\""},
        {"{{ x|batch(2) }}", ERR_UNSUPPORTED, "line 1, column 6: the filter \"batch\" is not"},
        {"{{ x is escaped }}", ERR_UNSUPPORTED, "column 9: the test \"escaped\" is not supported"},
        {"{{ x|map('center') }}", ERR_UNSUPPORTED, "the filter \"center\" is not supported"},
        {"{{ x|selectattr('a', 'sameas') }}", ERR_UNSUPPORTED, "the test \"sameas\" is not"},
        {"{% include 'x' %}", ERR_UNSUPPORTED, "column 4: the tag \"include\" is not supported"},
        {"{{ 'a'.zfill(3) }}", ERR_UNSUPPORTED, "column 8: the method .zfill() is not supported"},
        {"{% macro m() %}{{ varargs }}{% endmacro %}", ERR_UNSUPPORTED, "\"varargs\" of a macro"},
        {"{% for x in y recursive %}{% endfor %}", ERR_UNSUPPORTED, "\"recursive\" is not"},
        {"{% break %}", ERR_CORRUPT, "\"break\" outside of a loop"},
        {"{% endif %}", ERR_CORRUPT, "\"endif\" closes nothing that is open here"},
        {"{{ 9223372036854775808 }}", ERR_CORRUPT, "does not fit into 64 bits"},
        {"{{ '\\ud800' }}", ERR_CORRUPT, "U+D800 is not a character"},
        {"a\xff", ERR_CORRUPT, "not UTF-8 at byte 1"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct template *t = NULL;

        expect_fails(template_new(rows[i].source, strlen(rows[i].source), &t), rows[i].status,
                     rows[i].part);
        assert_null(t);
    }
}

static void within_an_if_what_is_missing_is_refused_when_reached(void **state)
{
    (void)state;
    static const struct {
        const char *taken, *not_taken;
        enum status status;
        const char *part;
    } rows[] = {
        {"{% if 1 %}{{ 1 | batch(2) }}{% endif %}", "{% if 0 %}{{ 1 | batch(2) }}{% endif %}",
         ERR_UNSUPPORTED, "line 1, column 18: the filter \"batch\" is not supported"},
        {"{% if 1 is escaped %}{% endif %}", "{% if 1 %}{% elif 1 is escaped %}{% endif %}",
         ERR_UNSUPPORTED, "column 12: the test \"escaped\" is not supported"},
        {"{{ 'a' | wordcount if 1 }}", "{{ 'a' | wordcount if 0 else 'x' }}", ERR_UNSUPPORTED,
         "column 10: the filter \"wordcount\" is not"},
        {"{{ 1 if 0 else 'a'.zfill(2) }}", "{{ 1 if 1 else 'a'.zfill(2) }}", ERR_UNSUPPORTED,
         "column 20: the method .zfill() is not"},
        {"{% if 1 %}{% for i in [1] %}{{ 'a'.zfill(i) }}{% endfor %}{% endif %}",
         "{% if 1 %}{% for i in [] %}{{ 'a'.zfill(i) }}{% endfor %}{% endif %}", ERR_UNSUPPORTED,
         "the method .zfill() is not"},
        {"{% if 1 %}{{ [1] | map('center') }}{% endif %}",
         "{% if 0 %}{{ [1] | map('center') }}{% endif %}", ERR_UNSUPPORTED,
         "the filter \"center\" is not supported"},
    };
    struct template *t = NULL;
    const char *outside = "{% if 0 %}{{ 1 | batch(2) }}{% endif %}{{ 1 | slice(2) }}"
                          "{{ 1 | batch(2) if 0 }}";

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        expect_fails(try_render(rows[i].taken, NULL), rows[i].status, rows[i].part);
        expect_ok(try_render(rows[i].not_taken, NULL));
    }
    expect_fails(template_new(outside, strlen(outside), &t), ERR_UNSUPPORTED,
                 "the filter \"slice\" is not supported");
}

static void a_failing_render_names_the_line_and_leaves_the_output(void **state)
{
    (void)state;
    expect_fails(try_render("a\n{{ nope.x }}", NULL), ERR_INVALID,
                 "template line 2: \"nope\" is undefined");
    expect_fails(try_render("{{ 'a' + 1 }}", NULL), ERR_INVALID, "str + int cannot be computed");
    expect_fails(try_render("{{ 1 < 'a' }}", NULL), ERR_INVALID, "int and str have no order");
    expect_fails(try_render("{{ [1].append(2) }}", NULL), ERR_INVALID,
                 "line 1: a template cannot change a list, only make a new one");
    expect_fails(try_render("{{ {}.update(a=1) }}", NULL), ERR_INVALID, "cannot change a dict");
    expect_fails(try_render("x{{ raise_exception('roles!') }}", NULL), ERR_INVALID, "roles!");
    assert_string_equal(fail_text(), "roles!");
}

static void formats_beyond_the_plain_ones_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *source, *part;
    } rows[] = {
        {"{{ '%.2f' % 1.5 }}", "\"%.\" in a format is not supported, only %s, %d and %r"},
        {"{{ '%(a)s' % {'a': 1} }}", "\"%(\" in a format is not supported"},
        {"{{ '%5d' | format(1) }}", "\"%5\" in a format is not supported"},
        {"{{ '%\u00e9' | format(1) }}", "\"%\u00e9\" in a format is not supported"},
        {"{{ '%s' | format(a=1) }}", "format with keywords is not supported"},
        {"{{ '%d' % 1e300 }}", "1e+300 does not fit into 64 bits"},
        {"{{ '{:>5}'.format(1) }}", "\"{:>5}\" is not supported, only {}, {0} and {name}"},
        {"{{ '{0.real}'.format(1) }}", "\"{0.real}\" is not supported"},
        {"{{ '{a[0]}'.format(a=[1]) }}", "\"{a[0]}\" is not supported"},
        {"{{ '{!r}'.format(1) }}", "\"{!r}\" is not supported"},
        {"{{ '{a'.format(a=1) }}", "a lone \"{\" in a format; a plain one is \"{{\""},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_fails(try_render(rows[i].source, NULL), ERR_INVALID, rows[i].part);
}

static void integers_that_overflow_are_refused(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{{ 9223372036854775807 + 1 }}",
        "{{ -9223372036854775807 - 2 }}",
        "{{ 9223372036854775807 * 2 }}",
        "{{ 2 ** 63 }}",
        "{{ 10 ** 1000000 }}",
        "{{ -(-9223372036854775807 - 1) }}",
        "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ (-9223372036854775807 - 1) | abs }}",
    };

    for (size_t i = 0; i < COUNT_OF(sources); i++)
        expect_fails(try_render(sources[i], NULL), ERR_INVALID, "does not fit into 64 bits");
    expect_fails(try_render("{{ 1e300 | int }}", NULL), ERR_INVALID, "does not fit into 64 bits");
    assert_string_equal(render_text("{{ (-9223372036854775807 - 1) % -1 }}"), "0");
    expect_fails(try_render("{{ '99999999999999999999' | int }}", NULL), ERR_INVALID,
                 "does not fit into 64 bits");
}

static void a_letter_whose_capital_is_two_stays_as_it_is(void **state)
{
    (void)state;
    assert_string_equal(render_text("{{ 'straße' | upper }} {{ 'ß'.upper() }} {{ 'ßa' | title }}"),
                        "STRAßE ß ßa");
}

/* ---- limits ------------------------------------------------------------------------------- */

static void work_without_end_hits_the_step_limit(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for a in range(5000) %}{% for b in range(5000) %}{% endfor %}{% endfor %}",
        ("{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
         "{% endfor %}{{ ns.x == ns.x }}"),
        "{% set s = 'ab' * 40000 %}{% for i in range(50000) %}{% set x = s[i] %}{% endfor %}",
        "{% set l = range(9000) | list %}{{ l | unique | list | length }}",
    };

    for (size_t i = 0; i < COUNT_OF(sources); i++)
        expect_fails(try_render(sources[i], NULL), ERR_FULL, "more than 10000000 steps");
    expect_fails(try_render("{% for i in range(50) %}{% endfor %}",
                            &(struct template_limits){.max_steps = 100}),
                 ERR_FULL, "more than 100 steps");
}

static void large_texts_and_lists_hit_the_memory_limit(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{{ 'a' * 10**9 }}",
        "{% set x = [0] * 10**8 %}",
        ("{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(100) %}"
         "{% set ns.s = ns.s + ns.s %}{% endfor %}"),
        "{{ ('a' * 10000) | replace('', 'b' * 100000) }}",
        "{{ ('\\n' * 100000) | indent(100000, blank=true) }}",
        "{% set s = 'b' * 100000 %}{{ ('{0}' * 10000).format(s) }}",
        "{% set s = 'b' * 100000 %}{{ ('%s' * 10000) % ((s,) * 10000) }}",
        "{% for i in range(100) %}{{ 'x' * 1000000 }}{% endfor %}",
    };

    for (size_t i = 0; i < COUNT_OF(sources); i++)
        expect_fails(try_render(sources[i], NULL), ERR_FULL, "template line 1: ");
    expect_fails(try_render("{{ 'a' * 10**18 }}", NULL), ERR_FULL, "is more than");
    expect_fails(
        try_render("{{ 'a' * 2000 }}", &(struct template_limits){.max_output_bytes = 1000}),
        ERR_FULL, "more than 1000 bytes of text and values");
}

static char *repeated(const char *before, const char *middle, const char *after, int n)
{
    struct bytes text = {0};

    for (int i = 0; i < n; i++)
        bytes_append(&text, before, strlen(before));
    bytes_append(&text, middle, strlen(middle));
    for (int i = 0; i < n; i++)
        bytes_append(&text, after, strlen(after));
    bytes_text(&text);
    return (char *)text.data;
}

static void deep_source_is_refused(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        {"(", "1", ")"},          {"[", "1", "]"},           {"{1:", "1", "}"}, {"-", "1", ""},
        {"not ", "1", ""},        {"1 if 1 else ", "1", ""}, {"x[", "1", "]"},  {"x(", "1", ")"},
        {"x|default(", "1", ")"}, {"1 is in [", "1", "]"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_MEM char *deep = repeated(rows[i][0], rows[i][1], rows[i][2], 50000);
        AUTO_MEM char *shallow = repeated(rows[i][0], rows[i][1], rows[i][2], 20);
        AUTO_MEM char *bad = mem_printf("{{ %s }}", deep), *good = mem_printf("{{ %s }}", shallow);
        struct template *t = NULL;

        expect_fails(template_new(bad, strlen(bad), &t), ERR_CORRUPT, "more than 100 deep");
        expect_ok(template_new(good, strlen(good), &t));
        template_free(t);
    }
    AUTO_MEM char *tags = repeated("{% if 1 %}", "x", "{% endif %}", 40000);
    AUTO_MEM char *targets = repeated("(", "x", ")", 1000);
    AUTO_MEM char *set = mem_printf("{%% set %s = 1 %%}", targets);
    AUTO_MEM char *huge = repeated("aaaaaaaaaaaaaaaa", "", "", 1 << 17);
    struct template *t = NULL;

    expect_fails(template_new(tags, strlen(tags), &t), ERR_CORRUPT, "more than 100 deep");
    expect_fails(template_new(set, strlen(set), &t), ERR_CORRUPT, "more than 100 deep");
    expect_fails(template_new(huge, strlen(huge), &t), ERR_CORRUPT, "1048576 at most");
}

static void long_chains_are_not_deep(void **state)
{
    (void)state;
    AUTO_MEM char *sum = repeated("1+", "1", "", 20000);
    AUTO_MEM char *source = mem_printf("{{ %s }}", sum);
    AUTO_MEM char *filters = repeated("", "{{ 1", "|abs", 5000);
    AUTO_MEM char *filtered = mem_printf("%s }}", filters);

    assert_string_equal(render_text(source), "20001");
    /* Filters do nest, one in the other; the render says so. */
    expect_fails(try_render(filtered, NULL), ERR_FULL, "nested more than 1000 deep");
}

static void deep_calls_and_values_are_refused(void **state)
{
    (void)state;
    expect_fails(try_render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", NULL), ERR_FULL,
                 "more than 100 deep");
    expect_fails(try_render("{% set ns = namespace(x=1) %}{% for i in range(500) %}"
                            "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
                            NULL),
                 ERR_FULL, "values nested more than 100 deep");
    expect_fails(try_render("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", NULL),
                 ERR_FULL, "values nested more than 100 deep");

    AUTO_MEM char *arrays = repeated("[", "1", "]", 200);
    json_t *context = json_pack("{s:o}", "x", json_loads(arrays, 0, NULL));
    AUTO_CLOSE(bytes) struct bytes out = {0};

    expect_fails(render_with("x", 1, context, NULL, &out), ERR_FULL, "values nested more than");
    json_decref(context);
}

static void one_template_serves_many_renders(void **state)
{
    (void)state;
    static const char source[] = "{% set ns = namespace(n=0) %}{% for i in numbers %}"
                                 "{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }};";
    json_t *context = json_pack("{s:[i,i]}", "numbers", 3, 4);
    AUTO_FREE(template) struct template *t = NULL;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    expect_ok(template_new(source, sizeof source - 1, &t));
    for (int i = 0; i < 3; i++)
        expect_ok(template_render(t, context, NULL, &out));
    assert_string_equal(bytes_text(&out), "7;7;7;");
    json_decref(context);
    expect_fails(template_render(t, json_null(), NULL, &out), ERR_INVALID, "must be a JSON object");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_case_renders_as_jinja2_does),
    cmocka_unit_test(smollm2_conversations_are_those_of_transformers),
    cmocka_unit_test(gemma3_conversations_are_those_of_transformers),
    cmocka_unit_test(a_mistake_is_named_with_line_and_column),
    cmocka_unit_test(within_an_if_what_is_missing_is_refused_when_reached),
    cmocka_unit_test(a_failing_render_names_the_line_and_leaves_the_output),
    cmocka_unit_test(formats_beyond_the_plain_ones_are_named),
    cmocka_unit_test(integers_that_overflow_are_refused),
    cmocka_unit_test(a_letter_whose_capital_is_two_stays_as_it_is),
    cmocka_unit_test(work_without_end_hits_the_step_limit),
    cmocka_unit_test(large_texts_and_lists_hit_the_memory_limit),
    cmocka_unit_test(deep_source_is_refused),
    cmocka_unit_test(long_chains_are_not_deep),
    cmocka_unit_test(deep_calls_and_values_are_refused),
    cmocka_unit_test(one_template_serves_many_renders),
};
TEST_MAIN(tests)
