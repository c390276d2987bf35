#include "engine/grammar/words.h"

#include "engine/text/utf8.h"

#include <string.h>

enum status(fail_in_words)(enum status status, const char *words, size_t size)
{
    AUTO_CLOSE(bytes) struct bytes clean = {0};
    size_t kept = MIN(size, (size_t)MAX_WORDS_BYTES), end = 0;
    bool is_cut = kept < size;

    utf8_repair(words, kept, &clean);
    if (clean.size > MAX_WORDS_BYTES) { /* what is replaced grows */
        clean.size = utf8_valid_bytes((char *)clean.data, MAX_WORDS_BYTES);
        is_cut = true;
    }
    for (size_t i = 0; i < clean.size; i++) {
        bool is_blank = clean.data[i] <= ' ' || clean.data[i] == 0x7f;

        if (is_blank && (end == 0 || clean.data[end - 1] == ' '))
            continue; /* one is enough */
        clean.data[end++] = is_blank ? ' ' : clean.data[i];
    }
    if (end > 0 && clean.data[end - 1] == ' ')
        end--;
    clean.size = end;
    return fail(status, "%s%s", bytes_text(&clean), is_cut ? " ..." : "");
}

const char *short_name(const char *name, char out[static SHORT_NAME_BYTES])
{
    size_t size = utf8_valid_bytes(name, strnlen(name, SHORT_NAME_BYTES - 1));

    for (size_t i = 0; i < size; i++)
        out[i] = (uint8_t)name[i] < ' ' || name[i] == 0x7f ? ' ' : name[i];
    out[size] = '\0';
    return out;
}
