#include "proto/wire/curve.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum { KEY_BYTES = 32 };

static const char zap_endpoint[] = "inproc://zeromq.zap.01";
/* One for all of ours; the answer does not depend on it. */
static const char zap_domain[] = "tandem";

/* ---- keys ------------------------------------------------------------------------------------ */

static enum status no_curve(void)
{
    return fail(ERR_MISSING, "no encryption: this libzmq is built without CURVE (%s)",
                zmq_strerror(errno));
}

enum status curve_pair_new(struct curve_pair *out)
{
    struct curve_pair pair;

    if (zmq_curve_keypair(pair.public_key, pair.secret_key) != 0)
        return no_curve();
    *out = pair;
    return OK;
}

bool curve_key_is_valid(const char *key)
{
    uint8_t bytes[KEY_BYTES];
    bool is_valid = strlen(key) == CURVE_KEY_CHARS && zmq_z85_decode(bytes, key) != NULL;

    explicit_bzero(bytes, sizeof bytes);
    return is_valid;
}

static bool set_key(void *socket, int option, const char *key)
{
    return zmq_setsockopt(socket, option, key, CURVE_KEY_CHARS + 1) == 0;
}

enum status curve_as_server(void *socket, const struct curve_pair *mine)
{
    static const int yes = 1;

    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof yes) != 0 ||
        !set_key(socket, ZMQ_CURVE_SECRETKEY, mine->secret_key))
        return no_curve();
    ASSERT(zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, zap_domain, strlen(zap_domain)) == 0);
    return OK;
}

enum status curve_as_client(void *socket, const struct curve_pair *mine, const char *server_public)
{
    if (!curve_key_is_valid(server_public))
        return fail(ERR_INVALID, "the listener's public key is no key: 40 characters of Z85 are");
    if (!set_key(socket, ZMQ_CURVE_SERVERKEY, server_public) ||
        !set_key(socket, ZMQ_CURVE_PUBLICKEY, mine->public_key) ||
        !set_key(socket, ZMQ_CURVE_SECRETKEY, mine->secret_key))
        return no_curve();
    return OK;
}

/* ---- the token: reading ------------------------------------------------------------------------ */

struct token_reader {
    const char *path;
    int line; /* from 1 */
    bool has_version;
    struct token token;
};

#define fail_line(reader, status, format, ...)                                                     \
    fail(status, "%s, line %d: " format, (reader)->path, (reader)->line, ##__VA_ARGS__)

static enum status read_version(struct token_reader *reader, const char *value)
{
    if (reader->has_version)
        return fail_line(reader, ERR_CORRUPT, "tandem-token stands here again");
    if (strcmp(value, "1") != 0)
        return fail_line(reader, ERR_UNSUPPORTED,
                         "token version '%.16s', this build reads version 1", value);
    reader->has_version = true;
    return OK;
}

static enum status read_secret(const struct token_reader *reader, const char *name,
                               const char *value, struct curve_pair *pair)
{
    if (!reader->has_version)
        return fail_line(reader, ERR_CORRUPT, "the first line must be 'tandem-token 1'");
    if (*pair->secret_key)
        return fail_line(reader, ERR_CORRUPT, "%s stands here again", name);
    if (strlen(value) != CURVE_KEY_CHARS)
        return fail_line(reader, ERR_CORRUPT, "%s has %zu characters, a key has %d", name,
                         strlen(value), CURVE_KEY_CHARS);
    if (!curve_key_is_valid(value))
        return fail_line(reader, ERR_CORRUPT, "%s is not Z85", name);
    memcpy(pair->secret_key, value, CURVE_KEY_CHARS + 1);
    if (zmq_curve_public(pair->public_key, pair->secret_key) != 0)
        return no_curve();
    return OK;
}

/* `line` is cut into words. */
static enum status read_line(struct token_reader *reader, char *line)
{
    static const char blanks[] = " \t\r";
    char *rest = NULL, *name = strtok_r(line, blanks, &rest);
    const char *value = name ? strtok_r(NULL, blanks, &rest) : NULL;

    if (!name || *name == '#')
        return OK;
    if (!value || strtok_r(NULL, blanks, &rest))
        return fail_line(reader, ERR_CORRUPT, "a name and one value are expected");
    if (strcmp(name, "tandem-token") == 0)
        return read_version(reader, value);
    if (strcmp(name, "engine-secret") == 0)
        return read_secret(reader, name, value, &reader->token.engine);
    if (strcmp(name, "worker-secret") == 0)
        return read_secret(reader, name, value, &reader->token.worker);
    return fail_line(reader, ERR_CORRUPT,
                     "the names are tandem-token, engine-secret and worker-secret");
}

static enum status check_whole(const struct token_reader *reader)
{
    const struct token *token = &reader->token;

    if (!reader->has_version)
        return fail(ERR_CORRUPT, "%s: no token: it has no line 'tandem-token 1'", reader->path);
    if (!*token->engine.secret_key || !*token->worker.secret_key)
        return fail(ERR_CORRUPT, "%s: %s is missing", reader->path,
                    *token->engine.secret_key ? "worker-secret" : "engine-secret");
    if (strcmp(token->engine.secret_key, token->worker.secret_key) == 0)
        return fail(ERR_CORRUPT, "%s: engine-secret and worker-secret are the same", reader->path);
    return OK;
}

/* `text` has a NUL behind its `size` bytes, and is cut up. */
static enum status read_lines(struct token_reader *reader, char *text, size_t size)
{
    char *end = text + size;

    for (char *line = text; line < end;) {
        char *line_end = memchr(line, '\n', (size_t)(end - line));

        if (!line_end)
            line_end = end;
        *line_end = '\0';
        reader->line++;
        if (strlen(line) != (size_t)(line_end - line))
            return fail_line(reader, ERR_CORRUPT, "a NUL byte, a token is text");
        TRY(read_line(reader, line));
        line = line_end + 1;
    }
    return check_whole(reader);
}

/* By root to a group that we are in, as Kubernetes and systemd do it: nothing that we could have made narrower. */
static bool is_handed_out(const struct stat *info)
{
    return info->st_uid == 0 && geteuid() != 0;
}

static enum status check_owner(const char *path, int fd)
{
    struct stat info;

    if (fstat(fd, &info) != 0)
        return fail(ERR_IO, "%s: %m", path);
    if (!S_ISREG(info.st_mode))
        return fail(ERR_INVALID, "%s is no file", path);
    if (info.st_mode & (is_handed_out(&info) ? 037 : 077))
        return fail(ERR_INVALID,
                    "%s has mode %04o: others can read the secrets in it; 'chmod 600' it, or make a "
                    "new one where they may have done so", path, info.st_mode & 07777);
    if (info.st_uid != geteuid() && info.st_uid != 0)
        return fail(ERR_INVALID, "%s belongs to user %u, this is user %u", path, info.st_uid,
                    geteuid());
    return OK;
}

/* Up to `most` bytes. */
static ssize_t read_whole(int fd, char *out, size_t most)
{
    size_t size = 0;

    while (size < most) {
        ssize_t n = read(fd, out + size, most - size);

        if (n < 0 && errno != EINTR)
            return -1;
        if (n == 0)
            break;
        size += (size_t)MAX(n, 0);
    }
    return (ssize_t)size;
}

static enum status read_token(const char *path, int fd, struct token *out)
{
    struct token_reader reader = {.path = path};
    char text[TOKEN_MAX_BYTES + 2];
    enum status status;
    ssize_t size;

    TRY(check_owner(path, fd));
    size = read_whole(fd, text, TOKEN_MAX_BYTES + 1);
    if (size < 0)
        status = fail(ERR_IO, "%s: %m", path);
    else if (size > TOKEN_MAX_BYTES)
        status = fail(ERR_CORRUPT, "%s: more than %d bytes, a token has about 130", path,
                      TOKEN_MAX_BYTES);
    else {
        text[size] = '\0';
        status = read_lines(&reader, text, (size_t)size);
    }
    if (status == OK)
        *out = reader.token;
    explicit_bzero(&reader, sizeof reader);
    explicit_bzero(text, sizeof text);
    return status;
}

enum status token_read(const char *path, struct token *out)
{
    /* O_NONBLOCK: a pipe of that name must not hold us up before it is refused. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    enum status status;

    if (*path == '\0')
        return fail(ERR_INVALID, "the token's path is empty");
    if (fd < 0 && errno == ENOENT)
        return fail(ERR_NOT_FOUND,
                    "%s: no such file; 'tandem token %s' makes a token, which the engine and all its "
                    "ranks must have", path, path);
    if (fd < 0)
        return fail(ERR_IO, "%s: %m", path);
    status = read_token(path, fd, out);
    close(fd);
    return status;
}

/* ---- the token: making -------------------------------------------------------------------------- */

enum status token_create(const char *path, struct token *out)
{
    struct token token;
    char text[256];
    int fd, size;
    bool is_written;

    TRY(curve_pair_new(&token.engine));
    TRY(curve_pair_new(&token.worker));
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST)
        return fail(ERR_INVALID, "%s is there already: remove it first, if nobody uses it any more",
                    path);
    if (fd < 0)
        return fail(ERR_IO, "%s cannot be made: %m", path);
    size = snprintf(text, sizeof text, "tandem-token 1\nengine-secret %s\nworker-secret %s\n",
                    token.engine.secret_key, token.worker.secret_key);
    is_written = write(fd, text, (size_t)size) == size && fsync(fd) == 0;
    explicit_bzero(text, sizeof text);
    if (close(fd) != 0 || !is_written) {
        enum status status = fail(ERR_IO, "%s cannot be written: %m", path);

        unlink(path);
        return status;
    }
    *out = token;
    return OK;
}

/* ---- ZAP ------------------------------------------------------------------------------------------ */

/* What ZeroMQ asks (RFC 27), and we look at. */
enum { FRAME_VERSION, FRAME_ID, FRAME_DOMAIN, FRAME_ADDRESS, FRAME_NAME, FRAME_MECHANISM, FRAME_KEY,
       NUM_FRAMES };
enum { MAX_ID = 255, MAX_ADDRESS = 64, SAY_EVERY_MS = 10000 };

struct zap {
    zap_allow allow;
    void *user;
    void *socket; /* REP, the thread's own once that has started */
    int stop_fd;
    pthread_t thread;
    _Atomic int64_t num_refused;
    int64_t num_said, say_at_ns; /* refusals told in the log so far, and when it may be told again */
};

struct zap_request {
    int num_frames;
    uint8_t id[MAX_ID];
    size_t id_size;
    char address[MAX_ADDRESS + 1]; /* printable */
    char key[CURVE_KEY_CHARS + 1];
    bool fits; /* as far as we have looked */
};

static bool is_text(zmq_msg_t *frame, const char *text)
{
    return zmq_msg_size(frame) == strlen(text) &&
           memcmp(zmq_msg_data(frame), text, strlen(text)) == 0;
}

static void take_id(struct zap_request *request, zmq_msg_t *frame)
{
    request->fits &= zmq_msg_size(frame) <= MAX_ID;
    request->id_size = MIN(zmq_msg_size(frame), (size_t)MAX_ID);
    memcpy(request->id, zmq_msg_data(frame), request->id_size);
}

static void take_address(struct zap_request *request, zmq_msg_t *frame)
{
    size_t size = MIN(zmq_msg_size(frame), (size_t)MAX_ADDRESS);
    const char *text = zmq_msg_data(frame);

    for (size_t i = 0; i < size; i++)
        request->address[i] = text[i] > ' ' && text[i] < 127 ? text[i] : '?';
}

static void take_key(struct zap_request *request, zmq_msg_t *frame)
{
    if (zmq_msg_size(frame) != KEY_BYTES ||
        !zmq_z85_encode(request->key, zmq_msg_data(frame), KEY_BYTES))
        request->fits = false;
}

static void take_frame(struct zap_request *request, zmq_msg_t *frame)
{
    switch (request->num_frames) {
    case FRAME_VERSION:
        request->fits &= is_text(frame, "1.0");
        break;
    case FRAME_ID:
        take_id(request, frame);
        break;
    case FRAME_DOMAIN:
        request->fits &= is_text(frame, zap_domain);
        break;
    case FRAME_ADDRESS:
        take_address(request, frame);
        break;
    case FRAME_MECHANISM:
        request->fits &= is_text(frame, "CURVE");
        break;
    case FRAME_KEY:
        take_key(request, frame);
        break;
    default: /* the peer's name is its own affair; what is too much makes the count wrong */
        break;
    }
}

/* All frames of a request; false: none is there. */
static bool recv_request(struct zap *zap, struct zap_request *out)
{
    zmq_msg_t frame;
    bool more;

    *out = (struct zap_request){.fits = true};
    do {
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, zap->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            return false;
        }
        take_frame(out, &frame);
        out->num_frames = MIN(out->num_frames + 1, NUM_FRAMES + 1);
        more = zmq_msg_more(&frame);
        zmq_msg_close(&frame);
    } while (more);
    out->fits &= out->num_frames == NUM_FRAMES;
    return true;
}

static void answer(struct zap *zap, const struct zap_request *request, bool is_allowed)
{
    const char *code = is_allowed ? "200" : "400", *text = is_allowed ? "OK" : "not allowed";
    const struct {
        const void *data;
        size_t size;
    } parts[] = {
        {"1.0", 3}, {request->id, request->id_size}, {code, 3}, {text, strlen(text)},
        {request->key, is_allowed ? strlen(request->key) : 0}, /* "User-Id" of all that it sends */
        {"", 0}, /* no properties */
    };

    /* A peer that has left meanwhile gets nothing; that is all that can go wrong. */
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        if (zmq_send(zap->socket, parts[i].data, parts[i].size,
                     ZMQ_DONTWAIT | (i + 1 < COUNT_OF(parts) ? ZMQ_SNDMORE : 0)) < 0)
            return;
}

/* A storm of them must not fill the disk: a line each 10 s, with what there was since. */
static void count_refusal(struct zap *zap, const struct zap_request *request)
{
    int64_t num_refused = atomic_fetch_add_explicit(&zap->num_refused, 1, memory_order_relaxed) + 1;

    if (clock_now_ns() < zap->say_at_ns)
        return;
    log_warn("%lld peer%s with a key that is not allowed turned away, the last from %s",
             (long long)(num_refused - zap->num_said), num_refused - zap->num_said > 1 ? "s" : "",
             *request->address ? request->address : "somewhere");
    zap->num_said = num_refused;
    zap->say_at_ns = clock_deadline_ns(SAY_EVERY_MS);
}

static void *answer_requests(void *argument)
{
    struct zap *zap = argument;
    zmq_pollitem_t items[] = {{.socket = zap->socket, .events = ZMQ_POLLIN},
                              {.fd = zap->stop_fd, .events = ZMQ_POLLIN}};
    struct zap_request request;

    pthread_setname_np(pthread_self(), "zap");
    while (!(items[1].revents & ZMQ_POLLIN)) {
        while (recv_request(zap, &request)) {
            bool is_allowed = request.fits && zap->allow(zap->user, request.key);

            if (!is_allowed)
                count_refusal(zap, &request);
            answer(zap, &request, is_allowed);
        }
        if (zmq_poll(items, COUNT_OF(items), -1) < 0 && errno == ETERM)
            break;
    }
    zmq_close(zap->socket);
    return NULL;
}

enum status zap_start(void *context, zap_allow allow, void *user, struct zap **out)
{
    struct zap *zap = mem_new(struct zap);
    static const int linger_ms = 0;
    int error;

    *zap = (struct zap){.allow = allow, .user = user, .stop_fd = eventfd(0, EFD_CLOEXEC)};
    zap->socket = zmq_socket(context, ZMQ_REP);
    error = zap->stop_fd < 0 || !zap->socket ? errno : 0;
    if (!error && (zmq_setsockopt(zap->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms) != 0 ||
                   zmq_bind(zap->socket, zap_endpoint) != 0))
        error = errno;
    if (!error)
        error = pthread_create(&zap->thread, NULL, answer_requests, zap);
    if (!error) {
        *out = zap;
        return OK;
    }
    if (zap->socket)
        zmq_close(zap->socket);
    if (zap->stop_fd >= 0)
        close(zap->stop_fd);
    mem_free(zap);
    return fail(ERR_IO, "nobody can be asked who may come in: %s", zmq_strerror(error));
}

int64_t zap_num_refused(const struct zap *zap)
{
    return atomic_load_explicit(&zap->num_refused, memory_order_relaxed);
}

void zap_free(struct zap *zap)
{
    if (!zap)
        return;
    eventfd_write(zap->stop_fd, 1);
    pthread_join(zap->thread, NULL);
    close(zap->stop_fd);
    mem_free(zap);
}
