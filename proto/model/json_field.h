/*
 * json_field: fields of JSON objects by their key and type, for the readers of Hugging Face's files.
 *
 * A field that is null is not there. One that is not there leaves *out alone; one of another type, or out of its
 * range, is ERR_CORRUPT and a sentence with its key, its value and what is possible.
 *
 * Thread: any.
 */
#ifndef PROTO_MODEL_JSON_FIELD_H
#define PROTO_MODEL_JSON_FIELD_H

#include "proto/base/memory.h"

#include <jansson.h>

/* A whole file, no key of which is there twice. flags: more of jansson's. ERR_CORRUPT: it has more than `most`
 * bytes, or line and column. */
MUST_USE enum status field_parse(const void *data, size_t size, size_t most, size_t flags, json_t **out);

/* NULL: it is not there, or `object` is none. */
const json_t *field_find(const json_t *object, const char *key);
MUST_USE enum status field_integer(const json_t *object, const char *key, int32_t least, int32_t most,
                                   int32_t *out);
MUST_USE enum status field_float(const json_t *object, const char *key, double least, double most, float *out);
MUST_USE enum status field_bool(const json_t *object, const char *key, bool *out);
/* Borrows it from the object. */
MUST_USE enum status field_text(const json_t *object, const char *key, const char **out);

/* ERR_CORRUPT: it must be there. */
MUST_USE enum status field_missing(const char *key);
/* `status`, "KEY is VALUE; NEEDED": as it stands in the file, and no more than a line of it. */
MUST_USE enum status field_wrong(enum status status, const char *key, const json_t *value, const char *needed);

#endif
