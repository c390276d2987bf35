#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/wire/channel.h"
#include "proto/wire/rendezvous.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    struct run_dir dir;
    char endpoint[128];
    struct channel *engine;
};

static int open_place(void **state)
{
    struct fixture *f = mem_new(struct fixture);

    if (run_dir_open(NULL, &f->dir) != OK)
        return -1;
    snprintf(f->endpoint, sizeof f->endpoint, "ipc://%s/engine", f->dir.path);
    *state = f;
    return 0;
}

static int open_engine(void **state)
{
    if (open_place(state) != 0)
        return -1;

    struct fixture *f = *state;

    return channel_listen(f->endpoint, NULL, &f->engine) == OK ? 0 : -1;
}

static int close_engine(void **state)
{
    struct fixture *f = *state;

    channel_free(f->engine);
    run_dir_close(&f->dir);
    mem_free(f);
    return 0;
}

static struct frame *frame_of(const void *data, size_t size)
{
    struct frame *frame = frame_new();

    bytes_append(&frame->bytes, data, size);
    return frame;
}

static int64_t soon(void)
{
    return clock_deadline_ns(20000);
}

/* Lets the engine know the worker: ZeroMQ learns a peer's name as it connects. */
static void expect_greeting(struct fixture *f, struct channel *worker, const char *name)
{
    AUTO_FREE(frame) struct frame *frame = frame_of("hi", 2);
    struct received received;

    expect_ok(channel_send(worker, NULL, frame));
    assert_true(channel_wait(f->engine, soon(), &received));
    assert_string_equal(received.peer, name);
}

static void one_frame_serves_every_peer_and_comes_back(void **state)
{
    struct fixture *f = *state;
    struct frame *frame = frame_of("step", 4);
    struct received received;
    struct channel *workers[3];
    char name[8];

    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%d:1", i);
        expect_ok(channel_connect(f->endpoint, name, NULL, &workers[i]));
        expect_greeting(f, workers[i], name);
        expect_ok(channel_send(f->engine, name, frame));
    }
    for (int i = 0; i < 3; i++) {
        assert_true(channel_wait(workers[i], soon(), &received));
        assert_int_equal(received.size, 4);
        assert_memory_equal(received.data, "step", 4);
        channel_free(workers[i]);
    }
    int64_t deadline = soon();
    while (atomic_load(&frame->num_users) > 1 && clock_now_ns() < deadline)
        usleep(1000);
    assert_int_equal(atomic_load(&frame->num_users), 1);
    frame_drop(frame);
}

static void a_frame_for_a_peer_that_is_not_there_is_refused(void **state)
{
    struct fixture *f = *state;
    AUTO_FREE(frame) struct frame *frame = frame_of("x", 1);

    expect_fails(channel_send(f->engine, "7:1", frame), ERR_CLOSED, "worker 7:1 is not connected");
    assert_int_equal(atomic_load(&frame->num_users), 1);
}

static void a_peer_that_does_not_read_fills_its_queue_and_nothing_is_dropped(void **state)
{
    struct fixture *f = *state;
    struct channel *worker;
    struct received received;
    enum status status = OK;
    int num_sent = 0, num_received = 0;
    static char large[1 << 16];

    expect_ok(channel_connect(f->endpoint, "0:1", NULL, &worker));
    expect_greeting(f, worker, "0:1");
    for (; status == OK && num_sent < 100000; num_sent += status == OK) {
        AUTO_FREE(frame) struct frame *frame = frame_of(large, sizeof large);
        status = channel_send(f->engine, "0:1", frame);
    }
    assert_string_equal(status_name(status), "full");
    while (num_received < num_sent && channel_wait(worker, soon(), &received))
        num_received++;
    assert_int_equal(num_received, num_sent);
    channel_free(worker);
}

static void the_death_of_a_peer_is_noticed_at_once(void **state)
{
    struct fixture *f = *state;
    struct received received;
    AUTO_FREE(frame) struct frame *frame = frame_of("x", 1);
    int ends[2];
    char byte;

    /* Forked before there are threads, it waits until the engine listens. */
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct channel *worker;

        if (read(ends[0], &byte, 1) == 1 &&
            channel_connect(f->endpoint, "0:1", NULL, &worker) == OK &&
            channel_send(worker, NULL, frame) == OK)
            pause();
        _exit(1);
    }
    expect_ok(channel_listen(f->endpoint, NULL, &f->engine));
    assert_int_equal(write(ends[1], "", 1), 1);
    assert_true(channel_wait(f->engine, soon(), &received));
    assert_int_equal(channel_num_disconnects(f->engine), 0);
    kill(pid, SIGKILL);
    int64_t killed = clock_now_ns(), deadline = soon();
    while (channel_num_disconnects(f->engine) == 0 && clock_now_ns() < deadline)
        usleep(500);
    printf("# kill -9 noticed after %.1f ms\n", clock_ms(clock_now_ns() - killed));
    assert_int_equal(channel_num_disconnects(f->engine), 1);
    while (channel_send(f->engine, "0:1", frame) == OK && clock_now_ns() < deadline)
        usleep(500);
    expect_fails(channel_send(f->engine, "0:1", frame), ERR_CLOSED, "not connected");
    waitpid(pid, NULL, 0);
    close(ends[0]);
    close(ends[1]);
}

static void a_worker_notices_that_the_engine_is_gone(void **state)
{
    struct fixture *f = *state;
    struct channel *worker;

    expect_ok(channel_connect(f->endpoint, "0:1", NULL, &worker));
    expect_greeting(f, worker, "0:1");
    channel_free(f->engine);
    f->engine = NULL;
    int64_t deadline = soon();
    while (channel_num_disconnects(worker) == 0 && clock_now_ns() < deadline)
        usleep(500);
    assert_int_equal(channel_num_disconnects(worker), 1);
    channel_free(worker);
}

static void endpoints_that_are_open_to_everyone_are_refused(void **state)
{
    struct channel *channel;
    char long_path[256] = "ipc://";

    (void)state;
    memset(long_path + 6, 'x', 200);
    expect_fails(channel_listen("tcp://127.0.0.1:0", NULL, &channel), ERR_UNSUPPORTED,
                 "tcp://127.0.0.1:0 is refused");
    expect_fails(channel_connect("tcp://h:1", "0:1", NULL, &channel), ERR_UNSUPPORTED, "CURVE");
    expect_fails(channel_listen("udp://x", NULL, &channel), ERR_INVALID, "no endpoint");
    expect_fails(channel_listen(long_path, NULL, &channel), ERR_INVALID, "has 200 bytes, it must have 1 to 107");
    expect_fails(channel_listen("ipc:///no/such/folder/x", NULL, &channel), ERR_IO,
                 "cannot be listened on");
}

enum { NUM_ECHOES = 2000 };

static void *echo(void *argument)
{
    struct fixture *f = argument;
    struct channel *worker;
    struct received received;

    if (channel_connect(f->endpoint, "0:1", NULL, &worker) != OK)
        return NULL;
    AUTO_FREE(frame) struct frame *hello = frame_of("hi", 2);
    enum status status = channel_send(worker, NULL, hello);
    for (int i = 0; i < NUM_ECHOES && status == OK && channel_wait(worker, soon(), &received); i++) {
        AUTO_FREE(frame) struct frame *frame = frame_of(received.data, received.size);
        status = channel_send(worker, NULL, frame);
    }
    channel_wait(worker, soon(), &received); /* until it is told to go */
    channel_free(worker);
    return argument;
}

static void frames_go_round_in_order(void **state)
{
    struct fixture *f = *state;
    struct received received;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, echo, f), 0);
    assert_true(channel_wait(f->engine, soon(), &received));
    int64_t start = clock_now_ns();
    for (int32_t i = 0; i < NUM_ECHOES; i++) {
        AUTO_FREE(frame) struct frame *frame = frame_of(&i, sizeof i);

        bytes_append(&frame->bytes, (char[1600]){0}, 1600);
        expect_ok(channel_send(f->engine, "0:1", frame));
        assert_true(channel_wait(f->engine, soon(), &received));
        assert_memory_equal(received.data, &i, sizeof i);
    }
    printf("# round trip of 1.6 kB: %.1f us\n",
           (double)(clock_now_ns() - start) / NUM_ECHOES / 1e3);
    AUTO_FREE(frame) struct frame *end = frame_of("end", 3);
    expect_ok(channel_send(f->engine, "0:1", end));
    void *result;
    pthread_join(thread, &result);
    assert_non_null(result);
}

#define ROW(name) cmocka_unit_test_setup_teardown(name, open_engine, close_engine)
static const struct CMUnitTest tests[] = {
    ROW(one_frame_serves_every_peer_and_comes_back),
    ROW(a_frame_for_a_peer_that_is_not_there_is_refused),
    ROW(a_peer_that_does_not_read_fills_its_queue_and_nothing_is_dropped),
    cmocka_unit_test_setup_teardown(the_death_of_a_peer_is_noticed_at_once, open_place,
                                    close_engine),
    ROW(a_worker_notices_that_the_engine_is_gone),
    ROW(endpoints_that_are_open_to_everyone_are_refused),
    ROW(frames_go_round_in_order),
};
TEST_MAIN(tests)
