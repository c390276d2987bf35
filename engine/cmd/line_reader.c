#include "engine/cmd/line_reader.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10 };

/* Called when all that was read has been searched. false: no more comes now, or ever. */
static bool read_more(struct line_reader *reader)
{
    struct pollfd readable = {.fd = reader->fd, .events = POLLIN};
    struct bytes *text = &reader->text;
    ssize_t n;

    if (reader->at_end || poll(&readable, 1, 0) <= 0)
        return false;
    if (reader->begin > 0)
        memmove(text->data, text->data + reader->begin, text->size - reader->begin);
    text->size -= reader->begin;
    reader->begin = 0;
    reader->searched = text->size;
    n = read(reader->fd, bytes_reserve(text, READ_BYTES), READ_BYTES);
    if (n > 0) {
        text->size += (size_t)n;
        return true;
    }
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return false;
    reader->at_end = true;
    reader->error = n < 0 ? errno : 0;
    if (text->size > 0)
        bytes_append(text, "\n", 1); /* that the last line has not got */
    return text->size > 0;
}

const char *line_reader_next(struct line_reader *reader, size_t *size_out)
{
    for (;;) {
        char *text = (char *)reader->text.data, *line = text + reader->begin;
        size_t left = reader->text.size - reader->searched;
        char *newline = left > 0 ? memchr(text + reader->searched, '\n', left) : NULL;

        if (!newline) {
            if (!read_more(reader))
                return NULL;
            continue;
        }
        *newline = '\0';
        *size_out = (size_t)(newline - line);
        reader->begin = reader->searched = (size_t)(newline + 1 - text);
        if (reader->number++ == 0 && strncmp(line, "\xEF\xBB\xBF", 3) == 0) {
            line += 3;
            *size_out -= 3;
        }
        if (strspn(line, " \t\r") < *size_out)
            return line;
    }
}

void line_reader_close(struct line_reader *reader)
{
    bytes_close(&reader->text);
}
