#include "engine/bench/stream_clients.h"

#include "proto/base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10, TAIL_BYTES = 256, CONNECT_MS = 5000, SILENCE_MS = 30000 };

static const char EVENT[] = "data: ", LAST_CHUNK[] = "\r\n0\r\n\r\n",
                  USAGE[] = "\"completion_tokens\":";

struct client {
    int fd;
    bool is_answered;      /* its status line has been seen */
    char tail[TAIL_BYTES]; /* of what was read: what is looked for may be cut in two */
    size_t tail_bytes;
};

struct stream_clients {
    struct stream_clients_options options;
    struct client *clients; /* [num_clients] */
    int epoll_fd;
    int32_t num_running;
    int64_t start_ns;
    char *request;
    size_t request_bytes;
    char *buffer; /* [TAIL_BYTES + READ_BYTES + 1] */
    struct stream_counts counts;
};

static void stream_clients_close(struct stream_clients *all)
{
    for (int32_t i = 0; all->clients && i < all->options.num_clients; i++)
        if (all->clients[i].fd > 0)
            close(all->clients[i].fd);
    if (all->epoll_fd > 0)
        close(all->epoll_fd);
    mem_free(all->clients);
    mem_free(all->request);
    mem_free(all->buffer);
}

/* A server that was bound a moment ago may not listen yet. */
static bool connect_soon(int fd, const struct sockaddr_in *address)
{
    int64_t deadline_ns = clock_deadline_ns(CONNECT_MS);

    while (connect(fd, (const struct sockaddr *)address, sizeof *address) != 0) {
        if (errno != ECONNREFUSED || clock_now_ns() >= deadline_ns)
            return false;
        usleep(1000);
    }
    return true;
}

static enum status connect_client(struct stream_clients *all, struct client *client)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)all->options.port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    int yes = 1;

    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || !connect_soon(client->fd, &address))
        return fail(ERR_IO, "a client can't connect to port %d: %m", all->options.port);
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (epoll_ctl(all->epoll_fd, EPOLL_CTL_ADD, client->fd, &event) != 0)
        return fail(ERR_IO, "a client can't be waited for: %m");
    return OK;
}

static enum status ask(struct stream_clients *all, struct client *client)
{
    if (send(client->fd, all->request, all->request_bytes, MSG_NOSIGNAL) !=
        (ssize_t)all->request_bytes)
        return fail(ERR_IO, "a request was not sent: %m");
    client->is_answered = false;
    client->tail_bytes = 0;
    all->num_running++;
    return OK;
}

static int64_t count_in(const char *text, const char *word)
{
    int64_t count = 0;

    while ((text = strstr(text, word))) {
        count++;
        text++;
    }
    return count;
}

/* The whole answer is there: the tail has its usage. */
static enum status end_answer(struct stream_clients *all, struct client *client, const char *text)
{
    const char *usage = strstr(text, USAGE);

    if (!usage)
        return fail(ERR_CORRUPT, "a stream ended without a usage");
    all->counts.num_tokens += strtoll(usage + strlen(USAGE), NULL, 10);
    all->counts.num_requests++;
    all->num_running--;
    if (clock_now_ns() - all->start_ns < all->options.duration_ns)
        return ask(all, client);
    return OK;
}

/* text: what was left and what has come, NUL behind it. */
static enum status take(struct stream_clients *all, struct client *client, const char *text,
                        size_t size)
{
    if (!client->is_answered) {
        if (strncmp(text, "HTTP/1.1 200 ", 13) != 0)
            return fail(ERR_IO, "a client was answered: %.*s", (int)strcspn(text, "\r\n"), text);
        client->is_answered = true;
    }
    if (size >= strlen(LAST_CHUNK) && strcmp(text + size - strlen(LAST_CHUNK), LAST_CHUNK) == 0)
        return end_answer(all, client, text);
    client->tail_bytes = MIN(size, (size_t)TAIL_BYTES);
    memcpy(client->tail, text + size - client->tail_bytes, client->tail_bytes);
    return OK;
}

static enum status hear(struct stream_clients *all, struct client *client)
{
    size_t kept = client->tail_bytes;
    ssize_t n;

    memcpy(all->buffer, client->tail, kept);
    all->buffer[kept] = '\0';

    int64_t known = count_in(all->buffer, EVENT);

    n = recv(client->fd, all->buffer + kept, READ_BYTES, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return OK;
    if (n <= 0)
        return fail(ERR_CLOSED, "a client lost its connection");
    all->buffer[kept + (size_t)n] = '\0';
    all->counts.num_events += count_in(all->buffer, EVENT) - known;
    return take(all, client, all->buffer, kept + (size_t)n);
}

static enum status run(struct stream_clients *all)
{
    for (int32_t i = 0; i < all->options.num_clients; i++)
        TRY(connect_client(all, &all->clients[i]));
    all->start_ns = clock_now_ns();
    for (int32_t i = 0; i < all->options.num_clients; i++)
        TRY(ask(all, &all->clients[i]));
    while (all->num_running > 0) {
        struct epoll_event events[64];
        int n = epoll_wait(all->epoll_fd, events, COUNT_OF(events), SILENCE_MS);

        if (n == 0)
            return fail(ERR_TIMEOUT, "%d streams have been silent for %d s", all->num_running,
                        SILENCE_MS / 1000);
        for (int i = 0; i < n; i++)
            TRY(hear(all, events[i].data.ptr));
    }
    all->counts.elapsed_ns = clock_now_ns() - all->start_ns;
    return OK;
}

enum status stream_clients_run(const struct stream_clients_options *options,
                               struct stream_counts *out)
{
    AUTO_CLOSE(stream_clients)
    struct stream_clients all = {
        .options = *options,
        .clients = mem_new_array(struct client, (size_t)options->num_clients),
        .epoll_fd = epoll_create1(EPOLL_CLOEXEC),
        .buffer = mem_new_array(char, TAIL_BYTES + READ_BYTES + 1),
        .request = mem_printf("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                              "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                              strlen(options->body), options->body),
    };

    if (all.epoll_fd < 0)
        return fail(ERR_IO, "no epoll: %m");
    all.request_bytes = strlen(all.request);
    TRY(run(&all));
    *out = all.counts;
    return OK;
}
