/*
 * output: what the processes of a job print, and what the launcher says itself, on its stdout and stderr.
 *
 * Nothing here waits for a slow reader: what it has not taken is kept, and output_is_full tells when the
 * processes are to wait instead.
 *
 * Thread: the launcher's.
 */
#ifndef ENGINE_LAUNCH_OUTPUT_H
#define ENGINE_LAUNCH_OUTPUT_H

#include "proto/base/memory.h"

#include <poll.h>
#include <stdint.h>

struct output_options {
    bool is_tagged, has_timestamps;
    const char *folder; /* NULL: no files; borrowed */
};

enum { OUTPUT_NUM_FDS = 2 };

struct output_queue {
    int fd;
    struct bytes bytes;
    size_t sent;
    bool is_dead; /* nobody reads it any more */
};

struct output {
    struct output_options options;
    struct output_queue queues[2]; /* stdout, stderr */
};

void output_open(const struct output_options *options, struct output *out);
void output_close(struct output *output);

struct output_files { /* of one process */
    int fds[2];       /* -1: none */
};

/* `name`: "rank.3", "engine". Without a folder there are none. ERR_IO: they can't be made. */
MUST_USE enum status output_files_open(const struct output *output, const char *name,
                                       struct output_files *out);
void output_files_close(struct output_files *files);

/* stream: 1 or 2. `tag`: "rank 3". Tagged or with timestamps, `text` is whole lines, or a part of one that is too long
 * or ends the output without a newline: it becomes a line. Files have it all as it was printed. */
void output_text(struct output *output, struct output_files *files, const char *tag, int stream,
                 const char *text, size_t size);
/* "launch: sentence" on stderr; what is not printable becomes "?". */
void output_say(struct output *output, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Where there is something left to write, and the reader is slow; fds: [OUTPUT_NUM_FDS]. */
void output_poll(const struct output *output, struct pollfd *fds);
/* Writes what can be written without waiting. */
void output_flush(struct output *output);
bool output_is_empty(const struct output *output);
bool output_is_full(const struct output *output);

#endif
