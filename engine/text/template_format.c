#include "engine/text/template_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

static enum status emit_text(struct render *r, struct bytes *out, const char *text)
{
    return render_emit(r, out, text, strlen(text));
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* The shortest digits that read back as x, laid out as Python's repr does: an exponent below
 * 1e-4 and from 1e16 on. */
static enum status emit_float(struct render *r, struct bytes *out, double x, bool as_json)
{
    char digits[40], text[64];
    int precision = 0, exponent;

    if (isnan(x))
        return emit_text(r, out, as_json ? "NaN" : "nan");
    if (isinf(x))
        return emit_text(r, out,
                         as_json ? (x < 0 ? "-Infinity" : "Infinity") : (x < 0 ? "-inf" : "inf"));
    do
        snprintf(digits, sizeof digits, "%.*e", precision, x);
    while (strtod(digits, NULL) != x && ++precision <= 17);

    exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16)
        snprintf(text, sizeof text, "%s", digits); /* C and Python agree: 1.5e-05, 1e+16 */
    else
        snprintf(text, sizeof text, "%.*f", MAX(precision - exponent, 1), x);
    return emit_text(r, out, text);
}

static enum status emit_int(struct render *r, struct bytes *out, int64_t n)
{
    char text[24];

    snprintf(text, sizeof text, "%lld", (long long)n);
    return emit_text(r, out, text);
}

/* ---- Python's repr -----------------------------------------------------------------------------
 */

static bool is_printable(int32_t c)
{
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return c == ' ';
    default:
        return true;
    }
}

/* Single quotes, unless the text holds them and no double ones. */
static enum status emit_string_repr(struct render *r, struct bytes *out, struct value s)
{
    bool has_single = memchr(s.text, '\'', s.size), has_double = memchr(s.text, '"', s.size);
    char quote = has_single && !has_double ? '"' : '\'', text[16];

    TRY(render_emit(r, out, &quote, 1));
    for (size_t at = 0, n; at < s.size; at += n) {
        int32_t c = text_decode(s.text + at, &n);

        if (c == quote || c == '\\')
            snprintf(text, sizeof text, "\\%c", c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(text, sizeof text, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (is_printable(c))
            snprintf(text, sizeof text, "%.*s", (int)n, s.text + at);
        else
            snprintf(text, sizeof text,
                     c < 0x100     ? "\\x%02x"
                     : c < 0x10000 ? "\\u%04x"
                                   : "\\U%08x",
                     (unsigned)c);
        TRY(emit_text(r, out, text));
    }
    return render_emit(r, out, &quote, 1);
}

static enum status emit_repr(struct render *r, struct bytes *out, struct value v, int32_t depth);

static enum status emit_items(struct render *r, struct bytes *out, const struct list *list,
                              const char *open, const char *close, int32_t depth)
{
    TRY(emit_text(r, out, open));
    for (int64_t i = 0; i < list->count; i++) {
        if (i > 0)
            TRY(emit_text(r, out, ", "));
        TRY(emit_repr(r, out, list->items[i], depth + 1));
    }
    return emit_text(r, out, close);
}

static enum status emit_entries(struct render *r, struct bytes *out, const struct dict *dict,
                                const char *open, const char *close, int32_t depth)
{
    TRY(emit_text(r, out, open));
    for (int64_t i = 0; i < dict->count; i++) {
        if (i > 0)
            TRY(emit_text(r, out, ", "));
        TRY(emit_repr(r, out, dict->entries[i].key, depth + 1));
        TRY(emit_text(r, out, ": "));
        TRY(emit_repr(r, out, dict->entries[i].value, depth + 1));
    }
    return emit_text(r, out, close);
}

static enum status emit_repr(struct render *r, struct bytes *out, struct value v, int32_t depth)
{
    TRY(render_check_depth(r, depth));
    TRY(render_spend(r, 1));
    switch (v.kind) {
    case VALUE_UNDEFINED:
        return emit_text(r, out, "Undefined");
    case VALUE_NONE:
        return emit_text(r, out, "None");
    case VALUE_BOOL:
        return emit_text(r, out, v.boolean ? "True" : "False");
    case VALUE_INT:
        return emit_int(r, out, v.integer);
    case VALUE_FLOAT:
        return emit_float(r, out, v.real, false);
    case VALUE_STRING:
        return emit_string_repr(r, out, v);
    case VALUE_LIST:
        return emit_items(r, out, v.list, "[", "]", depth);
    case VALUE_TUPLE:
        return emit_items(r, out, v.list, "(", v.list->count == 1 ? ",)" : ")", depth);
    case VALUE_KEYS:
        return emit_items(r, out, v.list, "dict_keys([", "])", depth);
    case VALUE_VALUES:
        return emit_items(r, out, v.list, "dict_values([", "])", depth);
    case VALUE_ITEMS:
        return emit_items(r, out, v.list, "dict_items([", "])", depth);
    case VALUE_DICT:
        return emit_entries(r, out, v.dict, "{", "}", depth);
    case VALUE_NAMESPACE:
        return emit_entries(r, out, v.dict, "<Namespace {", "}>", depth);
    default: /* Python prints an address, which nobody can want in a prompt */
        return render_fail(r, "a %s cannot be printed", value_kind_names[v.kind]);
    }
}

enum status value_print(struct render *r, struct value v, struct bytes *out)
{
    if (v.kind == VALUE_STRING)
        return render_emit(r, out, v.text, v.size);
    if (v.kind == VALUE_UNDEFINED)
        return OK;
    return emit_repr(r, out, v, 0);
}

enum status value_repr(struct render *r, struct value v, struct bytes *out)
{
    return emit_repr(r, out, v, 0);
}

enum status value_to_string(struct render *r, struct value v, struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    if (v.kind == VALUE_STRING) {
        *out = v;
        return OK;
    }
    TRY(value_print(r, v, &text));
    *out = string_from_bytes(r, &text);
    return OK;
}

/* ---- JSON as json.dumps writes it --------------------------------------------------------------
 */

struct json_writer {
    struct render *r;
    struct bytes *out;
    const struct json_style *style;
};

static enum status write_value(struct json_writer *w, struct value v, int32_t depth);

static enum status json_text(struct json_writer *w, const char *text)
{
    return emit_text(w->r, w->out, text);
}

static enum status write_string(struct json_writer *w, struct value s)
{
    static const char shorts[] = "\"\"\\\\\bb\ff\nn\rr\tt";

    TRY(json_text(w, "\""));
    for (size_t at = 0, n; at < s.size; at += n) {
        int32_t c = text_decode(s.text + at, &n);
        const char *row = shorts;
        char text[16];

        while (*row && *row != c)
            row += 2;
        if (*row)
            snprintf(text, sizeof text, "\\%c", row[1]);
        else if (c >= 0x10000 && w->style->ensure_ascii)
            snprintf(text, sizeof text, "\\u%04x\\u%04x",
                     (unsigned)(0xd800 + ((c - 0x10000) >> 10)),
                     (unsigned)(0xdc00 + ((c - 0x10000) & 0x3ff)));
        else if (c < 0x20 || (c >= 0x7f && w->style->ensure_ascii))
            snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
        else
            snprintf(text, sizeof text, "%.*s", (int)n, s.text + at);
        TRY(json_text(w, text));
    }
    return json_text(w, "\"");
}

static enum status new_line(struct json_writer *w, int32_t depth)
{
    if (w->style->indent.kind == VALUE_MISSING)
        return OK;
    TRY(json_text(w, "\n"));
    for (int32_t i = 0; i < depth; i++)
        TRY(render_emit(w->r, w->out, w->style->indent.text, w->style->indent.size));
    return OK;
}

static enum status separator(struct json_writer *w, int64_t index, int32_t depth)
{
    if (index > 0)
        TRY(render_emit(w->r, w->out, w->style->item_separator.text,
                        w->style->item_separator.size));
    return new_line(w, depth);
}

static enum status write_array(struct json_writer *w, const struct list *list, int32_t depth)
{
    if (list->count == 0)
        return json_text(w, "[]");
    TRY(json_text(w, "["));
    for (int64_t i = 0; i < list->count; i++) {
        TRY(separator(w, i, depth + 1));
        TRY(write_value(w, list->items[i], depth + 1));
    }
    TRY(new_line(w, depth));
    return json_text(w, "]");
}

static enum status write_key(struct json_writer *w, struct value key, int32_t depth)
{
    if (key.kind == VALUE_STRING)
        return write_string(w, key);
    if (key.kind != VALUE_NONE && !value_is_number(key))
        return render_fail(w->r, "a %s cannot be a key in JSON", value_kind_names[key.kind]);
    TRY(json_text(w, "\""));
    TRY(write_value(w, key, depth));
    return json_text(w, "\"");
}

static enum status sorted_entries(struct render *r, const struct dict *dict,
                                  struct entry **entries_out)
{
    struct value *keys;
    int64_t *order;

    TRY(render_alloc(r, (size_t)dict->count * sizeof *keys, &keys));
    TRY(render_alloc(r, (size_t)dict->count * sizeof **entries_out, entries_out));
    for (int64_t i = 0; i < dict->count; i++)
        keys[i] = dict->entries[i].key;
    TRY(values_sort(r, keys, dict->count, false, &order));
    for (int64_t i = 0; i < dict->count; i++)
        (*entries_out)[i] = dict->entries[order[i]];
    return OK;
}

static enum status write_object(struct json_writer *w, const struct dict *dict, int32_t depth)
{
    struct entry *entries = dict->entries;

    if (dict->count == 0)
        return json_text(w, "{}");
    if (w->style->sort_keys)
        TRY(sorted_entries(w->r, dict, &entries));
    TRY(json_text(w, "{"));
    for (int64_t i = 0; i < dict->count; i++) {
        TRY(separator(w, i, depth + 1));
        TRY(write_key(w, entries[i].key, depth + 1));
        TRY(render_emit(w->r, w->out, w->style->key_separator.text, w->style->key_separator.size));
        TRY(write_value(w, entries[i].value, depth + 1));
    }
    TRY(new_line(w, depth));
    return json_text(w, "}");
}

static enum status write_value(struct json_writer *w, struct value v, int32_t depth)
{
    TRY(render_check_depth(w->r, depth));
    TRY(render_spend(w->r, 1));
    switch (v.kind) {
    case VALUE_NONE:
        return json_text(w, "null");
    case VALUE_BOOL:
        return json_text(w, v.boolean ? "true" : "false");
    case VALUE_INT:
        return emit_int(w->r, w->out, v.integer);
    case VALUE_FLOAT:
        return emit_float(w->r, w->out, v.real, true);
    case VALUE_STRING:
        return write_string(w, v);
    case VALUE_LIST:
    case VALUE_TUPLE:
        return write_array(w, v.list, depth);
    case VALUE_DICT:
        return write_object(w, v.dict, depth);
    default:
        TRY(value_must_be_defined(w->r, v));
        return render_fail(w->r, "a %s has no form in JSON", value_kind_names[v.kind]);
    }
}

enum status value_write_json(struct render *r, struct value v, const struct json_style *style,
                             struct bytes *out)
{
    struct json_writer w = {r, out, style};

    return write_value(&w, v, 0);
}
