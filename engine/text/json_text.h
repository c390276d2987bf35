/*
 * json_text: JSON back to text, with every number as it was meant.
 *
 * jansson writes 0.1 as 0.10000000000000001, or loses digits; here a number is the shortest text that
 * is read as the same number again. Keys keep their order.
 *
 * Thread: any.
 */
#ifndef ENGINE_TEXT_JSON_TEXT_H
#define ENGINE_TEXT_JSON_TEXT_H

#include "proto/base/memory.h"

#include <jansson.h>

enum json_spacing { JSON_TIGHT, JSON_SPACED }; /* {"a":1,"b":2}  {"a": 1, "b": 2} */

void json_text(const json_t *json, enum json_spacing spacing, struct bytes *out);

#endif
