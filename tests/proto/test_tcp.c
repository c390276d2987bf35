#include "tests/support/expect.h"

#include "proto/wire/tcp.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

static void expect_address(const char *endpoint, bool listens, const char *printed)
{
    struct tcp_address address;
    char text[TCP_MAX_TEXT + 1];

    expect_ok(tcp_resolve(endpoint, listens, &address));
    tcp_print(&address, text);
    assert_string_equal(text, printed);
}

static void addresses_are_read_and_printed(void **state)
{
    (void)state;
    expect_address("tcp://127.0.0.1:7070", false, "tcp://127.0.0.1:7070");
    expect_address("tcp://10.1.2.3:0", true, "tcp://10.1.2.3:0");
    expect_address("tcp://[::1]:65535", false, "tcp://[::1]:65535");
    expect_address("tcp://[2001:db8:0:0::7]:007", false, "tcp://[2001:db8::7]:7");
    expect_address("tcp://*:0", true, "tcp://0.0.0.0:0");
    expect_address("tcp://0.0.0.0:1", true, "tcp://0.0.0.0:1");
    expect_address("tcp://[::]:1", true, "tcp://[::]:1");
    expect_address("tcp://lo:5", true, "tcp://127.0.0.1:5");
    expect_address("tcp://localhost:5", false, "tcp://127.0.0.1:5");
}

static void what_is_no_address_is_refused(void **state)
{
    static const struct {
        const char *endpoint;
        bool listens;
        enum status status;
        const char *part;
    } rows[] = {
        {"tcp://", true, ERR_INVALID, "the port is missing"},
        {"tcp://host", true, ERR_INVALID, "the port is missing"},
        {"tcp://:80", true, ERR_INVALID, "a host has 1 to 253 characters"},
        {"tcp://host:", true, ERR_INVALID, "a port is a number from 0 to 65535"},
        {"tcp://host:65536", true, ERR_INVALID, "a port is a number from 0 to 65535"},
        {"tcp://host:-1", true, ERR_INVALID, "a port is a number from 0 to 65535"},
        {"tcp://host:*", true, ERR_INVALID, "a port is a number from 0 to 65535"},
        {"tcp://host:123456", true, ERR_INVALID, "a port is a number from 0 to 65535"},
        {"tcp://127.0.0.1:0", false, ERR_INVALID, "port 0 is nobody's"},
        {"tcp://::1:80", true, ERR_INVALID, "an IPv6 address stands in brackets"},
        {"tcp://[::1:80", true, ERR_INVALID, "a bracket is missing"},
        {"tcp://[]:80", true, ERR_INVALID, "a bracket is missing"},
        {"tcp://[localhost]:80", true, ERR_NOT_FOUND, "who is 'localhost'?"},
        {"tcp://no.such.host.invalid:80", false, ERR_NOT_FOUND, "who is 'no.such.host.invalid'?"},
        {"tcp://lo:80", false, ERR_NOT_FOUND, "who is 'lo'?"},
        {"tcp://*:80", false, ERR_NOT_FOUND, "who is '*'?"},
    };
    struct tcp_address address;
    char *endpoint = mem_alloc(1000);

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_fails(tcp_resolve(rows[i].endpoint, rows[i].listens, &address), rows[i].status,
                     rows[i].part);
    memset(endpoint, 'x', 999);
    memcpy(endpoint, "tcp://", 6);
    memcpy(endpoint + 996, ":80", 4);
    expect_fails(tcp_resolve(endpoint, false, &address), ERR_INVALID, "1 to 253 characters");
    mem_free(endpoint);
    assert_false(tcp_is_endpoint("tcp:/x"));
    assert_false(tcp_is_endpoint("ipc://tcp://"));
}

static void port_0_becomes_a_port_and_a_taken_one_is_refused(void **state)
{
    struct tcp_address bound, again;
    char text[TCP_MAX_TEXT + 1];
    int fd, fd_again;

    (void)state;
    expect_ok(tcp_listen("tcp://127.0.0.1:0", 1, &fd, &bound));
    tcp_print(&bound, text);
    assert_memory_equal(text, "tcp://127.0.0.1:", 16);
    assert_true(atoi(text + 16) > 0);
    expect_fails(tcp_listen(text, 1, &fd_again, &again), ERR_IO, "Address already in use");
    close(fd);
    expect_ok(tcp_listen(text, 1, &fd, &again));
    close(fd);
    expect_fails(tcp_listen("tcp://192.0.2.1:0", 1, &fd, &bound), ERR_IO,
                 "tcp://192.0.2.1:0 cannot be listened on: Cannot assign requested address");
}

static bool knocks(const struct tcp_address *address)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct pollfd connected = {.fd = fd, .events = POLLOUT};
    bool is_in = connect(fd, (const struct sockaddr *)&address->address, address->size) == 0 ||
                 (errno == EINPROGRESS && poll(&connected, 1, 100) == 1);

    close(fd);
    return is_in;
}

static void knocks_are_dropped_while_they_are_to_be(void **state)
{
    struct tcp_address bound;
    int fd;

    (void)state;
    expect_ok(tcp_listen("tcp://127.0.0.1:0", 8, &fd, &bound));
    assert_true(knocks(&bound));
    assert_true(tcp_drop_knocks(fd, true));
    assert_false(knocks(&bound));
    assert_true(tcp_drop_knocks(fd, false));
    assert_true(knocks(&bound));
    close(fd);
    assert_false(tcp_drop_knocks(fd, true));
}

static void all_interfaces_are_told_from_one(void **state)
{
    static const struct {
        const char *endpoint;
        bool is_any;
    } rows[] = {{"tcp://*:0", true},        {"tcp://0.0.0.0:0", true}, {"tcp://[::]:0", true},
                {"tcp://127.0.0.1:0", false}, {"tcp://[::1]:0", false},  {"tcp://lo:0", false}};
    struct tcp_address address;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        expect_ok(tcp_resolve(rows[i].endpoint, true, &address));
        assert_int_equal(tcp_is_any(&address), rows[i].is_any);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(addresses_are_read_and_printed),
    cmocka_unit_test(what_is_no_address_is_refused),
    cmocka_unit_test(port_0_becomes_a_port_and_a_taken_one_is_refused),
    cmocka_unit_test(all_interfaces_are_told_from_one),
    cmocka_unit_test(knocks_are_dropped_while_they_are_to_be),
};
TEST_MAIN(tests)
