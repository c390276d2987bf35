/*
 * channel: frames between the engine and its workers, over ZeroMQ.
 *
 * The engine listens (ROUTER), a worker connects (DEALER) under a name such as
 * "1:3", rank and epoch. Nothing is lost in silence: a frame for a peer that is
 * not there is refused, a full queue is ERR_FULL, and a connection that broke is
 * not mended: the worker joins again under a new name. ZeroMQ's own heartbeat
 * finds a cut link of tcp within 2 s. On one host there is none to cut: a process that has ended is known
 * by its socket, and one that stands still may go on.
 *
 * Endpoints: ipc://PATH in a directory of mode 0700, or tcp://HOST:PORT (proto/wire/tcp.h) with keys.
 * Over tcp all is encrypted, and the engine hears only who holds the worker's key: whoever else connects
 * gets nothing, and cannot grow without bound (proto/wire/gate.h). Plain tcp is refused.
 *
 * ZeroMQ tells of changes, not of states: before channel_poll, call channel_recv
 * until it says false, with no send after that.
 *
 * What carries the frames is a struct channel_ops: ZeroMQ, or the network of a
 * simulation, in which time stands still.
 *
 * Thread: the one that opened it, for every call on the channel. Frames may be
 * dropped by any thread.
 */
#ifndef PROTO_WIRE_CHANNEL_H
#define PROTO_WIRE_CHANNEL_H

#include "proto/wire/curve.h"

enum {
    CHANNEL_MAX_FRAME = 512 << 20, /* bytes; a peer that sends more is cut off */
    /* The same of what a worker sends over tcp. Strangers can make the engine hold one each; what settings
     * can need is checked against it (proto/config). */
    CHANNEL_MAX_TCP_ANSWER = 8 << 20,
    CHANNEL_MAX_QUEUE = 64,        /* frames per peer: steps in flight are two */
    CHANNEL_MAX_NAME = 63,
};

/* ---- frames: encoded once, sent to many ------------------------------------------------------ */

/* Bytes that several peers' queues share. ZeroMQ gives its references back from its own thread,
 * so the contents must not change after the first send. */
struct frame {
    struct bytes bytes; /* filled by the owner before the first send */
    _Atomic int num_users;
};

struct frame *frame_new(void);
void frame_drop(struct frame *frame); /* NULL is fine */
static inline void frame_free(struct frame *frame)
{
    frame_drop(frame);
}
DEFINE_AUTO_FREE(frame)

/* ---- channels -------------------------------------------------------------------------------- */

struct channel;
struct pollfd;

struct received {
    char peer[CHANNEL_MAX_NAME + 1]; /* "" on the worker's side */
    const void *data;                /* until the next channel_recv */
    size_t size;
};

/* See the calls of the same names. */
struct channel_ops {
    enum status (*send)(struct channel *channel, const char *peer, struct frame *frame);
    bool (*recv)(struct channel *channel, struct received *out);
    void (*poll)(struct channel *channel, struct pollfd *fds, size_t num_fds, int64_t deadline_ns);
    int32_t (*num_disconnects)(struct channel *channel);
    void (*free)(struct channel *channel);
};

struct channel {
    const struct channel_ops *ops;
};

/* What tcp:// wants; ipc:// goes without. */
struct channel_keys {
    struct curve_pair mine;
    char peer[CURVE_KEY_CHARS + 1]; /* the other side's public key */
};

void channel_keys_of_engine(const struct token *token, struct channel_keys *out);
void channel_keys_of_worker(const struct token *token, struct channel_keys *out);

/* `keys` are copied; NULL: tcp is refused, ERR_UNSUPPORTED. ERR_INVALID, ERR_NOT_FOUND: no such endpoint;
 * ERR_IO. */
MUST_USE enum status channel_listen(const char *endpoint, const struct channel_keys *keys,
                                    struct channel **out);
/* Succeeds also where nobody listens: channel_num_disconnects tells, over tcp after 3 s at most where
 * nothing answers. */
MUST_USE enum status channel_connect(const char *endpoint, const char *name,
                                     const struct channel_keys *keys, struct channel **out);
/* Of one that channel_listen made: where it listens, with the port that it has got. */
const char *channel_endpoint(const struct channel *channel);
/* Of one that channel_connect made: why the connection has ended, or was not made; before that "". */
const char *channel_end(struct channel *channel);
/* That was the reason: the engine has another token. */
bool channel_is_refused(struct channel *channel);

/* What a worker sent last may still go out, for at most 200 ms. NULL is fine. */
static inline void channel_free(struct channel *channel)
{
    if (channel)
        channel->ops->free(channel);
}
DEFINE_AUTO_FREE(channel)

/* Never waits. `peer`: the worker's name; NULL on the worker's side, which has one peer. Keeps a
 * reference while it needs one. ERR_CLOSED: the peer is not connected; ERR_FULL: it does not
 * read. */
MUST_USE static inline enum status channel_send(struct channel *channel, const char *peer,
                                                struct frame *frame)
{
    return channel->ops->send(channel, peer, frame);
}

/* Never waits; false: nothing has come. */
static inline bool channel_recv(struct channel *channel, struct received *out)
{
    return channel->ops->recv(channel, out);
}

/* Parks until something has come, a connection has ended, one of the caller's descriptors is
 * readable, or the deadline passes; it may also wake for nothing. The first CHANNEL_NUM_FDS of
 * `fds` are the channel's own to fill in; of the others `revents` are set. */
enum { CHANNEL_FD_FRAMES, CHANNEL_FD_ENDS /* a connection has ended */, CHANNEL_NUM_FDS };
static inline void channel_poll(struct channel *channel, struct pollfd *fds, size_t num_fds,
                                int64_t deadline_ns)
{
    channel->ops->poll(channel, fds, num_fds, deadline_ns);
}

/* Parks until something has come or the deadline passes: false. */
bool channel_wait(struct channel *channel, int64_t deadline_ns, struct received *out);

/* How many connections have ended since it was opened, over tcp of peers that had said something; ZeroMQ
 * does not tell whose. On the worker's side one is the end, also of one that was never made. On the engine's side a send to each peer finds it, ERR_CLOSED, a millisecond
 * or two later: until then a frame may still be accepted, and is lost with the peer. */
static inline int32_t channel_num_disconnects(struct channel *channel)
{
    return channel->ops->num_disconnects(channel);
}

#endif
