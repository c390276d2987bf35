#include "engine/text/detokenizer.h"

#include "engine/text/utf8.h"

#include <string.h>

/*
 * Each stop string is followed by the Knuth-Morris-Pratt automaton, a byte at a time, so that
 * text costs the same however long the stop strings are. Whole characters go in, and a match
 * starts with a first byte of a character, so what is held back never begins in the middle of one.
 */
struct stop {
    char *text;       /* owns */
    uint32_t *border; /* [size]: of text[0..i], the longest proper prefix that is a suffix; owns */
    size_t size;
    size_t matched; /* bytes of text that the output ends with */
};

struct detokenizer {
    const struct tokenizer *tokenizer;
    struct stop *stops; /* [num_stops], owns */
    int32_t num_stops;
    bool include_stop, show_special;
    bool is_stopped;
    int32_t num_tokens, min_tokens;
    struct bytes raw;  /* bytes of tokens; after a push, at most one unfinished character */
    struct bytes held; /* text that may yet turn out to be a stop string */
};

static void init_stop(struct stop *stop, const char *text)
{
    uint32_t length = 0;

    stop->size = strlen(text);
    ASSERT(stop->size > 0, "an empty stop string");
    stop->text = mem_strdup(text);
    stop->border = mem_new_array(uint32_t, stop->size);
    for (size_t i = 1; i < stop->size; i++) {
        while (length && text[i] != text[length])
            length = stop->border[length - 1];
        if (text[i] == text[length])
            length++;
        stop->border[i] = length;
    }
}

struct detokenizer *detokenizer_new(const struct tokenizer *tokenizer,
                                    const struct detokenizer_options *options)
{
    struct detokenizer *d = mem_new(struct detokenizer);

    d->tokenizer = tokenizer;
    d->num_stops = options->num_stop;
    d->stops = mem_new_array(struct stop, (size_t)options->num_stop);
    for (int32_t i = 0; i < d->num_stops; i++)
        init_stop(&d->stops[i], options->stop[i]);
    d->include_stop = options->include_stop;
    d->show_special = options->show_special;
    d->min_tokens = options->min_tokens;
    return d;
}

void detokenizer_free(struct detokenizer *d)
{
    if (!d)
        return;
    for (int32_t i = 0; i < d->num_stops; i++) {
        mem_free(d->stops[i].text);
        mem_free(d->stops[i].border);
    }
    mem_free(d->stops);
    bytes_close(&d->raw);
    bytes_close(&d->held);
    mem_free(d);
}

/* true: the stop string is complete. */
static bool follow(struct stop *stop, char byte)
{
    while (stop->matched && stop->text[stop->matched] != byte)
        stop->matched = stop->border[stop->matched - 1];
    if (stop->text[stop->matched] == byte)
        stop->matched++;
    return stop->matched == stop->size;
}

/* The first stop string that a character completes, or -1. One that comes too early is passed over. */
static int32_t follow_stops(struct detokenizer *d, const char *text, size_t size)
{
    for (size_t k = 0; k < size; k++) {
        int32_t found = -1;

        for (int32_t i = d->num_stops - 1; i >= 0; i--) { /* all of them must see the byte */
            struct stop *stop = &d->stops[i];

            if (!follow(stop, text[k]))
                continue;
            if (d->num_tokens <= d->min_tokens)
                stop->matched = stop->border[stop->size - 1];
            else
                found = i;
        }
        if (found >= 0)
            return found;
    }
    return -1;
}

static int32_t take_character(struct detokenizer *d, const char *text, size_t size,
                              struct bytes *out)
{
    int32_t found = follow_stops(d, text, size);

    bytes_append(&d->held, text, size);
    if (found < 0)
        return -1;
    d->is_stopped = true;
    bytes_append(out, d->held.data, d->held.size - (d->include_stop ? 0 : d->stops[found].size));
    d->held.size = 0;
    return found;
}

/* Moves whole and hopeless characters out of `raw`; with `is_end` a cut one is hopeless too. */
static int32_t take_raw(struct detokenizer *d, bool is_end, struct bytes *out)
{
    const char *data = (const char *)d->raw.data;
    size_t at = 0;
    int32_t found = -1;

    while (found < 0 && at < d->raw.size) {
        struct utf8_char next = utf8_first(data + at, d->raw.size - at);

        if (next.kind == UTF8_CUT && !is_end)
            break;
        if (next.kind == UTF8_WHOLE)
            found = take_character(d, data + at, next.size, out);
        else
            found = take_character(d, UTF8_REPLACEMENT, strlen(UTF8_REPLACEMENT), out);
        at += next.size;
    }
    d->raw.size -= at;
    memmove(d->raw.data, d->raw.data + at, d->raw.size);
    return found;
}

static size_t longest_match(const struct detokenizer *d)
{
    size_t longest = 0;

    for (int32_t i = 0; i < d->num_stops; i++)
        longest = MAX(longest, d->stops[i].matched);
    return longest;
}

static void release(struct detokenizer *d, size_t size, struct bytes *out)
{
    bytes_append(out, d->held.data, size);
    d->held.size -= size;
    memmove(d->held.data, d->held.data + size, d->held.size);
}

int32_t detokenizer_push(struct detokenizer *d, token_id id, struct bytes *out)
{
    if (d->is_stopped)
        return -1;
    d->num_tokens++;
    tokenizer_piece(d->tokenizer, id, d->show_special, &d->raw);
    if (d->raw.size == 0)
        return -1;

    int32_t found = take_raw(d, false, out);

    if (found < 0 && d->held.size)
        release(d, d->held.size - longest_match(d), out);
    return found;
}

void detokenizer_finish(struct detokenizer *d, struct bytes *out)
{
    if (!d->is_stopped && d->raw.size)
        take_raw(d, true, out);
    if (!d->is_stopped && d->held.size)
        release(d, d->held.size, out);
    d->is_stopped = true;
}
