/*
 * comm_frame: what ranks of different hosts say to each other (worker/comm_net.h), as bytes.
 *
 * A frame is a header, then its payload, little-endian: numbers of fixed width, then doubles, floats or
 * bytes as they lie in memory. A peer has shown that it is of this job, and may still be of another
 * step, or broken: a frame that does not hold together is refused with its numbers.
 *
 * Thread: any.
 */
#ifndef WORKER_COMM_FRAME_H
#define WORKER_COMM_FRAME_H

#include "proto/base/memory.h"

enum comm_kind {
    COMM_HELLO,   /* a comm_hello: the first frame of either side */
    COMM_REFUSED, /* a sentence: why a hello is not welcome */
    COMM_ABORT,   /* nothing: all are to stop */
    COMM_LEAVE,   /* nothing: the last frame of a rank that needs nothing more */
    COMM_SUM,     /* doubles; this and the following have a number of exchange */
    COMM_DISJOINT, /* floats */
    COMM_BARRIER, /* nothing */
    COMM_GATHER,  /* an int64_t, how many bytes there are in all, and a piece of them */
    NUM_COMM_KINDS
};

enum {
    COMM_HEADER_BYTES = 16,
    COMM_HELLO_BYTES = 48,
    COMM_MAX_SENTENCE = 400, /* of a refusal */
    COMM_MAX_WORLD = 256,
};

static const int64_t COMM_MAX_BYTES = (int64_t)256 << 20; /* of a payload */

/* Who a rank is, and which group it means to meet. */
struct comm_hello {
    uint64_t session; /* of the job */
    int32_t epoch;
    int32_t rank, world;
    int64_t buffer_bytes;
};

struct comm_frame {
    enum comm_kind kind;
    uint32_t exchange;
    const void *payload; /* in the frame's bytes; not aligned */
    int64_t bytes;
};

/* "a sum", "a barrier": for sentences. */
const char *comm_kind_name(enum comm_kind kind);

/* COMM_HEADER_BYTES. */
void comm_frame_write_header(enum comm_kind kind, uint32_t exchange, int64_t bytes, void *out);
/* COMM_HELLO_BYTES. */
void comm_hello_write(const struct comm_hello *hello, void *out);

/* ERR_CORRUPT: `size` bytes that are none of ours. */
MUST_USE enum status comm_frame_read(const void *data, size_t size, struct comm_frame *out);
/* The payload of a COMM_HELLO. ERR_MISMATCH: of another build's making. */
MUST_USE enum status comm_hello_read(const struct comm_frame *frame, struct comm_hello *out);
/* A refusal's sentence, with '?' for what cannot be printed. out: [COMM_MAX_SENTENCE + 1] */
void comm_refusal_read(const struct comm_frame *frame, char *out);

/* Is `theirs`, of a rank above ours or below, of our group? ERR_MISMATCH names what differs. */
MUST_USE enum status comm_hello_check(const struct comm_hello *ours,
                                      const struct comm_hello *theirs);

#endif
