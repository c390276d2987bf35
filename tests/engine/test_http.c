/* Real sockets on one event loop, which every wait for an answer turns. */
#include "tests/support/expect.h"

#include "engine/server/http.h"
#include "proto/base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

struct server {
    struct event_base *base;
    struct http_server *http;
    int port;
    struct http_exchange *held; /* of GET /hold, which is not answered */
    int num_gone;
};

static void on_request(void *user, struct http_exchange *exchange)
{
    struct server *server = user;
    AUTO_CLOSE(bytes) struct bytes body = http_take_body(exchange);

    http_add_header(exchange, "X-Path", http_path(exchange));
    if (strcmp(http_path(exchange), "/hold") == 0) {
        server->held = exchange;
        return;
    }
    if (strcmp(http_path(exchange), "/stream") == 0) {
        server->held = exchange;
        http_stream_begin(exchange, 200, "text/event-stream");
        return;
    }
    http_reply(exchange, 200, "text/plain", body.data, body.size);
}

static void on_gone(void *user, struct http_exchange *exchange)
{
    struct server *server = user;

    assert_ptr_equal(exchange, server->held);
    server->held = NULL;
    server->num_gone++;
}

static void refusal(int code, const char *sentence, struct bytes *out)
{
    bytes_printf(out, "{\"%d\": \"%s\"}", code, sentence);
}

static void start(struct server *server, const struct http_limits *limits)
{
    struct http_handler handler = {on_request, on_gone, refusal, server};

    *server = (struct server){.base = event_base_new()};
    expect_ok(http_open("127.0.0.1", 0, limits, &server->http));
    assert_int_equal(sscanf(http_url(server->http), "http://127.0.0.1:%d", &server->port), 1);
    expect_ok(http_listen(server->http, server->base, &handler));
}

static void stop(struct server *server)
{
    http_server_free(server->http);
    event_base_free(server->base);
}

static int client_open(const struct server *server)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(server->port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void client_send(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void turn(struct server *server)
{
    event_base_loop(server->base, EVLOOP_NONBLOCK);
    usleep(500);
}

/* Turns the loop until the client has read `part`, or the end ("" waits for that). */
static void client_expect(struct server *server, int fd, const char *part)
{
    AUTO_CLOSE(bytes) struct bytes got = {0};
    int64_t deadline = clock_deadline_ns(5000);

    while (clock_left_ms(deadline) > 0) {
        turn(server);
        char *room = bytes_reserve(&got, 65536);
        ssize_t n = recv(fd, room, 65536, 0);
        if (n > 0)
            got.size += (size_t)n;
        if (n == 0 && !*part)
            return;
        if (*part && strstr(bytes_text(&got), part))
            return;
        if (n == 0 || (n < 0 && errno != EAGAIN))
            break;
    }
    fail_msg("\"%s\" did not come; this did: %s", part, bytes_text(&got));
}

static void turn_until(struct server *server, const int *value, int wanted)
{
    int64_t deadline = clock_deadline_ns(5000);

    while (*value != wanted && clock_left_ms(deadline) > 0)
        turn(server);
    assert_int_equal(*value, wanted);
}

static void requests_are_answered_one_behind_the_other(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);
    int fd = client_open(&server);

    client_send(fd, "POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
    client_expect(&server, fd, "X-Path: /a\r\nContent-Length: 5\r\n\r\nhello");
    /* two at once, the second chunked and the last */
    client_send(fd, "\r\nGET /b HTTP/1.1\r\n\r\nPOST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
                    "Connection: close\r\n\r\n3\r\nbye\r\n0\r\n\r\n");
    client_expect(&server, fd, "Connection: close\r\nX-Path: /c\r\nContent-Length: 3\r\n\r\nbye");
    client_expect(&server, fd, "");
    close(fd);
    stop(&server);
}

static void head_requests_get_no_body(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);
    int fd = client_open(&server);

    client_send(fd, "HEAD /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
                    "GET /b HTTP/1.1\r\nConnection: close\r\n\r\n");
    client_expect(&server, fd, "X-Path: /a\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK");
    close(fd);
    stop(&server);
}

static void a_client_that_asks_is_told_to_continue(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);
    int fd = client_open(&server);

    client_send(fd, "POST /a HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    client_expect(&server, fd, "HTTP/1.1 100 Continue\r\n\r\n");
    client_send(fd, "ok");
    client_expect(&server, fd, "\r\n\r\nok");
    close(fd);
    stop(&server);
}

static void limits_are_told_with_their_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } rows[] = {
        {"nonsense\r\n\r\n", "{\"400\": \"the request line is"},
        {"\x16\x03\x01", "{\"400\": \"this port speaks http, not https"},
        {"{\"prompt\"", "{\"400\": \"the request does not start with a method"},
        {"GET / HTTP/1.1\nHost: x\n\n", "{\"400\": \"the lines of a request's head end in CRLF"},
        {"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n",
         "{\"413\": \"the body has 101 bytes, the limit is 100"},
        {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n",
         "{\"413\": \"the body is larger than 100 bytes"},
        {"POST / HTTP/1.1\r\nTransfer-Encoding: br\r\n\r\n", "{\"501\": "},
        {"GET / HTTP/1.1\r\nA: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         "{\"431\": \"the request's head is larger than 100 bytes"},
    };
    struct http_limits limits = http_default_limits;
    limits.head_bytes = 100;
    limits.body_bytes = 100;
    struct server server;
    start(&server, &limits);

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int fd = client_open(&server);
        client_send(fd, rows[i].text);
        client_expect(&server, fd, rows[i].part);
        client_expect(&server, fd, ""); /* and the connection is closed */
        close(fd);
    }
    stop(&server);
}

static void all_bodies_together_have_a_limit(void **state)
{
    (void)state;
    struct http_limits limits = http_default_limits;
    limits.all_bodies_bytes = 10;
    struct server server;
    start(&server, &limits);
    int first = client_open(&server), second = client_open(&server);

    client_send(first, "POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n12345678");
    turn(&server);
    turn(&server);
    client_send(second, "POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n12345678");
    client_expect(&server, second, "{\"503\": \"the bodies of all requests");
    client_send(first, "9");
    client_expect(&server, first, "\r\n\r\n123456789");
    close(first);
    close(second);
    stop(&server);
}

static void one_connection_too_many_is_turned_away(void **state)
{
    (void)state;
    struct http_limits limits = http_default_limits;
    limits.num_connections = 1;
    struct server server;
    start(&server, &limits);

    int first = client_open(&server);
    client_send(first, "GET /a HTTP/1.1\r\n\r\n");
    client_expect(&server, first, "X-Path: /a");
    int second = client_open(&server);
    client_expect(&server, second, "{\"503\": \"1 connections are open, the limit is 1");
    close(second);
    client_send(first, "GET /b HTTP/1.1\r\n\r\n");
    client_expect(&server, first, "X-Path: /b");
    close(first);
    stop(&server);
}

static void a_byte_now_and_then_does_not_hold_a_connection(void **state)
{
    (void)state;
    struct http_limits limits = http_default_limits;
    limits.request_ms = 100;
    struct server server;
    start(&server, &limits);
    int fd = client_open(&server);

    client_send(fd, "GET /a HTTP/1.1\r\n");
    int64_t end = clock_deadline_ns(80);
    while (clock_left_ms(end) > 0) {
        client_send(fd, "a");
        turn(&server);
    }
    client_expect(&server, fd, "{\"408\": \"the request did not arrive within 100 ms");
    close(fd);
    stop(&server);
}

static void idle_connections_are_closed(void **state)
{
    (void)state;
    struct http_limits limits = http_default_limits;
    limits.idle_ms = 50;
    struct server server;
    start(&server, &limits);
    int fd = client_open(&server);

    client_send(fd, "GET /a HTTP/1.1\r\n\r\n");
    client_expect(&server, fd, "X-Path: /a");
    client_expect(&server, fd, "");
    close(fd);
    stop(&server);
}

static void a_client_that_leaves_is_noticed_while_nothing_is_said(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);

    for (int i = 1; i <= 2; i++) {
        int fd = client_open(&server);
        client_send(fd, i == 1 ? "GET /hold HTTP/1.1\r\n\r\n" : "GET /stream HTTP/1.1\r\n\r\n");
        while (!server.held)
            turn(&server);
        assert_int_equal(http_num_busy(server.http), 1);
        close(fd);
        turn_until(&server, &server.num_gone, i);
        assert_int_equal(http_num_busy(server.http), 0);
    }
    stop(&server);
}

static void a_stream_comes_in_chunks_and_leaves_the_connection_open(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);
    int fd = client_open(&server);

    client_send(fd, "GET /stream HTTP/1.1\r\n\r\n");
    while (!server.held)
        turn(&server);
    http_stream_write(server.held, "data: 1\n\n", 9);
    client_expect(&server, fd, "Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n");
    http_stream_write(server.held, "", 0);
    http_stream_end(server.held);
    client_expect(&server, fd, "0\r\n\r\n");
    client_send(fd, "GET /b HTTP/1.1\r\n\r\n");
    client_expect(&server, fd, "X-Path: /b");
    close(fd);
    stop(&server);
}

static void a_stream_to_http_1_0_ends_with_its_connection(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);
    int fd = client_open(&server);

    client_send(fd, "GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    while (!server.held)
        turn(&server);
    http_stream_write(server.held, "one", 3);
    http_stream_end(server.held);
    client_expect(&server, fd, "\r\n\r\none");
    client_expect(&server, fd, "");
    close(fd);
    stop(&server);
}

static void a_slow_reader_is_dropped_and_nobody_else(void **state)
{
    (void)state;
    struct http_limits limits = http_default_limits;
    limits.stream_buffer_bytes = 64 << 10;
    struct server server;
    start(&server, &limits);
    int slow = client_open(&server), other = client_open(&server);
    static char kilobyte[1024];

    client_send(slow, "GET /stream HTTP/1.1\r\n\r\n");
    while (!server.held)
        turn(&server);
    /* More than every buffer between us holds; what is written behind the drop goes nowhere. */
    for (int i = 0; i < 64 << 10 && !server.num_gone; i++) {
        http_stream_write(server.held, kilobyte, sizeof(kilobyte));
        if (i % 16 == 0)
            event_base_loop(server.base, EVLOOP_NONBLOCK);
    }
    turn_until(&server, &server.num_gone, 1);
    client_send(other, "GET /b HTTP/1.1\r\n\r\n");
    client_expect(&server, other, "X-Path: /b");
    close(slow);
    close(other);
    stop(&server);
}

static void an_answer_that_ends_a_dropped_stream_is_harmless(void **state)
{
    (void)state;
    struct http_limits limits = http_default_limits;
    limits.stream_buffer_bytes = 10;
    struct server server;
    start(&server, &limits);
    int fd = client_open(&server);

    client_send(fd, "GET /stream HTTP/1.1\r\n\r\n");
    while (!server.held)
        turn(&server);
    http_stream_write(server.held, "more than ten bytes", 19);
    http_stream_end(server.held);
    for (int i = 0; i < 10; i++)
        turn(&server);
    assert_int_equal(server.num_gone, 0); /* it was ended, so nobody is to be told */
    assert_int_equal(http_num_busy(server.http), 0);
    close(fd);
    stop(&server);
}

static void draining_finishes_what_runs_and_takes_nothing_new(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);
    int idle = client_open(&server), busy = client_open(&server);

    client_send(idle, "GET /a HTTP/1.1\r\n\r\n");
    client_expect(&server, idle, "X-Path: /a");
    client_send(busy, "GET /stream HTTP/1.1\r\n\r\n");
    while (!server.held)
        turn(&server);
    http_drain(server.http);
    client_expect(&server, idle, "");
    assert_int_equal(http_num_busy(server.http), 1);
    http_stream_write(server.held, "last", 4);
    http_stream_end(server.held);
    client_expect(&server, busy, "last\r\n0\r\n\r\n");
    client_expect(&server, busy, "");
    assert_int_equal(http_num_busy(server.http), 0);
    close(idle);
    close(busy);
    stop(&server);
}

static void a_port_in_use_is_refused_in_one_sentence(void **state)
{
    (void)state;
    struct server server;
    start(&server, &http_default_limits);
    struct http_server *second;

    expect_fails(http_open("127.0.0.1", server.port, &http_default_limits, &second), ERR_IO,
                 "is in use by another program");
    expect_fails(http_open("no.such.host.invalid", 0, &http_default_limits, &second), ERR_INVALID,
                 "--host no.such.host.invalid");
    stop(&server);
}

static void only_loopback_addresses_are_loopback(void **state)
{
    (void)state;
    struct http_server *server;

    expect_ok(http_open("127.0.0.1", 0, &http_default_limits, &server));
    assert_true(http_is_loopback(server));
    http_server_free(server);
    expect_ok(http_open("0.0.0.0", 0, &http_default_limits, &server));
    assert_false(http_is_loopback(server));
    http_server_free(server);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(requests_are_answered_one_behind_the_other),
    cmocka_unit_test(head_requests_get_no_body),
    cmocka_unit_test(a_client_that_asks_is_told_to_continue),
    cmocka_unit_test(limits_are_told_with_their_numbers),
    cmocka_unit_test(all_bodies_together_have_a_limit),
    cmocka_unit_test(one_connection_too_many_is_turned_away),
    cmocka_unit_test(a_byte_now_and_then_does_not_hold_a_connection),
    cmocka_unit_test(idle_connections_are_closed),
    cmocka_unit_test(a_client_that_leaves_is_noticed_while_nothing_is_said),
    cmocka_unit_test(a_stream_comes_in_chunks_and_leaves_the_connection_open),
    cmocka_unit_test(a_stream_to_http_1_0_ends_with_its_connection),
    cmocka_unit_test(a_slow_reader_is_dropped_and_nobody_else),
    cmocka_unit_test(an_answer_that_ends_a_dropped_stream_is_harmless),
    cmocka_unit_test(draining_finishes_what_runs_and_takes_nothing_new),
    cmocka_unit_test(a_port_in_use_is_refused_in_one_sentence),
    cmocka_unit_test(only_loopback_addresses_are_loopback),
};
TEST_MAIN(tests)
