/*
 * Every call is a number of exchanges, as in comm_shm: in exchange n each rank sends every other one frame
 * and waits for theirs. A rank is at most one exchange ahead of another, since it ends n only with
 * everybody's n: so there are two buffers a rank, and what comes for the next exchange has a place.
 *
 * One connection a pair carries both ways, so a rank's last frame comes before the news of its end.
 */
#include "worker/comm_net.h"

#include "kernels/comm.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/wire/tcp.h"
#include "worker/comm_frame.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

enum {
    MAX_ID = 255,        /* of a connection to a router */
    MAX_ENDPOINT = 127,
    LINGER_MS = 200,     /* for the news that all are to stop */
    LEAVE_MS = 1000,     /* for the others to leave too */
    NEVER_MS = 1 << 28,  /* three days */
    HEED_MS = 50,        /* between looks at another comm */
    MAX_QUEUE = 16,      /* received frames a peer; then it is not read any more */
    LINE = 64,
};

/* What one rank put into one exchange. */
struct part {
    enum comm_kind kind;
    int64_t bytes;
    char *data; /* [buffer_bytes] */
};

/* Of events of a socket, those that say how a connection fares. */
struct monitor {
    void *socket;
    int fd;
};

struct rank {
    char endpoint[MAX_ENDPOINT + 1];
    /* To a rank below ours we connect; one above connects to our router. */
    void *dealer;
    struct monitor monitor; /* of the dealer */
    uint8_t id[MAX_ID];     /* what the router calls its connection */
    size_t id_bytes;
    int connection; /* the same as the router's monitor calls it: a descriptor; -1 */

    bool is_secure, refuses_key, has_joined, has_left, is_gone;
    uint32_t received; /* the last exchange */
    struct part parts[2]; /* [exchange & 1] */
};

enum { FD_ABORT, FD_ROUTER, FD_ROUTER_MONITOR, NUM_OWN_FDS };

struct comm_net {
    struct comm comm;
    struct comm_hello self;
    struct curve_pair keys;
    char endpoint[MAX_ENDPOINT + 1];

    void *context, *router;
    int listen_fd; /* a second one of the router's, which is ZeroMQ's */
    struct monitor router_monitor;
    struct zap *zap;
    zmq_msg_t id, body; /* the last received */
    uint8_t *is_open;   /* [num_open]: connections to the router, by descriptor */
    int32_t num_open;

    int abort_fd; /* readable once somebody wants to stop */
    _Atomic bool is_aborted;

    struct rank *ranks;   /* [world]; of our own, only the parts */
    const double **parts; /* [world]: of the last sum */
    void *memory;         /* of all parts */
    size_t memory_bytes;
    uint32_t exchange; /* the last one */
    bool has_stopped, is_leaving; /* told the others to stop; that it leaves */

    /* Ours, then a dealer's and its monitor's for every rank below. ZeroMQ tells of changes, not of
     * states: revents stays set until there is nothing more to read. */
    struct pollfd *fds;
    int32_t num_fds;

    const struct comm *heeded; /* whose abort is ours too; NULL: nobody's */
    enum status broken; /* why no call works any more */
    char why[512];
};

static const struct comm_ops net_ops;

static struct comm_net *of(struct comm *comm)
{
    return CONTAINER_OF(comm, struct comm_net, comm);
}

/* ---- sockets --------------------------------------------------------------------------------- */

static void set_int(void *socket, int option, int value)
{
    int rc = zmq_setsockopt(socket, option, &value, sizeof value);

    ASSERT(rc == 0, "ZeroMQ option %d: %s", option, zmq_strerror(errno));
}

static int get_fd(void *socket)
{
    int fd = -1;
    size_t size = sizeof fd;

    zmq_getsockopt(socket, ZMQ_FD, &fd, &size);
    return fd;
}

static void set_options(void *socket, const char *endpoint)
{
    int64_t max_frame = COMM_HEADER_BYTES + COMM_MAX_BYTES;

    set_int(socket, ZMQ_LINGER, LINGER_MS);
    /* No limit: ranks in step have two frames under way at most, while ZeroMQ, which looks only now and then
     * how many have gone, takes 16 that went long ago for a full queue. */
    set_int(socket, ZMQ_SNDHWM, 0);
    set_int(socket, ZMQ_RCVHWM, MAX_QUEUE);
    set_int(socket, ZMQ_HANDSHAKE_IVL, 3000);
    /* Each side asks. No TTL: it is up, too, when this side itself stood still, with what the other sent unread. */
    set_int(socket, ZMQ_HEARTBEAT_IVL, 500);
    set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, 1500);
    set_int(socket, ZMQ_IPV6, strchr(endpoint, '[') != NULL);
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_frame, sizeof max_frame);
}

static enum status watch(struct comm_net *net, void *socket, int events, int32_t name,
                         struct monitor *out)
{
    char address[32];

    snprintf(address, sizeof address, "inproc://watch-%d", name);
    if (zmq_socket_monitor(socket, address, events) != 0 ||
        !(out->socket = zmq_socket(net->context, ZMQ_PAIR)) ||
        zmq_connect(out->socket, address) != 0)
        return fail(ERR_IO, "connections cannot be watched: %s", zmq_strerror(errno));
    out->fd = get_fd(out->socket);
    return OK;
}

/* The next event; false: there is none. */
static bool next_event(const struct monitor *monitor, int *event_out, int32_t *value_out)
{
    uint16_t event = 0;
    bool is_there;
    zmq_msg_t part;

    zmq_msg_init(&part);
    is_there = zmq_msg_recv(&part, monitor->socket, ZMQ_DONTWAIT) == sizeof event + sizeof *value_out;
    if (is_there) {
        memcpy(&event, zmq_msg_data(&part), sizeof event);
        memcpy(value_out, (char *)zmq_msg_data(&part) + sizeof event, sizeof *value_out);
    }
    while (zmq_msg_more(&part) && zmq_msg_recv(&part, monitor->socket, ZMQ_DONTWAIT) >= 0)
        continue;
    zmq_msg_close(&part);
    *event_out = event;
    return is_there;
}

/* ---- open and close -------------------------------------------------------------------------- */

static bool is_ours(void *keys, const char *public_key)
{
    return strcmp(((const struct curve_pair *)keys)->public_key, public_key) == 0;
}

/* As tcp_listen, on one interface. */
static enum status listen_on_one(const char *endpoint, int *fd_out, struct tcp_address *bound_out)
{
    if (!tcp_is_endpoint(endpoint))
        return fail(ERR_INVALID, "ranks listen on tcp://IP:0, '%s' is none", endpoint);
    TRY(tcp_listen(endpoint, COMM_MAX_WORLD, fd_out, bound_out));
    if (!tcp_is_any(bound_out))
        return OK;
    close(*fd_out);
    return fail(ERR_INVALID, "%s is every interface: name the one that other hosts reach", endpoint);
}

/* Takes the descriptor, of which it keeps a second one. */
static enum status bind_router(struct comm_net *net, int fd)
{
    net->listen_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    /* Once it listens it is ZeroMQ's to close. */
    if (net->listen_fd >= 0 && zmq_setsockopt(net->router, ZMQ_USE_FD, &fd, sizeof fd) == 0 &&
        zmq_bind(net->router, net->endpoint) == 0)
        return OK;
    close(fd);
    return fail(ERR_IO, "%s cannot be listened on: %s", net->endpoint, zmq_strerror(errno));
}

enum status comm_net_listen(const char *bind_address, const struct curve_pair *keys,
                            struct comm_net **out)
{
    AUTO_FREE(comm_net) struct comm_net *net = mem_new(struct comm_net);
    struct tcp_address bound;
    int fd;

    net->comm.ops = &net_ops;
    net->keys = *keys;
    net->listen_fd = -1;
    zmq_msg_init(&net->id);
    zmq_msg_init(&net->body);
    net->abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    net->context = zmq_ctx_new();
    net->router = net->context ? zmq_socket(net->context, ZMQ_ROUTER) : NULL;
    if (!net->router || net->abort_fd < 0)
        return fail(ERR_IO, "no socket for other ranks: %s", zmq_strerror(errno));
    TRY(zap_start(net->context, is_ours, &net->keys, &net->zap));
    TRY(curve_as_server(net->router, &net->keys));
    TRY(watch(net, net->router, ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED, -1,
              &net->router_monitor));
    TRY(listen_on_one(bind_address, &fd, &bound));
    tcp_print(&bound, net->endpoint);
    set_options(net->router, net->endpoint);
    set_int(net->router, ZMQ_ROUTER_MANDATORY, 1);
    TRY(bind_router(net, fd));
    *out = give(net);
    return OK;
}

const char *comm_net_endpoint(const struct comm_net *net)
{
    return net->endpoint;
}

static void close_socket(void *socket)
{
    if (!socket)
        return;
    zmq_socket_monitor(socket, NULL, 0);
    zmq_close(socket);
}

static void close_monitor(struct monitor *monitor)
{
    if (!monitor->socket)
        return;
    set_int(monitor->socket, ZMQ_LINGER, 0);
    zmq_close(monitor->socket);
}

static void leave(struct comm_net *net);

void comm_net_free(struct comm_net *net)
{
    if (!net)
        return;
    if (net->fds)
        leave(net);
    for (int32_t r = 0; net->ranks && r < net->self.world; r++) {
        close_socket(net->ranks[r].dealer);
        close_monitor(&net->ranks[r].monitor);
    }
    close_socket(net->router);
    close_monitor(&net->router_monitor);
    zmq_msg_close(&net->id);
    zmq_msg_close(&net->body);
    zap_free(net->zap);
    if (net->context)
        zmq_ctx_term(net->context);
    if (net->abort_fd >= 0)
        close(net->abort_fd);
    if (net->listen_fd >= 0)
        close(net->listen_fd);
    if (net->memory)
        mem_unmap(net->memory, net->memory_bytes);
    mem_free(net->is_open);
    mem_free(net->fds);
    mem_free(net->parts);
    mem_free(net->ranks);
    mem_free(net);
}

static void net_close(struct comm *comm)
{
    comm_net_free(of(comm));
}

void comm_net_abort(struct comm_net *net)
{
    atomic_store(&net->is_aborted, true);
    eventfd_write(net->abort_fd, 1);
}

static void net_abort(struct comm *comm)
{
    comm_net_abort(of(comm));
}

static bool net_is_aborted(const struct comm *comm)
{
    return atomic_load(&of((struct comm *)comm)->is_aborted);
}

void comm_net_heed(struct comm *comm, const struct comm *other)
{
    of(comm)->heeded = other;
}

/* ---- send ------------------------------------------------------------------------------------ */

/* Gives `message` away. false: the connection is no more. */
static bool send_on(void *socket, const void *id, size_t id_bytes, zmq_msg_t *message)
{
    if ((!id || zmq_send(socket, id, id_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0) &&
        zmq_msg_send(message, socket, ZMQ_DONTWAIT) >= 0)
        return true;
    zmq_msg_close(message);
    return false;
}

static void send_to(struct comm_net *net, struct rank *rank, zmq_msg_t *message)
{
    bool is_sent = rank->dealer
                       ? send_on(rank->dealer, NULL, 0, message)
                       : rank->id_bytes > 0 && send_on(net->router, rank->id, rank->id_bytes, message);

    if (!is_sent)
        rank->is_gone = true;
}

/* A frame with `bytes` bytes of room for its payload. */
static void *frame_init(zmq_msg_t *message, enum comm_kind kind, uint32_t exchange, int64_t bytes)
{
    int rc = zmq_msg_init_size(message, (size_t)(COMM_HEADER_BYTES + bytes));

    ASSERT(rc == 0, "no memory for a frame of %lld bytes", (long long)bytes);
    comm_frame_write_header(kind, exchange, bytes, zmq_msg_data(message));
    return (char *)zmq_msg_data(message) + COMM_HEADER_BYTES;
}

/* The same to every rank that has joined. Gives `message` away. */
static void send_to_all(struct comm_net *net, zmq_msg_t *message)
{
    for (int32_t r = 0; r < net->self.world; r++) {
        zmq_msg_t copy;

        if (!net->ranks[r].has_joined)
            continue;
        zmq_msg_init(&copy);
        zmq_msg_copy(&copy, message);
        send_to(net, &net->ranks[r], &copy);
    }
    zmq_msg_close(message);
    /* A send may take note of what has come, so that its descriptor says nothing of it. */
    net->fds[FD_ROUTER].revents = POLLIN;
    for (int32_t i = NUM_OWN_FDS; i < net->num_fds; i += 2)
        net->fds[i].revents = POLLIN;
}

static void send_hello(struct comm_net *net, struct rank *rank)
{
    zmq_msg_t message;

    comm_hello_write(&net->self, frame_init(&message, COMM_HELLO, 0, COMM_HELLO_BYTES));
    send_to(net, rank, &message);
}

/* A frame without payload, beside the exchanges. */
static void tell_all(struct comm_net *net, enum comm_kind kind)
{
    zmq_msg_t message;

    frame_init(&message, kind, 0, 0);
    send_to_all(net, &message);
}

/* ---- failures -------------------------------------------------------------------------------- */

/* No call works any more, for the reason in fail_text. */
static enum status break_down(struct comm_net *net, enum status status)
{
    net->broken = status;
    snprintf(net->why, sizeof net->why, "%s", fail_text());
    return status;
}

static enum status check_usable(struct comm_net *net)
{
    if (comm_is_aborted(net->heeded))
        atomic_store(&net->is_aborted, true);
    if (atomic_load_explicit(&net->is_aborted, memory_order_relaxed)) {
        if (net->broken == OK && net->fds && !net->has_stopped) {
            net->has_stopped = true;
            tell_all(net, COMM_ABORT);
        }
        return fail(ERR_ABORTED, "rank %d was told to stop", net->self.rank);
    }
    return net->broken == OK ? OK : fail(net->broken, "%s", net->why);
}

static int32_t number_of(const struct comm_net *net, const struct rank *rank)
{
    return (int32_t)(rank - net->ranks);
}

/* Adds to the sentence of a failure whose frame it was. */
static enum status blame(const struct comm_net *net, const struct rank *rank, enum status status)
{
    return fail(status, "rank %d (%s) sends %s", number_of(net, rank), rank->endpoint, fail_text());
}

static enum status fail_gone(const struct comm_net *net, const struct rank *rank)
{
    int32_t number = number_of(net, rank);

    if (rank->refuses_key)
        return fail(ERR_MISMATCH, "rank %d (%s) refuses this rank's key", number, rank->endpoint);
    if (!rank->is_secure)
        return fail(ERR_CLOSED, "rank %d (%s) cannot be reached: nobody listens there, or with "
                                "other keys", number, rank->endpoint);
    return fail(ERR_CLOSED, "rank %d (%s) is gone", number, rank->endpoint);
}

/* ---- receive --------------------------------------------------------------------------------- */

static enum status take_part(struct comm_net *net, struct rank *rank, const struct comm_frame *frame)
{
    struct part *part = &rank->parts[frame->exchange & 1];
    int32_t ahead = (int32_t)(frame->exchange - net->exchange);

    if (frame->exchange != rank->received + 1 || ahead > 1)
        return fail(ERR_MISMATCH,
                    "rank %d (%s) sends exchange %u after %u, where this rank is at %u",
                    number_of(net, rank), rank->endpoint, frame->exchange, rank->received,
                    net->exchange);
    if (frame->bytes > net->self.buffer_bytes)
        return fail(ERR_MISMATCH, "rank %d (%s) sends %lld bytes, %lld were agreed on",
                    number_of(net, rank), rank->endpoint, (long long)frame->bytes,
                    (long long)net->self.buffer_bytes);
    part->kind = frame->kind;
    part->bytes = frame->bytes;
    if (frame->bytes > 0)
        memcpy(part->data, frame->payload, (size_t)frame->bytes);
    rank->received = frame->exchange;
    return OK;
}

/* A rank below answers our hello. */
static enum status take_answer(struct comm_net *net, struct rank *rank,
                               const struct comm_frame *frame)
{
    char why[COMM_MAX_SENTENCE + 1];
    struct comm_hello theirs;
    enum status status;

    if (frame->kind == COMM_REFUSED) {
        comm_refusal_read(frame, why);
        return fail(ERR_MISMATCH, "rank %d (%s) refuses: %s", number_of(net, rank), rank->endpoint,
                    why);
    }
    status = frame->kind == COMM_HELLO
                 ? comm_hello_read(frame, &theirs)
                 : fail(ERR_CORRUPT, "%s before a hello", comm_kind_name(frame->kind));
    if (status == OK)
        status = comm_hello_check(&net->self, &theirs);
    if (status == OK && theirs.rank != number_of(net, rank))
        status = fail(ERR_MISMATCH, "the hello of rank %d", theirs.rank);
    if (status != OK)
        return blame(net, rank, status);
    rank->has_joined = true;
    return OK;
}

static enum status take_frame(struct comm_net *net, struct rank *rank)
{
    struct comm_frame frame;
    enum status status = zmq_msg_more(&net->body)
                             ? fail(ERR_CORRUPT, "a frame of several parts")
                             : comm_frame_read(zmq_msg_data(&net->body), zmq_msg_size(&net->body), &frame);

    if (status != OK)
        return blame(net, rank, status);
    if (!rank->has_joined)
        return take_answer(net, rank, &frame);
    if (frame.kind == COMM_ABORT)
        return fail(ERR_ABORTED, "rank %d (%s) tells all to stop", number_of(net, rank),
                    rank->endpoint);
    if (frame.kind == COMM_LEAVE) {
        rank->has_left = true;
        return OK;
    }
    if (frame.kind < COMM_SUM)
        return fail(ERR_CORRUPT, "rank %d (%s) sends %s once more", number_of(net, rank),
                    rank->endpoint, comm_kind_name(frame.kind));
    return take_part(net, rank, &frame);
}

static bool is_open(const struct comm_net *net, int connection)
{
    return connection >= 0 && connection < net->num_open && net->is_open[connection];
}

static void note_connection(struct comm_net *net, int32_t connection, bool open)
{
    if (connection < 0)
        return;
    if (connection >= net->num_open) {
        net->is_open = mem_resize(net->is_open, (size_t)connection + 1);
        memset(net->is_open + net->num_open, 0, (size_t)(connection + 1 - net->num_open));
        net->num_open = connection + 1;
    }
    net->is_open[connection] = open;
    for (int32_t r = net->self.rank + 1; !open && r < net->self.world; r++)
        if (net->ranks[r].connection == connection) {
            net->ranks[r].is_gone = true;
            net->ranks[r].connection = -1;
        }
}

static void take_router_events(struct comm_net *net)
{
    int32_t connection;
    int event;

    while (next_event(&net->router_monitor, &event, &connection))
        note_connection(net, connection, event == ZMQ_EVENT_ACCEPTED);
    net->fds[FD_ROUTER_MONITOR].revents = 0;
    net->fds[FD_ROUTER].revents = POLLIN; /* what it sent last may be there */
}

static void take_events(struct rank *rank, struct pollfd *fds)
{
    int32_t value;
    int event;

    while (next_event(&rank->monitor, &event, &value)) {
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
            rank->is_secure = true;
        else
            rank->is_gone = true;
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
            rank->refuses_key = true;
    }
    fds[1].revents = 0;
    fds[0].revents = POLLIN;
}

/* What is wrong with a hello that the router has got; its rank, if it is one of ours. */
static enum status check_hello(const struct comm_net *net, struct comm_hello *theirs)
{
    struct comm_frame frame;

    if (zmq_msg_more(&net->body))
        return fail(ERR_CORRUPT, "a frame of several parts");
    TRY(comm_frame_read(zmq_msg_data((zmq_msg_t *)&net->body), zmq_msg_size(&net->body), &frame));
    if (frame.kind != COMM_HELLO)
        return fail(ERR_CORRUPT, "%s before a hello", comm_kind_name(frame.kind));
    TRY(comm_hello_read(&frame, theirs));
    TRY(comm_hello_check(&net->self, theirs));
    if (theirs->rank < net->self.rank)
        return fail(ERR_MISMATCH, "rank %d waits for rank %d, which connects to it", theirs->rank,
                    net->self.rank);
    if (net->ranks[theirs->rank].has_joined)
        return fail(ERR_MISMATCH, "rank %d is here already", theirs->rank);
    return OK;
}

static void refuse(struct comm_net *net, const char *why)
{
    int64_t bytes = (int64_t)strnlen(why, COMM_MAX_SENTENCE);
    zmq_msg_t message;

    memcpy(frame_init(&message, COMM_REFUSED, 0, bytes), why, (size_t)bytes);
    send_on(net->router, zmq_msg_data(&net->id), zmq_msg_size(&net->id), &message);
}

/* Somebody who holds the job's key has connected. */
static void greet(struct comm_net *net)
{
    struct comm_hello theirs;
    struct rank *rank;

    if (check_hello(net, &theirs) != OK) {
        log_warn("rank %d refuses a peer: %s", net->self.rank, fail_text());
        refuse(net, fail_text());
        return;
    }
    rank = &net->ranks[theirs.rank];
    rank->id_bytes = MIN(zmq_msg_size(&net->id), (size_t)MAX_ID);
    memcpy(rank->id, zmq_msg_data(&net->id), rank->id_bytes);
    rank->has_joined = true;
    rank->is_secure = true;
    /* Events up to now tell whether it is still there, those to come are of this connection. */
    take_router_events(net);
    rank->connection = zmq_msg_get(&net->body, ZMQ_SRCFD);
    rank->is_gone = !is_open(net, rank->connection);
    send_hello(net, rank);
}

static struct rank *find_rank(struct comm_net *net)
{
    size_t bytes = zmq_msg_size(&net->id);

    for (int32_t r = net->self.rank + 1; r < net->self.world; r++)
        if (net->ranks[r].id_bytes == bytes &&
            memcmp(net->ranks[r].id, zmq_msg_data(&net->id), bytes) == 0)
            return &net->ranks[r];
    return NULL;
}

static void skip_parts(struct comm_net *net, void *socket)
{
    zmq_msg_t part;

    zmq_msg_init(&part);
    for (bool more = zmq_msg_more(&net->body); more; more = zmq_msg_more(&part))
        if (zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) < 0)
            break;
    zmq_msg_close(&part);
}

/* One frame, if there is one. */
static enum status take_from_router(struct comm_net *net)
{
    enum status status = OK;
    struct rank *rank;

    if (zmq_msg_recv(&net->id, net->router, ZMQ_DONTWAIT) < 0) {
        net->fds[FD_ROUTER].revents = 0;
        return OK;
    }
    if (!zmq_msg_more(&net->id) || zmq_msg_recv(&net->body, net->router, ZMQ_DONTWAIT) < 0)
        return OK;
    rank = find_rank(net);
    if (rank)
        status = take_frame(net, rank);
    else
        greet(net);
    skip_parts(net, net->router);
    return status;
}

static enum status take_from_dealer(struct comm_net *net, struct rank *rank, struct pollfd *fd)
{
    enum status status;

    if (zmq_msg_recv(&net->body, rank->dealer, ZMQ_DONTWAIT) < 0) {
        fd->revents = 0;
        return OK;
    }
    status = take_frame(net, rank);
    skip_parts(net, rank->dealer);
    return status;
}

/* Reads a frame wherever there may be one. false: there is nothing more anywhere. */
static enum status take_some(struct comm_net *net, bool *may_have_more_out)
{
    bool more = false;

    if (net->fds[FD_ROUTER_MONITOR].revents)
        take_router_events(net);
    if (net->fds[FD_ROUTER].revents)
        TRY(take_from_router(net));
    more |= net->fds[FD_ROUTER].revents != 0;
    for (int32_t r = 0; r < net->self.rank; r++) {
        struct pollfd *fds = &net->fds[NUM_OWN_FDS + 2 * r];

        if (fds[1].revents)
            take_events(&net->ranks[r], fds);
        if (fds[0].revents)
            TRY(take_from_dealer(net, &net->ranks[r], &fds[0]));
        more |= fds[0].revents != 0;
    }
    *may_have_more_out = more;
    return OK;
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* Has it done what is waited for: joined (exchange 0), sent its part of this exchange, or left? */
static bool is_here(const struct comm_net *net, int32_t r)
{
    const struct rank *rank = &net->ranks[r];

    if (r == net->self.rank)
        return true;
    if (net->is_leaving)
        return rank->has_left || rank->is_gone;
    return rank->has_joined && (int32_t)(rank->received - net->exchange) >= 0;
}

static const struct rank *first_missing(const struct comm_net *net)
{
    for (int32_t r = 0; r < net->self.world; r++)
        if (!is_here(net, r))
            return &net->ranks[r];
    return NULL;
}

static enum status check_missing(struct comm_net *net)
{
    if (net->is_leaving)
        return OK;
    TRY(check_usable(net));
    for (int32_t r = 0; r < net->self.world; r++)
        if (net->ranks[r].is_gone && (!is_here(net, r) || net->exchange == 0))
            return fail_gone(net, &net->ranks[r]);
    return OK;
}

static void park(struct comm_net *net, int64_t deadline_ns)
{
    if (net->heeded)
        deadline_ns = MIN(deadline_ns, clock_deadline_ns(HEED_MS));
    if (poll(net->fds, (nfds_t)net->num_fds, clock_left_ms(deadline_ns)) >= 0)
        return;
    ASSERT(errno == EINTR);
    for (int32_t i = 0; i < net->num_fds; i++)
        net->fds[i].revents = 0;
}

static enum status wait_for_all(struct comm_net *net, int64_t deadline_ns)
{
    const struct rank *missing;
    bool may_have_more;

    while ((missing = first_missing(net))) {
        TRY(take_some(net, &may_have_more));
        if (may_have_more)
            continue;
        if (!(missing = first_missing(net)))
            break;
        TRY(check_missing(net));
        if (clock_now_ns() >= deadline_ns)
            return fail(ERR_TIMEOUT, "rank %d waited in vain for rank %d (%s)", net->self.rank,
                        number_of(net, missing), missing->endpoint);
        atomic_store_explicit(&net->comm.awaited, 1 + number_of(net, missing), memory_order_relaxed);
        park(net, deadline_ns);
        atomic_store_explicit(&net->comm.awaited, 0, memory_order_relaxed);
    }
    return OK;
}

/* A socket that is closed may keep its last bytes to itself, though told to linger: so a rank stays until the
 * others have all they need, which they say when they leave too, or have heard that they are to stop. */
static void leave(struct comm_net *net)
{
    if (check_usable(net) != OK && !net->has_stopped)
        return;
    net->is_leaving = true;
    net->fds[FD_ABORT].fd = -1; /* stays readable, and nobody would get to sleep */
    if (!net->has_stopped)
        tell_all(net, COMM_LEAVE);
    if (wait_for_all(net, clock_deadline_ns(net->has_stopped ? LINGER_MS : LEAVE_MS)) != OK)
        log_debug("rank %d leaves before others: %s", net->self.rank, fail_text());
}

/* ---- join ------------------------------------------------------------------------------------ */

static enum status check_group(const struct comm_net_group *group)
{
    if (group->world < 1 || group->world > COMM_MAX_WORLD || group->rank < 0 ||
        group->rank >= group->world || group->buffer_bytes < LINE ||
        group->buffer_bytes > COMM_MAX_BYTES)
        return fail(ERR_INVALID, "rank %d of %d ranks that exchange %lld bytes; %d and %lld at most",
                    group->rank, group->world, (long long)group->buffer_bytes, COMM_MAX_WORLD,
                    (long long)COMM_MAX_BYTES);
    for (int32_t r = 0; r < group->world; r++)
        if (strncmp(group->endpoints[r], "tcp://", 6) != 0 ||
            strlen(group->endpoints[r]) > MAX_ENDPOINT)
            return fail(ERR_INVALID, "rank %d listens on tcp://IP:PORT, '%.200s' is none", r,
                        group->endpoints[r]);
    return OK;
}

static enum status make_room(struct comm_net *net, const struct comm_net_group *group)
{
    int64_t buffer_bytes = (group->buffer_bytes + LINE - 1) & ~(int64_t)(LINE - 1);
    size_t world = (size_t)group->world;

    net->memory_bytes = world * 2 * (size_t)buffer_bytes;
    TRY(mem_map(net->memory_bytes, "what ranks exchange", &net->memory));
    net->self = (struct comm_hello){
        .session = group->session,
        .epoch = group->epoch,
        .rank = group->rank,
        .world = group->world,
        .buffer_bytes = buffer_bytes,
    };
    net->comm.world = group->world;
    net->comm.sum_max = buffer_bytes / (int64_t)sizeof(double);
    net->parts = mem_new_array(const double *, world);
    net->ranks = mem_new_array(struct rank, world);
    for (int32_t r = 0; r < group->world; r++) {
        struct rank *rank = &net->ranks[r];

        snprintf(rank->endpoint, sizeof rank->endpoint, "%s", group->endpoints[r]);
        rank->connection = -1;
        for (int i = 0; i < 2; i++)
            rank->parts[i].data = (char *)net->memory + (r * 2 + i) * buffer_bytes;
    }
    net->num_fds = NUM_OWN_FDS + 2 * group->rank;
    net->fds = mem_new_array(struct pollfd, net->num_fds);
    for (int32_t i = 0; i < net->num_fds; i++)
        net->fds[i] = (struct pollfd){.events = POLLIN, .revents = i == FD_ABORT ? 0 : POLLIN};
    net->fds[FD_ABORT].fd = net->abort_fd;
    net->fds[FD_ROUTER].fd = get_fd(net->router);
    net->fds[FD_ROUTER_MONITOR].fd = net->router_monitor.fd;
    return OK;
}

static enum status connect_to(struct comm_net *net, int32_t r)
{
    struct rank *rank = &net->ranks[r];
    int events = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                 ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

    rank->dealer = zmq_socket(net->context, ZMQ_DEALER);
    if (!rank->dealer)
        return fail(ERR_IO, "no socket for rank %d: %s", r, zmq_strerror(errno));
    set_options(rank->dealer, rank->endpoint);
    /* Not at all would be -1, with which ZeroMQ drops what has come and is not read yet. */
    set_int(rank->dealer, ZMQ_RECONNECT_IVL, NEVER_MS);
    TRY(curve_as_client(rank->dealer, &net->keys, net->keys.public_key));
    TRY(watch(net, rank->dealer, events, r, &rank->monitor));
    net->fds[NUM_OWN_FDS + 2 * r].fd = get_fd(rank->dealer);
    net->fds[NUM_OWN_FDS + 2 * r + 1].fd = rank->monitor.fd;
    if (zmq_connect(rank->dealer, rank->endpoint) != 0)
        return fail(ERR_INVALID, "rank %d (%s) cannot be connected to: %s", r, rank->endpoint,
                    zmq_strerror(errno));
    send_hello(net, rank);
    return OK;
}

static enum status meet(struct comm_net *net, const struct comm_net_group *group,
                        int64_t deadline_ns)
{
    TRY(check_usable(net));
    TRY(make_room(net, group));
    for (int32_t r = 0; r < group->rank; r++)
        TRY(connect_to(net, r));
    return wait_for_all(net, deadline_ns);
}

enum status comm_net_join(struct comm_net *net, const struct comm_net_group *group,
                          int64_t deadline_ns, struct comm **out)
{
    enum status status;

    ASSERT(!net->ranks, "a listener joins once");
    TRY(check_group(group));
    status = meet(net, group, deadline_ns);
    if (status != OK)
        return break_down(net, status);
    if (!tcp_drop_knocks(net->listen_fd, true))
        log_debug("%s: no filter on strangers: %m", net->endpoint);
    *out = &net->comm;
    return OK;
}

/* ---- exchanges ------------------------------------------------------------------------------- */

static struct part *part_of(const struct comm_net *net, int32_t r)
{
    return &net->ranks[r].parts[net->exchange & 1];
}

/* Where this rank's part of the next exchange goes. */
static char *next_data(const struct comm_net *net)
{
    return net->ranks[net->self.rank].parts[(net->exchange + 1) & 1].data;
}

/* Does everybody do what we do? A sum of so many bytes is one for all. */
static enum status check_parts(const struct comm_net *net, const struct part *own)
{
    for (int32_t r = 0; r < net->self.world; r++) {
        const struct part *part = part_of(net, r);

        if (part->kind != own->kind || (part->bytes != own->bytes && own->kind != COMM_GATHER))
            return fail(ERR_MISMATCH,
                        "rank %d (%s) has %s of %lld bytes in exchange %u, this rank %s of %lld", r,
                        net->ranks[r].endpoint, comm_kind_name(part->kind), (long long)part->bytes,
                        net->exchange, comm_kind_name(own->kind), (long long)own->bytes);
    }
    return OK;
}

/* Sends `bytes` bytes of next_data and waits for everybody's. */
static enum status post(struct comm_net *net, enum comm_kind kind, int64_t bytes)
{
    struct part *own;
    zmq_msg_t message;
    enum status status = check_usable(net);

    if (status == OK) {
        net->exchange++;
        own = part_of(net, net->self.rank);
        own->kind = kind;
        own->bytes = bytes;
        memcpy(frame_init(&message, kind, net->exchange, bytes), own->data, (size_t)bytes);
        send_to_all(net, &message);
        status = wait_for_all(net, clock_deadline_ns(-1));
        if (status == OK)
            status = check_parts(net, own);
    }
    return status == OK ? OK : break_down(net, status);
}

static enum status exchange(struct comm_net *net, enum comm_kind kind, const void *data,
                            int64_t bytes)
{
    memcpy(next_data(net), data, (size_t)bytes);
    return post(net, kind, bytes);
}

static enum status net_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    struct comm_net *net = of(comm);

    for (int64_t piece; count > 0; count -= piece, x += piece) {
        piece = MIN(count, net->self.buffer_bytes / (int64_t)sizeof *x);
        TRY(exchange(net, COMM_DISJOINT, x, piece * (int64_t)sizeof *x));
        memcpy(x, part_of(net, 0)->data, (size_t)piece * sizeof *x);
        for (int32_t r = 1; r < comm->world; r++)
            comm_add_disjoint(x, (const float *)part_of(net, r)->data, piece);
    }
    return OK;
}

static double *net_sum_buffer(struct comm *comm)
{
    return (double *)next_data(of(comm));
}

static enum status net_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    struct comm_net *net = of(comm);

    TRY(post(net, COMM_SUM, count * (int64_t)sizeof(double)));
    for (int32_t r = 0; r < comm->world; r++)
        net->parts[r] = (const double *)part_of(net, r)->data;
    *out = (struct comm_parts){net->parts, comm->world};
    return OK;
}

static enum status net_barrier(struct comm *comm)
{
    return post(of(comm), COMM_BARRIER, 0);
}

/* Of `total` bytes, those that go into the exchange that begins at `at`. */
static int64_t piece_bytes(const struct comm_net *net, int64_t total, int64_t at)
{
    return MAX(MIN(total - at, net->self.buffer_bytes - (int64_t)sizeof total), (int64_t)0);
}

static enum status take_piece(const struct comm_net *net, int32_t r, int64_t at, int64_t stride,
                              void *out, int64_t *total_out)
{
    const struct part *part = part_of(net, r);
    int64_t total, bytes;

    memcpy(&total, part->data, sizeof total);
    if (total < 0 || total > stride)
        return fail(ERR_MISMATCH, "rank %d tells %lld bytes, at most %lld were agreed on", r,
                    (long long)total, (long long)stride);
    bytes = piece_bytes(net, total, at);
    if (part->bytes != (int64_t)sizeof total + bytes)
        return fail(ERR_MISMATCH,
                    "rank %d (%s) sends %lld bytes of %lld from %lld on in exchange %u, %lld are due", r,
                    net->ranks[r].endpoint, (long long)(part->bytes - (int64_t)sizeof total),
                    (long long)total, (long long)at, net->exchange, (long long)bytes);
    if (bytes > 0)
        memcpy((char *)out + r * stride + at, part->data + sizeof total, (size_t)bytes);
    *total_out = total;
    return OK;
}

static enum status net_all_gather(struct comm *comm, const void *data, int64_t bytes,
                                  int64_t stride, void *out, int64_t *bytes_out)
{
    struct comm_net *net = of(comm);
    int64_t most = bytes; /* that any rank has, once all have told */

    for (int64_t at = 0; at == 0 || at < most;
         at += net->self.buffer_bytes - (int64_t)sizeof bytes) {
        char *own = next_data(net);
        int64_t n = piece_bytes(net, bytes, at);

        memcpy(own, &bytes, sizeof bytes);
        if (n > 0)
            memcpy(own + sizeof bytes, (const char *)data + at, (size_t)n);
        TRY(post(net, COMM_GATHER, (int64_t)sizeof bytes + n));
        for (int32_t r = 0; r < comm->world; r++) {
            enum status status = take_piece(net, r, at, stride, out, &bytes_out[r]);

            if (status != OK)
                return break_down(net, status);
            most = MAX(most, bytes_out[r]);
        }
    }
    return OK;
}

static const struct comm_ops net_ops = {
    .close = net_close,
    .abort = net_abort,
    .is_aborted = net_is_aborted,
    .all_reduce_f32_disjoint = net_all_reduce_f32_disjoint,
    .sum_buffer = net_sum_buffer,
    .sum = net_sum,
    .barrier = net_barrier,
    .all_gather = net_all_gather,
};
