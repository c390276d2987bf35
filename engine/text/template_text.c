#include "engine/text/template_internal.h"

#include <string.h>
#include <utf8proc.h>

int32_t text_decode(const char *p, size_t *size_out)
{
    const uint8_t *b = (const uint8_t *)p;

    if (b[0] < 0x80) {
        *size_out = 1;
        return b[0];
    }
    if (b[0] < 0xe0) {
        *size_out = 2;
        return (b[0] & 0x1f) << 6 | (b[1] & 0x3f);
    }
    if (b[0] < 0xf0) {
        *size_out = 3;
        return (b[0] & 0x0f) << 12 | (b[1] & 0x3f) << 6 | (b[2] & 0x3f);
    }
    *size_out = 4;
    return (b[0] & 0x07) << 18 | (b[1] & 0x3f) << 12 | (b[2] & 0x3f) << 6 | (b[3] & 0x3f);
}

size_t text_encode(int32_t code_point, char out[4])
{
    return (size_t)utf8proc_encode_char(code_point, (uint8_t *)out);
}

bool text_is_space(int32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

static bool is_continuation(char c)
{
    return (c & 0xc0) == 0x80;
}

size_t text_num_chars(const char *text, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < size; i++)
        n += !is_continuation(text[i]);
    return n;
}

size_t text_offset(const char *text, size_t size, int64_t chars)
{
    size_t at = 0, n;

    for (; at < size && chars > 0; chars--, at += n)
        text_decode(text + at, &n);
    return at;
}

size_t text_before(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && is_continuation(text[at]));
    return at;
}

static bool is_stripped(const char *p, size_t n, int32_t c, const struct value *set)
{
    return set ? memmem(set->text, set->size, p, n) != NULL : text_is_space(c);
}

size_t text_leading(struct value s, const struct value *set)
{
    size_t at = 0, n;

    for (; at < s.size; at += n) {
        int32_t c = text_decode(s.text + at, &n);

        if (!is_stripped(s.text + at, n, c, set))
            break;
    }
    return at;
}

size_t text_trailing(struct value s, const struct value *set)
{
    size_t end = s.size, n;

    while (end > 0) {
        size_t at = text_before(s.text, end);
        int32_t c = text_decode(s.text + at, &n);

        if (!is_stripped(s.text + at, n, c, set))
            break;
        end = at;
    }
    return s.size - end;
}

struct value string_strip(struct value s, const struct value *set, bool left, bool right)
{
    size_t head = left ? text_leading(s, set) : 0;
    struct value rest = value_string(s.text + head, s.size - head);

    rest.size -= right ? (uint32_t)text_trailing(rest, set) : 0;
    return rest;
}

/* ---- case -------------------------------------------------------------------------------------
 */

int32_t text_upper(int32_t c)
{
    return c == 0xdf ? c : utf8proc_toupper(c);
}

/* The first letter of the text one way, the others another. */
static enum status change_case(struct render *r, struct value s, int32_t (*first)(int32_t),
                               int32_t (*others)(int32_t), struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    for (size_t at = 0, n; at < s.size; at += n) {
        int32_t c = text_decode(s.text + at, &n);
        char utf8[4];
        size_t size = text_encode((at == 0 ? first : others)(c), utf8);

        TRY(render_emit(r, &text, utf8, size));
    }
    *out = string_from_bytes(r, &text);
    return OK;
}

enum status string_upper(struct render *r, struct value s, struct value *out)
{
    return change_case(r, s, text_upper, text_upper, out);
}

enum status string_lower(struct render *r, struct value s, struct value *out)
{
    return change_case(r, s, utf8proc_tolower, utf8proc_tolower, out);
}

enum status string_capitalize(struct render *r, struct value s, struct value *out)
{
    return change_case(r, s, utf8proc_totitle, utf8proc_tolower, out);
}

/* ---- cutting and joining ------------------------------------------------------------------------
 */

enum status string_replace(struct render *r, struct value s, struct value old, struct value with,
                           int64_t count, struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    const char *p = s.text, *end = s.text + s.size;

    for (; count != 0; count--) {
        const char *found = old.size ? memmem(p, (size_t)(end - p), old.text, old.size) : p;
        size_t n = 0;

        if (!found)
            break;
        TRY(render_emit(r, &text, p, (size_t)(found - p)));
        TRY(render_emit(r, &text, with.text, with.size));
        p = found + old.size;
        if (old.size)
            continue;
        if (p == end) /* nothing is found between all characters, and behind the last */
            break;
        text_decode(p, &n);
        TRY(render_emit(r, &text, p, n));
        p += n;
    }
    TRY(render_emit(r, &text, p, (size_t)(end - p)));
    *out = string_from_bytes(r, &text);
    return OK;
}

enum status string_join(struct render *r, struct value separator, struct list *items,
                        bool strings_only, struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    for (int64_t i = 0; i < items->count; i++) {
        if (strings_only && items->items[i].kind != VALUE_STRING) {
            TRY(value_must_be_defined(r, items->items[i]));
            return render_fail(r, "join wants str, found %s",
                               value_kind_names[items->items[i].kind]);
        }
        if (i > 0)
            TRY(render_emit(r, &text, separator.text, separator.size));
        TRY(value_print(r, items->items[i], &text));
    }
    *out = string_from_bytes(r, &text);
    return OK;
}

static bool ends_line(int32_t c)
{
    return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

enum status string_lines(struct render *r, struct value s, struct list **out)
{
    size_t start = 0;

    TRY(render_spend_bytes(r, s.size));
    TRY(list_new(r, 0, out));
    for (size_t at = 0, n; at < s.size; at += n) {
        int32_t c = text_decode(s.text + at, &n);

        if (!ends_line(c))
            continue;
        TRY(list_add(r, *out, value_string(s.text + start, at - start)));
        if (c == '\r' && at + 1 < s.size && s.text[at + 1] == '\n')
            n = 2;
        start = at + n;
    }
    return start < s.size ? list_add(r, *out, value_string(s.text + start, s.size - start)) : OK;
}
