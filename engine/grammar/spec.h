/*
 * spec: a grammar as a client wrote it.
 *
 * Thread: frozen once it is made.
 */
#ifndef ENGINE_GRAMMAR_SPEC_H
#define ENGINE_GRAMMAR_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum grammar_kind {
    GRAMMAR_JSON_OBJECT,    /* any JSON object; no text */
    GRAMMAR_JSON_SCHEMA,    /* text: a JSON Schema, an object or a boolean */
    GRAMMAR_REGEX,          /* text: a regular expression, anchored at both ends */
    GRAMMAR_CHOICE,         /* text: a JSON array of strings, one of which is the output */
    GRAMMAR_EBNF,           /* text: GBNF, as llama.cpp and XGrammar read it; the start rule is "root" */
    GRAMMAR_LARK,           /* text: Lark, as llguidance reads it; the start rule is "start" */
    GRAMMAR_STRUCTURAL_TAG, /* text: XGrammar's structural tag, a JSON object */
    NUM_GRAMMAR_KINDS
};

enum { MAX_GRAMMAR_BYTES = 256 << 10 }; /* of the text */

struct grammar_spec {
    enum grammar_kind kind;
    const char *text; /* UTF-8 without NUL; borrowed */
    size_t size;
    const char *backend; /* "llguidance", "xgrammar"; NULL: the one that is best at this kind */

    /* JSON schemas and objects: */
    bool disable_any_whitespace;        /* none between elements */
    bool disable_additional_properties; /* objects that do not say so are closed */
    bool lenient;                       /* keywords that cannot be enforced are ignored, not refused */
    const char *whitespace_pattern;     /* a regular expression for the space between elements; NULL: JSON's
                                           own */
};

#endif
