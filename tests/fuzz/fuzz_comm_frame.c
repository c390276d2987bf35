/*
 * Bytes that came from another rank: they are refused, or a frame within them; a hello that is taken is
 * written the same, and a refusal can be printed.
 */
#include "worker/comm_frame.h"

#include <string.h>

static void check_hello(const struct comm_frame *frame)
{
    struct comm_hello ours = {.session = 1, .epoch = 1, .rank = 1, .world = 2, .buffer_bytes = 64};
    char again[COMM_HELLO_BYTES];
    struct comm_hello hello;
    struct comm_frame read = *frame;

    if (comm_hello_read(frame, &hello) != OK)
        return;
    comm_hello_write(&hello, again);
    read.payload = again;
    struct comm_hello second;
    ASSERT(comm_hello_read(&read, &second) == OK);
    ASSERT(second.session == hello.session && second.epoch == hello.epoch &&
           second.rank == hello.rank && second.world == hello.world &&
           second.buffer_bytes == hello.buffer_bytes);
    if (comm_hello_check(&ours, &hello) == OK)
        ASSERT(hello.rank == 0 && hello.world == 2 && hello.epoch == 1 && hello.session == 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[COMM_MAX_SENTENCE + 1];
    struct comm_frame frame;

    if (comm_frame_read(data, size, &frame) != OK)
        return 0;
    ASSERT(frame.kind < NUM_COMM_KINDS);
    ASSERT(frame.bytes >= 0 && (const uint8_t *)frame.payload + frame.bytes == data + size);
    if (frame.kind == COMM_HELLO)
        check_hello(&frame);
    if (frame.kind == COMM_REFUSED) {
        comm_refusal_read(&frame, text);
        ASSERT((int64_t)strlen(text) == frame.bytes);
        for (const char *c = text; *c; c++)
            ASSERT(*c >= ' ' && *c < 127);
    }
    return 0;
}
