/*
 * fuzz_control: any bytes as a frame on the control socket: refused with a sentence, or a command whose
 * arguments are as its row says.
 */
#include "engine/control/commands.h"
#include "proto/wire/messages.h"

#include <string.h>

static void check_args(const struct control_command *command, const json_t *args)
{
    ASSERT(json_is_object(args) && json_object_size(args) <= MAX_CONTROL_ARGS);
    for (const struct control_arg *arg = command->args; arg->name; arg++) {
        const json_t *value = json_object_get(args, arg->name);

        ASSERT(value || !arg->is_needed);
        if (!value)
            continue;
        if (arg->kind == CONTROL_TEXT || arg->kind == CONTROL_FILE || arg->kind == CONTROL_WORD)
            ASSERT(json_is_string(value) && (!arg->words || strstr(arg->words, json_string_value(value))));
        else
            ASSERT(json_number_value(value) >= arg->least && json_number_value(value) <= arg->most);
    }
}

static void read_command(const char *name, const json_t *args)
{
    const struct control_command *command;
    json_t *read = NULL;
    size_t num_words;

    if (control_command_find(name, args, &command, &num_words) == OK &&
        control_args_read(command, args, num_words, &read) == OK)
        check_args(command, read);
    else
        ASSERT(*fail_text());
    json_decref(read);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    const struct control_request *request;
    struct message message;
    json_t *args;

    if (size > MAX_CONTROL_FRAME || message_decode(data, size, &arena, &message) != OK ||
        message.type != &control_request_type)
        return 0;
    request = message.body;
    args = json_loads(request->args, JSON_REJECT_DUPLICATES, NULL);
    read_command(request->command, args);
    json_decref(args);
    return 0;
}
