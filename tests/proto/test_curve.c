#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"
#include "proto/wire/curve.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

/* ---- the token ------------------------------------------------------------------------------------ */

struct place {
    char dir[64], path[96];
};

static int make_place(void **state)
{
    struct place *place = mem_new(struct place);

    snprintf(place->dir, sizeof place->dir, "/tmp/tandem-test-XXXXXX");
    if (!mkdtemp(place->dir))
        return -1;
    snprintf(place->path, sizeof place->path, "%s/token", place->dir);
    *state = place;
    return 0;
}

static int remove_place(void **state)
{
    struct place *place = *state;

    unlink(place->path);
    rmdir(place->dir);
    mem_free(place);
    return 0;
}

static void write_file(const char *path, const char *text, size_t size, mode_t mode)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_int_equal(write(fd, text, size), size);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static void what_was_made_is_read_back(void **state)
{
    const struct place *place = *state;
    struct token made, read;
    struct stat info;
    char derived[41];

    expect_ok(token_create(place->path, &made));
    expect_ok(token_read(place->path, &read));
    assert_memory_equal(&made, &read, sizeof made);
    assert_int_equal(stat(place->path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    assert_string_not_equal(made.engine.secret_key, made.worker.secret_key);
    assert_int_equal(zmq_curve_public(derived, made.worker.secret_key), 0);
    assert_string_equal(derived, made.worker.public_key);
}

static void a_token_is_never_written_over(void **state)
{
    const struct place *place = *state;
    struct token first, second, read;

    expect_ok(token_create(place->path, &first));
    expect_fails(token_create(place->path, &second), ERR_INVALID, "/token is there already");
    expect_ok(token_read(place->path, &read));
    assert_memory_equal(&first, &read, sizeof first);
    expect_fails(token_create("/no/such/folder/token", &second), ERR_IO,
                 "/no/such/folder/token cannot be made: No such file");
}

static void a_token_that_others_can_read_is_refused(void **state)
{
    const struct place *place = *state;
    struct token token;

    expect_ok(token_create(place->path, &token));
    for (mode_t bit = 0001; bit < 0100; bit <<= 1) {
        assert_int_equal(chmod(place->path, 0600 | bit), 0);
        expect_fails(token_read(place->path, &token), ERR_INVALID, "others can read the secrets");
    }
    assert_int_equal(chmod(place->path, 0640), 0);
    expect_fails(token_read(place->path, &token), ERR_INVALID, "has mode 0640");
    assert_int_equal(chmod(place->path, 0400), 0);
    expect_ok(token_read(place->path, &token));
    if (geteuid() == 0) {
        assert_int_equal(chown(place->path, 4711, (gid_t)-1), 0);
        expect_fails(token_read(place->path, &token), ERR_INVALID, "belongs to user 4711");
    }
}

/* What token_read says of the file where we are user and group 4711. */
static enum status read_as_another(const char *path)
{
    struct token token;
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0)
        _exit(setgroups(0, NULL) == 0 && setgid(4711) == 0 && setuid(4711) == 0
                  ? (int)token_read(path, &token)
                  : 255);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void a_token_of_roots_may_be_for_a_group(void **state)
{
    const struct place *place = *state;
    struct token token;

    if (geteuid() != 0)
        return; /* only root gives files away */
    expect_ok(token_create(place->path, &token));
    assert_int_equal(chmod(place->dir, 0711), 0);
    assert_int_equal(chown(place->path, 0, 4711), 0);
    for (mode_t bit = 0001; bit < 0100; bit <<= 1) {
        assert_int_equal(chmod(place->path, 0440 | bit), 0);
        assert_int_equal(read_as_another(place->path), bit == 0040 ? OK : ERR_INVALID);
    }
    /* Its reader's own file, and one that a third user hands out, are not. */
    assert_int_equal(chmod(place->path, 0440), 0);
    assert_int_equal(chown(place->path, 4711, 4711), 0);
    assert_int_equal(read_as_another(place->path), ERR_INVALID);
    assert_int_equal(chown(place->path, 4712, 4711), 0);
    assert_int_equal(read_as_another(place->path), ERR_INVALID);
}

static void what_is_no_file_is_refused_at_once(void **state)
{
    const struct place *place = *state;
    struct token token;

    expect_fails(token_read(place->path, &token), ERR_NOT_FOUND, "'tandem token /tmp/tandem-test-");
    assert_int_equal(mkfifo(place->path, 0600), 0);
    expect_fails(token_read(place->path, &token), ERR_INVALID, "is no file");
    expect_fails(token_read(place->dir, &token), ERR_INVALID, "is no file");
}

#define E "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs" /* of zmq_curve's manual */
#define W "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"

static void errors_name_the_line_and_quote_no_secret(void **state)
{
    static const struct {
        const char *text;
        size_t size; /* 0: strlen */
        enum status status;
        const char *part;
    } rows[] = {
        {"", 0, ERR_CORRUPT, "/token: no token: it has no line 'tandem-token 1'"},
        {"engine-secret " E "\n", 0, ERR_CORRUPT, "line 1: the first line must be"},
        {"# ours\n\ntandem-token 2\n", 0, ERR_UNSUPPORTED, "line 3: token version '2', this build"},
        {"tandem-token 1\ntandem-token 1\n", 0, ERR_CORRUPT, "line 2: tandem-token stands here again"},
        {"tandem-token 1\nengine-secret " E "\n", 0, ERR_CORRUPT, "worker-secret is missing"},
        {"tandem-token 1\nworker-secret " E "\n", 0, ERR_CORRUPT, "engine-secret is missing"},
        {"tandem-token 1\nengine-secret " E "\nengine-secret " W, 0, ERR_CORRUPT,
         "line 3: engine-secret stands here again"},
        {"tandem-token 1\nengine-secret " E "\nworker-secret " E, 0, ERR_CORRUPT, "are the same"},
        {"tandem-token 1\nengine-secret abc\n", 0, ERR_CORRUPT,
         "line 2: engine-secret has 3 characters, a key has 40"},
        {"tandem-token 1\nengine-secret \"\"" "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%", 0,
         ERR_CORRUPT, "line 2: engine-secret is not Z85"},
        {"tandem-token 1\nengine-secret ########################################\n", 0,
         ERR_CORRUPT, "line 2: engine-secret is not Z85"}, /* five of them are above 2^32 */
        {"tandem-token 1\nengine-secret " E " " W, 0, ERR_CORRUPT,
         "line 2: a name and one value are expected"},
        {"tandem-token 1\n" E " " W, 0, ERR_CORRUPT, "line 2: the names are tandem-token,"},
        {"tandem-token 1\nengine-\0secret x", 31, ERR_CORRUPT, "line 2: a NUL byte"},
    };
    const struct place *place = *state;
    struct token token;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        write_file(place->path, rows[i].text,
                   rows[i].size ? rows[i].size : strlen(rows[i].text), 0600);
        expect_fails(token_read(place->path, &token), rows[i].status, rows[i].part);
        assert_null(strstr(fail_text(), "D:)Q["));
    }
    char *large = mem_alloc(TOKEN_MAX_BYTES + 1);
    memset(large, '\n', TOKEN_MAX_BYTES + 1);
    write_file(place->path, large, TOKEN_MAX_BYTES + 1, 0600);
    expect_fails(token_read(place->path, &token), ERR_CORRUPT, "more than 4096 bytes");
    mem_free(large);
}

static void comments_blanks_and_dos_lines_are_passed_over(void **state)
{
    static const char text[] = "# keys\r\n\r\n  tandem-token\t1\r\nworker-secret " W "\r\n\n"
                               "engine-secret  " E;
    const struct place *place = *state;
    struct token token;

    write_file(place->path, text, strlen(text), 0600);
    expect_ok(token_read(place->path, &token));
    assert_string_equal(token.engine.secret_key, E);
    assert_string_equal(token.worker.public_key, "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7");
}

/* ---- ZAP ---------------------------------------------------------------------------------------- */

struct door {
    void *context, *server;
    struct curve_pair mine, allowed, other;
    struct zap *zap;
    char endpoint[128];
    _Atomic int num_asked;
};

static bool allow(void *user, const char *public_key)
{
    struct door *door = user;

    atomic_fetch_add(&door->num_asked, 1);
    return strcmp(public_key, door->allowed.public_key) == 0;
}

static int open_door(void **state)
{
    struct door *door = mem_new(struct door);
    size_t size = sizeof door->endpoint;

    door->context = zmq_ctx_new();
    door->server = zmq_socket(door->context, ZMQ_ROUTER);
    if (curve_pair_new(&door->mine) != OK || curve_pair_new(&door->allowed) != OK ||
        curve_pair_new(&door->other) != OK ||
        zap_start(door->context, allow, door, &door->zap) != OK ||
        curve_as_server(door->server, &door->mine) != OK ||
        zmq_bind(door->server, "tcp://127.0.0.1:*") != 0 ||
        zmq_getsockopt(door->server, ZMQ_LAST_ENDPOINT, door->endpoint, &size) != 0)
        return -1;
    *state = door;
    return 0;
}

static int close_door(void **state)
{
    struct door *door = *state;

    zmq_close(door->server);
    zap_free(door->zap);
    zmq_ctx_term(door->context);
    mem_free(door);
    return 0;
}

/* Says hello under these keys; whether the server has heard it within `ms`. */
static bool is_heard(struct door *door, const struct curve_pair *pair, const char *server_public,
                     int ms)
{
    static const int zero = 0, never = -1;
    void *client = zmq_socket(door->context, ZMQ_DEALER);
    zmq_pollitem_t item = {.socket = door->server, .events = ZMQ_POLLIN};
    char word[8] = "";

    zmq_setsockopt(client, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(client, ZMQ_RECONNECT_IVL, &never, sizeof never);
    expect_ok(curve_as_client(client, pair, server_public));
    assert_int_equal(zmq_connect(client, door->endpoint), 0);
    zmq_send(client, "hello", 5, ZMQ_DONTWAIT); /* one that is refused may be gone already */
    int num_ready = zmq_poll(&item, 1, ms);
    zmq_close(client);
    if (num_ready < 1)
        return false;
    zmq_recv(door->server, word, sizeof word, 0);
    zmq_recv(door->server, word, sizeof word, 0);
    return memcmp(word, "hello", 5) == 0;
}

static void who_has_the_key_comes_in_and_nobody_else(void **state)
{
    struct door *door = *state;

    assert_true(is_heard(door, &door->allowed, door->mine.public_key, 20000));
    assert_false(is_heard(door, &door->other, door->mine.public_key, 200));
    assert_int_equal(zap_num_refused(door->zap), 1);
    assert_int_equal(atomic_load(&door->num_asked), 2);
    /* Whoever does not know the server's key is not even asked about. */
    assert_false(is_heard(door, &door->allowed, door->other.public_key, 200));
    assert_int_equal(atomic_load(&door->num_asked), 2);
    assert_true(is_heard(door, &door->allowed, door->mine.public_key, 20000));
    expect_fails(curve_as_client(door->server, &door->allowed, "short"), ERR_INVALID, "is no key");
}

/* One request as ZeroMQ would put it, a frame of which is replaced; the code of the answer. */
static void ask(struct door *door, int num_frames, int replaced, const void *data, size_t size,
                char code_out[4])
{
    static const int zero = 0, patience_ms = 20000;
    const struct {
        const void *data;
        size_t size;
    } frames[] = {{"1.0", 3},         {"7", 1}, {"tandem", 6}, {"1.2.3.4", 7}, {"", 0}, {"CURVE", 5},
                  {(char[32]){1}, 32}, {"", 0}, {"", 0}};
    void *socket = zmq_socket(door->context, ZMQ_REQ);
    char part[256];
    int n;

    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &patience_ms, sizeof patience_ms);
    assert_int_equal(zmq_connect(socket, "inproc://zeromq.zap.01"), 0);
    for (int i = 0; i < num_frames; i++)
        zmq_send(socket, i == replaced ? data : frames[i].data, i == replaced ? size : frames[i].size,
                 i + 1 < num_frames ? ZMQ_SNDMORE : 0);
    for (int i = 0; i < 6; i++) {
        n = zmq_recv(socket, part, sizeof part, 0);
        assert_true(n >= 0);
        if (i == 2)
            memcpy(code_out, part, 3);
    }
    code_out[3] = '\0';
    zmq_close(socket);
}

static void a_request_of_any_form_is_answered_no(void **state)
{
    struct door *door = *state;
    static char large[1 << 16];
    char code[4];

    memset(large, 0xff, sizeof large);
    for (int num_frames = 1; num_frames <= 9; num_frames++) {
        ask(door, num_frames, -1, NULL, 0, code);
        assert_string_equal(code, "400");
    }
    for (int frame = 0; frame < 7; frame++) {
        ask(door, 7, frame, large, sizeof large, code);
        assert_string_equal(code, "400");
        ask(door, 7, frame, "", 0, code);
        assert_string_equal(code, "400");
    }
    assert_true(is_heard(door, &door->allowed, door->mine.public_key, 20000));
}

#define TOKEN_ROW(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)
#define DOOR_ROW(name)  cmocka_unit_test_setup_teardown(name, open_door, close_door)
static const struct CMUnitTest tests[] = {
    TOKEN_ROW(what_was_made_is_read_back),
    TOKEN_ROW(a_token_is_never_written_over),
    TOKEN_ROW(a_token_that_others_can_read_is_refused),
    TOKEN_ROW(a_token_of_roots_may_be_for_a_group),
    TOKEN_ROW(what_is_no_file_is_refused_at_once),
    TOKEN_ROW(errors_name_the_line_and_quote_no_secret),
    TOKEN_ROW(comments_blanks_and_dos_lines_are_passed_over),
    DOOR_ROW(who_has_the_key_comes_in_and_nobody_else),
    DOOR_ROW(a_request_of_any_form_is_answered_no),
};
TEST_MAIN(tests)
