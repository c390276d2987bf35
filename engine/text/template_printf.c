/* Texts with places for values: "%s of %d" % (a, b) and "{} of {n}".format(a, n=b). */
#include "engine/text/template_internal.h"

#include <math.h>
#include <string.h>

/* ---- "%s" % x -------------------------------------------------------------------------------- */

static enum status put_integer(struct render *r, struct value v, struct bytes *out)
{
    TRY(value_must_be_defined(r, v));
    if (!value_is_number(v))
        return render_fail(r, "%%d wants a number, not %s", value_kind_names[v.kind]);
    if (v.kind != VALUE_FLOAT)
        return value_print(r, value_int(value_integer(v)), out);
    if (!(fabs(v.real) < 0x1p63))
        return render_fail(r, "%g does not fit into 64 bits", v.real);
    return value_print(r, value_int((int64_t)v.real), out);
}

static enum status put(struct render *r, char conversion, struct value v, struct bytes *out)
{
    if (conversion == 'd')
        return put_integer(r, v, out);
    return conversion == 'r' ? value_repr(r, v, out) : value_print(r, v, out);
}

/* Puts the next of the values where it belongs; the number of those put so far is *used. */
static enum status put_all(struct render *r, struct value s, const struct value *values,
                           int64_t count, int64_t *used, struct bytes *out)
{
    const char *p = s.text, *end = s.text + s.size;

    for (const char *place; (place = memchr(p, '%', (size_t)(end - p))); p = place + 2) {
        size_t n;

        TRY(render_emit(r, out, p, (size_t)(place - p)));
        if (place + 1 == end)
            return render_fail(r, "a \"%%\" at the end of a format; a plain one is \"%%%%\"");
        text_decode(place + 1, &n);
        if (place[1] == '%')
            TRY(render_emit(r, out, "%", 1));
        else if (!memchr("sdr", place[1], 3))
            return render_fail(r, "\"%%%.*s\" in a format is not supported, only %%s, %%d and %%r",
                               (int)n, place + 1);
        else if (*used == count)
            return render_fail(r, "a format has more places than the %lld values given",
                               (long long)count);
        else
            TRY(put(r, place[1], values[(*used)++], out));
    }
    return render_emit(r, out, p, (size_t)(end - p));
}

enum status string_percent(struct render *r, struct value s, const struct value *values,
                           int64_t count, struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    int64_t used = 0;

    TRY(put_all(r, s, values, count, &used, &text));
    if (used < count)
        return render_fail(r, "a format has places for %lld of the %lld values given",
                           (long long)used, (long long)count);
    *out = string_from_bytes(r, &text);
    return OK;
}

/* ---- "{}".format(x) -------------------------------------------------------------------------- */

/* The value for what stands between { and }. *next counts those that stand for "the next". */
static enum status field_value(struct render *r, struct value field, const struct arguments *args,
                               int32_t *next, struct value *out)
{
    int32_t index = 0;
    uint32_t digits = 0;

    for (uint32_t i = 0; i < field.size; i++)
        if (memchr(".[!:{", field.text[i], 5))
            return render_fail(r, "\"{%.*s}\" is not supported, only {}, {0} and {name}",
                               (int)MIN(field.size, 100u), field.text);
    for (; digits < field.size && field.text[digits] >= '0' && field.text[digits] <= '9'; digits++)
        index = MIN(index * 10 + field.text[digits] - '0', 1 << 20);
    if (digits == field.size) {
        bool is_next = field.size == 0;

        if (*next != 0 && (*next > 0) != is_next)
            return render_fail(r, "a format has both {} and {0}");
        if (is_next)
            index = *next;
        *next = is_next ? *next + 1 : -1;
        if (index >= args->count)
            return render_fail(r, "a format has a place for argument %d, %d given", index + 1,
                               args->count);
        *out = args->values[index];
        return OK;
    }
    for (int32_t i = 0; i < args->num_keywords; i++)
        if (value_same_text(args->keywords[i].name, field)) {
            *out = args->keywords[i].value;
            return OK;
        }
    return render_fail(r, "a format has a place for \"%.*s\", which is not given",
                       (int)MIN(field.size, 100u), field.text);
}

enum status string_format(struct render *r, struct value s, const struct arguments *args,
                          struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    const char *p = s.text, *end = s.text + s.size;
    int32_t next = 0;

    while (p < end) {
        size_t n = 0;

        while (p + n < end && p[n] != '{' && p[n] != '}')
            n++;
        TRY(render_emit(r, &text, p, n));
        p += n;
        if (p == end)
            break;
        if (p + 1 < end && p[1] == p[0]) { /* "{{" and "}}" are plain ones */
            TRY(render_emit(r, &text, p, 1));
            p += 2;
            continue;
        }
        const char *close = *p == '{' ? memchr(p, '}', (size_t)(end - p)) : NULL;
        struct value v;

        if (!close)
            return render_fail(r, "a lone \"%c\" in a format; a plain one is \"%c%c\"", *p, *p, *p);
        TRY(field_value(r, value_string(p + 1, (size_t)(close - p) - 1), args, &next, &v));
        TRY(value_print(r, v, &text));
        p = close + 1;
    }
    *out = string_from_bytes(r, &text);
    return OK;
}
