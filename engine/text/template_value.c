#include "engine/text/template_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *const value_kind_names[NUM_VALUE_KINDS] = {
    [VALUE_MISSING] = "nothing",   [VALUE_UNDEFINED] = "undefined",
    [VALUE_NONE] = "NoneType",     [VALUE_BOOL] = "bool",
    [VALUE_INT] = "int",           [VALUE_FLOAT] = "float",
    [VALUE_STRING] = "str",        [VALUE_LIST] = "list",
    [VALUE_TUPLE] = "tuple",       [VALUE_RANGE] = "range",
    [VALUE_KEYS] = "dict_keys",    [VALUE_VALUES] = "dict_values",
    [VALUE_ITEMS] = "dict_items",  [VALUE_ITERATOR] = "generator",
    [VALUE_DICT] = "dict",         [VALUE_NAMESPACE] = "namespace",
    [VALUE_LOOP] = "loop",         [VALUE_MACRO] = "macro",
    [VALUE_FUNCTION] = "function", [VALUE_METHOD] = "method",
};

/* ---- the budget --------------------------------------------------------------------------- */

enum status render_fail(const struct render *r, const char *format, ...)
{
    char sentence[900];
    va_list args;

    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return fail(ERR_INVALID, "template line %d: %s", r->line, sentence);
}

enum status render_spend(struct render *r, int64_t steps)
{
    if (steps > r->steps_left)
        return fail(ERR_FULL, "template line %d: more than %lld steps", r->line,
                    (long long)r->limits.max_steps);
    r->steps_left -= steps;
    return OK;
}

enum status render_spend_bytes(struct render *r, uint64_t bytes)
{
    return render_spend(r, 1 + (int64_t)(bytes / 256));
}

static enum status spend_memory(struct render *r, uint64_t bytes)
{
    if (bytes > (uint64_t)r->bytes_left)
        return fail(ERR_FULL, "template line %d: more than %lld bytes of text and values", r->line,
                    (long long)r->limits.max_output_bytes);
    r->bytes_left -= (int64_t)bytes;
    return render_spend_bytes(r, bytes);
}

enum status render_alloc(struct render *r, size_t bytes, void *out)
{
    TRY(spend_memory(r, bytes));

    void *p = arena_alloc(&r->arena, bytes);

    memset(p, 0, bytes);
    *(void **)out = p;
    return OK;
}

enum status render_emit(struct render *r, struct bytes *out, const char *data, size_t size)
{
    TRY(spend_memory(r, size));
    bytes_append(out, data, size);
    return OK;
}

enum status render_check_depth(const struct render *r, int32_t depth)
{
    if (depth > r->limits.max_depth)
        return fail(ERR_FULL, "template line %d: values nested more than %d deep", r->line,
                    r->limits.max_depth);
    return OK;
}

enum status value_must_be_defined(const struct render *r, struct value v)
{
    if (v.kind == VALUE_UNDEFINED)
        return render_fail(r, "\"%.*s\" is undefined", (int)MIN(v.size, 200u), v.text);
    return OK;
}

/* ---- making -------------------------------------------------------------------------------- */

enum status string_copy(struct render *r, const char *text, size_t size, struct value *out)
{
    char *copy;

    TRY(render_alloc(r, size, &copy));
    if (size)
        memcpy(copy, text, size);
    *out = value_string(copy, size);
    return OK;
}

struct value string_from_bytes(struct render *r, const struct bytes *bytes)
{
    if (bytes->size == 0)
        return value_string("", 0);
    return value_string(arena_strndup(&r->arena, (const char *)bytes->data, bytes->size),
                        bytes->size);
}

enum status list_new(struct render *r, int64_t capacity, struct list **out)
{
    struct list *list;

    TRY(render_alloc(r, sizeof *list, &list));
    if (capacity > 0) {
        TRY(render_spend(r, capacity));
        TRY(render_alloc(r, (size_t)capacity * sizeof *list->items, &list->items));
    }
    list->capacity = capacity;
    *out = list;
    return OK;
}

enum status list_add(struct render *r, struct list *list, struct value v)
{
    if (list->count == list->capacity) {
        struct value *items;
        int64_t capacity = list->capacity ? list->capacity * 2 : 8;

        TRY(render_alloc(r, (size_t)capacity * sizeof *items, &items));
        if (list->count)
            memcpy(items, list->items, (size_t)list->count * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = v;
    return render_spend(r, 1);
}

enum status iterator_new(struct render *r, struct list *list, struct value *out)
{
    struct iterator *iterator;

    TRY(render_alloc(r, sizeof *iterator, &iterator));
    iterator->list = list;
    *out = (struct value){.kind = VALUE_ITERATOR, .iterator = iterator};
    return OK;
}

enum status tuple_of_two(struct render *r, struct value a, struct value b, struct value *out)
{
    struct list *list;

    TRY(list_new(r, 2, &list));
    list->items[0] = a;
    list->items[1] = b;
    list->count = 2;
    *out = value_list(VALUE_TUPLE, list);
    return OK;
}

enum status dict_new(struct render *r, int64_t capacity, struct dict **out)
{
    struct dict *dict;

    TRY(render_alloc(r, sizeof *dict, &dict));
    if (capacity > 0)
        TRY(render_alloc(r, (size_t)capacity * sizeof *dict->entries, &dict->entries));
    dict->capacity = capacity;
    *out = dict;
    return OK;
}

static bool is_hashable(struct value v)
{
    if (v.kind == VALUE_TUPLE) {
        for (int64_t i = 0; i < v.list->count; i++)
            if (v.list->items[i].kind == VALUE_TUPLE || !is_hashable(v.list->items[i]))
                return false;
        return true;
    }
    return v.kind == VALUE_STRING || v.kind == VALUE_NONE || value_is_number(v);
}

enum status dict_find(struct render *r, const struct dict *dict, struct value key,
                      struct value **out)
{
    *out = NULL;
    TRY(render_spend(r, 1 + dict->count / 16));
    for (int64_t i = 0; i < dict->count; i++) {
        struct value other = dict->entries[i].key;
        bool is_it = false;

        if (key.kind == VALUE_STRING && other.kind == VALUE_STRING)
            is_it = value_same_text(key, other);
        else if (key.kind != VALUE_STRING && other.kind != VALUE_STRING)
            TRY(value_equal(r, key, other, &is_it));
        if (is_it) {
            *out = &dict->entries[i].value;
            return OK;
        }
    }
    return OK;
}

/* The key is known not to be there. */
static enum status dict_append(struct render *r, struct dict *dict, struct value key,
                               struct value v)
{
    if (dict->count == dict->capacity) {
        struct entry *entries;
        int64_t capacity = dict->capacity ? dict->capacity * 2 : 4;

        TRY(render_alloc(r, (size_t)capacity * sizeof *entries, &entries));
        if (dict->count)
            memcpy(entries, dict->entries, (size_t)dict->count * sizeof *entries);
        dict->entries = entries;
        dict->capacity = capacity;
    }
    dict->entries[dict->count++] = (struct entry){key, v};
    return OK;
}

enum status dict_set(struct render *r, struct dict *dict, struct value key, struct value v)
{
    struct value *place;

    if (!is_hashable(key))
        return render_fail(r, "a %s cannot be a key", value_kind_names[key.kind]);
    TRY(dict_find(r, dict, key, &place));
    if (!place)
        return dict_append(r, dict, key, v);
    *place = v;
    return OK;
}

/* ---- from JSON: strings are borrowed from it --------------------------------------------------
 */

static enum status string_from_json(const char *text, size_t size, struct value *out)
{
    if (size > UINT32_MAX)
        return fail(ERR_FULL, "a string of %zu bytes", size);
    *out = value_string(text, size);
    return OK;
}

static enum status list_from_json(struct render *r, const json_t *json, int32_t depth,
                                  struct value *out)
{
    size_t n = json_array_size(json);
    struct list *list;

    TRY(list_new(r, (int64_t)n, &list));
    for (size_t i = 0; i < n; i++)
        TRY(value_from_json(r, json_array_get(json, i), depth + 1, &list->items[i]));
    list->count = (int64_t)n;
    *out = value_list(VALUE_LIST, list);
    return OK;
}

static enum status dict_from_json(struct render *r, const json_t *json, int32_t depth,
                                  struct value *out)
{
    json_t *object = (json_t *)json; /* jansson's iterators want it, and leave it as it is */
    struct dict *dict;

    TRY(dict_new(r, (int64_t)json_object_size(json), &dict));
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        struct value key, v;

        TRY(string_from_json(json_object_iter_key(at), json_object_iter_key_len(at), &key));
        TRY(value_from_json(r, json_object_iter_value(at), depth + 1, &v));
        TRY(dict_append(r, dict, key, v));
    }
    *out = (struct value){.kind = VALUE_DICT, .dict = dict};
    return OK;
}

enum status value_from_json(struct render *r, const json_t *json, int32_t depth, struct value *out)
{
    TRY(render_check_depth(r, depth));
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return dict_from_json(r, json, depth, out);
    case JSON_ARRAY:
        return list_from_json(r, json, depth, out);
    case JSON_STRING:
        return string_from_json(json_string_value(json), json_string_length(json), out);
    case JSON_INTEGER:
        *out = value_int(json_integer_value(json));
        return OK;
    case JSON_REAL:
        *out = value_float(json_real_value(json));
        return OK;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = value_bool(json_is_true(json));
        return OK;
    default:
        *out = value_none();
        return OK;
    }
}

/* ---- asking ------------------------------------------------------------------------------- */

bool value_is_true(struct value v)
{
    if (value_is_listlike(v))
        return v.list->count > 0;
    switch (v.kind) {
    case VALUE_MISSING:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return v.boolean;
    case VALUE_INT:
        return v.integer != 0;
    case VALUE_FLOAT:
        return v.real != 0;
    case VALUE_STRING:
        return v.size > 0;
    case VALUE_DICT:
        return v.dict->count > 0;
    default: /* a generator too, even if nothing will come of it */
        return true;
    }
}

static enum status equal_at(struct render *r, struct value a, struct value b, int32_t depth,
                            bool *out);

static enum status dicts_equal(struct render *r, const struct dict *a, const struct dict *b,
                               int32_t depth, bool *out)
{
    *out = a->count == b->count;
    for (int64_t i = 0; *out && i < a->count; i++) {
        struct value *other;

        TRY(dict_find(r, b, a->entries[i].key, &other));
        *out = other != NULL;
        if (other)
            TRY(equal_at(r, a->entries[i].value, *other, depth + 1, out));
    }
    return OK;
}

static enum status equal_at(struct render *r, struct value a, struct value b, int32_t depth,
                            bool *out)
{
    TRY(render_check_depth(r, depth));
    TRY(render_spend(r, 1));
    if (value_is_number(a) && value_is_number(b)) {
        *out = a.kind == VALUE_FLOAT || b.kind == VALUE_FLOAT
                   ? value_real(a) == value_real(b)
                   : value_integer(a) == value_integer(b);
        return OK;
    }
    *out = a.kind == b.kind;
    if (!*out)
        return OK;
    if (a.kind == VALUE_STRING) {
        *out = value_same_text(a, b);
        return a.size == b.size ? render_spend_bytes(r, a.size) : OK;
    }
    if (value_is_listlike(a)) {
        *out = a.list->count == b.list->count;
        for (int64_t i = 0; *out && i < a.list->count; i++)
            TRY(equal_at(r, a.list->items[i], b.list->items[i], depth + 1, out));
        return OK;
    }
    if (a.kind == VALUE_DICT)
        return dicts_equal(r, a.dict, b.dict, depth, out);
    if (a.kind != VALUE_NONE && a.kind != VALUE_UNDEFINED)
        *out = a.dict == b.dict; /* identity: every other kind is a pointer */
    return OK;
}

enum status value_equal(struct render *r, struct value a, struct value b, bool *out)
{
    return equal_at(r, a, b, 0, out);
}

static enum status compare_at(struct render *r, struct value a, struct value b, int32_t depth,
                              int *out)
{
    TRY(render_check_depth(r, depth));
    TRY(render_spend(r, 1));
    TRY(value_must_be_defined(r, a));
    TRY(value_must_be_defined(r, b));
    if (value_is_number(a) && value_is_number(b)) {
        if (a.kind == VALUE_FLOAT || b.kind == VALUE_FLOAT) {
            double x = value_real(a), y = value_real(b);

            *out = x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
        } else {
            *out = (value_integer(a) > value_integer(b)) - (value_integer(a) < value_integer(b));
        }
        return OK;
    }
    if (a.kind == VALUE_STRING && b.kind == VALUE_STRING) {
        /* UTF-8 sorts as its code points do. */
        int order = memcmp(a.text, b.text, MIN(a.size, b.size));

        *out = order ? (order > 0) - (order < 0) : (a.size > b.size) - (a.size < b.size);
        return render_spend_bytes(r, MIN(a.size, b.size));
    }
    if (a.kind != b.kind || (a.kind != VALUE_LIST && a.kind != VALUE_TUPLE))
        return render_fail(r, "%s and %s have no order", value_kind_names[a.kind],
                           value_kind_names[b.kind]);
    for (int64_t i = 0; i < MIN(a.list->count, b.list->count); i++) {
        bool same;

        TRY(equal_at(r, a.list->items[i], b.list->items[i], depth + 1, &same));
        if (!same)
            return compare_at(r, a.list->items[i], b.list->items[i], depth + 1, out);
    }
    *out = (a.list->count > b.list->count) - (a.list->count < b.list->count);
    return OK;
}

enum status value_compare(struct render *r, struct value a, struct value b, int *out)
{
    return compare_at(r, a, b, 0, out);
}

/* Bottom-up merges: qsort could not say that a comparison has failed, nor is it stable. */
enum status values_sort(struct render *r, const struct value *keys, int64_t n, bool reverse,
                        int64_t **order_out)
{
    int64_t *order, *merged;

    TRY(render_alloc(r, (size_t)n * sizeof *order, &order));
    TRY(render_alloc(r, (size_t)n * sizeof *merged, &merged));
    for (int64_t i = 0; i < n; i++)
        order[i] = i;
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t low = 0; low < n; low += 2 * width) {
            int64_t a = low, middle = MIN(low + width, n), b = middle;
            int64_t high = MIN(low + 2 * width, n);

            for (int64_t k = low; k < high; k++) {
                int compared = a == middle ? 1 : -1;

                if (a < middle && b < high) {
                    TRY(value_compare(r, keys[order[a]], keys[order[b]], &compared));
                    compared = reverse ? -compared : compared;
                }
                merged[k] = compared == 1 ? order[b++] : order[a++];
            }
        }
        memcpy(order, merged, (size_t)n * sizeof *order);
    }
    *order_out = order;
    return OK;
}

enum status value_contains(struct render *r, struct value container, struct value item, bool *out)
{
    struct list *items;
    struct value *place;

    *out = false;
    if (container.kind == VALUE_STRING) {
        TRY(value_must_be_defined(r, item));
        if (item.kind != VALUE_STRING)
            return render_fail(r, "\"in\" a str wants a str, not %s", value_kind_names[item.kind]);
        TRY(render_spend_bytes(r, container.size));
        *out = item.size == 0 || memmem(container.text, container.size, item.text, item.size);
        return OK;
    }
    if (container.kind == VALUE_DICT) {
        if (!is_hashable(item) && item.kind != VALUE_UNDEFINED)
            return render_fail(r, "a %s cannot be a key", value_kind_names[item.kind]);
        TRY(dict_find(r, container.dict, item, &place));
        *out = place != NULL;
        return OK;
    }
    TRY(value_items(r, container, &items));
    for (int64_t i = 0; !*out && i < items->count; i++)
        TRY(value_equal(r, items->items[i], item, out));
    return OK;
}

/* ---- walking ------------------------------------------------------------------------------ */

static enum status chars_of(struct render *r, struct value s, struct list **out)
{
    TRY(list_new(r, (int64_t)text_num_chars(s.text, s.size), out));
    for (size_t at = 0, n; at < s.size; at += n) {
        text_decode(s.text + at, &n);
        (*out)->items[(*out)->count++] = value_string(s.text + at, n);
    }
    return OK;
}

static enum status keys_of(struct render *r, const struct dict *dict, struct list **out)
{
    TRY(list_new(r, dict->count, out));
    for (int64_t i = 0; i < dict->count; i++)
        (*out)->items[(*out)->count++] = dict->entries[i].key;
    return OK;
}

enum status value_items(struct render *r, struct value v, struct list **out)
{
    if (value_is_listlike(v)) {
        *out = v.list;
        return OK;
    }
    switch (v.kind) {
    case VALUE_UNDEFINED:
        return list_new(r, 0, out);
    case VALUE_STRING:
        return chars_of(r, v, out);
    case VALUE_DICT:
        return keys_of(r, v.dict, out);
    case VALUE_ITERATOR:
        *out = v.iterator->list;
        return list_new(r, 0, &v.iterator->list);
    default:
        return render_fail(r, "a %s is nothing to walk over", value_kind_names[v.kind]);
    }
}

enum status value_length(struct render *r, struct value v, int64_t *out)
{
    *out = 0;
    if (value_is_listlike(v)) {
        *out = v.list->count;
        return OK;
    }
    switch (v.kind) {
    case VALUE_UNDEFINED:
        return OK;
    case VALUE_STRING:
        *out = (int64_t)text_num_chars(v.text, v.size);
        return render_spend_bytes(r, v.size);
    case VALUE_DICT:
        *out = v.dict->count;
        return OK;
    case VALUE_LOOP:
        *out = v.loop->list->count;
        return OK;
    default:
        return render_fail(r, "a %s has no length", value_kind_names[v.kind]);
    }
}

/* ---- reaching into ------------------------------------------------------------------------- */

static bool is_sequence(struct value v)
{
    return v.kind == VALUE_STRING || v.kind == VALUE_LIST || v.kind == VALUE_TUPLE ||
           v.kind == VALUE_RANGE;
}

static enum status sequence_item(struct render *r, struct value v, int64_t index, struct value *out)
{
    int64_t count;

    TRY(value_length(r, v, &count));
    if (index < 0 && index >= -count)
        index += count;
    *out = value_undefined("element", 7);
    if (index < 0 || index >= count)
        return OK;
    if (v.kind == VALUE_STRING) {
        size_t at = text_offset(v.text, v.size, index), n;

        text_decode(v.text + at, &n);
        *out = value_string(v.text + at, n);
        return OK;
    }
    *out = v.list->items[index];
    return OK;
}

static struct value loop_neighbour(const struct loop *loop, int64_t distance, const char *name)
{
    int64_t index = loop->index0 + distance;

    if (index < 0 || index >= loop->list->count)
        return value_undefined(name, strlen(name));
    return loop->list->items[index];
}

static struct value loop_attribute(const struct loop *loop, struct value name)
{
    int64_t count = loop->list->count;
    const struct {
        const char *name;
        struct value value;
    } rows[] = {
        {"index", value_int(loop->index0 + 1)},
        {"index0", value_int(loop->index0)},
        {"first", value_bool(loop->index0 == 0)},
        {"last", value_bool(loop->index0 == count - 1)},
        {"length", value_int(count)},
        {"revindex", value_int(count - loop->index0)},
        {"revindex0", value_int(count - loop->index0 - 1)},
        {"depth", value_int(1)},
        {"depth0", value_int(0)},
        {"previtem", loop_neighbour(loop, -1, "loop.previtem")},
        {"nextitem", loop_neighbour(loop, 1, "loop.nextitem")},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (value_is_text(name, rows[i].name))
            return rows[i].value;
    return value_undefined(name.text, name.size);
}

/* What v.name and v["name"] have in common: all but the items of a dict. */
static enum status plain_attribute(struct render *r, struct value v, struct value name,
                                   struct value *out)
{
    const struct builtin *builtin = method_find(v.kind, name);
    struct method *method;
    struct value *place = NULL;

    *out = value_undefined(name.text, name.size);
    if (builtin) {
        TRY(render_alloc(r, sizeof *method, &method));
        *method = (struct method){builtin, v};
        *out = (struct value){.kind = VALUE_METHOD, .method = method};
        return OK;
    }
    if (v.kind == VALUE_LOOP)
        *out = loop_attribute(v.loop, name);
    if (v.kind == VALUE_NAMESPACE)
        TRY(dict_find(r, v.dict, name, &place));
    if (place)
        *out = *place;
    return OK;
}

enum status value_attribute(struct render *r, struct value v, struct value name, struct value *out)
{
    struct value *place = NULL;

    TRY(value_must_be_defined(r, v));
    TRY(plain_attribute(r, v, name, out));
    if (out->kind == VALUE_UNDEFINED && v.kind == VALUE_DICT)
        TRY(dict_find(r, v.dict, name, &place));
    if (place)
        *out = *place;
    return OK;
}

enum status value_item(struct render *r, struct value v, struct value key, struct value *out)
{
    struct value *place = NULL;

    TRY(value_must_be_defined(r, v));
    if (v.kind == VALUE_DICT && is_hashable(key))
        TRY(dict_find(r, v.dict, key, &place));
    if (place) {
        *out = *place;
        return OK;
    }
    if (is_sequence(v) && (key.kind == VALUE_INT || key.kind == VALUE_BOOL))
        return sequence_item(r, v, value_integer(key), out);
    if (key.kind == VALUE_STRING)
        return plain_attribute(r, v, key, out);
    *out = value_undefined("element", 7);
    return OK;
}

/* ---- slices ---------------------------------------------------------------------------------- */

static enum status slice_bound(struct render *r, struct value v, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (v.kind == VALUE_MISSING || v.kind == VALUE_NONE)
        return OK;
    if (v.kind != VALUE_INT && v.kind != VALUE_BOOL)
        return render_fail(r, "a slice wants int, not %s", value_kind_names[v.kind]);
    *out = value_integer(v);
    return OK;
}

static int64_t clamp_bound(int64_t bound, int64_t count, int64_t low, int64_t high)
{
    if (bound < 0)
        bound = bound < -count ? low : bound + count;
    return MIN(MAX(bound, low), high);
}

enum status value_slice(struct render *r, struct value v, struct value start, struct value stop,
                        struct value step, struct value *out)
{
    int64_t count, by, from, to, num = 0;
    struct list *items, *picked;

    TRY(value_must_be_defined(r, v));
    if (!is_sequence(v))
        return render_fail(r, "a %s has no slices", value_kind_names[v.kind]);
    TRY(value_length(r, v, &count));
    TRY(slice_bound(r, step, 1, &by));
    if (by == 0)
        return render_fail(r, "a slice of step 0");
    by = MIN(MAX(by, -count - 1), count + 1); /* a longer step picks the same */
    TRY(slice_bound(r, start, by > 0 ? 0 : INT64_MAX, &from));
    TRY(slice_bound(r, stop, by > 0 ? INT64_MAX : INT64_MIN, &to));
    from = clamp_bound(from, count, by > 0 ? 0 : -1, by > 0 ? count : count - 1);
    to = clamp_bound(to, count, by > 0 ? 0 : -1, by > 0 ? count : count - 1);
    if (by > 0 ? from < to : from > to)
        num = (by > 0 ? to - from - 1 : from - to - 1) / (by > 0 ? by : -by) + 1;

    if (v.kind == VALUE_STRING && by == 1) { /* no copy */
        size_t first = text_offset(v.text, v.size, from);

        *out = value_string(v.text + first, text_offset(v.text + first, v.size - first, num));
        return OK;
    }
    TRY(value_items(r, v, &items));
    TRY(list_new(r, num, &picked));
    for (int64_t i = 0; i < num; i++)
        picked->items[picked->count++] = items->items[from + i * by];
    if (v.kind == VALUE_STRING)
        return string_join(r, value_string("", 0), picked, true, out);
    *out = value_list(v.kind, picked);
    return OK;
}
