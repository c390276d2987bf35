/*
 * file_read: a small file, whole, in memory of ours; also one that can't be mapped, as a pipe.
 *
 * Thread: any.
 */
#ifndef PROTO_BASE_FILE_READ_H
#define PROTO_BASE_FILE_READ_H

#include "proto/base/memory.h"

/* Appends it. ERR_IO: "PATH: why"; ERR_FULL: it has more than `most` bytes. `out` is the caller's to close. */
MUST_USE enum status file_read(const char *path, size_t most, struct bytes *out);

#endif
