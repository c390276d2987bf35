#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/wire/tcp.h"
#include "worker/join.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    struct run_dir dir;
    struct token token;
    struct channel_keys engine_keys;
    char ipc[160], file[160], file_address[170];
};

static int make_place(void **state)
{
    struct fixture *f = mem_new(struct fixture);

    if (run_dir_open(NULL, &f->dir) != OK || curve_pair_new(&f->token.engine) != OK ||
        curve_pair_new(&f->token.worker) != OK)
        return -1;
    channel_keys_of_engine(&f->token, &f->engine_keys);
    snprintf(f->ipc, sizeof f->ipc, "ipc://%s/engine", f->dir.path);
    snprintf(f->file, sizeof f->file, "%s/address", f->dir.path);
    snprintf(f->file_address, sizeof f->file_address, "file:%s", f->file);
    *state = f;
    return 0;
}

static int remove_place(void **state)
{
    struct fixture *f = *state;

    run_dir_close(&f->dir);
    mem_free(f);
    return 0;
}

/* ---- an engine that comes late ------------------------------------------------------------------------ */

struct late_engine {
    struct fixture *f;
    const char *endpoint; /* where it listens */
    bool publishes;
    int32_t world;
    pthread_t thread;
    char refusal[256];
};

static void *come_late(void *argument)
{
    struct late_engine *late = argument;
    AUTO_FREE(channel) struct channel *channel = NULL;
    AUTO_CLOSE(rendezvous) struct rendezvous rendezvous;
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct received received;
    struct message message;

    usleep(300000);
    rendezvous_init(&rendezvous, late->world, 7);
    expect_ok(channel_listen(late->endpoint, &late->f->engine_keys, &channel));
    if (late->publishes)
        expect_ok(rendezvous_publish(late->f->file, channel_endpoint(channel)));
    if (!channel_wait(channel, clock_deadline_ns(20000), &received) ||
        message_decode(received.data, received.size, &arena, &message) != OK)
        return NULL;

    char peer[CHANNEL_MAX_NAME + 1];
    const char *refusal = NULL;

    memcpy(peer, received.peer, sizeof peer);
    if (rendezvous_hello(&rendezvous, peer, &message) != OK) {
        snprintf(late->refusal, sizeof late->refusal, "%s", fail_text());
        refusal = late->refusal;
    }
    expect_ok(rendezvous_welcome(&rendezvous, channel, peer, "{}", refusal));
    /* until the rank has gone */
    while (channel_num_disconnects(channel) == 0)
        channel_wait(channel, clock_deadline_ns(20), &received);
    return argument;
}

static void start_late(struct late_engine *late)
{
    assert_int_equal(pthread_create(&late->thread, NULL, come_late, late), 0);
}

static void expect_end(struct late_engine *late)
{
    void *result;

    pthread_join(late->thread, &result);
    assert_non_null(result);
}

static struct join_options options_of(const struct fixture *f, const char *engine)
{
    return (struct join_options){
        .engine = engine, .token = &f->token, .timeout_ms = 20000, .rank = 1, .world = 2};
}

static void expect_joined(struct fixture *f, const char *engine, struct late_engine *late)
{
    struct join_options options = options_of(f, engine);
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct joined joined;

    expect_ok(join_engine(&options, &arena, &joined));
    assert_int_equal(joined.epoch, 7);
    assert_string_equal(joined.welcome->config, "{}");
    assert_true(strncmp(joined.endpoint, "file:", 5) != 0);
    channel_free(joined.channel);
    expect_end(late);
}

/* ---- promises ------------------------------------------------------------------------------------------- */

static void an_engine_on_this_host_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct late_engine late = {.f = f, .endpoint = f->ipc, .world = 2};

    start_late(&late);
    expect_joined(f, f->ipc, &late);
}

static void an_address_that_is_yet_to_be_written_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct late_engine late = {
        .f = f, .endpoint = "tcp://127.0.0.1:0", .publishes = true, .world = 2};

    start_late(&late);
    expect_joined(f, f->file_address, &late);
}

/* A socket of its own, so that nobody else gets the port meanwhile. */
static void take_port(int *fd_out, char endpoint_out[TCP_MAX_TEXT + 1])
{
    struct tcp_address address;

    expect_ok(tcp_listen("tcp://127.0.0.1:0", 1, fd_out, &address));
    tcp_print(&address, endpoint_out);
}

static void an_address_of_an_engine_that_is_gone_is_read_again(void **state)
{
    struct fixture *f = *state;
    struct late_engine late = {
        .f = f, .endpoint = "tcp://127.0.0.1:0", .publishes = true, .world = 2};
    char nobody[TCP_MAX_TEXT + 1];
    int fd;

    take_port(&fd, nobody);
    close(fd);
    expect_ok(rendezvous_publish(f->file, nobody));
    start_late(&late);
    expect_joined(f, f->file_address, &late);
}

static void the_wait_has_an_end_that_says_why(void **state)
{
    struct fixture *f = *state;
    struct join_options options = options_of(f, f->ipc);
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct joined joined;
    char nobody[TCP_MAX_TEXT + 1];
    int fd;

    options.timeout_ms = 400;
    expect_fails(join_engine(&options, &arena, &joined), ERR_TIMEOUT, "no engine for 0.4 s: ipc://");
    expect_fails(join_engine(&options, &arena, &joined), ERR_TIMEOUT, "nobody listens there");
    options.engine = f->file_address;
    expect_fails(join_engine(&options, &arena, &joined), ERR_TIMEOUT, "/address: No such file");
    options.engine = "tcp://no.such.host.invalid:7";
    expect_fails(join_engine(&options, &arena, &joined), ERR_TIMEOUT, "who is 'no.such.host.invalid'");
    take_port(&fd, nobody);
    close(fd);
    options.engine = nobody;
    expect_fails(join_engine(&options, &arena, &joined), ERR_TIMEOUT, "nobody listens there");
}

static void what_waiting_does_not_mend_ends_it_at_once(void **state)
{
    struct fixture *f = *state;
    struct join_options options = options_of(f, "tcp://127.0.0.1:0");
    struct late_engine late = {.f = f, .endpoint = f->ipc, .world = 3};
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_FREE(channel) struct channel *engine = NULL;
    struct token other = f->token;
    struct joined joined;

    expect_fails(join_engine(&options, &arena, &joined), ERR_INVALID, "port 0 is nobody's");
    options.engine = "tcp://127.0.0.1:7";
    options.token = NULL;
    expect_fails(join_engine(&options, &arena, &joined), ERR_UNSUPPORTED, "a token is wanted");
    expect_ok(channel_listen("tcp://127.0.0.1:0", &f->engine_keys, &engine));
    expect_ok(curve_pair_new(&other.worker));
    options.engine = channel_endpoint(engine);
    options.token = &other;
    expect_fails(join_engine(&options, &arena, &joined), ERR_MISMATCH,
                 "it does not let this key in: has it another token?");
    options = options_of(f, f->ipc);
    start_late(&late);
    expect_fails(join_engine(&options, &arena, &joined), ERR_MISMATCH,
                 "the engine refuses rank 1: rank 1 was started for 2 ranks, the engine has 3");
    expect_end(&late);
}

static void write_file(const struct fixture *f, const char *text, size_t size, mode_t mode)
{
    int fd = open(f->file, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_int_equal(write(fd, text, size), size);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static void an_address_file_is_private_and_holds_one_line(void **state)
{
    struct fixture *f = *state;
    char endpoint[RENDEZVOUS_MAX_ENDPOINT + 1], large[400];
    struct stat info;

    expect_ok(rendezvous_publish(f->file, "tcp://h:1"));
    expect_ok(rendezvous_publish(f->file, "tcp://h:2"));
    expect_ok(rendezvous_look_up(f->file, endpoint));
    assert_string_equal(endpoint, "tcp://h:2");
    assert_int_equal(stat(f->file, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    write_file(f, "tcp://h:3", 9, 0644);
    expect_ok(rendezvous_look_up(f->file, endpoint));
    assert_string_equal(endpoint, "tcp://h:3");
    write_file(f, "tcp://h:3\n", 10, 0666);
    expect_fails(rendezvous_look_up(f->file, endpoint), ERR_INVALID, "not only ours to write");
    write_file(f, "", 0, 0600);
    expect_fails(rendezvous_look_up(f->file, endpoint), ERR_CORRUPT, "one line of 1 to 300");
    write_file(f, "a\nb\n", 4, 0600);
    expect_fails(rendezvous_look_up(f->file, endpoint), ERR_CORRUPT, "one line of 1 to 300");
    write_file(f, "a\tb\n", 4, 0600);
    expect_fails(rendezvous_look_up(f->file, endpoint), ERR_CORRUPT, "byte 1 is 0x09");
    write_file(f, "a\0b\n", 4, 0600);
    expect_fails(rendezvous_look_up(f->file, endpoint), ERR_CORRUPT, "byte 1 is 0x00");
    memset(large, 'x', sizeof large);
    write_file(f, large, sizeof large, 0600);
    expect_fails(rendezvous_look_up(f->file, endpoint), ERR_CORRUPT, "one line of 1 to 300");
    expect_fails(rendezvous_look_up(f->dir.path, endpoint), ERR_INVALID, "is no file");
}

#define ROW(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)
static const struct CMUnitTest tests[] = {
    ROW(an_engine_on_this_host_is_waited_for),
    ROW(an_address_that_is_yet_to_be_written_is_waited_for),
    ROW(an_address_of_an_engine_that_is_gone_is_read_again),
    ROW(the_wait_has_an_end_that_says_why),
    ROW(what_waiting_does_not_mend_ends_it_at_once),
    ROW(an_address_file_is_private_and_holds_one_line),
};
TEST_MAIN(tests)
