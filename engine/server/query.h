/*
 * query: what stands behind the '?' of a path, as an endpoint's parameters.
 *
 * Only for words and numbers: nothing is percent-decoded. Thread: any.
 */
#ifndef ENGINE_SERVER_QUERY_H
#define ENGINE_SERVER_QUERY_H

#include "proto/base/memory.h"

enum { MAX_QUERY_VALUE = 32 };

struct query_parameter {
    const char *name;
    char value[MAX_QUERY_VALUE + 1]; /* the default, until it is given; the last one given counts */
};

/* "mode=wait&clear_cache=0". ERR_INVALID: a name that is not among the parameters (a slip must not do
 * something else than was meant), a value that is too long. */
MUST_USE enum status query_read(const char *query, struct query_parameter *parameters, size_t n);
/* true, false, 1 or 0. */
MUST_USE enum status query_flag(const struct query_parameter *parameter, bool *out);

#endif
