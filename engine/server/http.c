#include "engine/server/http.h"
#include "engine/server/http_parse.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    LISTEN_BACKLOG = 512,
    LINGER_MS = 2000,         /* a refused client may finish sending, so that it reads our answer */
    ACCEPT_PAUSE_MS = 250,    /* out of file descriptors: let some come back */
    INPUT_BYTES = 128 * 1024, /* read ahead of a connection at most */
    SEND_BYTES = 256 * 1024,  /* of the system's buffer, on top of stream_buffer_bytes */
};

const struct http_limits http_default_limits = {
    .head_bytes = 16 << 10,
    .body_bytes = 8 << 20,
    .all_bodies_bytes = 256 << 20,
    .stream_buffer_bytes = 1 << 20,
    .num_connections = 1024,
    .request_ms = 60000,
    .idle_ms = 75000,
    .unread_ms = 60000,
};

enum connection_state {
    WAIT_HEAD, /* nothing of the next request, or a part of its head */
    READ_BODY,
    ANSWER, /* the handler has the exchange */
    CLOSE,  /* the last answer is on its way; what still comes in is thrown away */
};

struct http_exchange {
    struct connection *connection;
    struct http_head head;
    struct http_chunks chunks;
    struct bytes body;
    struct bytes headers; /* of the answer, each with its CRLF */
    int64_t started_ns;
    bool streaming;
    void *user;
};

struct connection {
    struct http_server *server;
    struct bufferevent *bev;
    struct event *deadline; /* also fired by hand, to drop the client from the loop */
    struct connection *next, *previous;
    enum connection_state state;
    size_t scanned;       /* WAIT_HEAD: bytes of input known not to end a head */
    size_t counted_bytes; /* of the body, in server->all_bodies_bytes */
    bool dropped;
    bool close_after;               /* behind the running answer */
    bool is_shut;                   /* CLOSE: our side is */
    struct http_exchange *exchange; /* READ_BODY, ANSWER */
    char peer[INET6_ADDRSTRLEN];
};

struct http_server {
    struct http_limits limits;
    struct http_handler handler;
    struct event_base *base;
    struct evconnlistener *listener;
    struct event *accept_again;
    evutil_socket_t fd; /* -1 once the listener has it */
    bool loopback;
    bool draining;
    char *url;
    struct connection *connections;
    int num_connections;
    size_t all_bodies_bytes;
};

/* ---- words ----------------------------------------------------------------------------------- */

static const struct {
    int code;
    const char *reason;
} reasons[] = {
    {200, "OK"},
    {204, "No Content"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {413, "Content Too Large"},
    {415, "Unsupported Media Type"},
    {422, "Unprocessable Content"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {499, "Client Closed Request"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {503, "Service Unavailable"},
};

static const char *reason_of(int code)
{
    for (size_t i = 0; i < COUNT_OF(reasons); i++)
        if (reasons[i].code == code)
            return reasons[i].reason;
    return "Unknown";
}

/* ---- connections ----------------------------------------------------------------------------- */

static void set_deadline(struct connection *connection, int ms)
{
    struct timeval wait = {ms / 1000, ms % 1000 * 1000};

    event_add(connection->deadline, &wait);
}

static void exchange_free(struct http_exchange *exchange)
{
    if (!exchange)
        return;
    http_head_close(&exchange->head);
    bytes_close(&exchange->body);
    bytes_close(&exchange->headers);
    mem_free(exchange);
}

static void forget_exchange(struct connection *connection)
{
    connection->server->all_bodies_bytes -= connection->counted_bytes;
    connection->counted_bytes = 0;
    exchange_free(connection->exchange);
    connection->exchange = NULL;
}

static void connection_free(struct connection *connection)
{
    struct http_server *server = connection->server;

    forget_exchange(connection);
    if (connection->previous)
        connection->previous->next = connection->next;
    else
        server->connections = connection->next;
    if (connection->next)
        connection->next->previous = connection->previous;
    server->num_connections--;
    event_free(connection->deadline);
    bufferevent_free(connection->bev);
    mem_free(connection);
}

/* The client is lost: whoever answers it must hear of it first. */
static void lose_connection(struct connection *connection)
{
    struct http_handler *handler = &connection->server->handler;

    if (connection->state == ANSWER)
        handler->gone(handler->user, connection->exchange);
    connection_free(connection);
}

/* Lets the loop lose the connection: the caller may still hold the exchange. */
static void drop(struct connection *connection)
{
    connection->dropped = true;
    bufferevent_disable(connection->bev, EV_READ | EV_WRITE);
    event_active(connection->deadline, EV_TIMEOUT, 0);
}

/* Everything is said and sent. Reading on for a moment keeps the system from resetting a
 * connection with unread input, which would take our last answer away from the client. */
static void shut_when_sent(struct connection *connection)
{
    if (connection->is_shut || evbuffer_get_length(bufferevent_get_output(connection->bev)))
        return;
    connection->is_shut = true;
    shutdown(bufferevent_getfd(connection->bev), SHUT_WR);
    set_deadline(connection, LINGER_MS);
}

static void begin_close(struct connection *connection)
{
    struct evbuffer *input = bufferevent_get_input(connection->bev);

    connection->state = CLOSE;
    forget_exchange(connection);
    evbuffer_drain(input, evbuffer_get_length(input));
    event_del(connection->deadline);
    shut_when_sent(connection);
}

static void read_more(struct connection *connection);

/* The answer is complete: on to the next request, which may have come already. */
static void end_answer(struct connection *connection)
{
    if (connection->dropped)
        return;
    if (connection->close_after || connection->server->draining) {
        begin_close(connection);
        return;
    }
    forget_exchange(connection);
    connection->state = WAIT_HEAD;
    connection->scanned = 0;
    set_deadline(connection, connection->server->limits.idle_ms);
    /* From the loop: a client that pipelines must not make us recurse, nor starve the others. */
    bufferevent_trigger(connection->bev, EV_READ,
                        BEV_TRIG_IGNORE_WATERMARKS | BEV_OPT_DEFER_CALLBACKS);
}

/* ---- answers --------------------------------------------------------------------------------- */

static void write_head(struct connection *connection, int code, const char *content_type,
                       const char *framing, const char *headers)
{
    struct evbuffer *out = bufferevent_get_output(connection->bev);

    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\n", code, reason_of(code));
    if (content_type)
        evbuffer_add_printf(out, "Content-Type: %s\r\n", content_type);
    if (connection->close_after || connection->server->draining)
        evbuffer_add_printf(out, "Connection: close\r\n");
    evbuffer_add_printf(out, "%s%s\r\n", headers, framing);
}

/* What is full when bytes are refused is so for moments: other clients' requests are on their way. */
#define RETRY_AFTER "Retry-After: 1\r\n"

/* A request that never became one: say why, in the handler's form, and close behind it. */
static void refuse(struct connection *connection, int code, const char *sentence)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};
    char framing[64];

    log_debug("http %s: %d %s", connection->peer, code, sentence);
    connection->close_after = true;
    connection->server->handler.refusal(code, sentence, &body);
    snprintf(framing, sizeof(framing), "Content-Length: %zu\r\n", body.size);
    write_head(connection, code, "application/json", framing, code == 503 ? RETRY_AFTER : "");
    evbuffer_add(bufferevent_get_output(connection->bev), body.data, body.size);
    begin_close(connection);
}

static void refuse_status(struct connection *connection, enum status status, int code_full)
{
    int code = status == ERR_FULL ? code_full : status == ERR_UNSUPPORTED ? 501 : 400;

    refuse(connection, code, fail_text());
}

void http_add_header(struct http_exchange *exchange, const char *name, const char *value)
{
    bytes_printf(&exchange->headers, "%s: ", name);
    for (; *value; value++)
        if ((uint8_t)*value >= 0x20 && *value != 0x7f)
            bytes_append(&exchange->headers, value, 1);
    bytes_append(&exchange->headers, "\r\n", 2);
}

void http_add_retry_after(struct http_exchange *exchange, int32_t seconds)
{
    bytes_printf(&exchange->headers, "Retry-After: %d\r\n", seconds);
}

void http_reply(struct http_exchange *exchange, int code, const char *content_type,
                const void *body, size_t size)
{
    struct connection *connection = exchange->connection;
    char framing[64];

    ASSERT(!exchange->streaming);
    snprintf(framing, sizeof(framing), "Content-Length: %zu\r\n", size);
    write_head(connection, code, content_type, code == 204 ? "" : framing,
               bytes_text(&exchange->headers));
    if (strcmp(exchange->head.method, "HEAD") != 0 && size)
        evbuffer_add(bufferevent_get_output(connection->bev), body, size);
    end_answer(connection);
}

void http_stream_begin(struct http_exchange *exchange, int code, const char *content_type)
{
    struct connection *connection = exchange->connection;
    bool chunked = exchange->head.minor_version >= 1;

    ASSERT(!exchange->streaming);
    exchange->streaming = true;
    if (!chunked) /* HTTP/1.0: the stream ends where the connection does */
        connection->close_after = true;
    write_head(connection, code, content_type, chunked ? "Transfer-Encoding: chunked\r\n" : "",
               bytes_text(&exchange->headers));
}

/* Straight to the socket while nothing waits before it: one system call, where a buffer costs a
 * round of the event loop. What the socket does not take, and a failure's discovery, is left to the
 * loop. */
static void write_parts(struct connection *connection, const struct iovec *parts, int num_parts)
{
    struct evbuffer *out = bufferevent_get_output(connection->bev);
    struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)num_parts};
    ssize_t sent = 0;

    if (evbuffer_get_length(out) == 0)
        sent = sendmsg(bufferevent_getfd(connection->bev), &message, MSG_DONTWAIT | MSG_NOSIGNAL);

    size_t skip = sent > 0 ? (size_t)sent : 0;

    for (int i = 0; i < num_parts; i++) {
        size_t n = MIN(skip, parts[i].iov_len);

        if (n < parts[i].iov_len)
            evbuffer_add(out, (const char *)parts[i].iov_base + n, parts[i].iov_len - n);
        skip -= n;
    }
}

void http_stream_write(struct http_exchange *exchange, const void *data, size_t size)
{
    struct connection *connection = exchange->connection;
    struct evbuffer *out = bufferevent_get_output(connection->bev);
    struct iovec body = {(void *)data, size};
    char chunk_size[24];

    ASSERT(exchange->streaming);
    if (!size || connection->dropped) /* an empty chunk would end the stream */
        return;
    if (exchange->head.minor_version >= 1) {
        int n = snprintf(chunk_size, sizeof chunk_size, "%zx\r\n", size);

        write_parts(connection,
                    (struct iovec[]){{chunk_size, (size_t)n}, body, {(void *)"\r\n", 2}}, 3);
    } else {
        write_parts(connection, &body, 1);
    }

    size_t limit = connection->server->limits.stream_buffer_bytes;
    if (evbuffer_get_length(out) > limit) {
        log_warn("http %s dropped: it has %zu bytes of its stream to read, the limit is %zu",
                 connection->peer, evbuffer_get_length(out), limit);
        drop(connection);
    }
}

void http_stream_end(struct http_exchange *exchange)
{
    struct connection *connection = exchange->connection;

    ASSERT(exchange->streaming);
    if (exchange->head.minor_version >= 1)
        evbuffer_add(bufferevent_get_output(connection->bev), "0\r\n\r\n", 5);
    if (connection->dropped) /* nobody answers it any more; the loop frees it */
        connection->state = CLOSE;
    end_answer(connection);
}

bool http_is_streaming(const struct http_exchange *exchange)
{
    return exchange->streaming;
}

/* ---- requests -------------------------------------------------------------------------------- */

const char *http_method(const struct http_exchange *exchange)
{
    return exchange->head.method;
}

const char *http_path(const struct http_exchange *exchange)
{
    return exchange->head.path;
}

const char *http_query(const struct http_exchange *exchange)
{
    return exchange->head.query;
}

const char *http_find_header(const struct http_exchange *exchange, const char *name)
{
    return http_head_find(&exchange->head, name);
}

struct bytes http_take_body(struct http_exchange *exchange)
{
    struct bytes body = exchange->body;

    exchange->body = (struct bytes){0};
    return body;
}

const char *http_peer(const struct http_exchange *exchange)
{
    return exchange->connection->peer;
}

int64_t http_started_ns(const struct http_exchange *exchange)
{
    return exchange->started_ns;
}

void http_set_user(struct http_exchange *exchange, void *user)
{
    exchange->user = user;
}

void *http_user(const struct http_exchange *exchange)
{
    return exchange->user;
}

/* The request is whole: from here on it is the handler's. */
static void hand_over(struct connection *connection)
{
    struct http_handler *handler = &connection->server->handler;

    connection->state = ANSWER;
    connection->close_after = !connection->exchange->head.keep_alive;
    event_del(connection->deadline);
    handler->request(handler->user, connection->exchange);
}

/* All bodies together have a limit, or a thousand clients could hold 8 MB each. False: refused. */
static bool count_body(struct connection *connection)
{
    struct http_server *server = connection->server;
    size_t size = connection->exchange->body.size;

    server->all_bodies_bytes += size - connection->counted_bytes;
    connection->counted_bytes = size;
    if (server->all_bodies_bytes <= server->limits.all_bodies_bytes)
        return true;
    refuse(connection, 503, "the bodies of all requests together are too large now: try later");
    return false;
}

static void read_body(struct connection *connection)
{
    struct evbuffer *input = bufferevent_get_input(connection->bev);
    struct http_exchange *exchange = connection->exchange;
    size_t max_bytes = connection->server->limits.body_bytes;
    size_t wanted = (size_t)exchange->head.content_length;
    bool done = !exchange->head.chunked && exchange->body.size == wanted;

    while (!done && evbuffer_get_length(input)) {
        size_t size = evbuffer_get_contiguous_space(input);
        const uint8_t *data = evbuffer_pullup(input, (ev_ssize_t)size);
        size_t used = MIN(size, wanted - exchange->body.size);

        if (exchange->head.chunked) {
            enum status status =
                http_chunks_push(&exchange->chunks, data, size, max_bytes, &exchange->body, &used);
            if (status != OK) {
                refuse_status(connection, status, 413);
                return;
            }
            done = exchange->chunks.state == CHUNK_DONE;
        } else {
            bytes_append(&exchange->body, data, used);
            done = exchange->body.size == wanted;
        }
        evbuffer_drain(input, used);
        if (!count_body(connection))
            return;
    }
    if (done)
        hand_over(connection);
}

/* A head has come: is its body one that we will take? */
static void begin_request(struct connection *connection)
{
    struct http_exchange *exchange = connection->exchange;
    size_t max_bytes = connection->server->limits.body_bytes;

    if ((uint64_t)exchange->head.content_length > max_bytes) {
        char sentence[128];
        snprintf(sentence, sizeof(sentence),
                 "the body has %lld bytes, the limit is %zu (--max-body-bytes)",
                 (long long)exchange->head.content_length, max_bytes);
        refuse(connection, 413, sentence);
        return;
    }
    connection->state = READ_BODY;
    if (exchange->head.expects_continue &&
        (exchange->head.content_length || exchange->head.chunked))
        evbuffer_add_printf(bufferevent_get_output(connection->bev),
                            "HTTP/1.1 100 Continue\r\n\r\n");
    read_body(connection);
}

static void parse_head(struct connection *connection, const char *text, size_t size)
{
    struct http_exchange *exchange = mem_new(struct http_exchange);
    enum status status = http_head_parse(text, size, &exchange->head);

    exchange->connection = connection;
    exchange->started_ns = clock_now_ns();
    connection->exchange = exchange;
    connection->scanned = 0;
    if (status != OK) {
        refuse_status(connection, status, 431);
        return;
    }
    evbuffer_drain(bufferevent_get_input(connection->bev), size);
    begin_request(connection);
}

static void read_head(struct connection *connection)
{
    struct evbuffer *input = bufferevent_get_input(connection->bev);
    size_t limit = connection->server->limits.head_bytes;
    size_t have = evbuffer_get_length(input);

    /* RFC 9112, 2.2: an empty line in front of a request is read over. */
    while (!connection->scanned && have >= 2 && memcmp(evbuffer_pullup(input, 2), "\r\n", 2) == 0) {
        evbuffer_drain(input, 2);
        have -= 2;
    }
    if (!have)
        return;
    if (!connection->scanned) /* its first byte: the whole request is due by then */
        set_deadline(connection, connection->server->limits.request_ms);

    size_t visible = MIN(have, limit);
    const char *text = (const char *)evbuffer_pullup(input, (ev_ssize_t)visible);
    const char *end =
        memmem(text + connection->scanned, visible - connection->scanned, "\r\n\r\n", 4);
    if (end) {
        parse_head(connection, text, (size_t)(end + 4 - text));
    } else if (have >= limit) {
        char sentence[96];
        snprintf(sentence, sizeof(sentence), "the request's head is larger than %zu bytes", limit);
        refuse(connection, 431, sentence);
    } else if (http_head_check_start(text, visible) != OK) {
        refuse(connection, 400, fail_text());
    } else {
        connection->scanned = have > 3 ? have - 3 : 1;
    }
}

static void read_more(struct connection *connection)
{
    struct evbuffer *input = bufferevent_get_input(connection->bev);

    switch (connection->state) {
    case WAIT_HEAD:
        read_head(connection);
        break;
    case READ_BODY:
        read_body(connection);
        break;
    case ANSWER: /* the next request waits here, up to the read watermark */
        break;
    case CLOSE:
        evbuffer_drain(input, evbuffer_get_length(input));
        break;
    }
}

/* ---- events ---------------------------------------------------------------------------------- */

static void on_read(struct bufferevent *bev, void *user)
{
    (void)bev;
    struct connection *connection = user;
    if (!connection->dropped)
        read_more(connection);
}

static void on_write(struct bufferevent *bev, void *user)
{
    (void)bev;
    struct connection *connection = user;
    if (connection->state == CLOSE)
        shut_when_sent(connection);
}

/* End of input, an error, or output that nobody takes: while we answer, it is all one. */
static void on_event(struct bufferevent *bev, short what, void *user)
{
    struct connection *connection = user;
    bool has_output = evbuffer_get_length(bufferevent_get_output(bev)) > 0;

    /* It sent its request, said that this was all, and waits for the answer. */
    if ((what & BEV_EVENT_EOF) && connection->state != ANSWER && has_output) {
        begin_close(connection);
        return;
    }
    if (what & BEV_EVENT_TIMEOUT)
        log_warn("http %s dropped: for %d ms it has read nothing of its answer", connection->peer,
                 connection->server->limits.unread_ms);
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR | BEV_EVENT_TIMEOUT))
        lose_connection(connection);
}

static void on_deadline(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct connection *connection = user;
    bool in_request = connection->state == READ_BODY || connection->scanned;

    if (connection->dropped || connection->state == CLOSE || !in_request) {
        lose_connection(connection);
        return;
    }
    char sentence[96];
    snprintf(sentence, sizeof(sentence), "the request did not arrive within %d ms",
             connection->server->limits.request_ms);
    refuse(connection, 408, sentence);
}

static void name_peer(const struct sockaddr *address, char *out, size_t size)
{
    const void *bytes = address->sa_family == AF_INET6
                            ? (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr
                            : (const void *)&((const struct sockaddr_in *)address)->sin_addr;

    if (!inet_ntop(address->sa_family, bytes, out, (socklen_t)size))
        snprintf(out, size, "?");
}

/* One client too many: it hears so, if its socket takes the answer at once. */
static void turn_away(struct http_server *server, evutil_socket_t fd)
{
    AUTO_CLOSE(bytes) struct bytes answer = {0};
    AUTO_CLOSE(bytes) struct bytes body = {0};
    char sentence[96];

    snprintf(sentence, sizeof(sentence), "%d connections are open, the limit is %d: try later",
             server->num_connections, server->limits.num_connections);
    server->handler.refusal(503, sentence, &body);
    bytes_printf(&answer,
                 "HTTP/1.1 503 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                 RETRY_AFTER "Connection: close\r\n\r\n%s",
                 reason_of(503), body.size, bytes_text(&body));
    if (send(fd, answer.data, answer.size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        log_debug("http: a client turned away: %s", strerror(errno));
    evutil_closesocket(fd);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
                      int address_size, void *user)
{
    (void)listener;
    (void)address_size;
    struct http_server *server = user;

    if (server->num_connections >= server->limits.num_connections) {
        turn_away(server, fd);
        return;
    }

    struct connection *connection = mem_new(struct connection);
    struct timeval unread = {server->limits.unread_ms / 1000,
                             server->limits.unread_ms % 1000 * 1000};
    /* The system would buffer megabytes more before we could tell that nobody reads. */
    int send_bytes = (int)MIN(server->limits.stream_buffer_bytes, (size_t)SEND_BYTES);
    int yes = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(send_bytes));
    name_peer(address, connection->peer, sizeof(connection->peer));
    connection->server = server;
    connection->next = server->connections;
    if (connection->next)
        connection->next->previous = connection;
    server->connections = connection;
    server->num_connections++;

    connection->deadline = evtimer_new(server->base, on_deadline, connection);
    connection->bev = bufferevent_socket_new(server->base, fd, BEV_OPT_CLOSE_ON_FREE);
    ASSERT(connection->deadline && connection->bev);
    bufferevent_setcb(connection->bev, on_read, on_write, on_event, connection);
    bufferevent_setwatermark(connection->bev, EV_READ, 0,
                             MAX((size_t)INPUT_BYTES, server->limits.head_bytes + 1));
    bufferevent_set_timeouts(connection->bev, NULL, &unread);
    set_deadline(connection, server->limits.idle_ms);
    bufferevent_enable(connection->bev, EV_READ | EV_WRITE);
}

/* Out of file descriptors, mostly: waiting keeps the loop from spinning on a full backlog. */
static void on_accept_error(struct evconnlistener *listener, void *user)
{
    struct http_server *server = user;
    struct timeval pause = {0, ACCEPT_PAUSE_MS * 1000};

    log_warn("http: a client can't be accepted with %d connections open: %s",
             server->num_connections, strerror(errno));
    evconnlistener_disable(listener);
    event_add(server->accept_again, &pause);
}

static void on_accept_again(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct http_server *server = user;
    if (server->listener)
        evconnlistener_enable(server->listener);
}

/* ---- the server ------------------------------------------------------------------------------ */

static bool address_is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
}

static char *url_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof(address);
    char name[INET6_ADDRSTRLEN];

    ASSERT(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    name_peer((struct sockaddr *)&address, name, sizeof(name));
    if (address.ss_family == AF_INET6)
        return mem_printf("http://[%s]:%d", name,
                          ntohs(((struct sockaddr_in6 *)&address)->sin6_port));
    return mem_printf("http://%s:%d", name, ntohs(((struct sockaddr_in *)&address)->sin_port));
}

static enum status bind_address(const struct addrinfo *info, const char *host, int port,
                                int *fd_out)
{
    int yes = 1;
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return fail(ERR_IO, "no socket for %s: %s", host, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (bind(fd, info->ai_addr, info->ai_addrlen) == 0) {
        *fd_out = fd;
        return OK;
    }
    enum status status =
        errno == EADDRINUSE
            ? fail(ERR_IO,
                   "port %d of %s is in use by another program: choose one with --port, or "
                   "--port 0 for any that is free",
                   port, host)
            : fail(ERR_IO, "port %d of %s can't be had: %s", port, host, strerror(errno));
    close(fd);
    return status;
}

enum status http_open(const char *host, int port, const struct http_limits *limits,
                      struct http_server **out)
{
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *info;
    char port_text[16];
    int fd = -1;

    snprintf(port_text, sizeof(port_text), "%d", port);
    int error = getaddrinfo(host, port_text, &wanted, &info);
    if (error)
        return fail(ERR_INVALID, "--host %s: %s", host, gai_strerror(error));
    bool loopback = address_is_loopback(info->ai_addr);
    enum status status = bind_address(info, host, port, &fd);
    freeaddrinfo(info);
    TRY(status);

    struct http_server *server = mem_new(struct http_server);
    server->limits = *limits;
    server->fd = fd;
    server->loopback = loopback;
    server->url = url_of(fd);
    *out = server;
    return OK;
}

bool http_is_loopback(const struct http_server *server)
{
    return server->loopback;
}

const char *http_url(const struct http_server *server)
{
    return server->url;
}

enum status http_listen(struct http_server *server, struct event_base *base,
                        const struct http_handler *handler)
{
    server->base = base;
    server->handler = *handler;
    /* Two programs may bind one port before either listens; the second is told here. */
    if (listen(server->fd, LISTEN_BACKLOG) != 0)
        return fail(ERR_IO, "%s can't be listened on: %s", server->url, strerror(errno));
    server->accept_again = evtimer_new(base, on_accept_again, server);
    server->listener = evconnlistener_new(
        base, on_accept, server, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, server->fd);
    ASSERT(server->accept_again && server->listener);
    evconnlistener_set_error_cb(server->listener, on_accept_error);
    server->fd = -1;
    return OK;
}

void http_drain(struct http_server *server)
{
    server->draining = true;
    if (server->listener)
        evconnlistener_free(server->listener);
    server->listener = NULL;
    for (struct connection *connection = server->connections, *next; connection;
         connection = next) {
        next = connection->next;
        if (connection->state == WAIT_HEAD && !connection->scanned)
            begin_close(connection);
    }
}

int http_num_busy(const struct http_server *server)
{
    int num_busy = 0;

    for (struct connection *connection = server->connections; connection;
         connection = connection->next)
        num_busy += connection->state == READ_BODY || connection->state == ANSWER ||
                    evbuffer_get_length(bufferevent_get_output(connection->bev)) > 0;
    return num_busy;
}

void http_close(struct http_server *server)
{
    while (server->connections)
        connection_free(server->connections);
    if (server->listener)
        evconnlistener_free(server->listener);
    if (server->accept_again)
        event_free(server->accept_again);
    server->listener = NULL;
    server->accept_again = NULL;
}

void http_server_free(struct http_server *server)
{
    if (!server)
        return;
    http_close(server);
    if (server->fd >= 0)
        close(server->fd);
    mem_free(server->url);
    mem_free(server);
}
