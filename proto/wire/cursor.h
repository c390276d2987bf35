/*
 * cursor: reads MessagePack out of bytes that nobody has checked yet.
 *
 * The first thing that does not fit makes the cursor fail, and it stays failed:
 * every later read returns zero, so a reader may check once, at the end. A
 * length is believed only as far as bytes for it are really there; nesting is
 * bounded. Text and bin are borrowed from the input.
 *
 * Thread: the owner of the cursor.
 */
#ifndef PROTO_WIRE_CURSOR_H
#define PROTO_WIRE_CURSOR_H

#include "proto/base/status.h"

#include <stdint.h>

enum { CURSOR_MAX_DEPTH = 8 };

struct cursor {
    const uint8_t *start, *at, *end;
    int depth;
    const char *error; /* NULL, or why it failed: "an integer was expected" */
    size_t error_at;   /* byte offset */
};

void cursor_init(struct cursor *cursor, const void *data, size_t size);
static inline bool cursor_is_ok(const struct cursor *cursor)
{
    return cursor->error == NULL;
}
/* OK, or ERR_CORRUPT with the reason and the byte. */
MUST_USE enum status cursor_status(const struct cursor *cursor);
/* Makes it fail by the caller's judgement; `reason` must outlive it. */
void cursor_refuse(struct cursor *cursor, const char *reason);

static inline size_t cursor_left(const struct cursor *cursor)
{
    return (size_t)(cursor->end - cursor->at);
}

/* Steps over a nil if one is next. */
bool cursor_nil(struct cursor *cursor);
bool cursor_bool(struct cursor *cursor);
/* Any integer form whose value fits min..max. */
int64_t cursor_int(struct cursor *cursor, int64_t min, int64_t max);
uint64_t cursor_uint(struct cursor *cursor, uint64_t max);
/* Exactly the float form of that width: the bits arrive as they were sent. */
float cursor_f32(struct cursor *cursor);
double cursor_f64(struct cursor *cursor);
/* "" and 0 bytes when failed. Not NUL-terminated. */
const char *cursor_text(struct cursor *cursor, size_t *size_out);
const uint8_t *cursor_bin(struct cursor *cursor, size_t *size_out);
/* Number of elements that follow, each at least one byte. Ends with cursor_leave. */
size_t cursor_enter_array(struct cursor *cursor);
void cursor_leave(struct cursor *cursor);

#endif
