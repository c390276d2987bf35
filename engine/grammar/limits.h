/*
 * limits: what is refused before a library sees it.
 *
 * They bound what a grammar can cost; they do not judge whether it is one, which the library does.
 * What passes may still be costly: each grammar has a process of its own for that (host.h).
 *
 * Thread: any.
 */
#ifndef ENGINE_GRAMMAR_LIMITS_H
#define ENGINE_GRAMMAR_LIMITS_H

#include "engine/grammar/spec.h"
#include "proto/base/memory.h"

#include <jansson.h>

enum {
    MAX_GRAMMAR_DEPTH = 64,         /* of JSON's brackets, of parentheses */
    MAX_GRAMMAR_REPEAT = 4096,      /* n of {m,n}; minItems, maxItems and the like */
    MAX_GRAMMAR_REPEATS = 65536,    /* the product of those inside one another */
    MAX_GRAMMAR_LENGTH = 1 << 20,   /* minLength, maxLength */
    MAX_GRAMMAR_PROPERTIES = 1000,  /* properties of a schema */
    MAX_GRAMMAR_PATTERNS = 64,      /* patternProperties of a schema */
    MAX_GRAMMAR_MULTIPLE = 10000,   /* multipleOf */
    MAX_GRAMMAR_RULES = 2000,       /* of an EBNF or Lark grammar */
    MAX_GRAMMAR_INTERSECTIONS = 16, /* & of a Lark grammar */
};

/* ERR_INVALID: NUL, no UTF-8, no JSON where JSON is due, a text that is empty; ERR_FULL: a limit.
 * The sentence has the numbers. json_out: the text of a kind that is JSON, parsed; NULL of the
 * others. */
MUST_USE enum status limits_check(const struct grammar_spec *spec, json_t **json_out);

/* Of a schema inside of something else. */
MUST_USE enum status limits_check_schema(json_t *schema);

#endif
