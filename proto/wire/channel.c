#include "proto/wire/channel.h"

#include "proto/base/clock.h"
#include "proto/wire/gate.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <zmq.h>

struct zmq_channel {
    struct channel channel;
    void *context;
    void *socket;
    void *monitor; /* NULL with a gate */
    bool is_listener;
    int fd, monitor_fd;
    int32_t num_disconnects;
    size_t max_frame; /* bytes that the other side takes */
    char *endpoint;   /* where it listens */
    const char *end;  /* why the connection has ended; "": it has not */

    /* Of a listener on tcp. */
    struct gate *gate;
    struct zap *zap;
    char allowed[CURVE_KEY_CHARS + 1]; /* the only public key that comes in */
    zmq_msg_t last; /* what channel_recv gave out */
};

static const struct channel_ops zmq_ops;

static struct zmq_channel *of(const struct channel *channel)
{
    return CONTAINER_OF(channel, struct zmq_channel, channel);
}

/* ---- frames ---------------------------------------------------------------------------------- */

struct frame *frame_new(void)
{
    struct frame *frame = mem_new(struct frame);

    atomic_init(&frame->num_users, 1);
    return frame;
}

void frame_drop(struct frame *frame)
{
    if (frame && atomic_fetch_sub_explicit(&frame->num_users, 1, memory_order_acq_rel) == 1) {
        bytes_close(&frame->bytes);
        mem_free(frame);
    }
}

/* ZeroMQ has sent it, or given it up. Called on its thread. */
static void drop_from_zmq(void *data, void *frame)
{
    (void)data;
    frame_drop(frame);
}

/* ---- open and close -------------------------------------------------------------------------- */

void channel_keys_of_engine(const struct token *token, struct channel_keys *out)
{
    out->mine = token->engine;
    memcpy(out->peer, token->worker.public_key, sizeof out->peer);
}

void channel_keys_of_worker(const struct token *token, struct channel_keys *out)
{
    out->mine = token->worker;
    memcpy(out->peer, token->engine.public_key, sizeof out->peer);
}

static enum status check_ipc(const char *endpoint)
{
    static const size_t path_max = sizeof((struct sockaddr_un *)NULL)->sun_path - 1;

    if (strncmp(endpoint, "ipc://", 6) != 0)
        return fail(ERR_INVALID, "'%.80s' is no endpoint; use ipc://PATH or tcp://HOST:PORT",
                    endpoint);
    if (strlen(endpoint + 6) > path_max || endpoint[6] == '\0')
        return fail(ERR_INVALID, "the socket's path %.80s has %zu bytes, it must have 1 to %zu",
                    endpoint + 6, strlen(endpoint + 6), path_max);
    return OK;
}

static enum status check_endpoint(const char *endpoint, const struct channel_keys *keys)
{
    if (!tcp_is_endpoint(endpoint))
        return check_ipc(endpoint);
    if (!keys)
        return fail(ERR_UNSUPPORTED,
                    "%.80s is refused: tcp without CURVE keys is open to everyone, so a token is "
                    "wanted", endpoint);
    return OK;
}

static void set_int(void *socket, int option, int value)
{
    int rc = zmq_setsockopt(socket, option, &value, sizeof value);

    ASSERT(rc == 0, "ZeroMQ option %d: %s", option, zmq_strerror(errno));
}

static void set_common_options(void *socket, int linger_ms, int64_t max_frame)
{
    set_int(socket, ZMQ_LINGER, linger_ms);
    set_int(socket, ZMQ_SNDHWM, CHANNEL_MAX_QUEUE);
    set_int(socket, ZMQ_RCVHWM, CHANNEL_MAX_QUEUE);
    set_int(socket, ZMQ_HANDSHAKE_IVL, 3000);
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_frame, sizeof max_frame);
}

/* Each side asks. No TTL: it is up, too, when this side itself stood still, with what the other sent unread. */
static void find_cut_links(void *socket)
{
    set_int(socket, ZMQ_HEARTBEAT_IVL, 500);
    set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, 1500);
}

static int get_fd(void *socket)
{
    int fd = -1;
    size_t size = sizeof fd;

    zmq_getsockopt(socket, ZMQ_FD, &fd, &size);
    return fd;
}

static enum status open_monitor(struct zmq_channel *channel, int events)
{
    static const char address[] = "inproc://monitor";

    if (zmq_socket_monitor(channel->socket, address, events) != 0 ||
        !(channel->monitor = zmq_socket(channel->context, ZMQ_PAIR)) ||
        zmq_connect(channel->monitor, address) != 0)
        return fail(ERR_IO, "the channel cannot be watched: %s", zmq_strerror(errno));
    channel->monitor_fd = get_fd(channel->monitor);
    return OK;
}

static enum status open_socket(int type, struct channel **out)
{
    struct zmq_channel *channel = mem_new(struct zmq_channel);
    AUTO_FREE(channel) struct channel *opened = &channel->channel;

    opened->ops = &zmq_ops;
    zmq_msg_init(&channel->last);
    channel->is_listener = type == ZMQ_ROUTER;
    channel->max_frame = CHANNEL_MAX_FRAME;
    channel->end = "";
    channel->context = zmq_ctx_new();
    channel->socket = channel->context ? zmq_socket(channel->context, type) : NULL;
    if (!channel->socket)
        return fail(ERR_IO, "no ZeroMQ socket: %s", zmq_strerror(errno));
    channel->fd = get_fd(channel->socket);
    *out = give(opened);
    return OK;
}

static enum status listen_on_ipc(struct zmq_channel *channel, const char *endpoint)
{
    set_common_options(channel->socket, 0, CHANNEL_MAX_FRAME);
    TRY(open_monitor(channel, ZMQ_EVENT_DISCONNECTED));
    if (zmq_bind(channel->socket, endpoint) != 0)
        return fail(ERR_IO, "%s cannot be listened on: %s", endpoint, zmq_strerror(errno));
    channel->endpoint = mem_strdup(endpoint);
    return OK;
}

static bool is_allowed(void *user, const char *public_key)
{
    const struct zmq_channel *channel = user;

    return strcmp(public_key, channel->allowed) == 0;
}

static enum status listen_on_tcp(struct zmq_channel *channel, const char *endpoint,
                                 const struct channel_keys *keys)
{
    memcpy(channel->allowed, keys->peer, sizeof channel->allowed);
    set_common_options(channel->socket, 0, CHANNEL_MAX_TCP_ANSWER);
    find_cut_links(channel->socket);
    TRY(zap_start(channel->context, is_allowed, channel, &channel->zap));
    TRY(curve_as_server(channel->socket, &keys->mine));
    TRY(gate_open(channel->context, channel->socket, endpoint, &channel->gate));
    channel->monitor_fd = gate_fd(channel->gate);
    channel->endpoint = mem_strdup(gate_endpoint(channel->gate));
    return OK;
}

enum status channel_listen(const char *endpoint, const struct channel_keys *keys,
                           struct channel **out)
{
    AUTO_FREE(channel) struct channel *channel = NULL;
    void *socket;

    TRY(check_endpoint(endpoint, keys));
    TRY(open_socket(ZMQ_ROUTER, &channel));
    socket = of(channel)->socket;
    set_int(socket, ZMQ_ROUTER_MANDATORY, 1);
    set_int(socket, ZMQ_ROUTER_HANDOVER, 1);
    TRY(tcp_is_endpoint(endpoint) ? listen_on_tcp(of(channel), endpoint, keys)
                                  : listen_on_ipc(of(channel), endpoint));
    *out = give(channel);
    return OK;
}

/* A name is resolved here, where it can fail with a sentence, and ZeroMQ gets the number. */
static enum status prepare_tcp(struct zmq_channel *channel, const char *endpoint,
                               const struct channel_keys *keys,
                               char numeric_out[static TCP_MAX_TEXT + 1])
{
    struct tcp_address address;

    TRY(tcp_resolve(endpoint, false, &address));
    tcp_print(&address, numeric_out);
    set_int(channel->socket, ZMQ_IPV6, tcp_is_ipv6(&address));
    set_int(channel->socket, ZMQ_CONNECT_TIMEOUT, 3000);
    find_cut_links(channel->socket);
    channel->max_frame = CHANNEL_MAX_TCP_ANSWER;
    return curve_as_client(channel->socket, &keys->mine, keys->peer);
}

enum status channel_connect(const char *endpoint, const char *name,
                            const struct channel_keys *keys, struct channel **out)
{
    AUTO_FREE(channel) struct channel *channel = NULL;
    char numeric[TCP_MAX_TEXT + 1];
    size_t name_size = strlen(name);
    bool is_tcp = tcp_is_endpoint(endpoint);
    void *socket;

    ASSERT(name_size > 0 && name_size <= CHANNEL_MAX_NAME, "name '%s'", name);
    TRY(check_endpoint(endpoint, keys));
    TRY(open_socket(ZMQ_DEALER, &channel));
    socket = of(channel)->socket;
    set_common_options(socket, 200, CHANNEL_MAX_FRAME);
    set_int(socket, ZMQ_RECONNECT_IVL, -1);
    zmq_setsockopt(socket, ZMQ_ROUTING_ID, name, name_size);
    if (is_tcp)
        TRY(prepare_tcp(of(channel), endpoint, keys, numeric));
    TRY(open_monitor(of(channel), ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED |
                                      ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                                      ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                                      ZMQ_EVENT_HANDSHAKE_FAILED_AUTH));
    if (zmq_connect(socket, is_tcp ? numeric : endpoint) != 0)
        return fail(ERR_IO, "%s cannot be reached: %s", endpoint, zmq_strerror(errno));
    *out = give(channel);
    return OK;
}

const char *channel_endpoint(const struct channel *opened)
{
    return of(opened)->endpoint;
}

static void free_channel(struct channel *opened)
{
    struct zmq_channel *channel = of(opened);

    zmq_msg_close(&channel->last);
    if (channel->socket) {
        zmq_socket_monitor(channel->socket, NULL, 0);
        zmq_close(channel->socket);
    }
    if (channel->monitor) {
        set_int(channel->monitor, ZMQ_LINGER, 0);
        zmq_close(channel->monitor);
    }
    gate_free(channel->gate);
    zap_free(channel->zap);
    if (channel->context)
        zmq_ctx_term(channel->context);
    mem_free(channel->endpoint);
    mem_free(channel);
}

/* ---- send ------------------------------------------------------------------------------------ */

static enum status refused(struct zmq_channel *channel, const char *peer)
{
    const char *name = peer ? peer : "the engine";
    int error = errno;

    if (error == EHOSTUNREACH)
        return fail(ERR_CLOSED, "worker %s is not connected", name);
    /* A worker whose connection has ended has no queue any more; ZeroMQ has the same word for it. */
    if (error == EAGAIN && !channel->is_listener && *channel_end(&channel->channel))
        return fail(ERR_CLOSED, "the engine is not connected: %s", channel->end);
    if (error == EAGAIN)
        return fail(ERR_FULL, "%s has not read %d frames", name, CHANNEL_MAX_QUEUE);
    return fail(ERR_IO, "a frame for %s was not sent: %s", name, zmq_strerror(error));
}

static enum status send_frame(struct channel *opened, const char *peer, struct frame *frame)
{
    struct zmq_channel *channel = of(opened);
    zmq_msg_t message;

    ASSERT(channel->is_listener == (peer != NULL));
    if (frame->bytes.size > channel->max_frame)
        return fail(ERR_FULL, "a frame of %zu bytes is not sent, the limit is %zu",
                    frame->bytes.size, channel->max_frame);
    if (peer && zmq_send(channel->socket, peer, strlen(peer), ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return refused(channel, peer);
    atomic_fetch_add_explicit(&frame->num_users, 1, memory_order_relaxed);
    if (zmq_msg_init_data(&message, frame->bytes.data, frame->bytes.size, drop_from_zmq, frame)) {
        frame_drop(frame);
        return fail(ERR_NO_MEMORY, "no memory for a frame: %s", zmq_strerror(errno));
    }
    if (zmq_msg_send(&message, channel->socket, ZMQ_DONTWAIT) < 0) {
        enum status status = refused(channel, peer);

        zmq_msg_close(&message); /* drops the reference */
        return status;
    }
    return OK;
}

/* ---- receive --------------------------------------------------------------------------------- */

/* The next part; false: there is none. */
static bool recv_part(struct zmq_channel *channel)
{
    zmq_msg_close(&channel->last);
    zmq_msg_init(&channel->last);
    return zmq_msg_recv(&channel->last, channel->socket, ZMQ_DONTWAIT) >= 0;
}

static void take_peer(const zmq_msg_t *message, char *peer_out)
{
    size_t size = MIN(zmq_msg_size(message), (size_t)CHANNEL_MAX_NAME);
    const char *name = zmq_msg_data((zmq_msg_t *)message);

    /* A name is printed and compared: anything odd in it becomes '?', and fits no rank. */
    for (size_t i = 0; i < size; i++)
        peer_out[i] = name[i] > ' ' && name[i] < 127 ? name[i] : '?';
    peer_out[size] = '\0';
}

static bool recv_frame(struct channel *opened, struct received *out)
{
    struct zmq_channel *channel = of(opened);

    for (;;) {
        *out = (struct received){0};
        if (!recv_part(channel))
            return false;
        if (channel->is_listener) {
            take_peer(&channel->last, out->peer);
            if (!zmq_msg_more(&channel->last) || !recv_part(channel))
                continue;
        }
        bool has_more = zmq_msg_more(&channel->last);
        if (channel->gate)
            gate_know(channel->gate, &channel->last);
        out->data = zmq_msg_data(&channel->last);
        out->size = zmq_msg_size(&channel->last);
        if (!has_more)
            return true;
        /* Ours have one part; whatever this is, it is thrown away whole. */
        while (zmq_msg_more(&channel->last) && recv_part(channel))
            continue;
    }
}

static void poll_fds(struct channel *opened, struct pollfd *fds, size_t num_fds,
                     int64_t deadline_ns)
{
    struct zmq_channel *channel = of(opened);

    ASSERT(num_fds >= CHANNEL_NUM_FDS);
    fds[CHANNEL_FD_FRAMES] = (struct pollfd){.fd = channel->fd, .events = POLLIN};
    fds[CHANNEL_FD_ENDS] = (struct pollfd){.fd = channel->monitor_fd, .events = POLLIN};
    if (poll(fds, num_fds, clock_left_ms(deadline_ns)) >= 0)
        return;
    ASSERT(errno == EINTR);
    for (size_t i = 0; i < num_fds; i++)
        fds[i].revents = 0;
}

bool channel_wait(struct channel *channel, int64_t deadline_ns, struct received *out)
{
    struct pollfd fds[CHANNEL_NUM_FDS];

    while (!channel_recv(channel, out)) {
        if (clock_now_ns() >= deadline_ns)
            return false;
        channel_poll(channel, fds, COUNT_OF(fds), deadline_ns);
    }
    return true;
}

static const char key_refused[] = "it does not let this key in: has it another token?";

/* The first that says anything counts; later ones follow from it. */
static const char *end_of(const struct zmq_channel *channel, uint16_t event)
{
    if (*channel->end)
        return channel->end;
    switch (event) {
    case ZMQ_EVENT_CLOSED:
        return "nobody listens there";
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        return key_refused;
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return "it hung up before keys were agreed on: has it another token, or is it something else?";
    default:
        return "it has closed the connection";
    }
}

static int32_t num_disconnects(struct channel *opened)
{
    struct zmq_channel *channel = of(opened);
    zmq_msg_t part;

    if (channel->gate)
        return gate_num_gone(channel->gate);
    /* An event is two parts: its number with a value, and the address. */
    zmq_msg_init(&part);
    while (zmq_msg_recv(&part, channel->monitor, ZMQ_DONTWAIT) >= 0) {
        uint16_t event = 0;

        if (!zmq_msg_more(&part) || zmq_msg_size(&part) < sizeof event)
            continue;
        memcpy(&event, zmq_msg_data(&part), sizeof event);
        channel->end = end_of(channel, event);
        channel->num_disconnects += event == ZMQ_EVENT_DISCONNECTED || event == ZMQ_EVENT_CLOSED;
    }
    zmq_msg_close(&part);
    return channel->num_disconnects;
}

const char *channel_end(struct channel *opened)
{
    num_disconnects(opened);
    return of(opened)->end;
}

bool channel_is_refused(struct channel *opened)
{
    return channel_end(opened) == key_refused;
}

static const struct channel_ops zmq_ops = {
    .send = send_frame,
    .recv = recv_frame,
    .poll = poll_fds,
    .num_disconnects = num_disconnects,
    .free = free_channel,
};
