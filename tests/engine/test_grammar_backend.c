#include "tests/support/expect.h"

#include "engine/grammar/backend.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a vocabulary of bytes, a few words, two tokens that stop and two of control ------------- */

static const char *const words[] = {"{\"",  "\":",      "\": ",   "\",", "\"}",  "}}",  "[1",
                                    "ab",   "abc",      "ba",     "12",  "true", "yes", "ye",
                                    "s no", "\xc3\xa9", "\xa9\"", "  ",  "\\n",  "<f"};
enum {
    NUM_WORDS = COUNT_OF(words),
    STOP = 256 + NUM_WORDS,
    OTHER_STOP,
    CONTROL,       /* spelled as JSON's strings may be */
    EMPTY_CONTROL, /* spelled as nothing */
    NUM_TOKENS,
    NUM_MASK_WORDS = (NUM_TOKENS + 31) / 32
};

static char byte_texts[256];
static struct grammar_token tokens[NUM_TOKENS];
static const token_id stop_tokens[] = {STOP, OTHER_STOP};
static const struct grammar_vocabulary vocabulary = {tokens, NUM_TOKENS, stop_tokens, 2};

static void make_vocabulary(void)
{
    for (int i = 0; i < 256; i++) {
        byte_texts[i] = (char)i;
        tokens[i] = (struct grammar_token){&byte_texts[i], 1, false};
    }
    for (int i = 0; i < NUM_WORDS; i++)
        tokens[256 + i] = (struct grammar_token){words[i], (int32_t)strlen(words[i]), false};
    tokens[STOP] = (struct grammar_token){"</s>", 4, true};
    tokens[OTHER_STOP] = (struct grammar_token){"<|im_end|>", 10, true};
    tokens[CONTROL] = (struct grammar_token){"abc", 3, true};
    tokens[EMPTY_CONTROL] = (struct grammar_token){"", 0, true};
}

/* ---- the backends, opened once --------------------------------------------------------------- */

enum { LLGUIDANCE = 1, XGRAMMAR = 2, BOTH = 3 };
static const struct backend_ops *const all_ops[] = {&backend_llguidance, &backend_xgrammar};
static struct backend *all[2];
static int num_threads_after_open;
static bool an_empty_folder_was_named;

static int count_threads(void)
{
    DIR *folder = opendir("/proc/self/task");
    int n = 0;

    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder))
        n += entry->d_name[0] != '.';
    closedir(folder);
    return n;
}

static const char *libraries(void)
{
    static char folder[4096];
    const char *given = getenv("TANDEM_TEST_GRAMMAR"), *program = getenv("TANDEM_PROGRAM");
    const char *end = program ? strrchr(program, '/') : NULL;

    if (given)
        return given;
    snprintf(folder, sizeof folder, "%.*s/grammar", end ? (int)(end - program) : 1,
             end ? program : ".");
    return folder;
}

/* Before the libraries are loaded, which is once for a process. */
static bool names_an_empty_folder(void)
{
    struct backend *backend;

    for (int i = 0; i < 2; i++)
        if (all_ops[i]->open("/nonexistent", &vocabulary, &backend) != ERR_NOT_FOUND ||
            !strstr(fail_text(), "/nonexistent/lib") ||
            !strstr(fail_text(), "deploy/fetch-grammars"))
            return false;
    return true;
}

static int open_all(void **state)
{
    (void)state;
    an_empty_folder_was_named = names_an_empty_folder();
    for (int i = 0; i < 2; i++)
        expect_ok(all_ops[i]->open(libraries(), &vocabulary, &all[i]));
    num_threads_after_open = count_threads();
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        all_ops[i]->close(all[i]);
    return 0;
}

static enum status compile(int which, const struct grammar_spec *spec,
                           struct compiled_grammar **out)
{
    return all_ops[which]->compile(all[which], spec, out);
}

static struct grammar_spec spec_of(enum grammar_kind kind, const char *text)
{
    return (struct grammar_spec){.kind = kind, .text = text, .size = strlen(text)};
}

/* ---- languages ------------------------------------------------------------------------------- */

struct language {
    int which;                /* backends */
    struct grammar_spec spec; /* its size is reckoned */
    const char *in[6], *out[8];
};

#define PERSON                                                                                     \
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"n\":{\"type\":"            \
    "\"integer\"}},"                                                                               \
    "\"required\":[\"a\",\"n\"],\"additionalProperties\":false}"
#define OPEN "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}}"
#define TAG                                                                                        \
    "{\"type\":\"structural_tag\",\"format\":{\"type\":\"triggered_tags\",\"triggers\":[\"<f\"],"  \
    "\"tags\":["                                                                                   \
    "{\"type\":\"tag\",\"begin\":\"<f>\",\"content\":{\"type\":\"json_schema\",\"json_schema\":{"  \
    "\"type\":"                                                                                    \
    "\"object\",\"properties\":{\"c\":{\"type\":\"integer\"}},\"required\":[\"c\"],"               \
    "\"additionalProperties\":"                                                                    \
    "false}},\"end\":\"</f>\"}]}}"

static const struct language languages[] = {
    {BOTH,
     {GRAMMAR_JSON_OBJECT},
     {"{}", "{\"a\": [1, true, null]}", "{\"\xc3\xa9\":\"\\n\"}"},
     {"[]", "1", "", "{\"a\"}", "{\"a\":abc}", "{\"\xff\":1}"}},
    {BOTH,
     {GRAMMAR_JSON_SCHEMA, PERSON},
     {"{\"a\":\"abc\",\"n\":12}", "{\"a\": \"\", \"n\": -1}"},
     {"{\"a\":\"abc\"}", "{\"n\":12}", "{\"a\":1,\"n\":12}", "{\"a\":\"\",\"n\":1,\"b\":1}", "{}"}},
    {BOTH,
     {GRAMMAR_JSON_SCHEMA, PERSON, .disable_any_whitespace = true},
     {"{\"a\":\"ab c\",\"n\":12}"},
     {"{\"a\": \"abc\",\"n\":12}", " {\"a\":\"\",\"n\":1}"}},
    {BOTH,
     {GRAMMAR_JSON_OBJECT, .disable_any_whitespace = true},
     {"{}", "{\"a\":1}"},
     {"{ }", "{\"a\": 1}"}},
    {BOTH, {GRAMMAR_JSON_SCHEMA, OPEN}, {"{\"a\":1}", "{}", "{\"b\":true}"}, {"{\"a\":true}"}},
    {BOTH,
     {GRAMMAR_JSON_SCHEMA, OPEN, .disable_additional_properties = true},
     {"{\"a\":1}", "{}"},
     {"{\"b\":true}", "{\"a\":true}"}},
    {LLGUIDANCE,
     {GRAMMAR_JSON_SCHEMA, OPEN, .whitespace_pattern = "  "},
     {"{  \"a\"  :  1  }"},
     {"{\"a\": 1}", "{ \"a\" : 1 }"}},
    {LLGUIDANCE,
     {GRAMMAR_JSON_SCHEMA, "{\"uniqueItems\":true,\"type\":\"array\"}", .lenient = true},
     {"[1,1]"},
     {"{}"}},
    {BOTH, {GRAMMAR_JSON_SCHEMA, "true"}, {"12", "\"ab\"", "[1]"}, {"ab", ""}},
    {BOTH,
     {GRAMMAR_REGEX, "(ab)+[0-9]{2}"},
     {"ab12", "abab12"},
     {"ab", "ab123", "", "ba12", "ab1"}},
    {BOTH, {GRAMMAR_REGEX, "\xc3\xa9?y"}, {"\xc3\xa9y", "y"}, {"\xc3y", "\xa9"}},
    {BOTH,
     {GRAMMAR_CHOICE, "[\"yes\",\"yes no\",\"\\\"\\\\n\xc3\xa9\"]"},
     {"yes", "yes no", "\"\\n\xc3\xa9"},
     {"no", "ye", "yesno", "yes yes", ""}},
    {XGRAMMAR,
     {GRAMMAR_EBNF, "root ::= \"ab\" x*\nx ::= [0-9] | \"(\" x \")\"\n"},
     {"ab", "ab12", "ab((1))"},
     {"a", "ab(", "ab()", "12"}},
    {LLGUIDANCE,
     {GRAMMAR_LARK, "start: \"ab\" x*\nx: /[0-9]/ | \"(\" x \")\"\n"},
     {"ab", "ab12", "ab((1))"},
     {"a", "ab(", "ab()", "12"}},
    {XGRAMMAR,
     {GRAMMAR_STRUCTURAL_TAG, TAG},
     {"", "abc", "ab <f>{\"c\": 12}</f> yes"},
     {"<f>{\"c\":true}</f>", "<f>{\"c\":1}", "<f>abc"}},
};

/* Moves along a text; true: all of it, and the output may end there. */
static bool takes(int which, struct compiled_grammar *compiled, const char *text, bool in_words)
{
    const struct backend_ops *ops = all_ops[which];
    struct matcher *matcher;
    enum status status = OK;
    bool is_complete;

    expect_ok(ops->start(compiled, &matcher));
    while (*text && status == OK) {
        token_id token = (uint8_t)*text;
        size_t size = 1;

        for (int i = 0; in_words && i < NUM_WORDS; i++)
            if (strlen(words[i]) > size && strncmp(words[i], text, strlen(words[i])) == 0) {
                token = 256 + i;
                size = strlen(words[i]);
            }
        status = ops->accept(matcher, token);
        text += size;
    }
    if (status != OK)
        assert_string_equal(status_name(status), status_name(ERR_MISMATCH));
    is_complete = status == OK && ops->is_complete(matcher);
    ops->free_matcher(matcher);
    return is_complete;
}

static void for_each_language(void (*check)(int which, const struct language *language,
                                            struct compiled_grammar *compiled))
{
    for (size_t i = 0; i < COUNT_OF(languages); i++)
        for (int which = 0; which < 2; which++) {
            struct grammar_spec spec = languages[i].spec;
            struct compiled_grammar *compiled;

            if (!(languages[i].which & (1 << which)))
                continue;
            spec.size = spec.text ? strlen(spec.text) : 0;
            expect_ok(compile(which, &spec, &compiled));
            check(which, &languages[i], compiled);
            all_ops[which]->free_compiled(compiled);
        }
}

static void check_language(int which, const struct language *language,
                           struct compiled_grammar *compiled)
{
    for (int in_words = 0; in_words < 2; in_words++) {
        for (size_t i = 0; i < COUNT_OF(language->in) && language->in[i]; i++)
            if (!takes(which, compiled, language->in[i], in_words))
                fail_msg("%s: %s refuses %s", all_ops[which]->name, language->spec.text,
                         language->in[i]);
        for (size_t i = 0; i < COUNT_OF(language->out) && language->out[i]; i++)
            if (takes(which, compiled, language->out[i], in_words))
                fail_msg("%s: %s takes %s", all_ops[which]->name, language->spec.text,
                         language->out[i]);
    }
}

static void a_grammar_takes_its_language_alone(void **state)
{
    (void)state;
    for_each_language(check_language);
}

/* ---- masks ----------------------------------------------------------------------------------- */

static struct matcher *matcher_after(int which, struct compiled_grammar *compiled, const char *text,
                                     size_t size)
{
    struct matcher *matcher;

    expect_ok(all_ops[which]->start(compiled, &matcher));
    for (size_t i = 0; i < size; i++)
        expect_ok(all_ops[which]->accept(matcher, (uint8_t)text[i]));
    return matcher;
}

/* Each token of the vocabulary, at one place of one text. */
static void check_mask(int which, struct compiled_grammar *compiled, const char *text, size_t size)
{
    const struct backend_ops *ops = all_ops[which];
    uint32_t mask[NUM_MASK_WORDS], again[NUM_MASK_WORDS];
    struct matcher *at = matcher_after(which, compiled, text, size);
    bool is_complete = ops->is_complete(at);

    memset(mask, 0xff, sizeof mask);
    memset(again, 0, sizeof again);
    expect_ok(ops->fill(at, mask, NUM_MASK_WORDS));
    for (token_id t = 0; t < NUM_MASK_WORDS * 32; t++) {
        bool bit = mask[t / 32] >> (t % 32) & 1;
        struct matcher *matcher;
        enum status status;

        if (t >= NUM_TOKENS) {
            assert_false(bit);
            continue;
        }
        /* What it refuses leaves it as it was: one matcher is asked all of these. */
        matcher = bit ? matcher_after(which, compiled, text, size) : at;
        status = ops->accept(matcher, t);
        if ((status == OK) != bit || (status != OK && status != ERR_MISMATCH))
            fail_msg("%s: after %.*s the mask's bit of token %d is %d, and accept says %s: %s",
                     ops->name, (int)size, text, t, bit, status_name(status),
                     status == OK ? "" : fail_text());
        if (t >= STOP)
            assert_int_equal(bit, is_complete && t < CONTROL);
        if (matcher != at)
            ops->free_matcher(matcher);
    }
    expect_ok(ops->fill(at, again, NUM_MASK_WORDS));
    assert_memory_equal(mask, again, sizeof mask);
    ops->free_matcher(at);
}

static void check_masks(int which, const struct language *language,
                        struct compiled_grammar *compiled)
{
    for (size_t i = 0; i < COUNT_OF(language->in) && language->in[i]; i++)
        for (size_t size = 0; size <= strlen(language->in[i]); size++)
            check_mask(which, compiled, language->in[i], size);
}

static void a_mask_allows_what_accept_takes(void **state)
{
    (void)state;
    for_each_language(check_masks);
}

static void check_stop(int which, const struct language *language,
                       struct compiled_grammar *compiled)
{
    const struct backend_ops *ops = all_ops[which];

    for (int i = 0; i < 2; i++) {
        struct matcher *matcher =
            matcher_after(which, compiled, language->in[0], strlen(language->in[0]));

        expect_ok(ops->accept(matcher, stop_tokens[i]));
        assert_true(ops->is_complete(matcher));
        expect_fails(ops->accept(matcher, 'a'), ERR_MISMATCH, "token 97 comes after a stop token");
        expect_fails(ops->accept(matcher, STOP), ERR_MISMATCH, "comes after a stop token");
        ops->free_matcher(matcher);
    }
}

static void nothing_follows_a_stop_token(void **state)
{
    (void)state;
    for_each_language(check_stop);
}

static void tokens_outside_of_the_vocabulary_are_refused(void **state)
{
    const token_id outside[] = {-1, NUM_TOKENS, INT32_MAX, INT32_MIN};
    struct grammar_spec spec = {GRAMMAR_JSON_OBJECT};

    (void)state;
    for (int which = 0; which < 2; which++) {
        struct compiled_grammar *compiled;
        struct matcher *matcher;

        expect_ok(compile(which, &spec, &compiled));
        matcher = matcher_after(which, compiled, "{", 1);
        for (size_t i = 0; i < COUNT_OF(outside); i++)
            expect_fails(all_ops[which]->accept(matcher, outside[i]), ERR_MISMATCH,
                         "does not allow token");
        expect_ok(all_ops[which]->accept(matcher, '}'));
        all_ops[which]->free_matcher(matcher);
        all_ops[which]->free_compiled(compiled);
    }
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void expect_refused(int which, enum grammar_kind kind, const char *text, enum status status,
                           const char *sentence)
{
    struct grammar_spec spec = spec_of(kind, text);
    struct compiled_grammar *compiled = NULL;

    expect_fails(compile(which, &spec, &compiled), status, sentence);
    for (const char *p = fail_text(); *p; p++)
        assert_true((uint8_t)*p >= ' ');
    assert_null(compiled);
}

static void expect_compiles(int which, enum grammar_kind kind, const char *text)
{
    struct grammar_spec spec = spec_of(kind, text);
    struct compiled_grammar *compiled;

    expect_ok(compile(which, &spec, &compiled));
    all_ops[which]->free_compiled(compiled);
}

static void xgrammar_drops_no_keyword_unsaid(void **state)
{
    static const struct {
        const char *schema, *sentence;
    } refused[] = {
        {"{\"not\":{}}", "the keyword `not` at the root is not enforced by xgrammar"},
        {"{\"properties\":{\"a\":{\"type\":\"array\",\"uniqueItems\":true}}}",
         "`uniqueItems` at /properties/a is"},
        {"{\"type\":\"array\",\"contains\":{}}", "`contains`"},
        {"{\"if\":{},\"then\":{\"minimum\":3}}", "`if`"},
        {"{\"type\":\"object\",\"dependentRequired\":{}}", "`dependentRequired`"},
        {"{\"type\":\"object\",\"dependentSchemas\":{}}", "`dependentSchemas`"},
        {"{\"type\":\"object\",\"dependencies\":{}}", "`dependencies`"},
        {"{\"anyOf\":[{}],\"properties\":{}}", "`properties`"},
        {"{\"anyOf\":[{}],\"oneOf\":[{}]}", "`oneOf`"},
        {"{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{}},\"minLength\":1}", "`minLength`"},
        {"{\"$ref\":\"http://a.b/c\"}", "`$ref`"},
        {"{\"$ref\":\"#a\"}", "`$ref`"},
        {"{\"$ref\":\"#/a~1b\"}", "`$ref`"},
        {"{\"$ref\":\"#/x\",\"x\":{\"not\":{}}}", "`not` at /$ref is"},
        {"{\"items\":{\"$id\":\"x\"}}", "`$id` at /items is"},
        {"{\"allOf\":[{},{}]}", "`allOf`"},
        {"{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "`oneOf`"},
        {"{\"oneOf\":[{\"enum\":[\"a\",\"b\"]},{\"const\":\"b\"}]}", "`oneOf`"},
        {"{\"enum\":[\"a\",\"abc\"],\"minLength\":2}", "`minLength`"},
        {"{\"enum\":[1.5],\"type\":\"integer\"}", "`type`"},
        {"{\"minLength\":2}", "`minLength`"},
        {"{\"required\":[\"a\"]}", "`required`"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{}},\"required\":[\"b\"]}", "`required`"},
        {"{\"type\":\"string\",\"format\":\"zork\"}", "`format`"},
        {"{\"type\":\"string\",\"format\":\"date\",\"maxLength\":3}", "`maxLength`"},
        {"{\"type\":\"string\",\"pattern\":\"a+\",\"maxLength\":3}", "`maxLength`"},
        {"{\"type\":\"string\",\"pattern\":\"a+\",\"format\":\"date\"}", "`pattern`"},
        {"{\"type\":\"number\",\"multipleOf\":2}", "`multipleOf`"},
        {"{\"type\":\"integer\",\"multipleOf\":2,\"minimum\":0}", "`multipleOf`"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{}},\"patternProperties\":{\"^x\":{}}}",
         "`patternProperties`"},
        {"{\"type\":\"object\",\"patternProperties\":{\"x\":{},\"y\":{}}}", "`patternProperties`"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{}},\"propertyNames\":{\"pattern\":\"b\"}}",
         "`propertyNames`"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{}},\"unevaluatedProperties\":false}",
         "`unevaluatedProperties`"},
    };
    static const char *const taken[] = {
        "{\"type\":\"integer\",\"minLength\":3}", /* of other types, says nothing */
        "{\"enum\":[\"a\",1],\"type\":[\"string\",\"number\"],\"title\":\"t\"}",
        "{\"const\":1,\"minLength\":5}",
        "{\"allOf\":[{\"type\":\"string\"}],\"description\":\"d\"}",
        "{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}],\"default\":null,\"title\":\"t\"}",
        "{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"string\"},{\"type\":\"array\"}]}",
        "{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"a\"}},\"required\":["
        "\"t\"]},"
        "{\"type\":\"object\",\"properties\":{\"t\":{\"enum\":[\"b\"]}},\"required\":[\"t\"]}]}",
        "{\"type\":\"array\",\"uniqueItems\":false}",
        "{\"type\":\"integer\",\"multipleOf\":7}",
        "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^a+$\"}}",
        "{\"properties\":{\"not\":{\"type\":\"string\"}},\"required\":[\"not\"]}", /* a name */
        "{\"if\":{}}",
    };
    struct grammar_spec lenient =
        spec_of(GRAMMAR_JSON_SCHEMA, "{\"type\":\"array\",\"uniqueItems\":true}");
    struct compiled_grammar *compiled;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(refused); i++)
        expect_refused(1, GRAMMAR_JSON_SCHEMA, refused[i].schema, ERR_INVALID, refused[i].sentence);
    for (size_t i = 0; i < COUNT_OF(taken); i++)
        expect_compiles(1, GRAMMAR_JSON_SCHEMA, taken[i]);
    lenient.lenient = true;
    expect_ok(compile(1, &lenient, &compiled));
    all_ops[1]->free_compiled(compiled);
}

static void llguidance_drops_no_keyword_unsaid(void **state)
{
    static const struct {
        const char *schema, *sentence;
    } refused[] = {
        {"{\"not\":{}}", "not enforced by llguidance are the keywords [\"not\"]"},
        {"{\"type\":\"array\",\"uniqueItems\":true}", "[\"uniqueItems\"]"},
        {"{\"type\":\"array\",\"contains\":{}}", "[\"contains\"]"},
        {"{\"type\":\"object\",\"dependentRequired\":{}}", "[\"dependentRequired\"]"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{}},\"unevaluatedProperties\":false}",
         "[\"unevaluatedProperties\"]"},
        {"{\"type\":\"string\",\"format\":\"zork\"}",
         "not enforced by llguidance is the `format` zork"},
        {"{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "the schemas of `oneOf`"},
        {"{\"$ref\":\"http://a.b/c\"}", "http://a.b/c"},
        {"{\"x-guidance\":{}}", "the schema brings a keyword `x-guidance` of its own"},
        {"false", "the schema `false` accepts nothing"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(refused); i++)
        expect_refused(0, GRAMMAR_JSON_SCHEMA, refused[i].schema, ERR_INVALID, refused[i].sentence);
}

static void what_is_no_grammar_is_refused_in_one_line(void **state)
{
    static const struct {
        int which;
        enum grammar_kind kind;
        const char *text;
        enum status status;
        const char *sentence;
    } rows[] = {
        {BOTH, GRAMMAR_JSON_SCHEMA, "{\"type\":\"strin\"}", ERR_INVALID, "strin"},
        {BOTH, GRAMMAR_JSON_SCHEMA, "{", ERR_INVALID, "the schema is no JSON"},
        {BOTH, GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"#/nowhere\"}", ERR_INVALID, "nowhere"},
        {BOTH, GRAMMAR_JSON_SCHEMA, "{\"type\":\"integer\",\"minimum\":5,\"maximum\":1}",
         ERR_INVALID, "minimum"},
        {BOTH, GRAMMAR_JSON_SCHEMA, "{\"maxItems\":5000}", ERR_FULL, "4096 are allowed"},
        {LLGUIDANCE, GRAMMAR_REGEX, "(a\n", ERR_INVALID, "invalid regex: unclosed group"},
        {LLGUIDANCE, GRAMMAR_REGEX, "\\bx", ERR_INVALID, "invalid regex"},
        {XGRAMMAR, GRAMMAR_REGEX, "(a", ERR_INVALID, "The parenthesis is not closed."},
        {XGRAMMAR, GRAMMAR_REGEX, "(?=a)b", ERR_INVALID, "Lookahead is not supported"},
        {BOTH, GRAMMAR_CHOICE, "[]", ERR_INVALID, "a choice is a list of strings"},
        {XGRAMMAR, GRAMMAR_EBNF, "root ::= x", ERR_INVALID, "Rule \"x\" is not defined"},
        {XGRAMMAR, GRAMMAR_EBNF, "start ::= \"a\"", ERR_INVALID, "\"root\""},
        {LLGUIDANCE, GRAMMAR_LARK, "start: x", ERR_INVALID, "unknown name: \"x\""},
        {LLGUIDANCE, GRAMMAR_LARK, "start: <|im_end|>", ERR_INVALID, "names a special token"},
        {XGRAMMAR, GRAMMAR_STRUCTURAL_TAG, "{\"type\":\"structural_tag\"}", ERR_INVALID, "format"},
        {XGRAMMAR, GRAMMAR_STRUCTURAL_TAG,
         "{\"type\":\"structural_tag\",\"format\":{\"type\":\"token\",\"token\":1}}", ERR_INVALID,
         "may not name tokens, as the format `token` does"},
        {XGRAMMAR, GRAMMAR_STRUCTURAL_TAG,
         "{\"type\":\"structural_tag\",\"format\":{\"type\":\"json_schema\",\"json_schema\":{"
         "\"not\":{}}}}",
         ERR_INVALID, "the keyword `not`"},
        {LLGUIDANCE, GRAMMAR_EBNF, "root ::= \"a\"", ERR_UNSUPPORTED, "llguidance"},
        {XGRAMMAR, GRAMMAR_LARK, "start: \"a\"", ERR_UNSUPPORTED, "xgrammar"},
    };
    struct grammar_spec spec = {GRAMMAR_JSON_OBJECT, .whitespace_pattern = " "};
    struct compiled_grammar *compiled;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (int which = 0; which < 2; which++)
            if (rows[i].which & (1 << which))
                expect_refused(which, rows[i].kind, rows[i].text, rows[i].status, rows[i].sentence);
    expect_fails(compile(1, &spec, &compiled), ERR_UNSUPPORTED,
                 "whitespace_pattern; llguidance does");
    spec.disable_any_whitespace = true;
    expect_fails(compile(0, &spec, &compiled), ERR_INVALID, "exclude each other");
}

static void vocabularies_need_a_stop_token_of_their_own(void **state)
{
    const token_id outside = NUM_TOKENS;
    struct grammar_vocabulary none = {tokens, NUM_TOKENS, NULL, 0},
                              wrong = {tokens, NUM_TOKENS, &outside, 1};
    struct backend *backend;

    (void)state;
    for (int which = 0; which < 2; which++) {
        expect_fails(all_ops[which]->open(libraries(), &none, &backend), ERR_INVALID,
                     "one that stops");
        expect_fails(all_ops[which]->open(libraries(), &wrong, &backend), ERR_INVALID,
                     "is outside of the vocabulary");
    }
}

static void opening_leaves_no_thread_behind(void **state)
{
    (void)state;
    assert_int_equal(num_threads_after_open, 1);
}

/* ---- hostile grammars, each in a process of its own ------------------------------------------ */

enum fate {
    ENDS,      /* it compiles or is refused, and masks are filled, within the time */
    IS_KILLED, /* nothing but the end of its process stops it: that is what processes are for */
};

struct hostile {
    const char *name;
    int which;
    enum grammar_kind kind;
    const char *head, *part, *tail; /* `part` is repeated; "%d" in it counts */
    int times;
    enum fate fate;
    const char *close; /* repeated after `tail` as often; may be NULL */
};

#define SCHEMA GRAMMAR_JSON_SCHEMA
#define REGEX  GRAMMAR_REGEX
#define LEAF   "{\"type\":\"string\"}"
static const struct hostile hostiles[] = {
    {"deep objects", BOTH, SCHEMA, "", "{\"properties\":{\"a\":", LEAF, 10000, ENDS, "}}"},
    {"deep constant", BOTH, SCHEMA, "{\"const\":", "[", "", 100000, ENDS, "]"},
    {"$ref to itself", BOTH, SCHEMA, "{\"$ref\":\"#\"}", "", "", 0, ENDS, NULL},
    {"$ref cycle", BOTH, SCHEMA,
     "{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"$ref\":\"#/$defs/b\"},\"b\":{\"$ref\":\"#/$defs/"
     "a\"}}}",
     "", "", 0, ENDS, NULL},
    {"anyOf of itself", BOTH, SCHEMA, "{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}", "", "",
     0, ENDS, NULL},
    {"$ref chain", BOTH, SCHEMA, "{\"$ref\":\"#/$defs/a0\",\"$defs\":{",
     "\"a%d\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/a%d\"}},",
     "\"a3000\":{\"const\":1}}}", 3000, IS_KILLED, NULL},
    {"$ref doubling", BOTH, SCHEMA, "{\"$ref\":\"#/$defs/a0\",\"$defs\":{",
     "\"a%d\":{\"type\":\"array\",\"prefixItems\":[{\"$ref\":\"#/$defs/a%d\"},{\"$ref\":\"#/$defs/"
     "a%d\"}],\"items\":false},",
     "\"a25\":{\"const\":1}}}", 25, ENDS, NULL},
    {"enum", BOTH, SCHEMA, "{\"enum\":[", "\"value number %d xyz\",", "1]}", 1000, ENDS, NULL},
    {"long enum", LLGUIDANCE, SCHEMA, "{\"enum\":[", "\"value number %d xyz\",", "1]}", 10000, ENDS,
     NULL},
    {"too long enum", BOTH, SCHEMA, "{\"enum\":[", "\"value number %d xyz\",", "1]}", 100000, ENDS,
     NULL},
    {"long constant", LLGUIDANCE, SCHEMA, "{\"const\":\"", "abcdefghij", "\"}", 20000, ENDS, NULL},
    {"optional properties", BOTH, SCHEMA, "{\"type\":\"object\",\"properties\":{",
     "\"p%d\":{\"type\":\"string\"},", "\"q\":{}}}", 100, ENDS, NULL},
    {"many optional properties", LLGUIDANCE, SCHEMA, "{\"type\":\"object\",\"properties\":{",
     "\"p%d\":{\"type\":\"string\"},", "\"q\":{}}}", 900, ENDS, NULL},
    {"pattern properties", BOTH, SCHEMA, "{\"type\":\"object\",\"patternProperties\":{",
     "\"^p%d[a-z]{1,20}$\":{},", "\"q\":{}}}", 500, ENDS, NULL},
    {"long strings", LLGUIDANCE, SCHEMA, "{\"type\":\"string\",\"maxLength\":1000000}", "", "", 0,
     ENDS, NULL},
    {"long strings at least", LLGUIDANCE, SCHEMA, "{\"type\":\"string\",\"minLength\":1000000}", "",
     "", 0, ENDS, NULL},
    {"too long strings", BOTH, SCHEMA, "{\"type\":\"string\",\"maxLength\":2147483648}", "", "", 0,
     ENDS, NULL},
    {"many items", BOTH, SCHEMA,
     "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":100000}", "", "", 0, ENDS,
     NULL},
    {"items of items", BOTH, SCHEMA, "", "{\"type\":\"array\",\"maxItems\":4000,\"items\":", LEAF,
     4, ENDS, "}"},
    {"integer range", BOTH, SCHEMA,
     "{\"type\":\"integer\",\"minimum\":0,\"maximum\":9000000000000000000}", "", "", 0, ENDS, NULL},
    {"huge minimum", BOTH, SCHEMA, "{\"type\":\"integer\",\"minimum\":1e300}", "", "", 0, ENDS,
     NULL},
    {"number range", BOTH, SCHEMA, "{\"type\":\"number\",\"minimum\":1e-300,\"maximum\":1e300}", "",
     "", 0, ENDS, NULL},
    {"multiple", BOTH, SCHEMA, "{\"type\":\"integer\",\"multipleOf\":9973}", "", "", 0, ENDS, NULL},
    {"huge multiple", BOTH, SCHEMA, "{\"type\":\"integer\",\"multipleOf\":999983}", "", "", 0, ENDS,
     NULL},
    {"multiple of zero", BOTH, SCHEMA, "{\"type\":\"integer\",\"multipleOf\":0}", "", "", 0, ENDS,
     NULL},
    {"nested pattern", BOTH, SCHEMA,
     "{\"type\":\"string\",\"pattern\":\"^((a|b){1,1000}d){1,1000}$\"}", "", "", 0, ENDS, NULL},
    {"a{1,100000}", BOTH, REGEX, "a{1,100000}", "", "", 0, ENDS, NULL},
    {"nested repetition", BOTH, REGEX, "(a{1,100000}){1,100000}", "", "", 0, ENDS, NULL},
    {"a{999999999}", BOTH, REGEX, "a{99999999999999}", "", "", 0, ENDS, NULL},
    {"(.*a){25}", BOTH, REGEX, "(.*a){25}", "", "", 0, ENDS, NULL},
    {"exponential automaton", BOTH, REGEX, "[ab]*a[ab]{200}c", "", "", 0, ENDS, NULL},
    {"(a|a)*b", BOTH, REGEX, "(a|a)*b", "", "", 0, ENDS, NULL},
    {"(a?){500}a{500}", BOTH, REGEX, "(a?){500}a{500}", "", "", 0, ENDS, NULL},
    {"deep parentheses", BOTH, REGEX, "", "(", "a", 100000, ENDS, ")"},
    {"alternatives", BOTH, REGEX, "(", "word%d[a-z]{1,5}x|", "y)", 2000, ENDS, NULL},
    {"wide class", LLGUIDANCE, REGEX, "[\\u0000-\\uffff]{1,4000}", "", "", 0, ENDS, NULL},
    {"(a*)*b", LLGUIDANCE, REGEX, "(a*)*b", "", "", 0, ENDS, NULL},
    {"(a*)*b", XGRAMMAR, REGEX, "(a*)*b", "", "", 0, IS_KILLED, NULL},
    {"(\\w+\\s?)+x", LLGUIDANCE, REGEX, "(\\w+\\s?)+x", "", "", 0, ENDS, NULL},
    {"(\\w+\\s?)+x", XGRAMMAR, REGEX, "(\\w+\\s?)+x", "", "", 0, IS_KILLED, NULL},
    {"(.?){2000}x", LLGUIDANCE, REGEX, "(.?){2000}x", "", "", 0, ENDS, NULL},
    {"(.?){2000}x", XGRAMMAR, REGEX, "(.?){2000}x", "", "", 0, IS_KILLED, NULL},
    {"ambiguous EBNF", XGRAMMAR, GRAMMAR_EBNF, "root ::= root root | \"a\" | \"\"\n", "", "", 0,
     IS_KILLED, NULL},
    {"EBNF of itself", XGRAMMAR, GRAMMAR_EBNF, "root ::= root\n", "", "", 0, ENDS, NULL},
    {"EBNF without an end", XGRAMMAR, GRAMMAR_EBNF, "root ::= \"a\" root\n", "", "", 0, ENDS, NULL},
    {"left recursion", XGRAMMAR, GRAMMAR_EBNF, "root ::= root \"a\" | \"a\"\n", "", "", 0, ENDS,
     NULL},
    {"EBNF chain", XGRAMMAR, GRAMMAR_EBNF, "root ::= r0\n", "r%d ::= \"x\" r%d\n",
     "r1900 ::= \"y\"\n", 1900, ENDS, NULL},
    {"EBNF chain too long", XGRAMMAR, GRAMMAR_EBNF, "root ::= r0\n", "r%d ::= \"x\" r%d\n", "",
     9000, ENDS, NULL},
    {"EBNF deep", XGRAMMAR, GRAMMAR_EBNF, "root ::= ", "(", "\"a\"", 100000, ENDS, ")"},
    {"ambiguous Lark", LLGUIDANCE, GRAMMAR_LARK, "start: start start | \"a\" | \"\"\n", "", "", 0,
     ENDS, NULL},
    {"nullable Lark", LLGUIDANCE, GRAMMAR_LARK, "start: (x* y*)*\nx: \"a\"? y?\ny: x? \"b\"?\n", "",
     "", 0, ENDS, NULL},
    {"Lark of itself", LLGUIDANCE, GRAMMAR_LARK, "start: start\n", "", "", 0, ENDS, NULL},
    {"Lark chain", LLGUIDANCE, GRAMMAR_LARK, "start: r0\n", "r%d: \"x\" r%d\n", "r1900: \"y\"\n",
     1900, ENDS, NULL},
    {"Lark chain too long", LLGUIDANCE, GRAMMAR_LARK, "start: r0\n", "r%d: \"x\" r%d\n", "", 9000,
     ENDS, NULL},
    {"Lark intersections", LLGUIDANCE, GRAMMAR_LARK, "start: A\nA: /a/", " & /(.*[a-f]){%d}.*/",
     "\n", 300, ENDS, NULL},
    {"deep tag", XGRAMMAR, GRAMMAR_STRUCTURAL_TAG, "{\"type\":\"structural_tag\",\"format\":",
     "{\"type\":\"sequence\",\"elements\":[", "{\"type\":\"any_text\"}", 1000, ENDS, "]}"},
    {"many tags", XGRAMMAR, GRAMMAR_STRUCTURAL_TAG,
     "{\"type\":\"structural_tag\",\"format\":{\"type\":\"triggered_tags\",\"triggers\":[\"<f\"],"
     "\"tags\":[",
     "{\"type\":\"tag\",\"begin\":\"<f%d>\",\"content\":{\"type\":\"any_text\"},\"end\":\"</f>\"},",
     "{\"type\":\"tag\",\"begin\":\"<f>\",\"content\":{\"type\":\"any_text\"},\"end\":\"</f>\"}]}}",
     200, ENDS, NULL},
};

static void write_hostile(const struct hostile *row, struct bytes *text)
{
    bytes_printf(text, "%s", row->head);
    for (int i = 0; i < row->times; i++) {
        int next = 0; /* the first number is i, those after it i + 1 */

        for (const char *p = row->part; *p; p++) {
            if (p[0] == '%' && p[1] == 'd') {
                bytes_printf(text, "%d", i + next);
                next = 1;
                p++;
            } else {
                bytes_append(text, p, 1);
            }
        }
    }
    bytes_printf(text, "%s", row->tail);
    for (int i = 0; row->close && i < row->times; i++)
        bytes_printf(text, "%s", row->close);
    if (strncmp(row->head, "{\"type\":\"structural_tag\"", 24) == 0 && row->close)
        bytes_printf(text, "}");
}

struct attempt {
    int which;
    struct grammar_spec spec;
    enum status status;
    char sentence[256];
};

/* Compiles, and walks 200 tokens that the masks allow. */
static void *attempt(void *argument)
{
    struct attempt *a = argument;
    const struct backend_ops *ops = all_ops[a->which];
    struct compiled_grammar *compiled;
    struct matcher *matcher;
    uint32_t mask[NUM_MASK_WORDS], random = 12345;

    a->status = compile(a->which, &a->spec, &compiled);
    snprintf(a->sentence, sizeof a->sentence, "%s", fail_text());
    if (a->status != OK)
        return NULL;
    a->status = ops->start(compiled, &matcher);
    for (int step = 0; step < 200 && a->status == OK; step++) {
        token_id token = -1;

        a->status = ops->fill(matcher, mask, NUM_MASK_WORDS);
        snprintf(a->sentence, sizeof a->sentence, "%s", fail_text());
        random = random * 1664525 + 1013904223;
        for (uint32_t i = 0; i < STOP && token < 0 && a->status == OK; i++) {
            token_id t = (token_id)((random + i) % STOP);

            if (mask[t / 32] >> (t % 32) & 1)
                token = t;
        }
        if (token < 0) /* complete, or a dead end, or a limit of work */
            break;
        a->status = ops->accept(matcher, token);
        snprintf(a->sentence, sizeof a->sentence, "%s", fail_text());
    }
    return NULL;
}

enum { HOSTILE_CPU_S = 2, STACK_BYTES = 256 << 20 };

/* In the child. */
static _Noreturn void run_attempt(int which, const struct hostile *row)
{
    struct bytes text = {0};
    struct attempt a = {.which = which};
    struct rlimit limit = {HOSTILE_CPU_S, HOSTILE_CPU_S};
    pthread_attr_t attributes;
    pthread_t thread;

    write_hostile(row, &text);
    a.spec = spec_of(row->kind, bytes_text(&text));
    setrlimit(RLIMIT_CPU, &limit);
    alarm(60); /* should it sleep */
    ASSERT(freopen("/dev/null", "w", stderr));
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    ASSERT(pthread_create(&thread, &attributes, attempt, &a) == 0);
    pthread_join(thread, NULL);
    if (a.status != OK && a.status != ERR_INVALID && a.status != ERR_FULL)
        fprintf(stdout, "# %s: %s\n", status_name(a.status), a.sentence), fflush(stdout);
    _exit(a.status == OK || a.status == ERR_INVALID || a.status == ERR_FULL ? 0 : 1);
}

static void check_hostile(int which, const struct hostile *row)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0)
        run_attempt(which, row);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (row->fate == IS_KILLED && WIFSIGNALED(status) &&
        (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGKILL))
        return;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("%s, %s: wait status 0x%x", row->name, all_ops[which]->name, status);
}

static void hostile_grammars_end_or_are_ended(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(hostiles); i++)
        for (int which = 0; which < 2; which++)
            if (hostiles[i].which & (1 << which))
                check_hostile(which, &hostiles[i]);
}

/* ---- the rows -------------------------------------------------------------------------------- */

static void backends_are_chosen_by_kind(void **state)
{
    static const struct {
        enum grammar_kind kind;
        const char *asked, *chosen, *sentence;
    } rows[] = {
        {GRAMMAR_JSON_OBJECT, NULL, "llguidance", NULL},
        {GRAMMAR_JSON_SCHEMA, NULL, "llguidance", NULL},
        {GRAMMAR_REGEX, NULL, "llguidance", NULL},
        {GRAMMAR_CHOICE, NULL, "llguidance", NULL},
        {GRAMMAR_LARK, NULL, "llguidance", NULL},
        {GRAMMAR_EBNF, NULL, "xgrammar", NULL},
        {GRAMMAR_STRUCTURAL_TAG, NULL, "xgrammar", NULL},
        {GRAMMAR_JSON_SCHEMA, "xgrammar", "xgrammar", NULL},
        {GRAMMAR_EBNF, "llguidance", NULL,
         "llguidance does not compile EBNF grammars; those that do: xgrammar"},
        {GRAMMAR_LARK, "xgrammar", NULL,
         "xgrammar does not compile Lark grammars; those that do: llguidance"},
        {GRAMMAR_REGEX, "outlines", NULL,
         "there is no grammar backend 'outlines'; there are llguidance, xgrammar"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct grammar_spec spec = {.kind = rows[i].kind, .backend = rows[i].asked};
        int32_t chosen;

        if (rows[i].sentence) {
            expect_fails(backend_choose(backends, &spec, &chosen), ERR_UNSUPPORTED,
                         rows[i].sentence);
        } else {
            expect_ok(backend_choose(backends, &spec, &chosen));
            assert_string_equal(backends[chosen]->name, rows[i].chosen);
        }
    }
    assert_string_equal(grammar_kind_name(GRAMMAR_LARK), "grammar");
}

static void a_folder_without_libraries_is_named(void **state)
{
    (void)state;
    assert_true(an_empty_folder_was_named);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(backends_are_chosen_by_kind),
    cmocka_unit_test(a_folder_without_libraries_is_named),
    cmocka_unit_test(a_grammar_takes_its_language_alone),
    cmocka_unit_test(a_mask_allows_what_accept_takes),
    cmocka_unit_test(nothing_follows_a_stop_token),
    cmocka_unit_test(tokens_outside_of_the_vocabulary_are_refused),
    cmocka_unit_test(xgrammar_drops_no_keyword_unsaid),
    cmocka_unit_test(llguidance_drops_no_keyword_unsaid),
    cmocka_unit_test(what_is_no_grammar_is_refused_in_one_line),
    cmocka_unit_test(vocabularies_need_a_stop_token_of_their_own),
    cmocka_unit_test(opening_leaves_no_thread_behind),
    cmocka_unit_test(hostile_grammars_end_or_are_ended),
};

int main(void)
{
    make_vocabulary();
    if (access(libraries(), X_OK) != 0) {
        printf("1..0 # SKIP no grammar libraries in %s (deploy/fetch-grammars brings them)\n",
               libraries());
        return 0;
    }
    return cmocka_run_group_tests(tests, open_all, close_all);
}
