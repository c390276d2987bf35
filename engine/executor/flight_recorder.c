#include "engine/executor/flight_recorder.h"

#include "proto/base/clock.h"
#include "proto/wire/message.h"

#include <string.h>

/* Before each message in the ring. */
struct entry {
    int64_t time_ns;
    int32_t rank;
    bool is_sent;
    uint64_t size;       /* of the message */
    uint64_t kept_bytes; /* of it, behind this entry: size or 0 */
};

struct flight_recorder {
    int64_t span_ns;
    int64_t copied_ns; /* 0: it is no copy */
    uint64_t capacity;
    uint64_t begin, end; /* bytes ever dropped, bytes ever written: places modulo capacity */
    uint8_t *bytes;
};

struct flight_recorder *flight_recorder_new(int64_t bytes, double seconds)
{
    struct flight_recorder *recorder;

    if (bytes <= 0)
        return NULL;
    recorder = mem_new(struct flight_recorder);
    recorder->span_ns = (int64_t)(seconds * 1e9);
    recorder->capacity = (uint64_t)MAX(bytes, (int64_t)(2 * FLIGHT_LARGEST));
    recorder->bytes = mem_alloc(recorder->capacity);
    return recorder;
}

void flight_recorder_free(struct flight_recorder *recorder)
{
    if (!recorder)
        return;
    mem_free(recorder->bytes);
    mem_free(recorder);
}

struct flight_recorder *flight_recorder_copy(const struct flight_recorder *recorder)
{
    struct flight_recorder *copy;

    if (!recorder)
        return NULL;
    copy = mem_new(struct flight_recorder);
    *copy = *recorder;
    copy->copied_ns = clock_now_ns();
    copy->bytes = mem_alloc(copy->capacity);
    memcpy(copy->bytes, recorder->bytes, MIN(copy->capacity, copy->end));
    return copy;
}

/* ---- the ring -------------------------------------------------------------------------------- */

static void put(struct flight_recorder *recorder, const void *data, uint64_t size)
{
    uint64_t at = recorder->end % recorder->capacity, first = MIN(size, recorder->capacity - at);

    memcpy(recorder->bytes + at, data, first);
    memcpy(recorder->bytes, (const uint8_t *)data + first, size - first);
    recorder->end += size;
}

static void get(const struct flight_recorder *recorder, uint64_t place, void *out, uint64_t size)
{
    uint64_t at = place % recorder->capacity, first = MIN(size, recorder->capacity - at);

    memcpy(out, recorder->bytes + at, first);
    memcpy((uint8_t *)out + first, recorder->bytes, size - first);
}

static void drop_oldest(struct flight_recorder *recorder)
{
    struct entry entry;

    get(recorder, recorder->begin, &entry, sizeof entry);
    recorder->begin += sizeof entry + entry.kept_bytes;
}

void flight_recorder_add(struct flight_recorder *recorder, bool is_sent, int32_t rank,
                         const void *frame, size_t size)
{
    struct entry entry = {
        .time_ns = clock_now_ns(),
        .rank = rank,
        .is_sent = is_sent,
        .size = size,
        .kept_bytes = size <= FLIGHT_LARGEST ? size : 0,
    };

    if (!recorder)
        return;
    while (recorder->end - recorder->begin + sizeof entry + entry.kept_bytes > recorder->capacity)
        drop_oldest(recorder);
    put(recorder, &entry, sizeof entry);
    put(recorder, frame, entry.kept_bytes);
}

/* ---- telling --------------------------------------------------------------------------------- */

static void tell_message(json_t *json, const uint8_t *frame, uint64_t size)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct message message;

    if (message_decode(frame, size, &arena, &message) == OK)
        json_object_set_new(json, "message", message_to_json(&message));
    else
        json_object_set_new(json, "left_out", json_string(fail_text()));
}

void flight_recorder_each(const struct flight_recorder *recorder,
                          void (*tell)(void *user, const json_t *message), void *user)
{
    AUTO_MEM char *sentence = mem_strdup(fail_text()); /* not ours to lose */
    AUTO_MEM uint8_t *frame = mem_alloc(FLIGHT_LARGEST);
    int64_t now_ns = recorder && recorder->copied_ns ? recorder->copied_ns : clock_now_ns();
    struct entry entry;

    for (uint64_t at = recorder ? recorder->begin : 0; recorder && at < recorder->end;
         at += sizeof entry + entry.kept_bytes) {
        get(recorder, at, &entry, sizeof entry);
        if (now_ns - entry.time_ns > recorder->span_ns)
            continue;

        json_t *json = json_pack("{s:f, s:s, s:i, s:I}", "ms", clock_ms(entry.time_ns - now_ns),
                                 "direction", entry.is_sent ? "sent" : "received", "rank",
                                 entry.rank, "bytes", (json_int_t)entry.size);

        get(recorder, at + sizeof entry, frame, entry.kept_bytes);
        if (entry.kept_bytes > 0)
            tell_message(json, frame, entry.kept_bytes);
        else
            json_object_set_new(json, "left_out", json_string("too large"));
        tell(user, json);
        json_decref(json);
    }
    (void)fail(OK, "%s", sentence);
}
