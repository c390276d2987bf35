/* command_args: which row a command is, and its arguments as the row says. */
#include "engine/control/commands.h"
#include "proto/config/option.h"
#include "proto/wire/messages.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- which ----------------------------------------------------------------------------------- */

static const struct control_command *find(const char *name)
{
    for (size_t i = 0; i < control_num_commands; i++)
        if (strcmp(control_commands[i].name, name) == 0)
            return &control_commands[i];
    return NULL;
}

static enum status unknown_command(const char *name)
{
    const char *names[64] = {NULL}, *nearest;

    ASSERT(control_num_commands < COUNT_OF(names));
    for (size_t i = 0; i < control_num_commands; i++)
        names[i] = control_commands[i].name;
    nearest = nearest_word(name, names);
    if (nearest)
        return fail(ERR_INVALID, "'%.64s' is no command; did you mean '%s'?", name, nearest);
    return fail(ERR_INVALID, "'%.64s' is no command; 'help' lists them", name);
}

enum status control_command_find(const char *name, const json_t *args,
                                 const struct control_command **out, size_t *num_words_out)
{
    const char *second = json_is_array(args) ? json_string_value(json_array_get(args, 0)) : NULL;
    AUTO_MEM char *both = second ? mem_printf("%s %.64s", name, second) : NULL;

    *num_words_out = 0;
    *out = find(name);
    if (!*out && both) {
        *out = find(both);
        *num_words_out = 1;
    }
    return *out ? OK : unknown_command(both ? both : name);
}

static const char *value_name(const struct control_arg *arg)
{
    return arg->kind == CONTROL_SECONDS ? "SECONDS" : arg->kind == CONTROL_INTEGER ? "N" : "WORD";
}

static void print_arg(const struct control_arg *arg, struct bytes *out)
{
    AUTO_MEM char *name = mem_strdup(arg->name), *words = mem_strdup(arg->words ? arg->words : "");

    for (char *c = name; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    for (char *c = words; *c; c++)
        *c = *c == ' ' ? '|' : *c;
    bytes_printf(out, arg->is_needed ? " " : " [");
    if (arg->is_flag)
        bytes_printf(out, "--%s %s", arg->name, *words ? words : value_name(arg));
    else
        bytes_printf(out, "%s", *words ? words : name);
    bytes_printf(out, arg->is_needed ? "" : "]");
}

void control_command_usage(const struct control_command *command, struct bytes *out)
{
    bytes_printf(out, "%s", command->name);
    for (const struct control_arg *arg = command->args; arg->name; arg++)
        print_arg(arg, out);
}

/* ---- values ---------------------------------------------------------------------------------- */

static enum status wrong(const struct control_command *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The sentence, and how the command is called. */
static enum status wrong(const struct control_command *command, const char *format, ...)
{
    AUTO_CLOSE(bytes) struct bytes usage = {0};
    char sentence[256];
    va_list list;

    va_start(list, format);
    vsnprintf(sentence, sizeof sentence, format, list);
    va_end(list);
    control_command_usage(command, &usage);
    return fail(ERR_INVALID, "%s; usage: %s", sentence, bytes_text(&usage));
}

static enum status check_range(const struct control_command *command, const struct control_arg *arg,
                               double value)
{
    if (value >= arg->least && value <= arg->most)
        return OK;
    return wrong(command, "%s must be %.15g to %.15g, not %.15g", arg->name, arg->least, arg->most,
                 value);
}

/* Numbers may come as they are or as text: a command line has nothing else. */
static enum status read_number(const struct control_command *command, const struct control_arg *arg,
                               const json_t *value, json_t **out)
{
    const char *text = json_string_value(value);
    bool is_integer = arg->kind == CONTROL_INTEGER;
    char *end = NULL;
    double number = text ? strtod(text, &end) : json_number_value(value);
    bool has_unit = end && arg->kind == CONTROL_SECONDS && strcmp(end, "s") == 0; /* "100s" */
    bool is_number = text ? end > text && (!*end || has_unit) : json_is_number(value);

    if (!is_number || !isfinite(number) || (is_integer && number != floor(number)))
        return wrong(command, "%s must be %s", arg->name, is_integer ? "an integer" : "a number");
    TRY(check_range(command, arg, number));
    *out = is_integer ? json_integer((json_int_t)number) : json_real(number);
    return OK;
}

static bool is_one_of(const char *word, const char *words)
{
    size_t size = strlen(word);

    for (const char *at = words; at; at = strchr(at, ' ') ? strchr(at, ' ') + 1 : NULL)
        if (strcspn(at, " ") == size && strncmp(at, word, size) == 0)
            return true;
    return false;
}

static enum status read_text(const struct control_command *command, const struct control_arg *arg,
                             const json_t *value, json_t **out)
{
    const char *text = json_string_value(value);
    AUTO_MEM char *dumped = NULL;

    /* {"value": 5} of a setting is as good as "5". */
    if (!text && arg->kind == CONTROL_TEXT && (json_is_number(value) || json_is_boolean(value)))
        text = dumped = json_dumps(value, JSON_ENCODE_ANY);
    if (!text || strlen(text) != (dumped ? strlen(dumped) : json_string_length(value)))
        return wrong(command, "%s must be text", arg->name);
    if (arg->words && !is_one_of(text, arg->words))
        return wrong(command, "%s must be one of %s, not '%.32s'", arg->name, arg->words, text);
    *out = json_string(text);
    return OK;
}

static enum status put(const struct control_command *command, const struct control_arg *arg,
                       const json_t *value, json_t *out)
{
    bool is_number = arg->kind == CONTROL_INTEGER || arg->kind == CONTROL_SECONDS;
    json_t *read = NULL;

    if (json_object_get(out, arg->name))
        return wrong(command, "%s is given twice", arg->name);
    TRY(is_number ? read_number(command, arg, value, &read) : read_text(command, arg, value, &read));
    json_object_set_new(out, arg->name, read);
    return OK;
}

/* ---- words and objects ------------------------------------------------------------------------- */

static const struct control_arg *find_arg(const struct control_command *command, const char *name,
                                          size_t size)
{
    for (const struct control_arg *arg = command->args; arg->name; arg++)
        if (strlen(arg->name) == size && strncmp(arg->name, name, size) == 0)
            return arg;
    return NULL;
}

/* The next that is no flag and has no value yet. */
static const struct control_arg *next_place(const struct control_command *command, const json_t *out)
{
    for (const struct control_arg *arg = command->args; arg->name; arg++)
        if (!arg->is_flag && !json_object_get(out, arg->name))
            return arg;
    return NULL;
}

/* "--wait", "5" or "--wait=5"; moves *i on when it takes the next word. */
static enum status read_flag(const struct control_command *command, const json_t *words, size_t *i,
                             json_t *out)
{
    const char *word = json_string_value(json_array_get(words, *i)) + 2;
    size_t size = strcspn(word, "=");
    const struct control_arg *arg = find_arg(command, word, size);
    enum status status;
    json_t *value;

    if (!arg || !arg->is_flag)
        return wrong(command, "--%.32s is unknown", word);
    value = word[size] ? json_string(word + size + 1)
                       : json_incref(json_array_get(words, *i += 1));
    if (!value)
        return wrong(command, "--%s needs a value", arg->name);
    status = put(command, arg, value, out);
    json_decref(value);
    return status;
}

static enum status read_words(const struct control_command *command, const json_t *words,
                              size_t first, json_t *out)
{
    for (size_t i = first; i < json_array_size(words); i++) {
        const json_t *value = json_array_get(words, i);
        const char *word = json_string_value(value);
        const struct control_arg *arg = next_place(command, out);

        if (!word)
            return wrong(command, "word %zu is no text", i + 1);
        if (strncmp(word, "--", 2) == 0)
            TRY(read_flag(command, words, &i, out));
        else if (arg)
            TRY(put(command, arg, value, out));
        else
            return wrong(command, "'%.32s' is one word too many", word);
    }
    return OK;
}

static enum status read_object(const struct control_command *command, const json_t *object,
                               json_t *out)
{
    const char *name;
    json_t *value;

    json_object_foreach ((json_t *)object, name, value) {
        const struct control_arg *arg = find_arg(command, name, strlen(name));

        if (!arg)
            return wrong(command, "'%.32s' is unknown", name);
        TRY(put(command, arg, value, out));
    }
    return OK;
}

static enum status check_needed(const struct control_command *command, const json_t *args)
{
    for (const struct control_arg *arg = command->args; arg->name; arg++)
        if (arg->is_needed && !json_object_get(args, arg->name))
            return wrong(command, "%s is missing", arg->name);
    return OK;
}

enum status control_args_read(const struct control_command *command, const json_t *args,
                              size_t num_skipped, json_t **out)
{
    json_t *read = json_object();
    enum status status = OK;

    if (json_is_array(args))
        status = read_words(command, args, num_skipped, read);
    else if (json_is_object(args))
        status = read_object(command, args, read);
    else if (args)
        status = wrong(command, "arguments are an object or a list of words");
    if (status == OK)
        status = check_needed(command, read);
    if (status == OK)
        *out = read;
    else
        json_decref(read);
    return status;
}
