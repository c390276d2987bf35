/*
 * xgrammar_schema: what of a JSON Schema XGrammar would drop without a word.
 *
 * XGrammar reads a schema by the first of some keywords that it finds ($ref, const, enum, anyOf,
 * oneOf, allOf, type, ...) and passes over what stands beside it; of others it only says on stderr
 * that it ignores them. An output would then break the schema. So each is refused by name, before
 * it compiles.
 *
 * Thread: any; a json_t belongs to one.
 */
#ifndef ENGINE_GRAMMAR_XGRAMMAR_SCHEMA_H
#define ENGINE_GRAMMAR_XGRAMMAR_SCHEMA_H

#include "proto/base/memory.h"

#include <jansson.h>

/* ERR_INVALID: "the keyword `uniqueItems` at /properties/a is not enforced by xgrammar". */
MUST_USE enum status xgrammar_check_schema(json_t *schema);
/* The schemas inside of a structural tag, and formats that name tokens rather than text. With
 * `lenient`, only the latter. */
MUST_USE enum status xgrammar_check_structural_tag(json_t *tag, bool lenient);

#endif
