/*
 * ZeroMQ tells of connections by their descriptors, and with each message from which it came. The gate's
 * thread hears of those that begin and end, and holds a place for each until the owner's thread has said
 * that it knows him: states[fd] is all that the two share.
 *
 *     unused --accepted--> stranger --gate_know--> known --disconnected--> unused, and counted
 *                          stranger ------------disconnected-----------> unused
 *     unused --gate_know--> early --accepted--> known       his words were read before the thread heard of him,
 *                           early --------------------------------> unused, and counted     or after he left
 */
#include "proto/wire/gate.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

enum { MAX_FDS = 1 << 16, SAY_EVERY_MS = 10000, SHUT_LOOK_MS = 100 };
enum fd_state { UNUSED, STRANGER, KNOWN, EARLY };

struct place {
    int fd;               /* -1: he has left */
    int64_t free_at_ns;
};

struct gate {
    char endpoint[TCP_MAX_TEXT + 1];
    int listen_fd; /* a second one of the listener, which is ZeroMQ's */
    int wake_fd, gone_fd;
    pthread_t thread;
    bool has_thread;
    _Atomic bool stops, has_early;
    _Atomic uint8_t states[MAX_FDS];
    _Atomic int32_t num_gone;
    _Atomic int64_t num_shut;

    /* The thread's own. */
    void *monitor;
    struct place places[GATE_MAX_STRANGERS];
    bool is_shut;
    int64_t say_at_ns;
};

/* ---- who is here ---------------------------------------------------------------------------------- */

static void count_gone(struct gate *gate)
{
    atomic_fetch_add(&gate->num_gone, 1);
    eventfd_write(gate->gone_fd, 1);
}

void gate_know(struct gate *gate, void *message)
{
    int fd = zmq_msg_get(message, ZMQ_SRCFD);
    uint8_t state = STRANGER;

    if (fd < 0 || fd >= MAX_FDS || atomic_load(&gate->states[fd]) == KNOWN)
        return;
    if (atomic_compare_exchange_strong(&gate->states[fd], &state, KNOWN) || state != UNUSED ||
        !atomic_compare_exchange_strong(&gate->states[fd], &state, EARLY))
        return;
    atomic_store(&gate->has_early, true);
    eventfd_write(gate->wake_fd, 1);
}

/* The thread has heard of all connections that began before the messages that were read by then: who is
 * early still has left. */
static void settle_early(struct gate *gate)
{
    for (int fd = 0; fd < MAX_FDS; fd++) {
        uint8_t state = EARLY;

        if (atomic_compare_exchange_strong(&gate->states[fd], &state, UNUSED))
            count_gone(gate);
    }
}

static bool is_free(const struct gate *gate, const struct place *place, int64_t now_ns)
{
    return place->free_at_ns <= now_ns ||
           (place->fd >= 0 && atomic_load(&gate->states[place->fd]) == KNOWN);
}

static void on_accepted(struct gate *gate, int fd)
{
    int64_t now_ns = clock_now_ns();

    /* He came through while the filter was being attached, and has inherited it. */
    setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int));
    if (atomic_exchange(&gate->states[fd], STRANGER) == EARLY) {
        atomic_store(&gate->states[fd], KNOWN);
        return;
    }
    for (size_t i = 0; i < GATE_MAX_STRANGERS; i++)
        if (is_free(gate, &gate->places[i], now_ns)) {
            gate->places[i] = (struct place){fd, now_ns + GATE_STRANGER_MS * INT64_C(1000000)};
            return;
        }
}

static void on_disconnected(struct gate *gate, int fd)
{
    if (atomic_exchange(&gate->states[fd], UNUSED) == KNOWN)
        count_gone(gate);
    for (size_t i = 0; i < GATE_MAX_STRANGERS; i++)
        if (gate->places[i].fd == fd)
            gate->places[i] = (struct place){-1, clock_deadline_ns(GATE_COOL_MS)};
}

/* ---- the kernel's filter ------------------------------------------------------------------------------ */

static void set_filter(const struct gate *gate, bool drops_all)
{
    if (!tcp_drop_knocks(gate->listen_fd, drops_all))
        log_debug("%s: no filter on strangers: %m", gate->endpoint);
}

static void say_shut(struct gate *gate)
{
    atomic_fetch_add_explicit(&gate->num_shut, 1, memory_order_relaxed);
    if (clock_now_ns() < gate->say_at_ns)
        return;
    log_warn("%s: %d connections that have not shown a key; others wait until these have ended",
             gate->endpoint, GATE_MAX_STRANGERS);
    gate->say_at_ns = clock_deadline_ns(SAY_EVERY_MS);
}

static void open_or_shut(struct gate *gate)
{
    int64_t now_ns = clock_now_ns();
    bool is_full = true;

    for (size_t i = 0; i < GATE_MAX_STRANGERS && is_full; i++)
        is_full = !is_free(gate, &gate->places[i], now_ns);
    if (is_full == gate->is_shut)
        return;
    set_filter(gate, is_full);
    gate->is_shut = is_full;
    if (is_full)
        say_shut(gate);
}

/* ---- the thread --------------------------------------------------------------------------------------- */

/* An event is two parts: its number and value, and the address. false: there is none. */
static bool recv_event(void *monitor, uint16_t *event_out, int32_t *value_out)
{
    uint8_t event[sizeof *event_out + sizeof *value_out] = {0};
    int size = zmq_recv(monitor, event, sizeof event, ZMQ_DONTWAIT);

    if (size < 0)
        return false;
    zmq_recv(monitor, NULL, 0, ZMQ_DONTWAIT);
    memcpy(event_out, event, sizeof *event_out);
    memcpy(value_out, event + sizeof *event_out, sizeof *value_out);
    return true;
}

static void hear_events(struct gate *gate)
{
    uint16_t event;
    int32_t fd;

    while (recv_event(gate->monitor, &event, &fd)) {
        if (fd < 0 || fd >= MAX_FDS)
            continue;
        if (event == ZMQ_EVENT_ACCEPTED)
            on_accepted(gate, fd);
        else if (event == ZMQ_EVENT_DISCONNECTED)
            on_disconnected(gate, fd);
    }
}

static void *watch(void *argument)
{
    struct gate *gate = argument;
    zmq_pollitem_t items[] = {{.socket = gate->monitor, .events = ZMQ_POLLIN},
                              {.fd = gate->wake_fd, .events = ZMQ_POLLIN}};
    eventfd_t count;

    pthread_setname_np(pthread_self(), "gate");
    while (!atomic_load(&gate->stops)) {
        bool has_early = atomic_exchange(&gate->has_early, false);

        hear_events(gate);
        if (has_early)
            settle_early(gate);
        open_or_shut(gate);
        if (zmq_poll(items, COUNT_OF(items), gate->is_shut ? SHUT_LOOK_MS : -1) < 0 &&
            errno == ETERM)
            break;
        eventfd_read(gate->wake_fd, &count);
    }
    return NULL;
}

/* ---- open and close -------------------------------------------------------------------------------------- */

static bool watch_socket(struct gate *gate, void *context, void *socket)
{
    static const int zero = 0;
    char address[64];

    snprintf(address, sizeof address, "inproc://gate-%p", socket);
    return zmq_socket_monitor(socket, address, ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED) == 0 &&
           (gate->monitor = zmq_socket(context, ZMQ_PAIR)) &&
           zmq_setsockopt(gate->monitor, ZMQ_LINGER, &zero, sizeof zero) == 0 &&
           zmq_connect(gate->monitor, address) == 0;
}

static enum status open_parts(struct gate *gate, void *context, void *socket, int fd)
{
    gate->listen_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    gate->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    gate->gone_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (gate->listen_fd < 0 || gate->wake_fd < 0 || gate->gone_fd < 0 ||
        !watch_socket(gate, context, socket))
        return fail(ERR_IO, "%s cannot be watched: %s", gate->endpoint, zmq_strerror(errno));
    errno = pthread_create(&gate->thread, NULL, watch, gate);
    if (errno)
        return fail(ERR_IO, "no thread for %s: %m", gate->endpoint);
    gate->has_thread = true;
    /* The descriptor is ZeroMQ's to close once it listens. */
    if (zmq_setsockopt(socket, ZMQ_USE_FD, &fd, sizeof fd) != 0 ||
        zmq_bind(socket, gate->endpoint) != 0)
        return fail(ERR_IO, "%s cannot be listened on: %s", gate->endpoint, zmq_strerror(errno));
    return OK;
}

enum status gate_open(void *context, void *socket, const char *endpoint, struct gate **out)
{
    struct tcp_address bound;
    struct gate *gate;
    enum status status;
    int fd;

    TRY(tcp_listen(endpoint, GATE_BACKLOG, &fd, &bound));
    gate = mem_new(struct gate);
    tcp_print(&bound, gate->endpoint);
    for (size_t i = 0; i < GATE_MAX_STRANGERS; i++)
        gate->places[i].fd = -1;
    status = open_parts(gate, context, socket, fd);
    if (status != OK) {
        close(fd);
        gate_free(gate);
        return status;
    }
    *out = gate;
    return OK;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

void gate_free(struct gate *gate)
{
    if (!gate)
        return;
    if (gate->has_thread) {
        atomic_store(&gate->stops, true);
        eventfd_write(gate->wake_fd, 1);
        pthread_join(gate->thread, NULL);
    }
    if (gate->monitor)
        zmq_close(gate->monitor);
    close_fd(gate->listen_fd);
    close_fd(gate->wake_fd);
    close_fd(gate->gone_fd);
    mem_free(gate);
}

const char *gate_endpoint(const struct gate *gate)
{
    return gate->endpoint;
}

int32_t gate_num_gone(struct gate *gate)
{
    eventfd_t count;

    eventfd_read(gate->gone_fd, &count);
    return atomic_load(&gate->num_gone);
}

int gate_fd(const struct gate *gate)
{
    return gate->gone_fd;
}

int64_t gate_num_shut(const struct gate *gate)
{
    return atomic_load_explicit(&gate->num_shut, memory_order_relaxed);
}
