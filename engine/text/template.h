/*
 * template: the part of Jinja2 that chat templates use, interpreted in a sandbox.
 *
 * A template comes from a model file, so it is hostile until it has run: no file, no clock but
 * the one that strftime_now gets, no attribute but those of values, bounded steps, depth and
 * memory. Blocks are trimmed as Hugging Face does (trim_blocks, lstrip_blocks), and values print
 * as Python prints them.
 *
 * What differs from Jinja2: integers have 64 bits (more is an error), case mapping is one code
 * point to one, generators are evaluated at once (and can be walked once, as there), `safe` makes
 * no Markup (its string is as any other), and what is not supported is refused when the template
 * is compiled, taken or not; only the filters, tests and methods within an if, a statement's or an
 * expression's, are refused when they are reached.
 *
 * Thread: a compiled template is frozen; renders may run on any thread.
 */
#ifndef ENGINE_TEXT_TEMPLATE_H
#define ENGINE_TEXT_TEMPLATE_H

#include "proto/base/memory.h"

#include <jansson.h>

struct template;

struct template_limits {
    int64_t max_steps;        /* expressions, items and each 256 bytes walked; 0: 10,000,000 */
    int32_t max_depth;        /* nesting of calls and of values; 0: 100 */
    int64_t max_output_bytes; /* 0: 64 MiB; strings and lists built on the way count too */
    int64_t now_s;            /* what strftime_now sees, since 1970; 0: the machine's clock */
};

/* ERR_CORRUPT: line, column and what was expected. ERR_UNSUPPORTED: line, column and the tag,
 * filter, test or method that we do not have. Copies the source; at most 1 MiB, nested 100 deep. */
MUST_USE enum status template_new(const char *source, size_t size, struct template **out);
void template_free(struct template *t); /* NULL is fine */
DEFINE_AUTO_FREE(template)

/*
 * Renders with `context` (a JSON object: messages, add_generation_prompt, bos_token, eos_token,
 * tools, …). Appends to `out`; on failure `out` is as it was.
 * ERR_INVALID: raise_exception(msg) of the template, with its message, or a mistake such as an
 * undefined value used as a string operand, with the line. ERR_FULL: a limit, with its number.
 * ERR_UNSUPPORTED: a filter, test or method within an if, named as template_new does.
 */
MUST_USE enum status template_render(const struct template *t, const json_t *context,
                                     const struct template_limits *limits, struct bytes *out);

#endif
