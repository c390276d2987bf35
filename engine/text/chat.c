#include "engine/text/chat.h"

#include "proto/model/json_field.h"

#include <string.h>

/* ---- messages ------------------------------------------------------------------------------- */

/* The text of the parts, a line each. */
static enum status join_parts(const json_t *parts, size_t at, struct bytes *out)
{
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        bool is_text = type && (strcmp(type, "text") == 0 || strcmp(type, "refusal") == 0);
        const json_t *text = is_text ? json_object_get(part, type) : NULL;

        if (!type)
            return fail(ERR_INVALID, "messages[%zu].content[%zu] must be an object with a type", at,
                        i);
        if (!is_text)
            return fail(ERR_UNSUPPORTED,
                        "messages[%zu].content[%zu] is of type \"%.32s\", only "
                        "text is supported",
                        at, i, type);
        if (!json_is_string(text))
            return fail(ERR_INVALID, "messages[%zu].content[%zu].%s must be a string", at, i, type);
        if (i > 0)
            bytes_append(out, "\n", 1);
        bytes_append(out, json_string_value(text), json_string_length(text));
    }
    return OK;
}

static enum status plain_content(json_t *message, size_t at)
{
    const json_t *content = field_find(message, "content");
    AUTO_CLOSE(bytes) struct bytes text = {0};

    if (json_is_string(content))
        return OK;
    if (content && !json_is_array(content))
        return fail(ERR_INVALID,
                    "messages[%zu].content must be a string, null or an array of "
                    "parts",
                    at);
    TRY(join_parts(content, at, &text)); /* null and none have no parts */
    json_object_set_new(message, "content", json_stringn(bytes_text(&text), text.size));
    return OK;
}

/* "{\"city\": …}" becomes {"city": …}, and what is no object becomes {}: a model may write such a
 * call, and every later request that holds it would be refused. */
static enum status plain_arguments(json_t *function, size_t at, size_t call)
{
    const json_t *text = field_find(function, "arguments");
    json_error_t error = {0};
    json_t *arguments = NULL;

    if (text && !json_is_string(text))
        return OK;
    if (json_string_length(text) > 0)
        arguments =
            json_loadb(json_string_value(text), json_string_length(text), JSON_ALLOW_NUL, &error);
    if (!arguments && json_error_code(&error) == json_error_numeric_overflow)
        return fail(ERR_INVALID,
                    "messages[%zu].tool_calls[%zu].function.arguments has a number that does not "
                    "fit into 64 bits",
                    at, call);
    if (!json_is_object(arguments)) {
        json_decref(arguments);
        arguments = json_object();
    }
    json_object_set_new(function, "arguments", arguments);
    return OK;
}

static enum status plain_tool_calls(json_t *message, size_t at)
{
    json_t *calls = json_object_get(message, "tool_calls");

    if (!calls || json_is_null(calls) || (json_is_array(calls) && json_array_size(calls) == 0)) {
        json_object_del(message, "tool_calls"); /* many a template asks only whether it is there */
        return OK;
    }
    if (!json_is_array(calls))
        return fail(ERR_INVALID, "messages[%zu].tool_calls must be an array", at);
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *function = json_object_get(json_array_get(calls, i), "function");

        if (!json_is_string(json_object_get(function, "name")))
            return fail(ERR_INVALID,
                        "messages[%zu].tool_calls[%zu] must be an object with a "
                        "function that has a name",
                        at, i);
        TRY(plain_arguments(function, at, i));
    }
    return OK;
}

/* What an assistant has thought goes by three names; templates look for it by the first two. */
static void plain_reasoning(json_t *message)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    json_t *reasoning = NULL;

    if (strcmp(json_string_value(json_object_get(message, "role")), "assistant") != 0)
        return;
    for (size_t i = 0; i < COUNT_OF(names) && (!reasoning || json_is_null(reasoning)); i++)
        reasoning = json_object_get(message, names[i]);
    if (!reasoning || json_is_null(reasoning))
        return;
    json_object_set(message, "reasoning_content", reasoning);
    if (!field_find(message, "thinking"))
        json_object_set(message, "thinking", reasoning);
}

/* Of a copy, which is ours to change. */
static enum status plain_messages(json_t *messages)
{
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return fail(ERR_INVALID, "messages must be an array of at least one message");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);

        if (!json_is_object(message))
            return fail(ERR_INVALID, "messages[%zu] must be an object", i);
        if (!json_is_string(json_object_get(message, "role")))
            return fail(ERR_INVALID, "messages[%zu].role must be a string", i);
        TRY(plain_content(message, i));
        TRY(plain_tool_calls(message, i));
        plain_reasoning(message);
    }
    return OK;
}

/* ---- what the template sees ------------------------------------------------------------------ */

static void set_text(json_t *context, const char *name, const char *text)
{
    if (text) /* stays undefined where jansson finds that it is no UTF-8 */
        json_object_set_new(context, name, json_string(text));
}

/* The extra variables may replace special tokens, but not the conversation. */
static enum status set_extra(json_t *context, const json_t *extra)
{
    static const char *const ours[] = {"messages", "tools", "add_generation_prompt"};

    if (!extra || json_is_null(extra))
        return OK;
    if (!json_is_object(extra))
        return fail(ERR_INVALID, "chat_template_kwargs must be an object");
    for (size_t i = 0; i < COUNT_OF(ours); i++)
        if (json_object_get(extra, ours[i]))
            return fail(ERR_INVALID, "chat_template_kwargs cannot set %s", ours[i]);
    json_object_update(context, (json_t *)extra);
    return OK;
}

static enum status fill_context(const struct chat *chat, json_t *context)
{
    json_t *messages = json_deep_copy(chat->messages);

    json_object_set_new(context, "messages", messages);
    TRY(plain_messages(messages));
    if (chat->tools && !json_is_null(chat->tools) && !json_is_array(chat->tools))
        return fail(ERR_INVALID, "tools must be an array");
    json_object_set_new(context, "tools",
                        chat->tools ? json_incref((json_t *)chat->tools) : json_null());
    json_object_set_new(context, "documents", json_null());
    json_object_set_new(context, "add_generation_prompt",
                        json_boolean(chat->add_generation_prompt));
    set_text(context, "bos_token", chat->bos_token);
    set_text(context, "eos_token", chat->eos_token);
    return set_extra(context, chat->extra);
}

enum status chat_render(const struct template *t, const struct chat *chat, struct bytes *out)
{
    json_t *context;
    enum status status;

    if (!t)
        return fail(ERR_UNSUPPORTED, "the model has no chat template; pass --chat-template FILE");
    context = json_object();
    status = fill_context(chat, context);
    if (status == OK)
        status = template_render(t, context, NULL, out);
    json_decref(context);
    return status;
}
