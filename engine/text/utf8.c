#include "engine/text/utf8.h"

#include <string.h>

/* Which second byte may follow which first byte, and how many bytes the character has.
 * Later bytes are 80..BF. */
static const struct lead {
    uint8_t first, last;
    uint8_t size;
    uint8_t second_min, second_max;
} leads[] = {
    {0xc2, 0xdf, 2, 0x80, 0xbf},
    {0xe0, 0xe0, 3, 0xa0, 0xbf},
    {0xe1, 0xec, 3, 0x80, 0xbf},
    {0xed, 0xed, 3, 0x80, 0x9f}, /* no surrogates */
    {0xee, 0xef, 3, 0x80, 0xbf},
    {0xf0, 0xf0, 4, 0x90, 0xbf},
    {0xf1, 0xf3, 4, 0x80, 0xbf},
    {0xf4, 0xf4, 4, 0x80, 0x8f}, /* up to U+10FFFF */
};

static const struct lead *find_lead(uint8_t byte)
{
    for (size_t i = 0; i < COUNT_OF(leads); i++)
        if (byte >= leads[i].first && byte <= leads[i].last)
            return &leads[i];
    return NULL;
}

struct utf8_char utf8_first(const char *data, size_t size)
{
    const uint8_t *bytes = (const uint8_t *)data;

    if (bytes[0] < 0x80)
        return (struct utf8_char){UTF8_WHOLE, 1};

    const struct lead *lead = find_lead(bytes[0]);

    if (!lead)
        return (struct utf8_char){UTF8_INVALID, 1};
    for (uint32_t i = 1; i < lead->size; i++) {
        uint8_t min = i == 1 ? lead->second_min : 0x80;
        uint8_t max = i == 1 ? lead->second_max : 0xbf;

        if (i == size)
            return (struct utf8_char){UTF8_CUT, i};
        if (bytes[i] < min || bytes[i] > max)
            return (struct utf8_char){UTF8_INVALID, i};
    }
    return (struct utf8_char){UTF8_WHOLE, lead->size};
}

size_t utf8_valid_bytes(const char *data, size_t size)
{
    size_t at = 0;

    while (at < size) {
        struct utf8_char next = utf8_first(data + at, size - at);

        if (next.kind != UTF8_WHOLE)
            break;
        at += next.size;
    }
    return at;
}

static bool starts_character(char byte)
{
    return ((uint8_t)byte & 0xc0) != 0x80;
}

bool utf8_is_valid(const char *data, size_t size, struct utf8_fault *fault_out)
{
    size_t valid = utf8_valid_bytes(data, size);

    if (valid == size)
        return true;
    *fault_out = (struct utf8_fault){.line = 1, .column = 1, .byte = (uint8_t)data[valid]};
    for (size_t i = 0; i < valid; i++) {
        fault_out->column += starts_character(data[i]);
        if (data[i] == '\n') {
            fault_out->line++;
            fault_out->column = 1;
        }
    }
    return false;
}

void utf8_repair(const char *data, size_t size, struct bytes *out)
{
    size_t at = 0;

    while (at < size) {
        size_t valid = utf8_valid_bytes(data + at, size - at);

        bytes_append(out, data + at, valid);
        at += valid;
        if (at < size) {
            bytes_append(out, UTF8_REPLACEMENT, strlen(UTF8_REPLACEMENT));
            at += utf8_first(data + at, size - at).size;
        }
    }
}

size_t utf8_put_small(uint32_t code_point, char out[2])
{
    ASSERT(code_point < 0x800);
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    out[0] = (char)(0xc0 | code_point >> 6);
    out[1] = (char)(0x80 | (code_point & 0x3f));
    return 2;
}
