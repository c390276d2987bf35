#include "engine/grammar/limits.h"

#include "engine/grammar/schema.h"
#include "engine/text/utf8.h"

#include <string.h>

/* ---- regular expressions, EBNF, Lark --------------------------------------------------------- */

enum syntax { REGEX, EBNF, LARK };

/* A text as it is read, character by character. What stands in a class, a literal or a comment
 * counts for nothing; so a literal's parenthesis is no group. */
struct scan {
    enum syntax syntax;
    const char *text;
    size_t size, at;
    bool in_regex; /* always, or between the slashes of Lark */
    int32_t num_rules, num_intersections;
    int32_t depth;
    /* The largest product of bounds inside each open group; of what was read last. */
    double inside[MAX_GRAMMAR_DEPTH + 1], last;
};

static bool is_at(const struct scan *scan, const char *word)
{
    size_t size = strlen(word);

    return scan->size - scan->at >= size && memcmp(scan->text + scan->at, word, size) == 0;
}

/* Moves behind the next `end` that no backslash precedes, or to the end of the text. */
static void skip_until(struct scan *scan, char end)
{
    for (; scan->at < scan->size && scan->text[scan->at] != end; scan->at++)
        if (scan->text[scan->at] == '\\')
            scan->at++;
    scan->at = MIN(scan->at + 1, scan->size);
}

static void skip_class(struct scan *scan)
{
    scan->at++;
    if (scan->at < scan->size && scan->text[scan->at] == '^')
        scan->at++;
    if (scan->at < scan->size && scan->text[scan->at] == ']' && scan->in_regex)
        scan->at++; /* the first one is a member */
    skip_until(scan, ']');
}

static enum status open_group(struct scan *scan)
{
    if (scan->depth == MAX_GRAMMAR_DEPTH)
        return fail(ERR_FULL, "the grammar nests parentheses more than %d deep, %d are allowed",
                    MAX_GRAMMAR_DEPTH, MAX_GRAMMAR_DEPTH);
    scan->inside[++scan->depth] = 1;
    return OK;
}

static void close_group(struct scan *scan)
{
    scan->last = scan->inside[scan->depth];
    if (scan->depth > 0)
        scan->depth--;
    scan->inside[scan->depth] = MAX(scan->inside[scan->depth], scan->last);
}

static enum status repeat(struct scan *scan, double bound)
{
    if (bound > MAX_GRAMMAR_REPEAT)
        return fail(ERR_FULL, "the grammar repeats something %.12g times, %d are allowed", bound,
                    MAX_GRAMMAR_REPEAT);
    scan->last *= MAX(bound, 1);
    if (scan->last > MAX_GRAMMAR_REPEATS)
        return fail(ERR_FULL,
                    "the grammar's repetitions inside one another make %.12g, %d are allowed",
                    scan->last, MAX_GRAMMAR_REPEATS);
    return OK;
}

/* The largest number of digits, commas, dots and blanks; *end: where they end. */
static double read_bounds(const struct scan *scan, size_t from, size_t *end)
{
    double largest = -1, number = -1;
    size_t i;

    for (i = from; i < scan->size && strchr("0123456789,. ", scan->text[i]) && scan->text[i]; i++) {
        bool is_digit = scan->text[i] >= '0' && scan->text[i] <= '9';

        number = is_digit ? MIN(MAX(number, 0) * 10 + (scan->text[i] - '0'), 1e12) : -1;
        largest = MAX(largest, number);
    }
    *end = i;
    return largest;
}

/* {m,n} of all; ~m..n of Lark. */
static enum status scan_bounds(struct scan *scan)
{
    bool has_brace = scan->text[scan->at] == '{';
    size_t end;
    double bound = read_bounds(scan, scan->at + 1, &end);

    scan->at++;
    if (bound < 0 || (has_brace && (end == scan->size || scan->text[end] != '}'))) {
        scan->last = 1; /* a brace is a brace */
        return OK;
    }
    scan->at = has_brace ? end + 1 : end;
    TRY(repeat(scan, bound));
    scan->inside[scan->depth] = MAX(scan->inside[scan->depth], scan->last);
    return OK;
}

/* %json { ... } of Lark. */
static enum status scan_schema(struct scan *scan)
{
    json_auto_t *schema = NULL;
    json_error_t error;
    size_t begin = scan->at + strlen("%json");

    scan->at = begin;
    schema = json_loadb(scan->text + begin, scan->size - begin,
                        JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, &error);
    if (!schema)
        return OK; /* the library says what is wrong with it */
    scan->at = MIN(begin + (size_t)error.position, scan->size);
    return limits_check_schema(schema);
}

static enum status scan_one(struct scan *scan)
{
    char c = scan->text[scan->at];

    if (c == '{' || (c == '~' && scan->syntax == LARK && !scan->in_regex))
        return scan_bounds(scan);
    if (c == '(') {
        scan->at++;
        return open_group(scan);
    }
    if (c == ')') {
        scan->at++;
        close_group(scan);
        return OK;
    }
    if (c == '/' && scan->syntax == LARK &&
        (scan->in_regex || !is_at(scan, "//"))) { /* a regex is a group too */
        scan->at++;
        scan->in_regex = !scan->in_regex;
        if (scan->in_regex)
            return open_group(scan);
        close_group(scan);
        return OK;
    }
    if (strchr("*+? \t", c)) { /* between a thing and its bounds */
        scan->at++;
        return OK;
    }
    scan->last = 1;
    if (c == '\\') {
        scan->at = MIN(scan->at + 2, scan->size);
    } else if (c == '[' && (scan->in_regex || scan->syntax == EBNF)) {
        skip_class(scan);
    } else if (scan->in_regex) {
        scan->at++;
    } else if (c == '"') {
        scan->at++;
        skip_until(scan, '"');
    } else if ((c == '#' && scan->syntax == EBNF) || (scan->syntax == LARK && is_at(scan, "//"))) {
        while (scan->at < scan->size && scan->text[scan->at] != '\n')
            scan->at++;
    } else if (scan->syntax == LARK && is_at(scan, "%json")) {
        return scan_schema(scan);
    } else if (scan->syntax == LARK && c == '<') {
        return fail(ERR_INVALID,
                    "the grammar names a special token at byte %zu; grammars are about text",
                    scan->at);
    } else {
        scan->num_rules += scan->syntax == EBNF ? is_at(scan, "::=") : c == ':';
        scan->num_intersections += c == '&';
        scan->at++;
    }
    return OK;
}

static enum status check_text(enum syntax syntax, const char *text, size_t size)
{
    struct scan scan = {.syntax = syntax,
                        .text = text,
                        .size = size,
                        .in_regex = syntax == REGEX,
                        .inside = {1},
                        .last = 1};

    while (scan.at < size) {
        TRY(scan_one(&scan));
        if (scan.num_rules > MAX_GRAMMAR_RULES)
            return fail(ERR_FULL, "the grammar has more than %d rules", MAX_GRAMMAR_RULES);
        if (scan.num_intersections > MAX_GRAMMAR_INTERSECTIONS)
            return fail(ERR_FULL, "the grammar has more than %d intersections (&)",
                        MAX_GRAMMAR_INTERSECTIONS);
    }
    return OK;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* Before it is parsed, so that no parser and no walk meets a deep one. */
static enum status check_depth(const char *text, size_t size)
{
    int32_t depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < size; i++) {
        char c = text[i];

        if (c == '\\' && in_string)
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '{' || c == '['))
            depth++;
        else if (!in_string && (c == '}' || c == ']'))
            depth--;
        if (depth > MAX_GRAMMAR_DEPTH)
            return fail(ERR_FULL, "the JSON nests more than %d deep, %d are allowed",
                        MAX_GRAMMAR_DEPTH, MAX_GRAMMAR_DEPTH);
    }
    return OK;
}

static const struct {
    const char *keyword;
    int32_t max;
} bounds[] = {
    {"minLength", MAX_GRAMMAR_LENGTH},     {"maxLength", MAX_GRAMMAR_LENGTH},
    {"minItems", MAX_GRAMMAR_REPEAT},      {"maxItems", MAX_GRAMMAR_REPEAT},
    {"minContains", MAX_GRAMMAR_REPEAT},   {"maxContains", MAX_GRAMMAR_REPEAT},
    {"minProperties", MAX_GRAMMAR_REPEAT}, {"maxProperties", MAX_GRAMMAR_REPEAT},
    {"multipleOf", MAX_GRAMMAR_MULTIPLE},
};

static const struct {
    const char *keyword;
    int32_t max; /* of members */
} counts[] = {
    {"properties", MAX_GRAMMAR_PROPERTIES},
    {"patternProperties", MAX_GRAMMAR_PATTERNS},
};

static enum status check_regex_of(json_t *pattern)
{
    return json_is_string(pattern)
               ? check_text(REGEX, json_string_value(pattern), json_string_length(pattern))
               : OK;
}

static enum status check_schema(void *user, const struct schema_place *place)
{
    json_t *patterns = json_object_get(place->schema, "patternProperties"), *ignored;
    const char *pattern;
    char path[SCHEMA_PATH_BYTES];

    (void)user;
    for (size_t i = 0; i < COUNT_OF(bounds); i++) {
        double bound = json_number_value(json_object_get(place->schema, bounds[i].keyword));

        if (bound > bounds[i].max)
            return fail(ERR_FULL, "%s is %.12g at %s, %d are allowed", bounds[i].keyword, bound,
                        schema_path(place, path), bounds[i].max);
    }
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        size_t count = json_object_size(json_object_get(place->schema, counts[i].keyword));

        if (count > (size_t)counts[i].max)
            return fail(ERR_FULL, "there are %zu %s at %s, %d are allowed", count,
                        counts[i].keyword, schema_path(place, path), counts[i].max);
    }
    json_object_foreach (patterns, pattern, ignored)
        TRY(check_text(REGEX, pattern, strlen(pattern)));
    return check_regex_of(json_object_get(place->schema, "pattern"));
}

enum status limits_check_schema(json_t *schema)
{
    return schema_visit(schema, check_schema, NULL);
}

/* Every object inside, for what it may hold of other kinds. Depth is known to be bounded. */
static enum status check_structural_tag(json_t *json)
{
    json_t *grammar = json_object_get(json, "grammar"), *child;
    double most = json_number_value(json_object_get(json, "max"));
    const char *key;
    size_t i;

    if (most > MAX_GRAMMAR_REPEAT)
        return fail(ERR_FULL, "the structural tag repeats something %.12g times, %d are allowed",
                    most, MAX_GRAMMAR_REPEAT);
    TRY(check_regex_of(json_object_get(json, "pattern")));
    if (json_is_string(grammar))
        TRY(check_text(EBNF, json_string_value(grammar), json_string_length(grammar)));
    json_object_foreach (json, key, child) {
        if (strcmp(key, "json_schema") == 0)
            TRY(limits_check_schema(child));
        else
            TRY(check_structural_tag(child));
    }
    json_array_foreach (json, i, child)
        TRY(check_structural_tag(child));
    return OK;
}

/* ---- a spec ---------------------------------------------------------------------------------- */

static enum status check_characters(const char *what, const char *text, size_t size)
{
    struct utf8_fault fault;

    if (size == 0)
        return fail(ERR_INVALID, "the %s is empty", what);
    if (size > MAX_GRAMMAR_BYTES)
        return fail(ERR_FULL, "the %s has %zu bytes, %d are allowed", what, size,
                    MAX_GRAMMAR_BYTES);
    if (!utf8_is_valid(text, size, &fault))
        return fail(ERR_INVALID, "the %s is no UTF-8: byte 0x%02x at line %d, column %d", what,
                    fault.byte, fault.line, fault.column);
    if (memchr(text, 0, size))
        return fail(ERR_INVALID, "the %s holds a NUL", what);
    return OK;
}

static enum status load(const char *what, const struct grammar_spec *spec, json_t **out)
{
    TRY(check_depth(spec->text, spec->size));
    return schema_load(what, spec->text, spec->size, out);
}

static enum status check_choice(json_t *choice)
{
    json_t *item;
    size_t i;

    if (!json_is_array(choice) || json_array_size(choice) == 0)
        return fail(ERR_INVALID, "a choice is a list of strings, and has one at least");
    json_array_foreach (choice, i, item) {
        if (!json_is_string(item))
            return fail(ERR_INVALID, "item %zu of the choice is no string", i);
        if (json_string_length(item) == 0)
            return fail(ERR_INVALID, "item %zu of the choice is empty", i);
        if (strlen(json_string_value(item)) != json_string_length(item))
            return fail(ERR_INVALID, "item %zu of the choice holds a NUL", i);
    }
    return OK;
}

static enum status check_kind(const struct grammar_spec *spec, json_t **json)
{
    switch (spec->kind) {
    case GRAMMAR_JSON_SCHEMA:
        TRY(load("schema", spec, json));
        if (!json_is_object(*json) && !json_is_boolean(*json))
            return fail(ERR_INVALID, "a schema is an object or a boolean");
        return limits_check_schema(*json);
    case GRAMMAR_CHOICE:
        TRY(load("choice", spec, json));
        return check_choice(*json);
    case GRAMMAR_STRUCTURAL_TAG:
        TRY(load("structural tag", spec, json));
        if (!json_is_object(*json))
            return fail(ERR_INVALID, "a structural tag is an object");
        return check_structural_tag(*json);
    case GRAMMAR_REGEX:
        return check_text(REGEX, spec->text, spec->size);
    case GRAMMAR_EBNF:
        return check_text(EBNF, spec->text, spec->size);
    case GRAMMAR_LARK:
        return check_text(LARK, spec->text, spec->size);
    case GRAMMAR_JSON_OBJECT:
    case NUM_GRAMMAR_KINDS:
        break;
    }
    return OK;
}

enum status limits_check(const struct grammar_spec *spec, json_t **json_out)
{
    json_auto_t *json = NULL;
    const char *whitespace = spec->whitespace_pattern;

    *json_out = NULL;
    if (spec->kind != GRAMMAR_JSON_OBJECT)
        TRY(check_characters("grammar", spec->text, spec->size));
    if (whitespace) {
        TRY(check_characters("whitespace pattern", whitespace, strlen(whitespace)));
        TRY(check_text(REGEX, whitespace, strlen(whitespace)));
    }
    TRY(check_kind(spec, &json));
    *json_out = json;
    json = NULL;
    return OK;
}
