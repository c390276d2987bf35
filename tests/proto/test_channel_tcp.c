/* Channels over tcp, and strangers at their gate. */
#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/wire/channel.h"
#include "proto/wire/gate.h"
#include "proto/wire/tcp.h"

#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

struct fixture {
    struct token token, other_token;
    struct channel_keys engine_keys, worker_keys;
    struct channel *engine;
    const char *endpoint; /* of the engine */
};

static int make_keys(void **state)
{
    struct fixture *f = mem_new(struct fixture);

    if (curve_pair_new(&f->token.engine) != OK || curve_pair_new(&f->token.worker) != OK ||
        curve_pair_new(&f->other_token.engine) != OK || curve_pair_new(&f->other_token.worker) != OK)
        return -1;
    channel_keys_of_engine(&f->token, &f->engine_keys);
    channel_keys_of_worker(&f->token, &f->worker_keys);
    *state = f;
    return 0;
}

static int open_engine(void **state)
{
    if (make_keys(state) != 0)
        return -1;

    struct fixture *f = *state;

    if (channel_listen("tcp://127.0.0.1:0", &f->engine_keys, &f->engine) != OK)
        return -1;
    f->endpoint = channel_endpoint(f->engine);
    return 0;
}

static int close_engine(void **state)
{
    struct fixture *f = *state;

    channel_free(f->engine);
    mem_free(f);
    return 0;
}

static int64_t soon(void)
{
    return clock_deadline_ns(20000);
}

static void send_text(struct channel *channel, const char *peer, const char *text)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();

    bytes_append(&frame->bytes, text, strlen(text));
    expect_ok(channel_send(channel, peer, frame));
}

static void expect_text(struct channel *channel, const char *peer, const char *text)
{
    struct received received;

    assert_true(channel_wait(channel, soon(), &received));
    assert_string_equal(received.peer, peer);
    assert_int_equal(received.size, strlen(text));
    assert_memory_equal(received.data, text, received.size);
}

static void expect_talk(struct fixture *f, struct channel *worker, const char *name)
{
    send_text(worker, NULL, "hello");
    expect_text(f->engine, name, "hello");
    send_text(f->engine, name, "welcome");
    expect_text(worker, "", "welcome");
}

static void expect_silence(struct channel *channel, int64_t ms)
{
    struct received received;

    assert_false(channel_wait(channel, clock_deadline_ns(ms), &received));
}

static void expect_end(struct channel *channel, const char *part)
{
    struct pollfd fds[CHANNEL_NUM_FDS];
    int64_t deadline_ns = soon();

    while (channel_num_disconnects(channel) == 0 && clock_now_ns() < deadline_ns)
        channel_poll(channel, fds, COUNT_OF(fds), clock_deadline_ns(50));
    if (!strstr(channel_end(channel), part))
        fail_msg("\"%s\" lacks \"%s\"", channel_end(channel), part);
}

/* ---- peers ------------------------------------------------------------------------------------------ */

static void the_right_key_talks(void **state)
{
    struct fixture *f = *state;
    struct channel *worker;

    expect_ok(channel_connect(f->endpoint, "0:1", &f->worker_keys, &worker));
    expect_talk(f, worker, "0:1");
    assert_int_equal(channel_num_disconnects(f->engine), 0);
    assert_string_equal(channel_end(worker), "");
    channel_free(worker);
    int64_t deadline_ns = soon();
    while (channel_num_disconnects(f->engine) == 0 && clock_now_ns() < deadline_ns)
        usleep(500);
    assert_int_equal(channel_num_disconnects(f->engine), 1);
}

static void so_it_does_over_ipv6(void **state)
{
    struct fixture *f = *state;
    struct channel *worker;

    if (channel_listen("tcp://[::1]:0", &f->engine_keys, &f->engine) != OK) {
        printf("# no IPv6 here: %s\n", fail_text());
        return;
    }
    f->endpoint = channel_endpoint(f->engine);
    assert_memory_equal(f->endpoint, "tcp://[::1]:", 12);
    expect_ok(channel_connect(f->endpoint, "0:1", &f->worker_keys, &worker));
    expect_talk(f, worker, "0:1");
    channel_free(worker);
}

static void a_peer_that_is_cut_off_is_noticed(void **state)
{
    struct fixture *f = *state;
    AUTO_FREE(frame) struct frame *frame = frame_new();
    struct received received;
    int ends[2];
    char endpoint[TCP_MAX_TEXT + 1] = "";

    /* Forked before there are threads, it waits until the engine listens. */
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct channel *worker;

        bytes_append(&frame->bytes, "x", 1);
        if (read(ends[0], endpoint, sizeof endpoint) > 0 &&
            channel_connect(endpoint, "0:1", &f->worker_keys, &worker) == OK &&
            channel_send(worker, NULL, frame) == OK)
            pause();
        _exit(1);
    }
    expect_ok(channel_listen("tcp://127.0.0.1:0", &f->engine_keys, &f->engine));
    snprintf(endpoint, sizeof endpoint, "%s", channel_endpoint(f->engine));
    assert_int_equal(write(ends[1], endpoint, sizeof endpoint), sizeof endpoint);
    assert_true(channel_wait(f->engine, soon(), &received));
    kill(pid, SIGSTOP); /* neither data nor its end comes any more: as if a cable were cut */
    int64_t cut_ns = clock_now_ns(), deadline_ns = soon();
    while (channel_num_disconnects(f->engine) == 0 && clock_now_ns() < deadline_ns)
        usleep(1000);
    printf("# noticed after %.0f ms\n", clock_ms(clock_now_ns() - cut_ns));
    assert_int_equal(channel_num_disconnects(f->engine), 1);
    while (channel_send(f->engine, "0:1", frame) == OK && clock_now_ns() < deadline_ns)
        usleep(500);
    expect_fails(channel_send(f->engine, "0:1", frame), ERR_CLOSED, "not connected");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(ends[0]);
    close(ends[1]);
}

static void a_worker_is_told_why_it_does_not_come_in(void **state)
{
    struct fixture *f = *state;
    struct channel_keys stranger = f->worker_keys, mistaken = f->worker_keys;
    char endpoint[TCP_MAX_TEXT + 1];
    struct channel *worker;

    stranger.mine = f->other_token.worker;
    expect_ok(channel_connect(f->endpoint, "0:1", &stranger, &worker));
    expect_end(worker, "does not let this key in");
    channel_free(worker);
    memcpy(mistaken.peer, f->other_token.engine.public_key, sizeof mistaken.peer);
    expect_ok(channel_connect(f->endpoint, "0:1", &mistaken, &worker));
    expect_end(worker, "before keys were agreed on");
    channel_free(worker);
    snprintf(endpoint, sizeof endpoint, "%s", f->endpoint);
    channel_free(f->engine);
    f->engine = NULL;
    expect_ok(channel_connect(endpoint, "0:1", &f->worker_keys, &worker));
    expect_end(worker, "nobody listens there");
    AUTO_FREE(frame) struct frame *frame = frame_new();
    int64_t deadline_ns = soon(); /* a frame may still be accepted for a moment, and is lost */
    while (channel_send(worker, NULL, frame) == OK && clock_now_ns() < deadline_ns)
        usleep(500);
    expect_fails(channel_send(worker, NULL, frame), ERR_CLOSED,
                 "the engine is not connected: nobody listens there");
    channel_free(worker);
}

static void a_frame_that_the_engine_would_not_take_is_not_sent(void **state)
{
    struct fixture *f = *state;
    AUTO_FREE(frame) struct frame *frame = frame_new();
    struct channel *worker;

    bytes_reserve(&frame->bytes, CHANNEL_MAX_TCP_ANSWER + 1);
    frame->bytes.size = CHANNEL_MAX_TCP_ANSWER + 1;
    expect_ok(channel_connect(f->endpoint, "0:1", &f->worker_keys, &worker));
    expect_fails(channel_send(worker, NULL, frame), ERR_FULL, "the limit is 8388608");
    expect_talk(f, worker, "0:1");
    channel_free(worker);
}

/* ---- strangers ---------------------------------------------------------------------------------------- */

/* A bare socket, connected; -1: nobody has taken it within `ms`. */
static int knock(const char *endpoint, int ms)
{
    struct tcp_address address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error = 0;
    socklen_t size = sizeof error;
    struct pollfd item = {.fd = fd, .events = POLLOUT};

    expect_ok(tcp_resolve(endpoint, false, &address));
    if (connect(fd, (struct sockaddr *)&address.address, address.size) == 0 ||
        (poll(&item, 1, ms) == 1 &&
         getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0))
        return fd;
    close(fd);
    return -1;
}

/* What the engine says to these bytes before it hangs up, or falls silent. */
static size_t answer_to(const char *endpoint, const void *bytes, size_t size)
{
    int fd = knock(endpoint, 20000);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    size_t num_read = 0;
    char room[4096];
    ssize_t n;

    assert_true(fd >= 0);
    send(fd, bytes, size, MSG_NOSIGNAL);
    while (poll(&item, 1, 300) == 1 && (n = read(fd, room, sizeof room)) > 0)
        num_read += (size_t)n;
    close(fd);
    return num_read;
}

enum { GREETING = 64 }; /* bytes; whoever connects is sent one, and it says only which ZMTP this is */

static const uint8_t curve_greeting[GREETING] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0,
                                                 'C', 'U', 'R', 'V', 'E'};
static const uint8_t null_greeting[GREETING] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0,
                                                'N', 'U', 'L', 'L'};

static void strangers_get_nothing_and_the_peer_is_served(void **state)
{
    struct fixture *f = *state;
    static const char http[] = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n";
    uint8_t hello[GREETING + 2 + 200] = {0}, huge[GREETING + 9] = {0};
    struct channel *worker;

    memcpy(hello, curve_greeting, GREETING);
    memcpy(hello + GREETING, (uint8_t[]){4, 200, 5, 'H', 'E', 'L', 'L', 'O', 1, 0}, 10);
    memcpy(huge, curve_greeting, GREETING);
    memcpy(huge + GREETING, (uint8_t[]){6, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff}, 9);
    expect_ok(channel_connect(f->endpoint, "0:1", &f->worker_keys, &worker));
    expect_talk(f, worker, "0:1");
    for (int i = 0; i < 5; i++) {
        assert_true(answer_to(f->endpoint, http, strlen(http)) <= GREETING);
        assert_true(answer_to(f->endpoint, curve_greeting, GREETING) <= GREETING);
        assert_true(answer_to(f->endpoint, null_greeting, GREETING) <= GREETING);
        assert_true(answer_to(f->endpoint, hello, sizeof hello) <= GREETING);
        assert_true(answer_to(f->endpoint, huge, sizeof huge) <= GREETING);
        expect_talk(f, worker, "0:1");
    }
    /* Of what strangers did the owner of the channel has heard nothing. */
    assert_int_equal(channel_num_disconnects(f->engine), 0);
    channel_free(worker);
}

/* A ZeroMQ peer of another kind: the wrong key, or no keys at all. */
static void expect_no_way_in(struct fixture *f, const struct curve_pair *pair)
{
    static const int zero = 0;
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);

    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    if (pair)
        expect_ok(curve_as_client(socket, pair, f->token.engine.public_key));
    assert_int_equal(zmq_connect(socket, f->endpoint), 0);
    assert_int_equal(zmq_send(socket, "hello", 5, 0), 5);
    expect_silence(f->engine, 300);
    zmq_close(socket);
    zmq_ctx_term(context);
}

static void only_the_workers_key_comes_in(void **state)
{
    struct fixture *f = *state;
    struct channel *worker;

    expect_no_way_in(f, NULL);
    expect_no_way_in(f, &f->other_token.worker);
    expect_no_way_in(f, &f->token.engine); /* the engine's own key is not the worker's */
    expect_ok(channel_connect(f->endpoint, "0:1", &f->worker_keys, &worker));
    expect_talk(f, worker, "0:1");
    channel_free(worker);
}

static void strangers_have_so_many_places_and_the_peer_inside_notices_nothing(void **state)
{
    enum { NUM_KNOCKS = 4 * (GATE_MAX_STRANGERS + GATE_BACKLOG) };
    struct fixture *f = *state;
    struct channel *inside, *later;
    int fds[NUM_KNOCKS], num_open = 0;

    expect_ok(channel_connect(f->endpoint, "0:1", &f->worker_keys, &inside));
    expect_talk(f, inside, "0:1");
    /* Half open: connected, and silent. */
    for (int i = 0; i < NUM_KNOCKS && num_open == i; i++) {
        fds[num_open] = knock(f->endpoint, 300);
        num_open += fds[num_open] >= 0;
    }
    printf("# %d of %d strangers were let through\n", num_open, NUM_KNOCKS);
    assert_true(num_open >= GATE_MAX_STRANGERS);
    assert_true(num_open < NUM_KNOCKS);
    expect_talk(f, inside, "0:1");
    for (int i = 0; i < num_open; i++)
        close(fds[i]);
    expect_ok(channel_connect(f->endpoint, "1:1", &f->worker_keys, &later));
    expect_talk(f, later, "1:1");
    expect_talk(f, inside, "0:1");
    assert_int_equal(channel_num_disconnects(f->engine), 0);
    channel_free(later);
    channel_free(inside);
}

static int num_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static void a_channel_gives_everything_back(void **state)
{
    struct fixture *f = *state;
    struct channel *engine;
    int before = num_descriptors();

    for (int i = 0; i < 5; i++) {
        expect_ok(channel_listen("tcp://127.0.0.1:0", &f->engine_keys, &engine));
        expect_fails(channel_listen(channel_endpoint(engine), &f->engine_keys, &f->engine), ERR_IO,
                     "Address already in use");
        channel_free(engine);
    }
    assert_int_equal(num_descriptors(), before);
}

#define ROW(name)      cmocka_unit_test_setup_teardown(name, open_engine, close_engine)
#define KEYS_ROW(name) cmocka_unit_test_setup_teardown(name, make_keys, close_engine)
static const struct CMUnitTest tests[] = {
    KEYS_ROW(a_peer_that_is_cut_off_is_noticed), /* first: it forks */
    ROW(the_right_key_talks),
    KEYS_ROW(so_it_does_over_ipv6),
    ROW(a_worker_is_told_why_it_does_not_come_in),
    ROW(a_frame_that_the_engine_would_not_take_is_not_sent),
    ROW(strangers_get_nothing_and_the_peer_is_served),
    ROW(only_the_workers_key_comes_in),
    ROW(strangers_have_so_many_places_and_the_peer_inside_notices_nothing),
    KEYS_ROW(a_channel_gives_everything_back),
};
TEST_MAIN(tests)
