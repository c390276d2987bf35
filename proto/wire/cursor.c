#include "proto/wire/cursor.h"

#include <string.h>

/* First bytes of the MessagePack forms that we read. */
enum {
    NIL = 0xc0, FALSE_ = 0xc2, TRUE_ = 0xc3, BIN8 = 0xc4, BIN16 = 0xc5, BIN32 = 0xc6,
    FLOAT32 = 0xca, FLOAT64 = 0xcb, UINT8 = 0xcc, UINT16 = 0xcd, UINT32 = 0xce, UINT64 = 0xcf,
    INT8 = 0xd0, INT16 = 0xd1, INT32 = 0xd2, INT64 = 0xd3, STR8 = 0xd9, STR16 = 0xda, STR32 = 0xdb,
    ARRAY16 = 0xdc, ARRAY32 = 0xdd,
    FIXARRAY = 0x90, FIXSTR = 0xa0, /* with the length in the low bits */
};

static const char cut_short[] = "the bytes end too early";

void cursor_init(struct cursor *cursor, const void *data, size_t size)
{
    const uint8_t *bytes = size ? data : (const uint8_t *)"";

    *cursor = (struct cursor){.start = bytes, .at = bytes, .end = bytes + size};
}

enum status cursor_status(const struct cursor *cursor)
{
    if (cursor_is_ok(cursor))
        return OK;
    return fail(ERR_CORRUPT, "%s at byte %zu", cursor->error, cursor->error_at);
}

void cursor_refuse(struct cursor *cursor, const char *reason)
{
    if (cursor->error)
        return;
    cursor->error = reason;
    cursor->error_at = (size_t)(cursor->at - cursor->start);
    cursor->at = cursor->end;
}

/* ---- raw bytes ------------------------------------------------------------------------------- */

/* The next form byte, without stepping over it; -1 at the end. */
static int peek(const struct cursor *cursor)
{
    return cursor->at < cursor->end ? *cursor->at : -1;
}

/* `size` bytes, or NULL and a failed cursor. */
static const uint8_t *take(struct cursor *cursor, size_t size)
{
    const uint8_t *p = cursor->at;

    if (cursor_left(cursor) < size) {
        cursor_refuse(cursor, cut_short);
        return NULL;
    }
    cursor->at += size;
    return p;
}

/* A big-endian number of 1, 2, 4 or 8 bytes. */
static uint64_t take_number(struct cursor *cursor, size_t width)
{
    const uint8_t *p = take(cursor, width);
    uint64_t value = 0;

    for (size_t i = 0; p && i < width; i++)
        value = value << 8 | p[i];
    return value;
}

/* The length of a text, bin or array whose three long forms start at `first`. */
static size_t take_length(struct cursor *cursor, int form, int first)
{
    take(cursor, 1);
    return take_number(cursor, (size_t)1 << (form - first));
}

static void refuse_form(struct cursor *cursor, const char *expected)
{
    cursor_refuse(cursor, peek(cursor) < 0 ? cut_short : expected);
}

/* ---- values ---------------------------------------------------------------------------------- */

bool cursor_nil(struct cursor *cursor)
{
    if (peek(cursor) != NIL)
        return false;
    cursor->at++;
    return true;
}

bool cursor_bool(struct cursor *cursor)
{
    int form = peek(cursor);

    if (form != FALSE_ && form != TRUE_) {
        refuse_form(cursor, "true or false was expected");
        return false;
    }
    cursor->at++;
    return form == TRUE_;
}

/* An integer of any form: its bits, and whether they are to be read as negative. */
static uint64_t take_integer(struct cursor *cursor, bool *negative_out)
{
    int form = peek(cursor);

    *negative_out = false;
    if (form >= 0 && form <= 0x7f)
        return take_number(cursor, 1);
    if (form >= 0xe0) {
        *negative_out = true;
        return (uint64_t)(int64_t)(int8_t)take_number(cursor, 1);
    }
    if (form >= UINT8 && form <= UINT64) {
        take(cursor, 1);
        return take_number(cursor, (size_t)1 << (form - UINT8));
    }
    if (form >= INT8 && form <= INT64) {
        int width = 1 << (form - INT8), unused_bits = 64 - 8 * width;

        take(cursor, 1);
        int64_t value = (int64_t)(take_number(cursor, (size_t)width) << unused_bits) >> unused_bits;
        *negative_out = value < 0;
        return (uint64_t)value;
    }
    refuse_form(cursor, "an integer was expected");
    return 0;
}

int64_t cursor_int(struct cursor *cursor, int64_t min, int64_t max)
{
    const uint8_t *before = cursor->at;
    bool negative;
    uint64_t bits = take_integer(cursor, &negative);
    int64_t value = (int64_t)bits;

    if (!cursor_is_ok(cursor))
        return 0;
    if ((!negative && bits > INT64_MAX) || value < min || value > max) {
        cursor->at = before;
        cursor_refuse(cursor, "an integer is out of range");
        return 0;
    }
    return value;
}

uint64_t cursor_uint(struct cursor *cursor, uint64_t max)
{
    const uint8_t *before = cursor->at;
    bool negative;
    uint64_t bits = take_integer(cursor, &negative);

    if (!cursor_is_ok(cursor))
        return 0;
    if (negative || bits > max) {
        cursor->at = before;
        cursor_refuse(cursor, "an integer is out of range");
        return 0;
    }
    return bits;
}

float cursor_f32(struct cursor *cursor)
{
    float value;

    if (peek(cursor) != FLOAT32) {
        refuse_form(cursor, "a 32-bit float was expected");
        return 0;
    }
    cursor->at++;
    uint32_t bits = (uint32_t)take_number(cursor, 4);
    memcpy(&value, &bits, sizeof value);
    return value;
}

double cursor_f64(struct cursor *cursor)
{
    double value;

    if (peek(cursor) != FLOAT64) {
        refuse_form(cursor, "a 64-bit float was expected");
        return 0;
    }
    cursor->at++;
    uint64_t bits = take_number(cursor, 8);
    memcpy(&value, &bits, sizeof value);
    return value;
}

const char *cursor_text(struct cursor *cursor, size_t *size_out)
{
    int form = peek(cursor);
    const uint8_t *text = NULL;
    size_t size = 0;

    if (form >= STR8 && form <= STR32)
        size = take_length(cursor, form, STR8);
    else if (form >= 0 && (form & 0xe0) == FIXSTR)
        size = take_number(cursor, 1) & 0x1f;
    else
        refuse_form(cursor, "a text was expected");
    if (cursor_is_ok(cursor))
        text = take(cursor, size);
    *size_out = text ? size : 0;
    return text ? (const char *)text : "";
}

const uint8_t *cursor_bin(struct cursor *cursor, size_t *size_out)
{
    int form = peek(cursor);
    const uint8_t *data = NULL;
    size_t size = 0;

    if (form >= BIN8 && form <= BIN32)
        size = take_length(cursor, form, BIN8);
    else
        refuse_form(cursor, "bytes were expected");
    if (cursor_is_ok(cursor))
        data = take(cursor, size);
    *size_out = data ? size : 0;
    return data ? data : (const uint8_t *)"";
}

size_t cursor_enter_array(struct cursor *cursor)
{
    int form = peek(cursor);
    size_t count = 0;

    if (cursor->depth == CURSOR_MAX_DEPTH)
        cursor_refuse(cursor, "arrays are nested too deep");
    else if (form == ARRAY16 || form == ARRAY32)
        count = take_length(cursor, form, ARRAY16 - 1);
    else if (form >= 0 && (form & 0xf0) == FIXARRAY)
        count = take_number(cursor, 1) & 0x0f;
    else
        refuse_form(cursor, "an array was expected");
    if (count > cursor_left(cursor))
        cursor_refuse(cursor, cut_short);
    cursor->depth++;
    return cursor_is_ok(cursor) ? count : 0;
}

void cursor_leave(struct cursor *cursor)
{
    ASSERT(cursor->depth > 0);
    cursor->depth--;
}
