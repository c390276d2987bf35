/*
 * file_map: a file, read where it lies.
 *
 * If the file is cut short while it is mapped, a read behind its new end is a SIGBUS. Then the file
 * is named on stderr and the process ends with status 1. Another file moved to its name does no harm.
 *
 * Thread: any; a map belongs to the one that opened it.
 */
#ifndef PROTO_BASE_FILE_MAP_H
#define PROTO_BASE_FILE_MAP_H

#include "proto/base/memory.h"

struct file_map {
    const uint8_t *data; /* NULL: not open */
    size_t bytes;
};

/* ERR_NOT_FOUND, ERR_IO; ERR_UNSUPPORTED: no regular file; ERR_CORRUPT: empty. The sentence is about
 * the path, and does not name it. */
MUST_USE enum status file_map_open(const char *path, struct file_map *out);
void file_map_close(struct file_map *map); /* one that is not open is fine */

/* Gives the memory of the pages of bytes [first, end) back; they are read again where they are needed. */
void file_map_drop_pages(const struct file_map *map, size_t first, size_t end);

#endif
