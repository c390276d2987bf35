/* The control socket by itself: who gets in, what is answered without an engine, and its limits. */
#include "tests/support/expect.h"

#include "engine/control/client.h"
#include "engine/control/control.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/config/config.h"
#include "proto/wire/messages.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

enum { PATIENCE_MS = 20000 };

struct bench {
    char folder[64];
    struct config config;
    struct control *control;
    void *context, *peer; /* a client by hand */
};

static struct bench *open_bench(const char *endpoint, const char *keys_path)
{
    struct bench *b = mem_new(struct bench);
    struct option_set settings = config_options(&b->config);

    log_set_level(LOG_NONE);
    strcpy(b->folder, "/tmp/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    config_init(&b->config);
    expect_ok(control_open(&(struct control_options){.endpoint = endpoint,
                                                     .keys_path = keys_path,
                                                     .run_dir = b->folder,
                                                     .settings = &settings,
                                                     .num_settings = 1},
                           &b->control));
    return b;
}

static void close_bench(struct bench *b)
{
    if (b->peer) {
        zmq_close(b->peer);
        zmq_ctx_term(b->context);
    }
    control_free(b->control);
    config_close(&b->config);
    assert_int_equal(rmdir(b->folder), 0); /* nothing is left in it */
    mem_free(b);
}

static enum status ask(const struct bench *b, const char *command, const char *args_text,
                       const struct control_key_file *key, struct control_answer *out)
{
    json_t *args = json_loads(args_text, 0, NULL);
    enum status status = control_ask(
        &(struct control_question){.endpoint = control_endpoint(b->control),
                                   .key = key,
                                   .command = command,
                                   .args = args,
                                   .deadline_ns = clock_deadline_ns(PATIENCE_MS)},
        out);

    json_decref(args);
    return status;
}

static void expect_answer(const struct bench *b, const char *command, const char *args,
                          enum status status, const char *part)
{
    AUTO_CLOSE(control_answer) struct control_answer answer = {0};

    expect_ok(ask(b, command, args, NULL, &answer));
    assert_string_equal(status_name(answer.status), status_name(status));
    if (!strstr(answer.text, part))
        fail_msg("\"%s\" lacks \"%s\"", answer.text, part);
}

static void while_the_engine_loads_it_can_be_asked(void **state)
{
    (void)state;
    struct bench *b = open_bench(NULL, NULL);

    expect_answer(b, "pause", "[]", ERR_CLOSED, "the engine takes no orders now: it starts");
    control_tell(b->control, "rank 1: load 62 %");
    expect_answer(b, "status", "[]", OK, "\"phase\":\"loading\"");
    expect_answer(b, "status", "[]", OK, "rank 1: load 62 %");
    expect_answer(b, "config", "[\"get\", \"max-num-seqs\"]", OK, "256");
    expect_answer(b, "stacks", "[]", OK, "control");
    expect_answer(b, "health", "[]", ERR_CLOSED, "the engine is not ready: rank 1: load 62 %");
    expect_answer(b, "pause", "[]", ERR_CLOSED, "the engine takes no orders now: rank 1: load 62 %");
    expect_answer(b, "nonsense", "[]", ERR_INVALID, "'nonsense' is no command");
    close_bench(b);
}

static void the_place_is_its_users_alone(void **state)
{
    (void)state;
    struct bench *b = open_bench(NULL, NULL);
    const char *path = control_endpoint(b->control) + strlen("ipc://");
    AUTO_MEM char *folder = mem_strndup(path, (size_t)(strrchr(path, '/') - path));
    struct stat info;

    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    assert_int_equal(stat(folder, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0700);
    close_bench(b);
}

static void wrong_addresses_are_refused(void **state)
{
    (void)state;
    struct control *control;

    expect_fails(control_open(&(struct control_options){.endpoint = "udp://x"}, &control),
                 ERR_INVALID, "use ipc://PATH, tcp://HOST:PORT or none");
    expect_fails(control_open(&(struct control_options){.endpoint = "tcp://127.0.0.1:0"}, &control),
                 ERR_INVALID, "say with --control-keys FILE who may ask");
    expect_fails(control_open(&(struct control_options){.endpoint = "ipc:///dev/null"}, &control),
                 ERR_INVALID, "/dev/null is there, and no socket");
    expect_fails(control_open(&(struct control_options){.endpoint = "ipc://"}, &control),
                 ERR_INVALID, "has 0 bytes");
}

/* ---- a peer that does not keep to the rules ---------------------------------------------------- */

static void connect_peer(struct bench *b)
{
    int timeout_ms = PATIENCE_MS, linger_ms = 0;

    b->context = zmq_ctx_new();
    b->peer = zmq_socket(b->context, ZMQ_DEALER);
    zmq_setsockopt(b->peer, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_setsockopt(b->peer, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    assert_int_equal(zmq_connect(b->peer, control_endpoint(b->control)), 0);
}

static void send_request(struct bench *b, int64_t id, const char *command, const char *args)
{
    AUTO_CLOSE(bytes) struct bytes frame = {0};

    expect_ok(message_encode(&control_request_type, 0, -1,
                             &(struct control_request){.id = id, .command = command, .args = args},
                             &frame));
    assert_int_equal(zmq_send(b->peer, frame.data, frame.size, 0), frame.size);
}

/* The next reply's status; its id in id_out. */
static enum status next_reply(struct bench *b, int64_t *id_out)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    const struct control_reply *reply;
    struct message message;
    uint8_t frame[65536];
    int size = zmq_recv(b->peer, frame, sizeof frame, 0);

    assert_in_range(size, 1, sizeof frame);
    expect_ok(message_decode(frame, (size_t)size, &arena, &message));
    assert_ptr_equal(message.type, &control_reply_type);
    reply = message.body;
    *id_out = reply->id;
    return (enum status)reply->status;
}

static void what_is_no_request_is_told_so(void **state)
{
    (void)state;
    struct bench *b = open_bench(NULL, NULL);
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    int64_t id;

    connect_peer(b);
    zmq_send(b->peer, "\xc1garbage", 8, 0);
    assert_int_equal(next_reply(b, &id), ERR_CORRUPT);
    assert_int_equal(id, -1);
    expect_ok(message_encode(&shutdown_type, 0, -1, "", &frame));
    zmq_send(b->peer, frame.data, frame.size, 0);
    assert_int_equal(next_reply(b, &id), ERR_MISMATCH);
    zmq_send(b->peer, "one", 3, ZMQ_SNDMORE); /* of three parts: nothing is said to it */
    zmq_send(b->peer, "two", 3, 0);
    send_request(b, 8, "status", "{");
    assert_int_equal(next_reply(b, &id), ERR_INVALID);
    assert_int_equal(id, 8);
    send_request(b, 9, "status", "");
    assert_int_equal(next_reply(b, &id), OK);
    assert_int_equal(id, 9);
    close_bench(b);
}

static void a_frame_that_is_too_long_costs_the_connection(void **state)
{
    (void)state;
    struct bench *b = open_bench(NULL, NULL);
    AUTO_MEM uint8_t *long_frame = mem_alloc(MAX_CONTROL_FRAME + 1);
    int timeout_ms = 300;
    char byte;

    connect_peer(b);
    zmq_setsockopt(b->peer, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_send(b->peer, long_frame, MAX_CONTROL_FRAME + 1, 0);
    assert_int_equal(zmq_recv(b->peer, &byte, 1, 0), -1);
    expect_answer(b, "status", "[]", OK, "loading");
    close_bench(b);
}

static void commands_that_act_are_bounded_and_end_with_the_server(void **state)
{
    (void)state;
    struct bench *b = open_bench(NULL, NULL);
    int num_full = 0, num_closed = 0;
    int64_t id;

    /* A front that never comes round: its server is not looked at. */
    control_attach(b->control, (struct server *)b);
    connect_peer(b);
    for (int i = 0; i < CONTROL_MAX_CALLS + 5; i++)
        send_request(b, i, "resume", "");
    for (int i = 0; i < 5; i++) {
        num_full += next_reply(b, &id) == ERR_FULL;
        assert_in_range(id, CONTROL_MAX_CALLS, CONTROL_MAX_CALLS + 4);
    }
    assert_int_equal(num_full, 5);
    expect_answer(b, "help", "[]", OK, "status"); /* who looks is not held up */
    control_detach(b->control);
    for (int i = 0; i < CONTROL_MAX_CALLS; i++)
        num_closed += next_reply(b, &id) == ERR_CLOSED;
    assert_int_equal(num_closed, CONTROL_MAX_CALLS);
    close_bench(b);
}

/* ---- keys -------------------------------------------------------------------------------------- */

static void a_key_of_the_list_gets_in_and_may_what_it_says(void **state)
{
    (void)state;
    AUTO_MEM char *path = mem_printf("/tmp/tandem-test-keys-%d", (int)getpid());
    AUTO_CLOSE(control_answer) struct control_answer answer = {0}, denied = {0}, none = {0};
    struct control_key_file reader = {0}, stranger = {0};
    FILE *file = fopen(path, "w");
    struct bench *b;

    expect_ok(curve_pair_new(&reader.pair));
    expect_ok(curve_pair_new(&stranger.pair));
    assert_non_null(file);
    fprintf(file, "%s read\n", reader.pair.public_key);
    fclose(file);
    b = open_bench("tcp://127.0.0.1:0", path);
    strcpy(reader.server, control_public_key(b->control));
    strcpy(stranger.server, control_public_key(b->control));

    expect_ok(ask(b, "status", "[]", &reader, &answer));
    assert_int_equal(answer.status, OK);
    expect_ok(ask(b, "shutdown", "[]", &reader, &denied));
    assert_int_equal(denied.status, ERR_DENIED);
    expect_fails(ask(b, "status", "[]", &stranger, &none), ERR_DENIED, "does not know our key");
    strcpy(reader.server, stranger.pair.public_key);
    expect_fails(ask(b, "status", "[]", &reader, &none), ERR_DENIED, "does not let us in");
    expect_fails(ask(b, "status", "[]", NULL, &none), ERR_INVALID, "wants a key");
    close_bench(b);
    unlink(path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(while_the_engine_loads_it_can_be_asked),
    cmocka_unit_test(the_place_is_its_users_alone),
    cmocka_unit_test(wrong_addresses_are_refused),
    cmocka_unit_test(what_is_no_request_is_told_so),
    cmocka_unit_test(a_frame_that_is_too_long_costs_the_connection),
    cmocka_unit_test(commands_that_act_are_bounded_and_end_with_the_server),
    cmocka_unit_test(a_key_of_the_list_gets_in_and_may_what_it_says),
};
TEST_MAIN(tests)
