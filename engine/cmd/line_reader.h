/*
 * line_reader: the lines of a file as they come; who writes a pipe may wait for answers before it goes on.
 *
 * Blank lines are counted and passed over; a byte order mark before the first is no part of it.
 *
 * Thread: main.
 */
#ifndef ENGINE_CMD_LINE_READER_H
#define ENGINE_CMD_LINE_READER_H

#include "proto/base/memory.h"

struct line_reader { /* starts with its fd, and zeroes */
    int fd;          /* borrowed; where there is no line now, the next is to be polled for */
    bool at_end;     /* no more is read, */
    int error;       /* for this errno; 0: that was all */
    int32_t number;  /* of the last line, from 1 */

    struct bytes text; /* what was read, used up as far as `begin`, and without a newline from there to `searched` */
    size_t begin, searched;
};

/* The next line, without its newline, with a NUL behind; borrowed until the next call. NULL: there is none now, or,
 * at_end, any more. Never waits. */
const char *line_reader_next(struct line_reader *reader, size_t *size_out);
void line_reader_close(struct line_reader *reader);

#endif
