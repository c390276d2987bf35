/*
 * utf8: characters out of bytes that may be anything (well-formed is Unicode 15, table 3-7).
 * Thread: any.
 */
#ifndef ENGINE_TEXT_UTF8_H
#define ENGINE_TEXT_UTF8_H

#include "proto/base/memory.h"

enum utf8_kind {
    UTF8_WHOLE,   /* `size` bytes are one character */
    UTF8_INVALID, /* `size` bytes are none, and one U+FFFD stands for them */
    UTF8_CUT      /* the data ends inside a character that was right so far: `size` bytes of it */
};

struct utf8_char {
    enum utf8_kind kind;
    uint32_t size;
};

/* What the data starts with; size > 0. */
struct utf8_char utf8_first(const char *data, size_t size);

/* How many bytes from the start are whole characters; `size` when all are. */
size_t utf8_valid_bytes(const char *data, size_t size);

/* Where the first byte stands that is no UTF-8: lines and characters of a line, from 1. */
struct utf8_fault {
    int32_t line, column;
    uint8_t byte;
};

/* false: there is a fault. */
bool utf8_is_valid(const char *data, size_t size, struct utf8_fault *fault_out);

/* Appends the text, U+FFFD in place of each part that is no UTF-8. */
void utf8_repair(const char *data, size_t size, struct bytes *out);

/* Writes a code point of the basic plane (below U+0800: two bytes at most); returns its size. */
size_t utf8_put_small(uint32_t code_point, char out[2]);

#define UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

#endif
