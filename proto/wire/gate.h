/*
 * gate: a ZeroMQ socket that listens on tcp, where strangers can reach it.
 *
 * Who has connected is a stranger until a frame of his has come, which CURVE and ZAP let through. There
 * are GATE_MAX_STRANGERS places for strangers, and the place of one who left without a frame stays taken
 * for a moment. While all are taken the kernel drops whoever knocks (his own kernel knocks again after
 * 1 s), so a storm of them costs a bounded number of descriptors, of bytes and of handshakes in a second,
 * and peers that are inside notice nothing. What strangers do wakes only the gate's own thread.
 *
 * Thread: the one that owns the socket.
 */
#ifndef PROTO_WIRE_GATE_H
#define PROTO_WIRE_GATE_H

#include "proto/wire/tcp.h"

enum {
    GATE_MAX_STRANGERS = 64,
    GATE_BACKLOG = 64,        /* who has been let through by the kernel, and not yet by ZeroMQ */
    GATE_COOL_MS = 125,       /* 64 places: 512 failed handshakes in a second at most */
    GATE_STRANGER_MS = 5000,  /* ZMQ_HANDSHAKE_IVL has ended him long before */
};

struct gate;

/* Binds `socket`, whose options are set, to tcp://HOST:PORT. ERR_INVALID, ERR_NOT_FOUND: no such
 * endpoint; ERR_IO. */
MUST_USE enum status gate_open(void *context, void *socket, const char *endpoint, struct gate **out);
/* After zmq_close of the socket, before zmq_ctx_term. NULL is fine. */
void gate_free(struct gate *gate);

/* Where it listens, with the port that it has got. */
const char *gate_endpoint(const struct gate *gate);
/* For each message that has come from a peer: he is no stranger. `message`: its last part (zmq_msg_t). */
void gate_know(struct gate *gate, void *message);
/* How many of those who were known have gone. The descriptor is readable when there are more; the call
 * empties it. */
int32_t gate_num_gone(struct gate *gate);
int gate_fd(const struct gate *gate);
/* How often all places were taken. Any thread. */
int64_t gate_num_shut(const struct gate *gate);

#endif
