/*
 * template: the part of Jinja2 that chat templates use, interpreted in a sandbox.
 *
 * A template comes from a model file, so it is hostile until it has run: no file, no clock, no
 * attribute but those of values, bounded steps, depth, loop count and output. Blocks are
 * trimmed as Hugging Face does (trim_blocks, lstrip_blocks).
 *
 * Thread: a compiled template is frozen; renders may run on any thread.
 */
#ifndef ENGINE_TEXT_TEMPLATE_H
#define ENGINE_TEXT_TEMPLATE_H

#include "proto/base/memory.h"

#include <jansson.h>

struct template;

struct template_limits {
    int64_t max_steps;        /* expressions and statements evaluated; 0: 10,000,000 */
    int32_t max_depth;        /* nesting of source, calls and values; 0: 100 */
    int64_t max_output_bytes; /* 0: 64 MiB; strings built on the way count too */
};

/* ERR_CORRUPT: line, column and what was expected. */
MUST_USE enum status template_new(const char *source, size_t size, struct template **out);
void template_free(struct template *t); /* NULL is fine */
DEFINE_AUTO_FREE(template)

/*
 * Renders with `context` (a JSON object: messages, add_generation_prompt, bos_token, eos_token,
 * tools, …). Appends to `out`; on failure `out` is as it was.
 * ERR_INVALID: raise_exception(msg) of the template, with its message, or a mistake such as an
 * undefined value used as a string operand, with the line. ERR_FULL: a limit, with its number.
 */
MUST_USE enum status template_render(const struct template *t, const json_t *context,
                                     const struct template_limits *limits, struct bytes *out);

#endif
