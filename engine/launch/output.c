#include "engine/launch/output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FULL_BYTES = 1 << 20 };

void output_open(const struct output_options *options, struct output *out)
{
    *out = (struct output){.options = *options,
                           .queues = {{.fd = STDOUT_FILENO}, {.fd = STDERR_FILENO}}};
}

void output_close(struct output *output)
{
    for (int i = 0; i < 2; i++)
        bytes_close(&output->queues[i].bytes);
}

/* ---- files ----------------------------------------------------------------------------------- */

static enum status make_folder(const char *path)
{
    AUTO_MEM char *part = mem_strdup(path);

    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(part, 0777); /* what can't be made is told by the last one */
        *slash = '/';
    }
    return mkdir(part, 0777) == 0 || errno == EEXIST
               ? OK
               : fail(ERR_IO, "--output-filename: folder %s cannot be made: %m", part);
}

enum status output_files_open(const struct output *output, const char *name,
                              struct output_files *out)
{
    static const char *const names[] = {"stdout", "stderr"};

    *out = (struct output_files){{-1, -1}};
    if (!output->options.folder)
        return OK;
    AUTO_MEM char *folder = mem_printf("%s/%s", output->options.folder, name);
    TRY(make_folder(folder));
    for (int i = 0; i < 2; i++) {
        AUTO_MEM char *path = mem_printf("%s/%s", folder, names[i]);

        out->fds[i] = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (out->fds[i] < 0)
            return fail(ERR_IO, "--output-filename: %s: %m", path);
    }
    return OK;
}

void output_files_close(struct output_files *files)
{
    for (int i = 0; i < 2; i++)
        if (files->fds[i] >= 0)
            close(files->fds[i]);
    *files = (struct output_files){{-1, -1}};
}

static void write_file(int *fd, const char *text, size_t size)
{
    while (*fd >= 0 && size > 0) {
        ssize_t n = write(*fd, text, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) { /* the disk is full: the job goes on, and stdout has it all */
            close(*fd);
            *fd = -1;
            return;
        }
        text += n;
        size -= (size_t)n;
    }
}

/* ---- lines ----------------------------------------------------------------------------------- */

static void add_timestamp(struct bytes *out)
{
    struct timespec now;
    struct tm parts;
    char text[64];

    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    bytes_printf(out, "%s.%03ld ", text, now.tv_nsec / 1000000);
}

static void add_line(const struct output *output, struct bytes *out, const char *tag,
                     const char *line, size_t size)
{
    if (output->options.has_timestamps)
        add_timestamp(out);
    if (output->options.is_tagged)
        bytes_printf(out, "[%s] ", tag);
    bytes_append(out, line, size);
    if (line[size - 1] != '\n') /* else what another process says would go on behind it */
        bytes_append(out, "\n", 1);
}

void output_text(struct output *output, struct output_files *files, const char *tag, int stream,
                 const char *text, size_t size)
{
    struct output_queue *queue = &output->queues[stream - 1];

    write_file(&files->fds[stream - 1], text, size);
    if (queue->is_dead)
        return;
    if (!output->options.is_tagged && !output->options.has_timestamps) {
        bytes_append(&queue->bytes, text, size);
        return;
    }
    while (size > 0) {
        const char *newline = memchr(text, '\n', size);
        size_t line_size = newline ? (size_t)(newline - text) + 1 : size;

        add_line(output, &queue->bytes, tag, text, line_size);
        text += line_size;
        size -= line_size;
    }
}

void output_say(struct output *output, const char *format, ...)
{
    struct bytes *out = &output->queues[1].bytes;
    char text[2048];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    /* It may quote an agent, or what spoke in its place, and a terminal obeys what is not printable. */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    if (output->queues[1].is_dead)
        return;
    if (output->options.has_timestamps)
        add_timestamp(out);
    bytes_printf(out, "launch: %s\n", text);
}

/* ---- writing --------------------------------------------------------------------------------- */

void output_poll(const struct output *output, struct pollfd *fds)
{
    for (int i = 0; i < 2; i++)
        fds[i] = (struct pollfd){.fd = output->queues[i].bytes.size > 0 ? output->queues[i].fd : -1,
                                 .events = POLLOUT};
}

/* Descriptors that others share must not be made non-blocking. What poll calls writable takes
 * PIPE_BUF bytes without waiting: a pipe, a terminal that Ctrl-S has not stopped, a file. */
static bool is_writable(int fd)
{
    struct pollfd writable = {.fd = fd, .events = POLLOUT};

    return poll(&writable, 1, 0) == 1;
}

static void flush(struct output_queue *queue)
{
    while (queue->sent < queue->bytes.size && is_writable(queue->fd)) {
        ssize_t n = write(queue->fd, queue->bytes.data + queue->sent,
                          MIN(queue->bytes.size - queue->sent, (size_t)PIPE_BUF));

        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            queue->is_dead = true;
            queue->sent = queue->bytes.size;
        } else if (n > 0) {
            queue->sent += (size_t)n;
        }
    }
    if (queue->sent == queue->bytes.size)
        queue->sent = queue->bytes.size = 0;
}

void output_flush(struct output *output)
{
    for (int i = 0; i < 2; i++)
        flush(&output->queues[i]);
}

bool output_is_empty(const struct output *output)
{
    return output->queues[0].bytes.size == 0 && output->queues[1].bytes.size == 0;
}

bool output_is_full(const struct output *output)
{
    return output->queues[0].bytes.size - output->queues[0].sent > FULL_BYTES ||
           output->queues[1].bytes.size - output->queues[1].sent > FULL_BYTES;
}
