/*
 * structured_outputs: what a request says of the form of its answers, as a grammar.
 *
 *   response_format     OpenAI's: text, json_object, json_schema; vLLM's structural_tag
 *   structured_outputs  vLLM's object: json, json_object, regex, choice, grammar, structural_tag, with
 *                       disable_any_whitespace, disable_additional_properties, whitespace_pattern; and
 *                       ours: backend (a library), lenient (keywords that can't be enforced are ignored)
 *   guided_*            what vLLM called them before
 *
 * One of them, and one kind in it. Whether the text is such a grammar is the compiler's business.
 *
 * Thread: any.
 */
#ifndef ENGINE_FRONT_STRUCTURED_OUTPUTS_H
#define ENGINE_FRONT_STRUCTURED_OUTPUTS_H

#include "engine/grammar/spec.h"
#include "proto/base/memory.h"

#include <jansson.h>

/* In the arena; NULL: the answers may be anything. ERR_INVALID: a sentence for the client, and the field
 * at fault in param_out. */
MUST_USE enum status structured_outputs_read(const json_t *body, struct arena *arena,
                                             const struct grammar_spec **out,
                                             const char **param_out);
/* Does the body say anything of it, be it right or wrong? */
bool structured_outputs_are_asked_for(const json_t *body);

#endif
