#include "worker/comm_frame.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are memory as it lies");

static const char MAGIC[8] = "tdmcomm1";

struct header {
    uint32_t kind, exchange;
    int64_t bytes;
};

struct hello {
    char magic[8];
    uint64_t session;
    int64_t buffer_bytes;
    int32_t epoch, rank, world, zeros[3];
};

_Static_assert(sizeof(struct header) == COMM_HEADER_BYTES, "no padding");
_Static_assert(sizeof(struct hello) == COMM_HELLO_BYTES, "no padding");

static const struct {
    const char *name;
    int64_t least, most; /* bytes */
} kinds[NUM_COMM_KINDS] = {
    [COMM_HELLO] = {"a hello", COMM_HELLO_BYTES, COMM_HELLO_BYTES},
    [COMM_REFUSED] = {"a refusal", 0, COMM_MAX_SENTENCE},
    [COMM_ABORT] = {"an abort", 0, 0},
    [COMM_LEAVE] = {"a leave", 0, 0},
    [COMM_SUM] = {"a sum", 0, COMM_MAX_BYTES},
    [COMM_DISJOINT] = {"a disjoint sum", 0, COMM_MAX_BYTES},
    [COMM_BARRIER] = {"a barrier", 0, 0},
    [COMM_GATHER] = {"a gather", sizeof(int64_t), COMM_MAX_BYTES},
};

const char *comm_kind_name(enum comm_kind kind)
{
    return kinds[kind].name;
}

void comm_frame_write_header(enum comm_kind kind, uint32_t exchange, int64_t bytes, void *out)
{
    struct header header = {kind, exchange, bytes};

    memcpy(out, &header, sizeof header);
}

void comm_hello_write(const struct comm_hello *ours, void *out)
{
    struct hello hello = {
        .session = ours->session,
        .buffer_bytes = ours->buffer_bytes,
        .epoch = ours->epoch,
        .rank = ours->rank,
        .world = ours->world,
    };

    memcpy(hello.magic, MAGIC, sizeof hello.magic);
    memcpy(out, &hello, sizeof hello);
}

enum status comm_frame_read(const void *data, size_t size, struct comm_frame *out)
{
    struct header header;

    if (size < sizeof header)
        return fail(ERR_CORRUPT, "a frame of %zu bytes, a header has %zu", size, sizeof header);
    memcpy(&header, data, sizeof header);
    if (header.kind >= NUM_COMM_KINDS)
        return fail(ERR_CORRUPT, "a frame of kind %u, there are %d", header.kind, NUM_COMM_KINDS);
    if ((uint64_t)header.bytes != size - sizeof header)
        return fail(ERR_CORRUPT, "%s of %zu bytes says that it has %lld",
                    kinds[header.kind].name, size - sizeof header, (long long)header.bytes);
    if (header.bytes < kinds[header.kind].least || header.bytes > kinds[header.kind].most)
        return fail(ERR_CORRUPT, "%s of %lld bytes, it has %lld to %lld", kinds[header.kind].name,
                    (long long)header.bytes, (long long)kinds[header.kind].least,
                    (long long)kinds[header.kind].most);
    *out = (struct comm_frame){
        .kind = header.kind,
        .exchange = header.exchange,
        .payload = (const char *)data + sizeof header,
        .bytes = header.bytes,
    };
    return OK;
}

enum status comm_hello_read(const struct comm_frame *frame, struct comm_hello *out)
{
    struct hello hello;

    ASSERT(frame->kind == COMM_HELLO && frame->bytes == sizeof hello);
    memcpy(&hello, frame->payload, sizeof hello);
    if (memcmp(hello.magic, MAGIC, sizeof hello.magic) != 0)
        return fail(ERR_MISMATCH, "a hello that does not begin with %.8s", MAGIC);
    *out = (struct comm_hello){
        .session = hello.session,
        .epoch = hello.epoch,
        .rank = hello.rank,
        .world = hello.world,
        .buffer_bytes = hello.buffer_bytes,
    };
    return OK;
}

void comm_refusal_read(const struct comm_frame *frame, char *out)
{
    const char *text = frame->payload;

    ASSERT(frame->kind == COMM_REFUSED && frame->bytes <= COMM_MAX_SENTENCE);
    for (int64_t i = 0; i < frame->bytes; i++)
        out[i] = text[i] >= ' ' && text[i] < 127 ? text[i] : '?';
    out[frame->bytes] = '\0';
}

enum status comm_hello_check(const struct comm_hello *ours, const struct comm_hello *theirs)
{
    if (theirs->rank < 0 || theirs->rank >= ours->world || theirs->rank == ours->rank)
        return fail(ERR_MISMATCH, "rank %d of %d ranks says hello to rank %d", theirs->rank,
                    ours->world, ours->rank);
    if (theirs->session != ours->session)
        return fail(ERR_MISMATCH, "rank %d is of job %016llx, not %016llx", theirs->rank,
                    (unsigned long long)theirs->session, (unsigned long long)ours->session);
    if (theirs->epoch != ours->epoch)
        return fail(ERR_MISMATCH, "rank %d is of epoch %d, not %d", theirs->rank, theirs->epoch,
                    ours->epoch);
    if (theirs->world != ours->world)
        return fail(ERR_MISMATCH, "rank %d is one of %d ranks, not of %d", theirs->rank,
                    theirs->world, ours->world);
    if (theirs->buffer_bytes != ours->buffer_bytes)
        return fail(ERR_MISMATCH, "rank %d exchanges %lld bytes at once, not %lld", theirs->rank,
                    (long long)theirs->buffer_bytes, (long long)ours->buffer_bytes);
    return OK;
}
