#include "proto/base/notify.h"

#include "proto/base/memory.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* "@name" is an abstract address; how many bytes of it count, or 0: it is no address. */
static socklen_t make_address(const char *path, struct sockaddr_un *address)
{
    size_t size = strlen(path);

    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (size < 2 || size >= sizeof address->sun_path || (path[0] != '/' && path[0] != '@'))
        return 0;
    memcpy(address->sun_path, path, size);
    if (path[0] == '@') {
        address->sun_path[0] = '\0';
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size);
    }
    return (socklen_t)sizeof *address;
}

bool notify(const char *format, ...)
{
    const char *path = getenv("NOTIFY_SOCKET");
    char text[NOTICE_MAX_BYTES + 1];
    struct sockaddr_un address;
    va_list args;

    socklen_t address_size = path ? make_address(path, &address) : 0;
    if (address_size == 0)
        return false;
    va_start(args, format);
    int size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (size < 0)
        return false;
    /* A socket a message: they are rare, and a process that forks or closes all descriptors keeps none. */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    ssize_t sent = sendto(fd, text, MIN((size_t)size, sizeof text - 1), MSG_NOSIGNAL,
                          (struct sockaddr *)&address, address_size);
    close(fd);
    return sent >= 0;
}

int64_t notify_watchdog_ms(void)
{
    const char *limit = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    long long usec = limit ? strtoll(limit, NULL, 10) : 0;

    if (usec <= 0 || (pid && strtoll(pid, NULL, 10) != getpid()))
        return 0;
    return MAX(usec / 2000, 1);
}

/* ---- the other side -------------------------------------------------------------------------- */

static void take_status(const char *words, size_t size, struct notice *out)
{
    if (size > NOTICE_MAX_STATUS) {
        size = NOTICE_MAX_STATUS;
        while (size > 0 && ((unsigned char)words[size] & 0xc0) == 0x80)
            size--; /* not in the middle of a letter */
    }
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)words[i];

        /* It ends on somebody's terminal, which obeys what is not printable. */
        out->status[i] = c < ' ' || c == 0x7f ? '?' : (char)c;
    }
    out->status[size] = '\0';
    out->has_status = true;
}

static void parse_line(const char *line, size_t size, struct notice *out)
{
    static const char status_key[] = "STATUS=";
    const size_t key_size = sizeof status_key - 1;
    const struct {
        const char *text;
        bool *flag;
    } flags[] = {
        {"READY=1", &out->is_ready},
        {"STOPPING=1", &out->is_stopping},
        {"WATCHDOG=1", &out->is_watchdog},
    };

    for (size_t i = 0; i < COUNT_OF(flags); i++)
        if (strlen(flags[i].text) == size && memcmp(line, flags[i].text, size) == 0)
            *flags[i].flag = true;
    if (size >= key_size && memcmp(line, status_key, key_size) == 0)
        take_status(line + key_size, size - key_size, out);
}

void notice_parse(const char *text, size_t size, struct notice *out)
{
    *out = (struct notice){0};
    while (size > 0) {
        const char *end = memchr(text, '\n', size);
        size_t line_size = end ? (size_t)(end - text) : size;

        parse_line(text, line_size, out);
        line_size += end != NULL;
        text += line_size;
        size -= line_size;
    }
}

enum status notify_receiver_open(const char *path, struct notify_receiver *out)
{
    struct sockaddr_un address;

    *out = (struct notify_receiver){.fd = -1};
    socklen_t address_size = path[0] == '/' ? make_address(path, &address) : 0;
    if (address_size == 0)
        return fail(ERR_IO, "%s is no path for a socket: it has %zu bytes, 107 are the most", path,
                    strlen(path));
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(ERR_IO, "no socket for notices: %m");
    if (bind(fd, (struct sockaddr *)&address, address_size) != 0) {
        enum status status = fail(ERR_IO, "no socket for notices at %s: %m", path);

        close(fd);
        return status;
    }
    *out = (struct notify_receiver){.fd = fd, .path = mem_strdup(path)};
    return OK;
}

bool notify_receiver_take(struct notify_receiver *receiver, struct notice *out)
{
    char text[NOTICE_MAX_BYTES];
    ssize_t size;

    do
        size = recv(receiver->fd, text, sizeof text, 0);
    while (size < 0 && errno == EINTR);
    if (size < 0)
        return false;
    notice_parse(text, (size_t)size, out);
    return true;
}

void notify_receiver_close(struct notify_receiver *receiver)
{
    if (receiver->fd >= 0)
        close(receiver->fd);
    if (receiver->path)
        unlink(receiver->path);
    mem_free(receiver->path);
    *receiver = (struct notify_receiver){.fd = -1};
}
