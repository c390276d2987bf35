/*
 * chat: a conversation in OpenAI's form, made into a prompt by the model's chat template.
 *
 * The template sees what it sees under transformers: messages, tools and documents (none where
 * not given), add_generation_prompt, bos_token and eos_token, and the extra variables. A content is
 * always a string: parts (texts, and an assistant's refusals) become a line each, and null or none
 * is "", as under vLLM. The arguments of a tool call, JSON in a string, become the object that
 * templates print, {} where they are none; tool_calls that hold no call are left out. The
 * reasoning of an assistant (the first of reasoning_content, thinking and reasoning that is not
 * null) is there as reasoning_content and thinking. All else of a message is passed on as it is.
 *
 * Thread: any.
 */
#ifndef ENGINE_TEXT_CHAT_H
#define ENGINE_TEXT_CHAT_H

#include "engine/text/template.h"

struct chat {
    const json_t *messages; /* an array of at least one */
    const json_t *tools;    /* an array; NULL or null: none */
    const json_t *extra;    /* chat_template_kwargs, an object; NULL or null: none */
    const char *bos_token;  /* NULL: the model has none, and the variable is undefined */
    const char *eos_token;
    bool add_generation_prompt;
};

/*
 * Appends the prompt. ERR_UNSUPPORTED: `t` is NULL, the model came without a template (nothing
 * is assumed: --chat-template FILE is how to give it one), or a part is no text. ERR_INVALID
 * names the index of a message that is wrong, or is the template's own. On failure `out` is as
 * it was.
 */
MUST_USE enum status chat_render(const struct template *t, const struct chat *chat,
                                 struct bytes *out);

#endif
