/*
 * module: parts of the program that stand in files of their own, for they need libraries that most machines lack:
 * opened when they are asked for, and never closed.
 *
 * A module exports one table by its name, whose first member is its size, `size_t table_bytes`: one of another build
 * is told by it.
 *
 * Thread: any.
 */
#ifndef PROTO_BASE_MODULE_H
#define PROTO_BASE_MODULE_H

#include "proto/base/status.h"

/* The table `name` of the file at `path`; NULL: NAME.so beside the program. ERR_MISSING: it can't be opened;
 * ERR_MISMATCH: it is of another build. */
MUST_USE enum status module_open(const char *path, const char *name, size_t table_bytes, const void **table_out);

#endif
