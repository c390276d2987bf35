/* The filters behind "|". */
#include "engine/text/template_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#define FILTER(function)                                                                           \
    static enum status function(struct render *r, struct value v, const struct arguments *args,    \
                                struct value *out)

/* ---- text: what is not a string is printed first ------------------------------------------------
 */

FILTER(filter_string)
{
    (void)args;
    return value_to_string(r, v, out);
}

FILTER(filter_upper)
{
    (void)args;
    TRY(value_to_string(r, v, &v));
    return string_upper(r, v, out);
}

FILTER(filter_lower)
{
    (void)args;
    TRY(value_to_string(r, v, &v));
    return string_lower(r, v, out);
}

FILTER(filter_capitalize)
{
    (void)args;
    TRY(value_to_string(r, v, &v));
    return string_capitalize(r, v, out);
}

/* Words begin behind space and one of -({[<; unlike str.title, not behind an apostrophe. */
FILTER(filter_title)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    bool begins = true;

    (void)args;
    TRY(value_to_string(r, v, &v));
    for (size_t at = 0, n; at < v.size; at += n) {
        int32_t c = text_decode(v.text + at, &n);
        char utf8[4];
        size_t size = text_encode(begins ? text_upper(c) : utf8proc_tolower(c), utf8);

        begins = text_is_space(c) || (c < 0x80 && c != 0 && strchr("-({[<", c));
        TRY(render_emit(r, &text, utf8, size));
    }
    *out = string_from_bytes(r, &text);
    return OK;
}

FILTER(filter_trim)
{
    struct value set = args->bound[0];
    bool has_set = set.kind != VALUE_MISSING && set.kind != VALUE_NONE;

    TRY(value_to_string(r, v, &v));
    if (has_set)
        TRY(argument_string(r, args, 0, NULL, &set));
    TRY(render_spend_bytes(r, v.size * (uint64_t)(has_set ? 1 + set.size / 16 : 1)));
    *out = string_strip(v, has_set ? &set : NULL, true, true);
    return OK;
}

FILTER(filter_replace)
{
    struct value old, with;
    int64_t count;

    if (args->bound[1].kind == VALUE_MISSING)
        return render_fail(r, "replace needs two arguments");
    TRY(value_to_string(r, v, &v));
    TRY(value_to_string(r, args->bound[0], &old));
    TRY(value_to_string(r, args->bound[1], &with));
    TRY(argument_int(r, args, 2, -1, &count));
    return string_replace(r, v, old, with, count, out);
}

FILTER(filter_format)
{
    if (args->num_keywords > 0)
        return render_fail(r, "format with keywords is not supported");
    TRY(value_to_string(r, v, &v));
    return string_percent(r, v, args->values, args->count, out);
}

static enum status indentation(struct render *r, struct value width, int64_t fallback,
                               struct value *out)
{
    if (width.kind == VALUE_STRING) {
        *out = width;
        return OK;
    }
    if (width.kind != VALUE_MISSING && width.kind != VALUE_INT && width.kind != VALUE_BOOL)
        return render_fail(r, "an indentation of type %s", value_kind_names[width.kind]);
    return value_arithmetic(
        r, OP_MUL, value_string(" ", 1),
        value_int(width.kind == VALUE_MISSING ? fallback : value_integer(width)), out);
}

FILTER(filter_indent)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    bool first = argument_flag(args, 1), blank = argument_flag(args, 2);
    struct value indent;
    struct list *lines;

    TRY(value_must_be_defined(r, v));
    if (v.kind != VALUE_STRING)
        return render_fail(r, "indent wants str, not %s", value_kind_names[v.kind]);
    TRY(indentation(r, args->bound[0], 4, &indent));
    TRY(value_arithmetic(r, OP_ADD, v, value_string("\n", 1), &v)); /* a last line is one too */
    TRY(string_lines(r, v, &lines));
    for (int64_t i = 0; i < lines->count; i++) {
        struct value line = lines->items[i];

        if (i > 0)
            TRY(render_emit(r, &text, "\n", 1));
        if (i == 0 ? first : blank || line.size > 0)
            TRY(render_emit(r, &text, indent.text, indent.size));
        TRY(render_emit(r, &text, line.text, line.size));
    }
    *out = string_from_bytes(r, &text);
    return OK;
}

/* As transformers has it: json.dumps, nothing escaped for HTML. */
FILTER(filter_tojson)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    struct json_style style = {
        .ensure_ascii = argument_flag(args, 0),
        .sort_keys = argument_flag(args, 3),
        .item_separator = value_string(", ", 2),
        .key_separator = value_string(": ", 2),
    };
    struct value indent = args->bound[1], separators = args->bound[2];

    if (indent.kind != VALUE_MISSING && indent.kind != VALUE_NONE) {
        TRY(indentation(r, indent, 0, &style.indent));
        style.item_separator = value_string(",", 1);
    }
    if (separators.kind != VALUE_MISSING && separators.kind != VALUE_NONE) {
        struct list *pair;

        TRY(value_items(r, separators, &pair));
        if (pair->count != 2 || pair->items[0].kind != VALUE_STRING ||
            pair->items[1].kind != VALUE_STRING)
            return render_fail(r, "separators must be two strings");
        style.item_separator = pair->items[0];
        style.key_separator = pair->items[1];
    }
    TRY(value_write_json(r, v, &style, &text));
    *out = string_from_bytes(r, &text);
    return OK;
}

/* ---- numbers
 * --------------------------------------------------------------------------------------- */

/* The text of a number for strtod: stripped, single underscores between digits taken out. */
static bool plain_number(struct value s, char *out, size_t room)
{
    size_t n = 0;

    s = string_strip(s, NULL, true, true);
    for (uint32_t i = 0; i < s.size; i++) {
        char c = s.text[i];
        bool between = i > 0 && i + 1 < s.size && strchr("0123456789abcdefABCDEF", s.text[i - 1]) &&
                       s.text[i + 1] && strchr("0123456789abcdefABCDEF", s.text[i + 1]);

        if (c == '_' && between)
            continue;
        if (c == '_' || c == '\0' || n + 1 == room)
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return n > 0;
}

static bool parse_float(struct value s, double *out)
{
    char text[400], *end;

    if (!plain_number(s, text, sizeof text) || strpbrk(text, "xXpP(")) /* C has more than Python */
        return false;
    *out = strtod(text, &end);
    return *end == '\0';
}

/* Python's int(str, base); false also where it does not fit into 64 bits. */
static bool parse_int(struct value s, int base, int64_t *out)
{
    char text[80], *digits = text, *end;
    unsigned long long n;
    bool negative;

    if (!plain_number(s, text, sizeof text))
        return false;
    negative = *digits == '-';
    digits += *digits == '-' || *digits == '+';
    if (digits[0] == '0' && digits[1] &&
        ((base == 16 && (digits[1] | 0x20) == 'x') || (base == 8 && (digits[1] | 0x20) == 'o') ||
         (base == 2 && (digits[1] | 0x20) == 'b')))
        digits += 2;
    if (strspn(digits, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") !=
            strlen(digits) ||
        !*digits)
        return false;
    n = strtoull(digits, &end, base);
    if (*end || n > INT64_MAX)
        return false;
    *out = negative ? -(int64_t)n : (int64_t)n;
    return true;
}

FILTER(filter_int)
{
    struct value fallback = args->bound[0].kind == VALUE_MISSING ? value_int(0) : args->bound[0];
    int64_t base, n;
    double x;

    TRY(value_must_be_defined(r, v));
    TRY(argument_int(r, args, 1, 10, &base));
    if (base < 2 || base > 36)
        return render_fail(r, "int with base %lld", (long long)base);
    *out = fallback;
    if (v.kind == VALUE_INT || v.kind == VALUE_BOOL) {
        *out = value_int(value_integer(v));
        return OK;
    }
    if (v.kind == VALUE_STRING && parse_int(v, (int)base, &n)) {
        *out = value_int(n);
        return OK;
    }
    if (v.kind != VALUE_FLOAT && !(v.kind == VALUE_STRING && parse_float(v, &x)))
        return OK;
    if (v.kind == VALUE_FLOAT)
        x = v.real;
    if (!isfinite(x))
        return OK;
    if (fabs(x) >= 0x1p63)
        return render_fail(r, "%g does not fit into 64 bits", x);
    *out = value_int((int64_t)x);
    return OK;
}

FILTER(filter_float)
{
    double x;

    TRY(value_must_be_defined(r, v));
    *out = args->bound[0].kind == VALUE_MISSING ? value_float(0) : args->bound[0];
    if (value_is_number(v))
        *out = value_float(value_real(v));
    else if (v.kind == VALUE_STRING && parse_float(v, &x))
        *out = value_float(x);
    return OK;
}

FILTER(filter_abs)
{
    (void)args;
    TRY(value_must_be_defined(r, v));
    if (!value_is_number(v))
        return render_fail(r, "abs of %s", value_kind_names[v.kind]);
    if (v.kind == VALUE_FLOAT)
        *out = value_float(fabs(v.real));
    else if (value_integer(v) < 0)
        return value_negate(r, v, out);
    else
        *out = value_int(value_integer(v));
    return OK;
}

/* To `digits` places; the decimal digits of a double are exact, so printing rounds as Python. */
static double round_half_even(double x, int64_t digits)
{
    char text[400];
    double scale;

    if (!isfinite(x) || digits > 30)
        return x;
    if (digits < 0) {
        scale = pow(10, (double)-digits);
        return rint(x / scale) * scale;
    }
    snprintf(text, sizeof text, "%.*f", (int)digits, x);
    return strtod(text, NULL);
}

FILTER(filter_round)
{
    struct value method;
    int64_t digits;
    double scale;

    TRY(value_must_be_defined(r, v));
    TRY(argument_int(r, args, 0, 0, &digits));
    TRY(argument_string(r, args, 1, "common", &method));
    if (!value_is_number(v))
        return render_fail(r, "round of %s", value_kind_names[v.kind]);
    if (digits < -300 || digits > 300)
        return render_fail(r, "round to %lld digits", (long long)digits);
    if (value_is_text(method, "common")) {
        if (v.kind == VALUE_FLOAT)
            *out = value_float(round_half_even(v.real, digits));
        else if (digits >= 0)
            *out = value_int(value_integer(v));
        else
            *out = value_int((int64_t)round_half_even(value_real(v), digits));
        return OK;
    }
    scale = pow(10, (double)digits);
    if (value_is_text(method, "ceil"))
        *out = value_float((ceil(value_real(v) * scale) + 0.0) / scale); /* no -0.0 */
    else if (value_is_text(method, "floor"))
        *out = value_float((floor(value_real(v) * scale) + 0.0) / scale);
    else
        return render_fail(r, "round wants common, ceil or floor, not \"%.*s\"",
                           (int)MIN(method.size, 100u), method.text);
    return OK;
}

/* ---- what a filter looks at in an item
 * ---------------------------------------------------------------- */

static bool is_all_digits(struct value s)
{
    for (uint32_t i = 0; i < s.size; i++)
        if (s.text[i] < '0' || s.text[i] > '9')
            return false;
    return s.size > 0;
}

/* One step of "a.b.0"; `fallback` (unless MISSING) where there is nothing. */
static enum status key_step(struct render *r, struct value key, struct value fallback,
                            struct value *item)
{
    TRY(value_item(r, *item, key, item));
    if (item->kind == VALUE_UNDEFINED && fallback.kind != VALUE_MISSING)
        *item = fallback;
    return OK;
}

/* "a.b.0" of an item; with no attribute the item itself. */
static enum status item_key(struct render *r, struct value item, struct value attribute,
                            struct value fallback, struct value *out)
{
    *out = item;
    if (attribute.kind == VALUE_INT)
        return key_step(r, attribute, fallback, out);
    if (attribute.kind == VALUE_STRING) {
        const char *p = attribute.text, *end = p + attribute.size;

        for (bool more = true; more;) {
            const char *dot = memchr(p, '.', (size_t)(end - p));
            struct value part = value_string(p, (size_t)((dot ? dot : end) - p));
            int64_t index;

            more = dot != NULL;
            p = dot ? dot + 1 : end;
            if (is_all_digits(part) && parse_int(part, 10, &index))
                part = value_int(index);
            TRY(key_step(r, part, fallback, out));
        }
    }
    return OK;
}

/* Strings lose their case if asked. */
static enum status keys_of(struct render *r, const struct list *items, struct value attribute,
                           bool fold_case, struct value **keys_out)
{
    TRY(render_alloc(r, (size_t)items->count * sizeof **keys_out, keys_out));
    for (int64_t i = 0; i < items->count; i++) {
        struct value *key = &(*keys_out)[i];

        TRY(item_key(r, items->items[i], attribute, (struct value){0}, key));
        if (fold_case && key->kind == VALUE_STRING)
            TRY(string_lower(r, *key, key));
    }
    return OK;
}

/* ---- sequences
 * ------------------------------------------------------------------------------------------ */

FILTER(filter_length)
{
    int64_t n;

    (void)args;
    TRY(value_length(r, v, &n));
    *out = value_int(n);
    return OK;
}

FILTER(filter_list)
{
    struct list *list;

    (void)args;
    TRY(value_items(r, v, &list));
    *out = value_list(VALUE_LIST, list);
    return OK;
}

FILTER(filter_first)
{
    struct list *list;

    (void)args;
    TRY(value_items(r, v, &list));
    *out = list->count ? list->items[0] : value_undefined("first", 5);
    return OK;
}

FILTER(filter_last)
{
    struct list *list;

    (void)args;
    if (v.kind == VALUE_ITERATOR)
        return render_fail(r, "a generator has no last item; |list makes a list of it");
    TRY(value_items(r, v, &list));
    *out = list->count ? list->items[list->count - 1] : value_undefined("last", 4);
    return OK;
}

FILTER(filter_reverse)
{
    struct list *list, *reversed;

    (void)args;
    if (v.kind == VALUE_STRING)
        return value_slice(r, v, (struct value){0}, (struct value){0}, value_int(-1), out);
    TRY(value_items(r, v, &list));
    TRY(list_new(r, list->count, &reversed));
    for (int64_t i = list->count; i > 0; i--)
        reversed->items[reversed->count++] = list->items[i - 1];
    return iterator_new(r, reversed, out);
}

FILTER(filter_join)
{
    struct value separator, attribute = args->bound[1];
    struct list *list, *picked;
    struct value *keys;

    TRY(value_items(r, v, &list));
    if (args->bound[0].kind == VALUE_MISSING)
        separator = value_string("", 0);
    else
        TRY(value_to_string(r, args->bound[0], &separator));
    TRY(keys_of(r, list, attribute, false, &keys));
    TRY(list_new(r, 0, &picked));
    picked->items = keys;
    picked->count = list->count;
    return string_join(r, separator, picked, false, out);
}

FILTER(filter_items)
{
    struct list *pairs;

    (void)args;
    if (v.kind == VALUE_UNDEFINED) {
        TRY(list_new(r, 0, &pairs));
        return iterator_new(r, pairs, out);
    }
    if (v.kind != VALUE_DICT)
        return render_fail(r, "items of %s, which is no dict", value_kind_names[v.kind]);
    TRY(builtin_call(r, method_find(VALUE_DICT, value_string("items", 5)), v,
                     &(struct arguments){0}, out));
    return iterator_new(r, out->list, out);
}

FILTER(filter_unique)
{
    struct list *list, *kept;
    struct value *keys;
    int64_t num_keys = 0;

    TRY(value_items(r, v, &list));
    TRY(keys_of(r, list, args->bound[1], !argument_flag(args, 0), &keys));
    TRY(list_new(r, 0, &kept));
    for (int64_t i = 0; i < list->count; i++) {
        bool seen = false;

        for (int64_t k = 0; !seen && k < num_keys; k++)
            TRY(value_equal(r, keys[k], keys[i], &seen));
        if (seen)
            continue;
        keys[num_keys++] = keys[i];
        TRY(list_add(r, kept, list->items[i]));
    }
    return iterator_new(r, kept, out);
}

static enum status sort_by(struct render *r, const struct list *list, const struct value *keys,
                           bool reverse, struct value *out)
{
    struct list *sorted;
    int64_t *order;

    TRY(values_sort(r, keys, list->count, reverse, &order));
    TRY(list_new(r, list->count, &sorted));
    for (; sorted->count < list->count; sorted->count++)
        sorted->items[sorted->count] = list->items[order[sorted->count]];
    *out = value_list(VALUE_LIST, sorted);
    return OK;
}

FILTER(filter_sort)
{
    struct list *list;
    struct value *keys;

    if (args->bound[2].kind == VALUE_STRING && args->bound[2].size &&
        memchr(args->bound[2].text, ',', args->bound[2].size))
        return render_fail(r, "sort by more than one attribute is not supported");
    TRY(value_items(r, v, &list));
    TRY(keys_of(r, list, args->bound[2], !argument_flag(args, 1), &keys));
    return sort_by(r, list, keys, argument_flag(args, 0), out);
}

FILTER(filter_dictsort)
{
    struct value by, pairs;
    struct value *keys;

    TRY(argument_string(r, args, 1, "key", &by));
    if (!value_is_text(by, "key") && !value_is_text(by, "value"))
        return render_fail(r, "dictsort by key or value, not \"%.*s\"", (int)MIN(by.size, 100u),
                           by.text);
    if (v.kind != VALUE_DICT)
        return render_fail(r, "dictsort of %s, which is no dict", value_kind_names[v.kind]);
    TRY(builtin_call(r, method_find(VALUE_DICT, value_string("items", 5)), v,
                     &(struct arguments){0}, &pairs));
    TRY(keys_of(r, pairs.list, value_int(value_is_text(by, "value")), !argument_flag(args, 0),
                &keys));
    return sort_by(r, pairs.list, keys, argument_flag(args, 2), out);
}

static enum status extreme(struct render *r, struct value v, const struct arguments *args,
                           int wanted, struct value *out)
{
    struct list *list;
    struct value *keys;
    int64_t best = 0;

    TRY(value_items(r, v, &list));
    TRY(keys_of(r, list, args->bound[1], !argument_flag(args, 0), &keys));
    for (int64_t i = 1; i < list->count; i++) {
        int order;

        TRY(value_compare(r, keys[i], keys[best], &order));
        if (order == wanted)
            best = i;
    }
    *out = list->count ? list->items[best] : value_undefined("item", 4);
    return OK;
}

FILTER(filter_min)
{
    return extreme(r, v, args, -1, out);
}

FILTER(filter_max)
{
    return extreme(r, v, args, 1, out);
}

FILTER(filter_sum)
{
    struct list *list;
    struct value *keys;

    TRY(value_items(r, v, &list));
    TRY(keys_of(r, list, args->bound[0], false, &keys));
    *out = args->bound[1].kind == VALUE_MISSING ? value_int(0) : args->bound[1];
    if (out->kind == VALUE_STRING)
        return render_fail(r, "sum cannot join strings; |join does");
    for (int64_t i = 0; i < list->count; i++)
        TRY(value_arithmetic(r, OP_ADD, *out, keys[i], out));
    return OK;
}

/* ---- filters over filters
 * ----------------------------------------------------------------------------------- */

static bool take_keyword(const struct arguments *args, const char *name, struct value *out)
{
    for (int32_t i = 0; i < args->num_keywords; i++)
        if (value_is_text(args->keywords[i].name, name)) {
            *out = args->keywords[i].value;
            return true;
        }
    return false;
}

/* The builtin named by argument `index`, and the arguments behind it. */
static enum status inner_builtin(struct render *r, const struct arguments *args, int32_t index,
                                 const char *what, const struct builtin *(*find)(struct value name),
                                 const struct builtin **builtin_out, struct arguments *rest_out)
{
    struct value name = args->values[index];

    if (name.kind != VALUE_STRING)
        return render_fail(r, "the name of a %s must be str, not %s", what,
                           value_kind_names[name.kind]);
    *builtin_out = find(name);
    if (!*builtin_out)
        return fail(ERR_UNSUPPORTED, "template line %d: the %s \"%.*s\" is not supported", r->line,
                    what, (int)MIN(name.size, 100u), name.text);
    *rest_out = (struct arguments){.values = args->values + index + 1,
                                   .count = args->count - index - 1,
                                   .keywords = args->keywords,
                                   .num_keywords = args->num_keywords};
    return OK;
}

/* The items of what is true: none, false and 0 have none here, and are no mistake. */
static enum status items_if_true(struct render *r, struct value v, struct list **out)
{
    return value_is_true(v) ? value_items(r, v, out) : list_new(r, 0, out);
}

/* map('upper', …) or map(attribute='a.b', default=x) */
FILTER(filter_map)
{
    struct value attribute, fallback = {0};
    const struct builtin *inner = NULL;
    struct arguments rest;
    struct list *list, *mapped;

    if (args->count > 0)
        TRY(inner_builtin(r, args, 0, "filter", filter_find, &inner, &rest));
    else if (!take_keyword(args, "attribute", &attribute))
        return render_fail(r, "map needs a filter or attribute=");
    if (take_keyword(args, "default", &fallback) && fallback.kind == VALUE_NONE)
        fallback.kind = VALUE_MISSING;
    TRY(items_if_true(r, v, &list));
    TRY(list_new(r, list->count, &mapped));
    for (int64_t i = 0; i < list->count; i++, mapped->count++) {
        struct value *item = &mapped->items[i];

        if (inner)
            TRY(builtin_call(r, inner, list->items[i], &rest, item));
        else
            TRY(item_key(r, list->items[i], attribute, fallback, item));
    }
    return iterator_new(r, mapped, out);
}

/* The items whose attribute (or they themselves, if index is 0) pass the test, or fail it. */
static enum status pick(struct render *r, struct value v, const struct arguments *args,
                        int32_t index, bool wanted, struct value *out)
{
    const struct builtin *test = NULL;
    struct list *list, *picked;
    struct arguments rest;

    if (args->count < index)
        return render_fail(r, "the name of an attribute is missing");
    if (args->count > index)
        TRY(inner_builtin(r, args, index, "test", test_find, &test, &rest));
    TRY(items_if_true(r, v, &list));
    TRY(list_new(r, 0, &picked));
    for (int64_t i = 0; i < list->count; i++) {
        struct value key;

        TRY(item_key(r, list->items[i], index ? args->values[0] : (struct value){0},
                     (struct value){0}, &key));
        if (test)
            TRY(builtin_call(r, test, key, &rest, &key));
        if (value_is_true(key) == wanted)
            TRY(list_add(r, picked, list->items[i]));
    }
    return iterator_new(r, picked, out);
}

FILTER(filter_select)
{
    return pick(r, v, args, 0, true, out);
}

FILTER(filter_reject)
{
    return pick(r, v, args, 0, false, out);
}

FILTER(filter_selectattr)
{
    return pick(r, v, args, 1, true, out);
}

FILTER(filter_rejectattr)
{
    return pick(r, v, args, 1, false, out);
}

FILTER(filter_default)
{
    (void)r;
    *out = v;
    if (v.kind == VALUE_UNDEFINED || (argument_flag(args, 1) && !value_is_true(v)))
        *out = args->bound[0].kind == VALUE_MISSING ? value_string("", 0) : args->bound[0];
    return OK;
}

static const struct builtin filters[] = {
    {"abs", filter_abs, ""},
    {"capitalize", filter_capitalize, ""},
    {"count", filter_length, ""},
    {"d", filter_default, "default_value boolean"},
    {"default", filter_default, "default_value boolean"},
    {"dictsort", filter_dictsort, "case_sensitive by reverse"},
    {"first", filter_first, ""},
    {"float", filter_float, "default"},
    {"format", filter_format, NULL},
    {"indent", filter_indent, "width first blank"},
    {"int", filter_int, "default base"},
    {"items", filter_items, ""},
    {"join", filter_join, "d attribute"},
    {"last", filter_last, ""},
    {"length", filter_length, ""},
    {"list", filter_list, ""},
    {"lower", filter_lower, ""},
    {"map", filter_map, NULL},
    {"max", filter_max, "case_sensitive attribute"},
    {"min", filter_min, "case_sensitive attribute"},
    {"reject", filter_reject, NULL},
    {"rejectattr", filter_rejectattr, NULL},
    {"replace", filter_replace, "old new count"},
    {"reverse", filter_reverse, ""},
    {"round", filter_round, "precision method"},
    {"safe", filter_string, ""}, /* nothing is escaped, so nothing is unsafe */
    {"select", filter_select, NULL},
    {"selectattr", filter_selectattr, NULL},
    {"sort", filter_sort, "reverse case_sensitive attribute"},
    {"string", filter_string, ""},
    {"sum", filter_sum, "attribute start"},
    {"title", filter_title, ""},
    {"tojson", filter_tojson, "ensure_ascii indent separators sort_keys"},
    {"trim", filter_trim, "chars"},
    {"unique", filter_unique, "case_sensitive attribute"},
    {"upper", filter_upper, ""},
};

const struct builtin *filter_find(struct value name)
{
    return builtin_find(filters, COUNT_OF(filters), name);
}
