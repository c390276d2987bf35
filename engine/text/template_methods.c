/* Methods of strings, dicts, lists and loops, and the functions that a template starts with. */
#include "engine/text/template_internal.h"

#include <string.h>
#include <time.h>
#include <utf8proc.h>

#define BUILTIN(function)                                                                          \
    static enum status function(struct render *r, struct value self, const struct arguments *args, \
                                struct value *out)

/* ---- strings -----------------------------------------------------------------------------------
 */

static enum status strip(struct render *r, struct value self, const struct arguments *args,
                         bool left, bool right, struct value *out)
{
    struct value set;
    bool has_set = args->bound[0].kind != VALUE_MISSING && args->bound[0].kind != VALUE_NONE;

    if (has_set)
        TRY(argument_string(r, args, 0, NULL, &set));
    TRY(render_spend_bytes(r, self.size * (uint64_t)(has_set ? 1 + set.size / 16 : 1)));
    *out = string_strip(self, has_set ? &set : NULL, left, right);
    return OK;
}

BUILTIN(str_strip)
{
    return strip(r, self, args, true, true, out);
}

BUILTIN(str_lstrip)
{
    return strip(r, self, args, true, false, out);
}

BUILTIN(str_rstrip)
{
    return strip(r, self, args, false, true, out);
}

static enum status split_at_space(struct render *r, struct value s, int64_t max, struct list *list)
{
    s = string_strip(s, NULL, true, false);
    while (s.size > 0) {
        size_t end = 0, n;

        if (max-- == 0)
            return list_add(r, list, s); /* with the space behind it, as in Python */
        for (; end < s.size && !text_is_space(text_decode(s.text + end, &n)); end += n)
            ;
        TRY(list_add(r, list, value_string(s.text, end)));
        s = string_strip(value_string(s.text + end, s.size - end), NULL, true, false);
    }
    return OK;
}

BUILTIN(str_split)
{
    struct value s = self, separator;
    struct list *list;
    int64_t max;

    TRY(argument_int(r, args, 1, -1, &max));
    TRY(render_spend_bytes(r, s.size));
    TRY(list_new(r, 0, &list));
    *out = value_list(VALUE_LIST, list);
    if (args->bound[0].kind == VALUE_MISSING || args->bound[0].kind == VALUE_NONE)
        return split_at_space(r, s, max, list);
    TRY(argument_string(r, args, 0, NULL, &separator));
    if (separator.size == 0)
        return render_fail(r, "split by an empty separator");
    for (; max != 0; max--) {
        const char *found = memmem(s.text, s.size, separator.text, separator.size);

        if (!found)
            break;
        size_t n = (size_t)(found - s.text);

        TRY(list_add(r, list, value_string(s.text, n)));
        s = value_string(found + separator.size, s.size - n - separator.size);
    }
    return list_add(r, list, s);
}

/* The last part first, as the next. */
static enum status rsplit_at_space(struct render *r, struct value s, int64_t max,
                                   struct list *parts)
{
    s = string_strip(s, NULL, false, true);
    while (s.size > 0) {
        size_t start = s.size, n;

        if (max-- == 0)
            return list_add(r, parts, s);
        for (size_t at = start; at > 0; start = at) {
            at = text_before(s.text, at);
            if (text_is_space(text_decode(s.text + at, &n)))
                break;
        }
        TRY(list_add(r, parts, value_string(s.text + start, s.size - start)));
        s = string_strip(value_string(s.text, start), NULL, false, true);
    }
    return OK;
}

static enum status rsplit_at(struct render *r, struct value s, struct value separator, int64_t max,
                             struct list *parts)
{
    if (separator.size == 0)
        return render_fail(r, "split by an empty separator");
    for (size_t at = s.size; max > 0 && at >= separator.size; at--) {
        TRY(render_spend(r, 1));
        if (memcmp(s.text + at - separator.size, separator.text, separator.size) != 0)
            continue;
        TRY(list_add(r, parts, value_string(s.text + at, s.size - at)));
        s.size = (uint32_t)(at - separator.size);
        at = s.size + 1;
        max--;
    }
    return list_add(r, parts, s);
}

/* From the right; Python keeps the order of the parts. */
BUILTIN(str_rsplit)
{
    struct list *parts, *list;
    struct value separator;
    int64_t max;

    TRY(argument_int(r, args, 1, -1, &max));
    if (max < 0)
        return str_split(r, self, args, out);
    TRY(render_spend_bytes(r, self.size));
    TRY(list_new(r, 0, &parts));
    if (args->bound[0].kind == VALUE_MISSING || args->bound[0].kind == VALUE_NONE) {
        TRY(rsplit_at_space(r, self, max, parts));
    } else {
        TRY(argument_string(r, args, 0, NULL, &separator));
        TRY(rsplit_at(r, self, separator, max, parts));
    }
    TRY(list_new(r, parts->count, &list));
    for (int64_t i = parts->count; i > 0; i--)
        list->items[list->count++] = parts->items[i - 1];
    *out = value_list(VALUE_LIST, list);
    return OK;
}

BUILTIN(str_splitlines)
{
    struct list *lines;

    (void)args;
    TRY(string_lines(r, self, &lines));
    *out = value_list(VALUE_LIST, lines);
    return OK;
}

static bool has_affix(struct value s, struct value affix, bool at_end)
{
    return affix.size <= s.size &&
           memcmp(s.text + (at_end ? s.size - affix.size : 0), affix.text, affix.size) == 0;
}

/* The argument is a string, or a tuple of strings of which one must fit. */
static enum status test_affix(struct render *r, struct value self, const struct arguments *args,
                              bool at_end, struct value *out)
{
    struct value affix = args->bound[0];

    *out = value_bool(false);
    if (affix.kind != VALUE_TUPLE) {
        TRY(argument_string(r, args, 0, NULL, &affix));
        *out = value_bool(has_affix(self, affix, at_end));
        return OK;
    }
    for (int64_t i = 0; i < affix.list->count; i++) {
        struct value one = affix.list->items[i];

        if (one.kind != VALUE_STRING)
            return render_fail(r, "argument 1 must be a tuple of str, it has a %s",
                               value_kind_names[one.kind]);
        out->boolean |= has_affix(self, one, at_end);
    }
    return OK;
}

BUILTIN(str_startswith)
{
    return test_affix(r, self, args, false, out);
}

BUILTIN(str_endswith)
{
    return test_affix(r, self, args, true, out);
}

BUILTIN(str_removeprefix)
{
    struct value affix;

    TRY(argument_string(r, args, 0, NULL, &affix));
    *out = self;
    if (has_affix(self, affix, false))
        *out = value_string(self.text + affix.size, self.size - affix.size);
    return OK;
}

BUILTIN(str_removesuffix)
{
    struct value affix;

    TRY(argument_string(r, args, 0, NULL, &affix));
    *out = self;
    if (has_affix(self, affix, true))
        out->size -= affix.size;
    return OK;
}

BUILTIN(str_replace)
{
    struct value old, with;
    int64_t count;

    TRY(argument_string(r, args, 0, NULL, &old));
    TRY(argument_string(r, args, 1, NULL, &with));
    TRY(argument_int(r, args, 2, -1, &count));
    return string_replace(r, self, old, with, count, out);
}

BUILTIN(str_upper)
{
    (void)args;
    return string_upper(r, self, out);
}

BUILTIN(str_lower)
{
    (void)args;
    return string_lower(r, self, out);
}

BUILTIN(str_capitalize)
{
    (void)args;
    return string_capitalize(r, self, out);
}

static bool is_letter(int32_t c)
{
    utf8proc_category_t category = utf8proc_category(c);

    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

/* A letter behind a letter is small, any other is large. */
BUILTIN(str_title)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    bool inside = false;

    (void)args;
    for (size_t at = 0, n; at < self.size; at += n) {
        int32_t c = text_decode(self.text + at, &n);
        char utf8[4];
        size_t size = text_encode(inside ? utf8proc_tolower(c) : utf8proc_totitle(c), utf8);

        inside = is_letter(c);
        TRY(render_emit(r, &text, utf8, size));
    }
    *out = string_from_bytes(r, &text);
    return OK;
}

BUILTIN(str_format)
{
    return string_format(r, self, args, out);
}

BUILTIN(str_join)
{
    struct list *items;

    TRY(value_items(r, args->bound[0], &items));
    return string_join(r, self, items, true, out);
}

static enum status find(struct render *r, struct value self, const struct arguments *args,
                        bool last, struct value *out)
{
    const char *found = NULL;
    struct value needle;

    TRY(argument_string(r, args, 0, NULL, &needle));
    TRY(render_spend_bytes(r, self.size));
    if (!last) {
        found = memmem(self.text, self.size, needle.text, needle.size);
    } else {
        TRY(render_spend(r, self.size)); /* a compare at each place */
        for (size_t at = self.size + 1; !found && at-- > needle.size;)
            if (memcmp(self.text + at - needle.size, needle.text, needle.size) == 0)
                found = self.text + at - needle.size;
        if (!found && needle.size == 0)
            found = self.text;
    }
    *out = value_int(found ? (int64_t)text_num_chars(self.text, (size_t)(found - self.text)) : -1);
    return OK;
}

BUILTIN(str_find)
{
    return find(r, self, args, false, out);
}

BUILTIN(str_rfind)
{
    return find(r, self, args, true, out);
}

BUILTIN(str_index)
{
    TRY(find(r, self, args, false, out));
    return out->integer < 0 ? render_fail(r, "index: not found") : OK;
}

BUILTIN(str_count)
{
    struct value needle, rest = self;
    int64_t count = 0;

    TRY(argument_string(r, args, 0, NULL, &needle));
    TRY(render_spend_bytes(r, self.size));
    if (needle.size == 0) {
        *out = value_int((int64_t)text_num_chars(self.text, self.size) + 1);
        return OK;
    }
    for (const char *found; (found = memmem(rest.text, rest.size, needle.text, needle.size));
         count++)
        rest = value_string(found + needle.size,
                            (size_t)(self.text + self.size - found) - needle.size);
    *out = value_int(count);
    return OK;
}

static enum status all_chars(struct render *r, struct value s, bool (*test)(int32_t),
                             struct value *out)
{
    bool all = s.size > 0;

    TRY(render_spend_bytes(r, s.size));
    for (size_t at = 0, n; all && at < s.size; at += n)
        all = test(text_decode(s.text + at, &n));
    *out = value_bool(all);
    return OK;
}

static bool is_digit(int32_t c)
{
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

BUILTIN(str_isdigit)
{
    (void)args;
    return all_chars(r, self, is_digit, out);
}

BUILTIN(str_isalpha)
{
    (void)args;
    return all_chars(r, self, is_letter, out);
}

BUILTIN(str_isspace)
{
    (void)args;
    return all_chars(r, self, text_is_space, out);
}

/* ---- dicts, lists, loops
 * --------------------------------------------------------------------------- */

BUILTIN(dict_get)
{
    struct value *place, key = args->bound[0];

    *out = args->bound[1].kind == VALUE_MISSING ? value_none() : args->bound[1];
    if (key.kind == VALUE_MISSING)
        return render_fail(r, "get needs a key");
    TRY(dict_find(r, self.dict, key, &place));
    if (place)
        *out = *place;
    return OK;
}

BUILTIN(dict_keys)
{
    struct list *list;

    (void)args;
    TRY(value_items(r, self, &list));
    *out = value_list(VALUE_KEYS, list);
    return OK;
}

BUILTIN(dict_values)
{
    struct list *list;

    (void)args;
    TRY(list_new(r, self.dict->count, &list));
    for (int64_t i = 0; i < self.dict->count; i++)
        list->items[list->count++] = self.dict->entries[i].value;
    *out = value_list(VALUE_VALUES, list);
    return OK;
}

BUILTIN(dict_items)
{
    struct list *list;

    (void)args;
    TRY(list_new(r, self.dict->count, &list));
    for (int64_t i = 0; i < self.dict->count; i++, list->count++)
        TRY(tuple_of_two(r, self.dict->entries[i].key, self.dict->entries[i].value,
                         &list->items[i]));
    *out = value_list(VALUE_ITEMS, list);
    return OK;
}

BUILTIN(dict_copy)
{
    (void)r;
    (void)args;
    *out = self; /* nothing can change either of them */
    return OK;
}

/* transformers renders in an environment that lets nothing be changed, either. */
BUILTIN(refuse_change)
{
    (void)args;
    (void)out;
    return render_fail(r, "a template cannot change a %s, only make a new one",
                       value_kind_names[self.kind]);
}

BUILTIN(list_index)
{
    for (int64_t i = 0; i < self.list->count; i++) {
        bool same;

        TRY(value_equal(r, self.list->items[i], args->bound[0], &same));
        if (same) {
            *out = value_int(i);
            return OK;
        }
    }
    return render_fail(r, "index: not found");
}

BUILTIN(list_count)
{
    int64_t count = 0;

    for (int64_t i = 0; i < self.list->count; i++) {
        bool same;

        TRY(value_equal(r, self.list->items[i], args->bound[0], &same));
        count += same;
    }
    *out = value_int(count);
    return OK;
}

BUILTIN(loop_cycle)
{
    if (args->count == 0)
        return render_fail(r, "loop.cycle needs arguments");
    *out = args->values[self.loop->index0 % args->count];
    return OK;
}

BUILTIN(loop_changed)
{
    struct list *now;
    bool same = false;

    TRY(list_new(r, args->count, &now));
    for (int32_t i = 0; i < args->count; i++)
        now->items[now->count++] = args->values[i];
    if (self.loop->last_changed)
        TRY(value_equal(r, value_list(VALUE_TUPLE, self.loop->last_changed),
                        value_list(VALUE_TUPLE, now), &same));
    self.loop->last_changed = now;
    *out = value_bool(!same);
    return OK;
}

enum {
    STR = 1 << VALUE_STRING,
    DICT = 1 << VALUE_DICT,
    LIST = 1 << VALUE_LIST | 1 << VALUE_TUPLE | 1 << VALUE_RANGE,
    MUTABLE_LIST = 1 << VALUE_LIST, /* in Python */
    LOOP = 1 << VALUE_LOOP,
};

static const struct builtin methods[] = {
    {"strip", str_strip, "chars", STR},
    {"lstrip", str_lstrip, "chars", STR},
    {"rstrip", str_rstrip, "chars", STR},
    {"split", str_split, "sep maxsplit", STR},
    {"rsplit", str_rsplit, "sep maxsplit", STR},
    {"splitlines", str_splitlines, "", STR},
    {"startswith", str_startswith, "prefix", STR},
    {"endswith", str_endswith, "suffix", STR},
    {"removeprefix", str_removeprefix, "prefix", STR},
    {"removesuffix", str_removesuffix, "suffix", STR},
    {"replace", str_replace, "old new count", STR},
    {"upper", str_upper, "", STR},
    {"lower", str_lower, "", STR},
    {"title", str_title, "", STR},
    {"capitalize", str_capitalize, "", STR},
    {"format", str_format, NULL, STR},
    {"join", str_join, "iterable", STR},
    {"find", str_find, "sub", STR},
    {"rfind", str_rfind, "sub", STR},
    {"index", str_index, "sub", STR},
    {"count", str_count, "sub", STR},
    {"isdigit", str_isdigit, "", STR},
    {"isalpha", str_isalpha, "", STR},
    {"isspace", str_isspace, "", STR},
    {"get", dict_get, "key default", DICT},
    {"keys", dict_keys, "", DICT},
    {"values", dict_values, "", DICT},
    {"items", dict_items, "", DICT},
    {"copy", dict_copy, "", DICT},
    {"index", list_index, "value", LIST},
    {"count", list_count, "value", LIST},
    {"append", refuse_change, NULL, MUTABLE_LIST},
    {"clear", refuse_change, NULL, MUTABLE_LIST | DICT},
    {"extend", refuse_change, NULL, MUTABLE_LIST},
    {"insert", refuse_change, NULL, MUTABLE_LIST},
    {"pop", refuse_change, NULL, MUTABLE_LIST | DICT},
    {"popitem", refuse_change, NULL, DICT},
    {"remove", refuse_change, NULL, MUTABLE_LIST},
    {"reverse", refuse_change, NULL, MUTABLE_LIST},
    {"setdefault", refuse_change, NULL, DICT},
    {"sort", refuse_change, NULL, MUTABLE_LIST},
    {"update", refuse_change, NULL, DICT},
    {"cycle", loop_cycle, NULL, LOOP},
    {"changed", loop_changed, NULL, LOOP},
};

const struct builtin *method_find(enum value_kind kind, struct value name)
{
    for (size_t i = 0; i < COUNT_OF(methods); i++)
        if ((methods[i].kinds >> kind & 1) && value_is_text(name, methods[i].name))
            return &methods[i];
    return NULL;
}

bool method_is_known(struct value name)
{
    return builtin_find(methods, COUNT_OF(methods), name) != NULL;
}

/* ---- functions
 * ----------------------------------------------------------------------------------- */

BUILTIN(function_range)
{
    int64_t first[3] = {0, 0, 1}, span, count;
    struct list *list;

    (void)self;
    if (args->bound[0].kind == VALUE_MISSING)
        return render_fail(r, "range needs an argument");
    for (int i = 0; i < 3; i++)
        if (args->bound[i].kind == VALUE_NONE)
            return render_fail(r, "range wants int, not NoneType");
    TRY(argument_int(r, args, 0, 0, &first[0]));
    TRY(argument_int(r, args, 1, 0, &first[1]));
    TRY(argument_int(r, args, 2, 1, &first[2]));
    if (args->bound[1].kind == VALUE_MISSING) {
        first[1] = first[0];
        first[0] = 0;
    }
    if (first[2] == 0)
        return render_fail(r, "range of step 0");
    if (__builtin_sub_overflow(first[1], first[0], &span) || span == INT64_MIN ||
        first[2] == INT64_MIN)
        return render_fail(r, "range beyond 64 bits");
    count = (span > 0) == (first[2] > 0) && span != 0 ? (llabs(span) - 1) / llabs(first[2]) + 1 : 0;
    TRY(render_spend(r, count));
    TRY(list_new(r, count, &list));
    for (; list->count < count; list->count++)
        list->items[list->count] = value_int(first[0] + list->count * first[2]);
    *out = value_list(VALUE_RANGE, list);
    return OK;
}

/* dict(mapping or pairs, **keywords); namespace takes the same. */
static enum status make_dict(struct render *r, const struct arguments *args, struct dict **out)
{
    TRY(dict_new(r, 0, out));
    if (args->count > 1)
        return render_fail(r, "dict takes 1 positional argument, %d given", args->count);
    if (args->count == 1 && args->values[0].kind == VALUE_DICT) {
        const struct dict *other = args->values[0].dict;

        for (int64_t i = 0; i < other->count; i++)
            TRY(dict_set(r, *out, other->entries[i].key, other->entries[i].value));
    } else if (args->count == 1) {
        struct list *pairs, *pair;

        TRY(value_items(r, args->values[0], &pairs));
        for (int64_t i = 0; i < pairs->count; i++) {
            TRY(value_items(r, pairs->items[i], &pair));
            if (pair->count != 2)
                return render_fail(r, "dict wants pairs, item %lld has %lld parts", (long long)i,
                                   (long long)pair->count);
            TRY(dict_set(r, *out, pair->items[0], pair->items[1]));
        }
    }
    for (int32_t i = 0; i < args->num_keywords; i++)
        TRY(dict_set(r, *out, args->keywords[i].name, args->keywords[i].value));
    return OK;
}

BUILTIN(function_dict)
{
    (void)self;
    out->kind = VALUE_DICT;
    return make_dict(r, args, &out->dict);
}

BUILTIN(function_namespace)
{
    (void)self;
    out->kind = VALUE_NAMESPACE;
    return make_dict(r, args, &out->dict);
}

enum { MAX_MESSAGE_BYTES = 900 }; /* fail() would cut a longer one within a character */

BUILTIN(function_raise_exception)
{
    struct value message;

    (void)self;
    (void)out;
    if (args->bound[0].kind == VALUE_MISSING)
        return render_fail(r, "raise_exception needs a message");
    TRY(value_to_string(r, args->bound[0], &message));
    if (message.size > MAX_MESSAGE_BYTES) {
        message.size = MAX_MESSAGE_BYTES;
        while (message.size > 0 && (message.text[message.size] & 0xc0) == 0x80)
            message.size--;
    }
    return fail(ERR_INVALID, "%.*s", (int)message.size, message.text);
}

BUILTIN(function_strftime_now)
{
    time_t now = r->limits.now_s ? (time_t)r->limits.now_s : time(NULL);
    AUTO_MEM char *format = NULL;
    struct value wanted;
    struct tm tm;
    char text[512];

    (void)self;
    TRY(argument_string(r, args, 0, NULL, &wanted));
    *out = value_string("", 0);
    if (wanted.size == 0)
        return OK;
    if (wanted.size > 128 || memchr(wanted.text, '\0', wanted.size))
        return render_fail(r, "strftime_now with a format of %u bytes, 128 at most", wanted.size);
    format = mem_strndup(wanted.text, wanted.size);
    localtime_r(&now, &tm);

    /* Any format is safe here: it only reads tm, and what does not fit gives 0. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = strftime(text, sizeof text, format, &tm);
#pragma GCC diagnostic pop

    if (n == 0)
        return render_fail(r, "strftime_now cannot use the format \"%s\"", format);
    return string_copy(r, text, n, out);
}

static const struct builtin functions[] = {
    {"range", function_range, "start stop step"},
    {"dict", function_dict, NULL},
    {"namespace", function_namespace, NULL},
    {"raise_exception", function_raise_exception, "message"},
    {"strftime_now", function_strftime_now, "format"},
};

const struct builtin *function_find(struct value name)
{
    return builtin_find(functions, COUNT_OF(functions), name);
}
