/*
 * http: an HTTP/1.1 server on a libevent loop that holds its own against any client.
 *
 * It knows connections, requests, replies and streams; what a path means is routes.c's business.
 * Everything that a client can make grow has a limit, and everything that it can delay a deadline:
 * heads, bodies, all bodies together, connections, the time to send a request, unread output.
 * (evhttp of libevent 2.1 answers its own refusals in HTML, has no limit of connections, and a
 * byte now and then resets its only timer; so it is libevent's bufferevents here.)
 *
 * An exchange is one request and its answer. It is the handler's from http_handler.request on,
 * until http_reply or http_stream_end, or until http_handler.gone tells that the client left or
 * was dropped: after any of these it must not be touched again.
 *
 * Thread: the one that runs the event loop.
 */
#ifndef ENGINE_SERVER_HTTP_H
#define ENGINE_SERVER_HTTP_H

#include "proto/base/memory.h"

struct event_base;
struct http_server;
struct http_exchange;

struct http_limits {
    size_t head_bytes;          /* of a request: 431 */
    size_t body_bytes;          /* of a request: 413 */
    size_t all_bodies_bytes;    /* of all requests being received or answered: 503 */
    size_t stream_buffer_bytes; /* output that a client has not read: it is dropped */
    int num_connections;        /* one more: 503, closed at once */
    int request_ms;             /* from a request's first byte to its last: 408 */
    int idle_ms;                /* between requests on one connection */
    int unread_ms;              /* output pending and not a byte of it taken: dropped */
};

extern const struct http_limits http_default_limits;

struct http_handler {
    void (*request)(void *user, struct http_exchange *exchange);
    /* The client left, or was dropped, before its answer was complete. */
    void (*gone)(void *user, struct http_exchange *exchange);
    /* Words a refusal of bytes that never became an exchange (400, 408, 413, 431, …): the JSON to
     * send, appended to `out`. */
    void (*refusal)(int code, const char *sentence, struct bytes *out);
    void *user;
};

/*
 * Takes `port` of `host` (a name or an address; 0: any free port) without listening yet: until
 * http_listen clients are refused by the system, and nobody else can have the port. ERR_INVALID:
 * no such host; ERR_IO: the port is in use, or not ours to take, in a sentence for the user.
 */
MUST_USE enum status http_open(const char *host, int port, const struct http_limits *limits,
                               struct http_server **out);
/* Is it reachable from this machine only? */
bool http_is_loopback(const struct http_server *server);
/* "http://127.0.0.1:8000" */
const char *http_url(const struct http_server *server);

/* Accepts from now on; requests come from the loop of `base`. `handler` is copied. */
MUST_USE enum status http_listen(struct http_server *server, struct event_base *base,
                                 const struct http_handler *handler);
/* Takes no new connections, closes idle ones, and every other one behind its running answer. */
void http_drain(struct http_server *server);
/* Exchanges and connections whose output is not all sent. */
int http_num_busy(const struct http_server *server);
/* Closes every connection at once; `gone` is not called. Before its event base is freed. */
void http_close(struct http_server *server);
void http_server_free(struct http_server *server); /* closes too; NULL is fine */
DEFINE_AUTO_FREE(http_server)

/* ---- the request: valid as long as the exchange ---------------------------------------------- */

const char *http_method(const struct http_exchange *exchange);
const char *http_path(const struct http_exchange *exchange);
/* What stands behind the '?' of the path, as sent; "" where there is none. */
const char *http_query(const struct http_exchange *exchange);
/* NULL: the client did not send it. */
const char *http_find_header(const struct http_exchange *exchange, const char *name);
/* The body, once: it is the caller's from here on, to bytes_close. */
struct bytes http_take_body(struct http_exchange *exchange);
/* "127.0.0.1", for logs. */
const char *http_peer(const struct http_exchange *exchange);
/* When its head had come: CLOCK_MONOTONIC. */
int64_t http_started_ns(const struct http_exchange *exchange);

void http_set_user(struct http_exchange *exchange, void *user);
void *http_user(const struct http_exchange *exchange);

/* ---- the answer ------------------------------------------------------------------------------ */

/* A header of the answer, before it begins. Control bytes in `value` are left out. */
void http_add_header(struct http_exchange *exchange, const char *name, const char *value);
/* For a client that may come again in so many seconds. */
void http_add_retry_after(struct http_exchange *exchange, int32_t seconds);
/* The whole answer. A HEAD request gets the head of it. Ends the exchange. */
void http_reply(struct http_exchange *exchange, int code, const char *content_type,
                const void *body, size_t size);

/* An answer in pieces. */
void http_stream_begin(struct http_exchange *exchange, int code, const char *content_type);
/* Never waits. When more than stream_buffer_bytes pile up the client is dropped: `gone` comes from
 * the loop soon, and what is written until then goes nowhere. */
void http_stream_write(struct http_exchange *exchange, const void *data, size_t size);
void http_stream_end(struct http_exchange *exchange);
/* Has the stream begun? */
bool http_is_streaming(const struct http_exchange *exchange);

#endif
