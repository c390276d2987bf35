#include "engine/control/client.h"

#include "proto/base/clock.h"
#include "proto/wire/messages.h"
#include "proto/wire/rendezvous.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

enum { MAX_REPLY_BYTES = MAX_LONG_TEXT + 4096, HANDSHAKE_MS = 3000 };

struct client {
    const struct control_question *question;
    void *context, *socket, *monitor;
    int64_t id;
    bool was_in; /* the handshake went well */
};

static void client_close(struct client *client)
{
    if (client->socket) {
        zmq_socket_monitor(client->socket, NULL, 0);
        zmq_close(client->socket);
    }
    if (client->monitor)
        zmq_close(client->monitor);
    if (client->context)
        zmq_ctx_term(client->context);
}

/* ---- connecting ------------------------------------------------------------------------------ */

static enum status nobody(const char *endpoint)
{
    return fail(ERR_CLOSED, "no engine listens on %s", endpoint);
}

/* ZeroMQ would wait for somebody to come. */
static enum status check_listener(const char *endpoint, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, rc, error;

    if (strlen(path) >= sizeof address.sun_path || !*path)
        return fail(ERR_INVALID, "the socket's path %s has %zu bytes, it must have 1 to %zu", path,
                    strlen(path), sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(ERR_IO, "no socket: %m");
    rc = connect(fd, (const struct sockaddr *)&address, sizeof address);
    error = errno;
    close(fd);
    if (rc == 0)
        return OK;
    if (error == EACCES || error == EPERM)
        return fail(ERR_DENIED, "%s is another user's: %s", path, strerror(error));
    return nobody(endpoint);
}

static enum status set_keys(struct client *client)
{
    const struct control_key_file *key = client->question->key;

    if (!key)
        return fail(ERR_INVALID, "%s wants a key: --key FILE", client->question->endpoint);
    if (!*key->server)
        return fail(ERR_INVALID,
                    "the engine's public key is missing: --server-key KEY, or a line in the key file");
    return curve_as_client(client->socket, &key->pair, key->server);
}

static void set_int(void *socket, int option, int value)
{
    zmq_setsockopt(socket, option, &value, sizeof value);
}

static enum status open_monitor(struct client *client)
{
    static const char address[] = "inproc://monitor";
    int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                 ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED | ZMQ_EVENT_CONNECT_RETRIED;

    if (zmq_socket_monitor(client->socket, address, events) != 0 ||
        !(client->monitor = zmq_socket(client->context, ZMQ_PAIR)) ||
        zmq_connect(client->monitor, address) != 0)
        return fail(ERR_IO, "the connection cannot be watched: %s", zmq_strerror(errno));
    return OK;
}

static enum status client_open(struct client *client)
{
    const char *endpoint = client->question->endpoint;
    bool is_ipc = strncmp(endpoint, "ipc://", 6) == 0;
    int64_t max_reply = MAX_REPLY_BYTES;

    if (!is_ipc && strncmp(endpoint, "tcp://", 6) != 0)
        return fail(ERR_INVALID, "'%.200s' is no address; use ipc://PATH or tcp://HOST:PORT",
                    endpoint);
    if (is_ipc)
        TRY(check_listener(endpoint, endpoint + 6));
    client->context = zmq_ctx_new();
    client->socket = client->context ? zmq_socket(client->context, ZMQ_DEALER) : NULL;
    if (!client->socket)
        return fail(ERR_IO, "no ZeroMQ socket: %s", zmq_strerror(errno));
    /* It is closed when it was answered, or will not be. */
    set_int(client->socket, ZMQ_LINGER, 0);
    set_int(client->socket, ZMQ_RECONNECT_IVL, -1);
    set_int(client->socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS);
    zmq_setsockopt(client->socket, ZMQ_MAXMSGSIZE, &max_reply, sizeof max_reply);
    if (!is_ipc)
        TRY(set_keys(client));
    TRY(open_monitor(client));
    if (zmq_connect(client->socket, endpoint) != 0)
        return fail(ERR_INVALID, "%s cannot be connected to: %s", endpoint, zmq_strerror(errno));
    return OK;
}

/* ---- asking ---------------------------------------------------------------------------------- */

static enum status send_question(struct client *client)
{
    AUTO_MEM char *args = json_dumps(client->question->args, JSON_COMPACT);
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct control_request request = {
        .id = client->id, .command = client->question->command, .args = args};

    TRY(message_encode(&control_request_type, 0, -1, &request, &frame));
    if (frame.size > MAX_CONTROL_FRAME)
        return fail(ERR_INVALID, "a command of %zu bytes, the limit is %d", frame.size,
                    MAX_CONTROL_FRAME);
    /* EAGAIN: the listener has hung up already, and the monitor will tell. */
    if (zmq_send(client->socket, frame.data, frame.size, ZMQ_DONTWAIT) < 0 && errno != EAGAIN)
        return fail(ERR_IO, "the command was not sent: %s", zmq_strerror(errno));
    return OK;
}

/* What a frame says to our question; *is_it false: it is about something else. */
static enum status read_reply(const struct client *client, const void *data, size_t size,
                              struct control_answer *out, bool *is_it)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    const struct control_reply *reply;
    struct message message;

    TRY(message_decode(data, size, &arena, &message));
    if (message.type != &control_reply_type)
        return fail(ERR_MISMATCH, "a %s came where control_reply is expected", message.type->name);
    reply = message.body;
    *is_it = reply->id == client->id || reply->id == -1; /* -1: it could not read the question */
    if (*is_it)
        *out = (struct control_answer){
            .status = reply->status >= OK && reply->status < NUM_STATUS ? (enum status)reply->status
                                                                        : ERR_INTERNAL,
            .text = mem_strdup(reply->text)};
    return OK;
}

static enum status hear(const struct client *client, struct control_answer *out, bool *has_come)
{
    enum status status = OK;
    zmq_msg_t part;

    zmq_msg_init(&part);
    while (status == OK && !*has_come && zmq_msg_recv(&part, client->socket, ZMQ_DONTWAIT) >= 0)
        status = read_reply(client, zmq_msg_data(&part), zmq_msg_size(&part), out, has_come);
    zmq_msg_close(&part);
    return status;
}

/* An event's number; 0: there is none. */
static uint16_t next_event(const struct client *client)
{
    uint16_t event = 0;
    zmq_msg_t part;

    zmq_msg_init(&part);
    if (zmq_msg_recv(&part, client->monitor, ZMQ_DONTWAIT) >= 0) {
        if (zmq_msg_size(&part) >= sizeof event)
            memcpy(&event, zmq_msg_data(&part), sizeof event);
        while (zmq_msg_more(&part) && zmq_msg_recv(&part, client->monitor, 0) >= 0)
            continue;
    }
    zmq_msg_close(&part);
    return event;
}

static enum status watch(struct client *client)
{
    const char *endpoint = client->question->endpoint;

    for (uint16_t event; (event = next_event(client));)
        switch (event) {
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
            client->was_in = true;
            break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
            return fail(ERR_DENIED, "the engine at %s does not know our key", endpoint);
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return fail(ERR_DENIED, "the engine at %s does not let us in: a wrong key?", endpoint);
        case ZMQ_EVENT_CONNECT_RETRIED:
            break;
        default: /* closed before it was open, or after */
            return client->was_in ? fail(ERR_CLOSED, "the engine at %s has left", endpoint)
                                  : nobody(endpoint);
        }
    return OK;
}

static enum status await(struct client *client, struct control_answer *out)
{
    zmq_pollitem_t items[] = {{.socket = client->socket, .events = ZMQ_POLLIN},
                              {.socket = client->monitor, .events = ZMQ_POLLIN}};
    bool has_come = false;

    for (;;) {
        TRY(hear(client, out, &has_come));
        if (has_come)
            return OK;
        enum status status = watch(client);

        if (status != OK) { /* its last words may have come before */
            AUTO_MEM char *why = mem_strdup(fail_text());

            TRY(hear(client, out, &has_come));
            return has_come ? OK : fail(status, "%s", why);
        }
        if (clock_now_ns() >= client->question->deadline_ns)
            return fail(ERR_TIMEOUT, "the engine at %s has not answered '%s' in time",
                        client->question->endpoint, client->question->command);
        if (zmq_poll(items, COUNT_OF(items), clock_left_ms(client->question->deadline_ns)) < 0 &&
            errno != EINTR)
            return fail(ERR_IO, "zmq_poll: %s", zmq_strerror(errno));
    }
}

enum status control_ask(const struct control_question *question, struct control_answer *out)
{
    AUTO_CLOSE(client) struct client client = {.question = question, .id = getpid()};

    *out = (struct control_answer){0};
    TRY(client_open(&client));
    TRY(send_question(&client));
    return await(&client, out);
}

void control_answer_close(struct control_answer *answer)
{
    mem_free(answer->text);
    *answer = (struct control_answer){0};
}

/* ---- finding --------------------------------------------------------------------------------- */

struct finding {
    char *endpoint;
    struct bytes names;
    int32_t n;
};

static void note(void *user, const char *path)
{
    struct finding *finding = user;
    AUTO_MEM char *endpoint = mem_printf("ipc://%s/control", path);

    if (check_listener(endpoint, endpoint + 6) != OK)
        return;
    bytes_printf(&finding->names, "\n  --socket %s", endpoint);
    if (finding->n++ == 0)
        finding->endpoint = give(endpoint);
}

enum status control_find(const char *parent, char **endpoint_out)
{
    struct finding finding = {0};
    enum status status = run_dir_each(parent, note, &finding);

    if (status == OK && finding.n == 0)
        status = fail(ERR_CLOSED, "no engine of this user runs here; --socket ADDR names another");
    if (status == OK && finding.n > 1)
        status = fail(ERR_INVALID, "%d engines run here; say which one:%s", finding.n,
                      bytes_text(&finding.names));
    if (status == OK)
        *endpoint_out = give(finding.endpoint);
    mem_free(finding.endpoint);
    bytes_close(&finding.names);
    return status;
}
