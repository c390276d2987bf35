/*
 * flight_recorder: the last messages between the engine and its ranks, for whoever asks why a step
 * failed.
 *
 * A ring of bytes that was taken at the start: recording copies a message and drops the oldest
 * ones. Of a message larger than FLIGHT_LARGEST its size is kept, not its bytes.
 *
 * Thread: core; a copy: its owner's.
 */
#ifndef ENGINE_EXECUTOR_FLIGHT_RECORDER_H
#define ENGINE_EXECUTOR_FLIGHT_RECORDER_H

#include "proto/base/memory.h"

#include <jansson.h>

enum { FLIGHT_LARGEST = 64 << 10, FLIGHT_ALL_RANKS = -1 };

struct flight_recorder;

/* Keeps messages of the last `seconds`, as far as `bytes` hold them; 0 bytes: NULL, which is fine.
 */
struct flight_recorder *flight_recorder_new(int64_t bytes, double seconds);
void flight_recorder_free(struct flight_recorder *recorder);
DEFINE_AUTO_FREE(flight_recorder)

/* rank: from or to whom, or FLIGHT_ALL_RANKS. */
void flight_recorder_add(struct flight_recorder *recorder, bool is_sent, int32_t rank,
                         const void *frame, size_t size);

/* As it is now, for another thread to tell; NULL of NULL. */
struct flight_recorder *flight_recorder_copy(const struct flight_recorder *recorder);

/*
 * Tells the messages, oldest first, one by one, for all together are twenty times their bytes: {"ms": before now,
 * or before it was copied, "direction": "sent" | "received", "rank", "bytes", "message": as message_to_json has it}. In place of the message
 * "left_out" says why there is none. They live until `tell` returns.
 */
void flight_recorder_each(const struct flight_recorder *recorder,
                          void (*tell)(void *user, const json_t *message), void *user);

#endif
