#include "engine/simulation/network.h"

#include "proto/wire/rendezvous.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum {
    FIRST_PIDFD = 1 << 20, /* above what any process has */
    INBOX_FRAMES = 64,
    MAX_POLLS = 100000,  /* in a row */
    DELAY_MAX_MS = 700, /* of a late message: all of a run together are no silence that kills */
    NOTICE_MS = 2,       /* after which a send knows that its peer is gone */
    LAST_WORDS_MS = 1,   /* from a rank's failure to its end */
};

/* Longer than any run. */
static const int64_t FOREVER_NS = (int64_t)48 * 3600 * 1000000000;

/* A rank's process, and the ways to it and from it. */
struct member {
    char name[CHANNEL_MAX_NAME + 1];
    bool is_dead, hangs, is_full;
    int64_t died_ns;
    int64_t to_free_ns, from_free_ns; /* when the last frame on this way arrives: none overtakes */
};

/* A frame that has arrived at the engine. */
struct arrival {
    const char *peer;
    struct frame *frame;
};

struct network {
    struct channel channel;
    struct network_options options;
    struct random random;
    struct member members[NETWORK_MAX_RANKS];
    struct arrival inbox[INBOX_FRAMES]; /* a ring */
    int32_t first_arrival, num_arrivals;
    struct frame *last; /* what channel_recv gave out */
    int32_t num_polls;  /* since something happened */
    bool call_fails;
};

static struct network *of(struct channel *channel)
{
    return CONTAINER_OF(channel, struct network, channel);
}

static int64_t now(const struct network *network)
{
    return network->options.agenda->now_ns;
}

static void happen_at(struct network *network, int64_t at_ns, int32_t rank, struct frame *frame,
                      void (*happen)(void *network, const struct event *event))
{
    agenda_add(
        network->options.agenda,
        &(struct event){
            .at_ns = at_ns, .happen = happen, .owner = network, .who = rank, .frame = frame});
}

/* ---- ways ----------------------------------------------------------------------------------- */

static struct frame *share(struct frame *frame)
{
    atomic_fetch_add_explicit(&frame->num_users, 1, memory_order_relaxed);
    return frame;
}

static void arrive_from(struct network *network, const char *peer, struct frame *frame)
{
    int32_t at = (network->first_arrival + network->num_arrivals) % INBOX_FRAMES;

    if (network->num_arrivals == INBOX_FRAMES)
        return; /* an engine that has failed hears nobody any more */
    network->num_arrivals++;
    network->inbox[at] = (struct arrival){.peer = peer, .frame = share(frame)};
}

static void arrive_at_engine(void *user, const struct event *event)
{
    struct network *network = user;

    arrive_from(network, network->members[event->who].name, event->frame);
}

static void arrive_from_stranger(void *user, const struct event *event)
{
    arrive_from(user, "9:9", event->frame);
}

static void arrive_at_rank(void *user, const struct event *event)
{
    const struct network *network = user;

    if (network_is_up(network, event->who))
        network->options.hear(network->options.user, event->who, event->frame);
}

/* On the way to the rank, or from it. Takes the frame. */
static void send_on(struct network *network, int32_t rank, bool to_rank, struct frame *frame,
                    int64_t delay_ns)
{
    struct member *member = &network->members[rank];
    int64_t *free_ns = to_rank ? &member->to_free_ns : &member->from_free_ns;
    int64_t latency_ns = random_between(&network->random, 1000, network->options.latency_max_ns);

    *free_ns = MAX(*free_ns, now(network) + delay_ns + latency_ns);
    happen_at(network, *free_ns, rank, frame, to_rank ? arrive_at_rank : arrive_at_engine);
}

/* ---- what goes wrong ------------------------------------------------------------------------ */

static void note(struct network *network, enum fault_kind kind)
{
    fault_plan_note(network->options.faults, kind, now(network));
}

static void die(void *user, const struct event *event)
{
    struct network *network = user;

    network->members[event->who].is_dead = true;
    network->members[event->who].died_ns = now(network);
}

/* The fault strikes this frame, or its rank. What is left to send; NULL: nothing. */
static struct frame *strike(struct network *network, enum fault_kind kind, int32_t rank,
                            bool to_rank, struct frame *frame, int64_t *delay_ns_out)
{
    struct random *random = &network->options.faults->random;
    struct frame *spoilt;

    switch (kind) {
    case FAULT_NONE:
        return frame;
    case FAULT_RANK_IS_FULL: /* these two have struck when a call has failed */
        network->members[rank].is_full = true;
        return frame;
    case FAULT_CALL_FAILS:
        network->call_fails = true;
        return frame;
    case FAULT_RANK_DIES:
        die(network, &(struct event){.who = rank});
        break;
    case FAULT_RANK_HANGS:
        network->members[rank].hangs = true;
        break;
    case FAULT_RANK_FAILS:
        network_fail_rank(network, rank, ERR_NO_MEMORY, "the device is out of memory");
        break;
    case FAULT_LOSE:
        frame_drop(frame);
        frame = NULL;
        break;
    case FAULT_DUPLICATE:
        send_on(network, rank, to_rank, share(frame), 0);
        break;
    case FAULT_DELAY:
        *delay_ns_out = random_between(random, 0, (int64_t)DELAY_MAX_MS * 1000000);
        break;
    case FAULT_STRANGER:
        happen_at(network, now(network), -1, share(frame), arrive_from_stranger);
        break;
    default:
        spoilt = fault_spoil(kind, frame, random);
        if (!spoilt)
            return frame;
        frame_drop(frame);
        frame = spoilt;
    }
    note(network, kind);
    return frame;
}

/* Takes the frame. */
static void carry(struct network *network, int32_t rank, bool to_rank, struct frame *frame)
{
    enum fault_kind kind = fault_plan_next(network->options.faults);
    int64_t delay_ns = 0;

    frame = strike(network, kind, rank, to_rank, frame, &delay_ns);
    if (frame)
        send_on(network, rank, to_rank, frame, delay_ns);
}

/* ---- a rank's end --------------------------------------------------------------------------- */

bool network_is_up(const struct network *network, int32_t rank)
{
    return !network->members[rank].is_dead && !network->members[rank].hangs;
}

void network_tell(struct network *network, int32_t rank, const struct message_type *type,
                  int64_t step, const void *body)
{
    struct frame *frame = frame_new();

    if (message_encode(type, network->options.epoch, step, body, &frame->bytes) != OK)
        ASSERT(false, "%s", fail_text()); /* our own messages are small */
    if (type == &heartbeat_type || type == &fault_type)
        send_on(network, rank, false, frame,
                0); /* to lose one, or to send it twice, proves nothing */
    else
        carry(network, rank, false, frame);
}

void network_fail_rank(struct network *network, int32_t rank, enum status status, const char *text)
{
    network_tell(network, rank, &fault_type, -1,
                 &(struct fault){.rank = rank, .code = (int32_t)status, .text = text});
    network->members[rank].hangs = true;
    happen_at(network, now(network) + LAST_WORDS_MS * 1000000, rank, NULL, die);
}

/* ---- the engine's end ----------------------------------------------------------------------- */

static enum status send_frame(struct channel *channel, const char *peer, struct frame *frame)
{
    struct network *network = of(channel);
    int32_t rank = 0;

    while (rank < network->options.world && strcmp(network->members[rank].name, peer) != 0)
        rank++;

    const struct member *member = &network->members[rank];

    if (rank == network->options.world ||
        (member->is_dead && now(network) - member->died_ns > NOTICE_MS * 1000000))
        return fail(ERR_CLOSED, "worker %s is not connected", peer);
    if (member->is_full) {
        note(network, FAULT_RANK_IS_FULL);
        return fail(ERR_FULL, "%s has not read %d frames", peer, CHANNEL_MAX_QUEUE);
    }
    carry(network, rank, true, share(frame));
    return OK;
}

static bool recv_frame(struct channel *channel, struct received *out)
{
    struct network *network = of(channel);
    struct arrival *arrival = &network->inbox[network->first_arrival];

    if (network->num_arrivals == 0)
        return false;
    network->first_arrival = (network->first_arrival + 1) % INBOX_FRAMES;
    network->num_arrivals--;
    frame_drop(network->last);
    network->last = arrival->frame;
    snprintf(out->peer, sizeof out->peer, "%s", arrival->peer);
    out->data = arrival->frame->bytes.data;
    out->size = arrival->frame->bytes.size;
    return true;
}

/* Ends of simulated processes, and descriptors of this one: those can change by what others do. */
static bool is_readable(const struct network *network, struct pollfd *fd, bool others_acted)
{
    fd->revents = 0;
    if (fd->fd >= FIRST_PIDFD)
        fd->revents = network->members[fd->fd - FIRST_PIDFD].is_dead ? POLLIN : 0;
    else if (fd->fd >= 0 && others_acted && poll(fd, 1, 0) < 0)
        fd->revents = 0;
    return fd->revents != 0;
}

static bool wakes(const struct network *network, struct pollfd *fds, size_t num_fds,
                  bool others_acted)
{
    bool is_awake = network->num_arrivals > 0;

    for (size_t i = CHANNEL_NUM_FDS; i < num_fds; i++)
        is_awake |= is_readable(network, &fds[i], others_acted);
    return is_awake;
}

static void poll_fds(struct channel *channel, struct pollfd *fds, size_t num_fds,
                     int64_t deadline_ns)
{
    struct network *network = of(channel);
    struct agenda *agenda = network->options.agenda;
    bool others_acted = true;

    ASSERT(agenda->now_ns < FOREVER_NS, "the engine waits for ever");
    ASSERT(++network->num_polls < MAX_POLLS, "the engine polls, and nothing happens");
    while (!wakes(network, fds, num_fds, others_acted)) {
        network->num_polls = 0;
        if (agenda_next_ns(agenda) > deadline_ns) {
            agenda->now_ns = deadline_ns;
            return;
        }
        others_acted = agenda_step(agenda) != network;
    }
}

static int32_t num_disconnects(struct channel *channel)
{
    const struct network *network = of(channel);
    int32_t n = 0;

    for (int32_t rank = 0; rank < network->options.world; rank++)
        n += network->members[rank].is_dead;
    return n;
}

static void leave_alone(struct channel *channel)
{
    (void)channel;
}

static const struct channel_ops ops = {
    .send = send_frame,
    .recv = recv_frame,
    .poll = poll_fds,
    .num_disconnects = num_disconnects,
    .free = leave_alone,
};

/* ---- the whole ------------------------------------------------------------------------------ */

struct network *network_new(const struct network_options *options)
{
    struct network *network = mem_new(struct network);

    ASSERT(options->world >= 1 && options->world <= NETWORK_MAX_RANKS);
    network->channel.ops = &ops;
    network->options = *options;
    network->random.state = options->seed;
    for (int32_t rank = 0; rank < options->world; rank++)
        rendezvous_name(rank, options->epoch, network->members[rank].name);
    return network;
}

void network_free(struct network *network)
{
    if (!network)
        return;
    agenda_forget(network->options.agenda, network);
    for (int32_t i = 0; i < network->num_arrivals; i++)
        frame_drop(network->inbox[(network->first_arrival + i) % INBOX_FRAMES].frame);
    frame_drop(network->last);
    mem_free(network);
}

struct channel *network_channel(struct network *network)
{
    return &network->channel;
}

int network_pidfd(int32_t rank)
{
    return FIRST_PIDFD + rank;
}

bool network_fails_call(struct network *network)
{
    bool fails = network->call_fails;

    network->call_fails = false;
    if (fails)
        note(network, FAULT_CALL_FAILS);
    return fails;
}
