/*
 * schema: JSON Schemas as JSON, and every schema inside one.
 *
 * The schemas of a document are its root, those under the keywords that hold schemas, and what a
 * "$ref" into the document names, each once. Nothing recurses: a chain of references is as long as
 * the text.
 *
 * Thread: any; a json_t belongs to one.
 */
#ifndef ENGINE_GRAMMAR_SCHEMA_H
#define ENGINE_GRAMMAR_SCHEMA_H

#include "proto/base/memory.h"

#include <jansson.h>

/* JSON from outside. `what` begins the sentence of ERR_INVALID ("the schema is no JSON: ... at byte
 * 12"); a key that is given twice is refused, since readers disagree about which counts. */
MUST_USE enum status schema_load(const char *what, const char *text, size_t size, json_t **out);

/* Where a schema is in its document. */
struct schema_place {
    const struct schema_place *parent; /* NULL: the root */
    const char *keyword;               /* "properties", "items", ... ; NULL: the root */
    const char *name;                  /* of the property; NULL: not under a name */
    size_t index;                      /* in an array, with is_item */
    bool is_item;
    json_t *schema; /* an object or a boolean, or what is wrongly in its stead */
};

/* Calls `visit` with each schema of the document until one fails; returns what it returned. visit
 * may add to the schema that it is given what is no schema itself. */
MUST_USE enum status
schema_visit(json_t *root, enum status (*visit)(void *user, const struct schema_place *place),
             void *user);

/* Closes each object that lists its properties and does not say which others it takes. */
MUST_USE enum status schema_close_objects(json_t *root);

enum { SCHEMA_PATH_BYTES = 160 };
/* "/properties/a": a JSON pointer, cut at the front if it is long; "the root". */
const char *schema_path(const struct schema_place *place, char text[static SCHEMA_PATH_BYTES]);

#endif
