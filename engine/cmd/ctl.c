/* ctl: one command to an engine that runs, over its control socket. */
#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/control/client.h"
#include "proto/base/clock.h"
#include "proto/config/option.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct ctl_options {
    char *socket, *key, *server_key, *run_dir;
    bool json;
    double timeout; /* seconds */
};

#define ROW(member, ...) OPTION(struct ctl_options, member, __VA_ARGS__)
static const struct option option_rows[] = {
    ROW(socket, OPTION_TEXT, NULL, "ipc://PATH or tcp://HOST:PORT; the one engine of this user",
        .value = "ADDR", .group = "Options"),
    ROW(key, OPTION_TEXT, NULL, "for tcp: our key, from `tandem ctl keygen`", .value = "FILE"),
    ROW(server_key, OPTION_TEXT, NULL,
        "for tcp: the engine's public key, where the key file has no line `server`",
        .value = "KEY"),
    ROW(json, OPTION_BOOL, "false", "the answer as JSON"),
    ROW(timeout, OPTION_F64, "0", "seconds to wait for the answer; 0: 60, on top of what --wait says",
        .most = 1e6),
    ROW(run_dir, OPTION_TEXT, NULL, "where to look for the engine: its --run-dir",
        .value = "FOLDER"),
};
#undef ROW

static struct option_set ctl_option_set(struct ctl_options *options)
{
    return (struct option_set){option_rows, COUNT_OF(option_rows), options};
}

/* ---- the command line -------------------------------------------------------------------------- */

/* Which words are ours, wherever they stand, and which the command's: the engine knows about those. */
struct words {
    char **own; /* [num_own], argv[0] first */
    int num_own;
    json_t *command;
};

static const struct option *own_option(const char *word)
{
    struct option_set set = ctl_option_set(NULL);
    AUTO_MEM char *name = NULL;

    if (strncmp(word, "--", 2) != 0)
        return NULL;
    name = mem_strndup(word + 2, strcspn(word + 2, "="));
    return option_find(&set, name);
}

static enum status take_word(struct words *words, const char *word)
{
    json_t *string = json_string(word);

    if (!string)
        return fail(ERR_INVALID, "a word of the command is not UTF-8");
    json_array_append_new(words->command, string);
    return OK;
}

static enum status split_words(int argc, char **argv, struct words *out)
{
    out->own = mem_new_array(char *, (size_t)argc + 1);
    out->own[out->num_own++] = argv[0];
    out->command = json_array();
    for (int i = 1; i < argc; i++) {
        const struct option *option = own_option(argv[i]);

        if (!option && !json_array_size(out->command) && argv[i][0] == '-') {
            out->own[out->num_own++] = argv[i]; /* to be refused with the nearest of ours */
            continue;
        }
        if (!option) {
            TRY(take_word(out, argv[i]));
            continue;
        }
        out->own[out->num_own++] = argv[i];
        if (option->kind != OPTION_BOOL && !strchr(argv[i], '=') && i + 1 < argc)
            out->own[out->num_own++] = argv[++i];
    }
    return OK;
}

static void words_close(struct words *words)
{
    mem_free(words->own);
    json_decref(words->command);
}

static const char *word_at(const struct words *words, size_t i)
{
    return json_string_value(json_array_get(words->command, i));
}

/* ---- what people read -------------------------------------------------------------------------- */

static char *cell_text(const json_t *value)
{
    if (json_is_string(value))
        return mem_strdup(json_string_value(value));
    if (!value || json_is_null(value))
        return mem_strdup("-");
    return json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
}

/* Characters of UTF-8, as far as a terminal gives each one place. */
static int width_of(const char *text)
{
    int width = 0;

    for (; *text; text++)
        width += (*text & 0xC0) != 0x80;
    return width;
}

static void print_cell(const json_t *value, int width, bool is_last)
{
    AUTO_MEM char *text = cell_text(value);
    int missing = width - width_of(text);

    if (json_is_number(value))
        printf("%*s%s", missing, "", text);
    else
        printf("%s%*s", text, is_last ? 0 : missing, "");
    fputs(is_last ? "\n" : "  ", stdout);
}

enum { MAX_COLUMNS = 32 };

/* Rows that are objects: their names are the columns. */
static void print_table(const json_t *rows)
{
    const char *names[MAX_COLUMNS];
    int widths[MAX_COLUMNS], n = 0;
    const char *name;
    json_t *value, *row;
    size_t i;

    json_object_foreach (json_array_get(rows, 0), name, value)
        if (n < MAX_COLUMNS) {
            names[n] = name;
            widths[n++] = width_of(name);
        }
    json_array_foreach ((json_t *)rows, i, row)
        for (int k = 0; k < n; k++) {
            AUTO_MEM char *text = cell_text(json_object_get(row, names[k]));

            widths[k] = MAX(widths[k], width_of(text));
        }
    for (int k = 0; k < n; k++) {
        bool is_number = json_is_number(json_object_get(json_array_get(rows, 0), names[k]));

        printf("%*s%s", is_number ? widths[k] : k + 1 < n ? -widths[k] : 0, names[k],
               k + 1 < n ? "  " : "\n");
    }
    json_array_foreach ((json_t *)rows, i, row)
        for (int k = 0; k < n; k++)
            print_cell(json_object_get(row, names[k]), widths[k], k + 1 == n);
}

static void print_object(const json_t *object)
{
    const char *name;
    json_t *value;
    int width = 0;

    json_object_foreach ((json_t *)object, name, value)
        width = MAX(width, width_of(name));
    json_object_foreach ((json_t *)object, name, value) {
        AUTO_MEM char *text = cell_text(value);

        printf("%-*s  %s\n", width, name, text);
    }
}

static void print_answer(const json_t *json)
{
    if (json_is_string(json)) {
        const char *text = json_string_value(json);
        size_t size = strlen(text);

        printf("%s%s", text, size && text[size - 1] == '\n' ? "" : "\n");
    } else if (json_is_array(json) && json_is_object(json_array_get(json, 0))) {
        print_table(json);
    } else if (json_is_array(json) && !json_array_size(json)) {
        puts("none");
    } else if (json_is_object(json)) {
        print_object(json);
    } else {
        AUTO_MEM char *text = cell_text(json);

        puts(text);
    }
}

/* ---- what needs no engine ----------------------------------------------------------------------- */

static enum status keygen(const struct ctl_options *options, const struct words *words)
{
    struct control_key_file file;

    if (json_array_size(words->command) != 2)
        return fail(ERR_INVALID, "usage: tandem ctl keygen FILE [--server-key KEY]");
    TRY(control_key_file_create(word_at(words, 1), options->server_key, &file));
    puts(file.pair.public_key);
    explicit_bzero(&file, sizeof file);
    return OK;
}

/* The words that may follow `first`: second words of commands, or what an argument may be. */
static void complete_after(const char *first, struct bytes *out)
{
    size_t size = strlen(first);

    for (size_t i = 0; i < control_num_commands; i++) {
        const struct control_command *command = &control_commands[i];

        if (strncmp(command->name, first, size) == 0 && command->name[size] == ' ')
            bytes_printf(out, " %s", command->name + size + 1);
        if (strcmp(command->name, first) != 0)
            continue;
        for (const struct control_arg *arg = command->args; arg->name; arg++)
            if (arg->is_flag)
                bytes_printf(out, " --%s", arg->name);
            else if (arg->words)
                bytes_printf(out, " %s", arg->words);
    }
}

static bool is_first_with_word(size_t command, size_t size)
{
    for (size_t i = 0; i < command; i++)
        if (strncmp(control_commands[i].name, control_commands[command].name, size) == 0 &&
            (control_commands[i].name[size] == ' ' || !control_commands[i].name[size]))
            return false;
    return true;
}

static void print_completion(void)
{
    AUTO_CLOSE(bytes) struct bytes firsts = {0}, cases = {0};

    for (size_t i = 0; i < control_num_commands; i++) {
        size_t size = strcspn(control_commands[i].name, " ");
        AUTO_MEM char *first = mem_strndup(control_commands[i].name, size);
        AUTO_CLOSE(bytes) struct bytes after = {0};

        if (!is_first_with_word(i, size))
            continue;
        bytes_printf(&firsts, "%s ", first);
        complete_after(first, &after);
        if (after.size)
            bytes_printf(&cases, "    %s) words=\"%s\" ;;\n", first, bytes_text(&after) + 1);
    }
    printf("# bash completion for tandem ctl; made by: tandem ctl completion bash\n"
           "_tandem() {\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} command= words= i\n"
           "    [ \"${COMP_WORDS[1]}\" = ctl ] || return 0\n"
           "    for ((i = 2; i < COMP_CWORD; i++)); do\n"
           "        case ${COMP_WORDS[i]} in\n        ");
    for (size_t i = 0; i < COUNT_OF(option_rows); i++)
        if (option_rows[i].kind != OPTION_BOOL)
            printf("--%s%s", strcmp(option_rows[i].key, "server_key") == 0 ? "server-key"
                             : strcmp(option_rows[i].key, "run_dir") == 0  ? "run-dir"
                                                                           : option_rows[i].key,
                   i + 1 < COUNT_OF(option_rows) ? "|" : "");
    printf(") ((i++)) ;;\n"
           "        -*) ;;\n"
           "        *) command=${COMP_WORDS[i]}; break ;;\n"
           "        esac\n"
           "    done\n"
           "    case $command in\n"
           "    '') words=\"%skeygen completion\" ;;\n"
           "%s"
           "    esac\n"
           "    COMPREPLY=($(compgen -W \"$words --socket --key --server-key --json --timeout --run-dir"
           "\" -- \"$word\"))\n"
           "}\n"
           "complete -o default -F _tandem tandem\n",
           bytes_text(&firsts), bytes_text(&cases));
}

static enum status completion(const struct words *words)
{
    const char *shell = word_at(words, 1);

    if (!shell || strcmp(shell, "bash") != 0)
        return fail(ERR_INVALID, "usage: tandem ctl completion bash");
    print_completion();
    return OK;
}

static int print_help(void)
{
    AUTO_CLOSE(bytes) struct bytes help = {0};
    struct option_set set = ctl_option_set(NULL);

    bytes_printf(&help, "usage: tandem ctl [OPTION]... COMMAND [ARGUMENT]...\n\n"
                        "Tells an engine that runs what to do, or asks what it does.\n");
    options_help(&set, 1, &help);
    bytes_printf(&help, "\nCommands\n");
    for (size_t i = 0; i < control_num_commands; i++) {
        AUTO_CLOSE(bytes) struct bytes usage = {0};

        control_command_usage(&control_commands[i], &usage);
        bytes_printf(&help, "  %-36s %s (%s)\n", bytes_text(&usage), control_commands[i].help,
                     control_role_name(control_commands[i].role));
    }
    bytes_printf(&help, "  %-36s a new key for tcp; prints its public half\n  %-36s to be sourced\n",
                 "keygen FILE [--server-key KEY]", "completion bash");
    fwrite(help.data, 1, help.size, stdout);
    return 0;
}

/* ---- one command ------------------------------------------------------------------------------- */

static enum status read_key(const struct ctl_options *options, struct control_key_file *out)
{
    TRY(control_key_file_read(options->key, out));
    if (!options->server_key)
        return OK;
    if (!curve_key_is_valid(options->server_key))
        return fail(ERR_INVALID, "--server-key is no key: %d characters of Z85 are",
                    CURVE_KEY_CHARS);
    memcpy(out->server, options->server_key, sizeof out->server);
    return OK;
}

static enum status show(const struct ctl_options *options, const struct control_answer *answer)
{
    json_t *json;

    if (answer->status != OK) /* the engine is there: what is closed is what was asked for */
        return fail(answer->status, "%s", answer->text);
    if (options->json) {
        puts(answer->text);
        return OK;
    }
    json = json_loads(answer->text, JSON_DECODE_ANY, NULL);
    if (!json)
        return fail(ERR_CORRUPT, "the answer is no JSON");
    print_answer(json);
    json_decref(json);
    return OK;
}

/* What a command may take by itself: what follows its --wait. */
static double wait_of(const struct words *words)
{
    double seconds = 0;

    for (size_t i = 1; i < json_array_size(words->command); i++) {
        const char *word = word_at(words, i), *next = word_at(words, i + 1);

        if (strncmp(word, "--wait=", 7) == 0)
            seconds = strtod(word + 7, NULL);
        else if (strcmp(word, "--wait") == 0 && next)
            seconds = strtod(next, NULL);
    }
    return seconds >= 0 && seconds < 1e6 ? seconds : 0;
}

static double timeout_of(const struct ctl_options *options, const struct words *words)
{
    enum { ANSWER_S = 60 };

    return options->timeout > 0 ? options->timeout : ANSWER_S + wait_of(words);
}

/* An engine of this host is in another folder: the file of a command, its first argument, is told with its whole path. */
static enum status make_file_absolute(const char *name, json_t *args)
{
    const struct control_command *command;
    AUTO_MEM char *folder = NULL;
    const char *file;
    size_t place;

    if (control_command_find(name, args, &command, &place) != OK || command->args[0].kind != CONTROL_FILE)
        return OK; /* or the engine says what is wrong */
    file = json_string_value(json_array_get(args, place));
    if (!file || !*file || *file == '/' || strncmp(file, "--", 2) == 0)
        return OK;
    folder = getcwd(NULL, 0);
    if (!folder || json_array_set_new(args, place, json_sprintf("%s/%s", folder, file)) != 0)
        return fail(ERR_INVALID, "%s: name it with its whole path, which can't be told from here", file);
    return OK;
}

static enum status ask(const struct ctl_options *options, const struct words *words,
                       bool *was_answered)
{
    AUTO_MEM char *endpoint = options->socket ? mem_strdup(options->socket) : NULL;
    AUTO_CLOSE(control_answer) struct control_answer answer = {0};
    struct control_key_file key = {0};
    json_t *args = json_copy(words->command);
    enum status status = OK;

    json_array_remove(args, 0);
    if (!endpoint)
        status = control_find(options->run_dir, &endpoint);
    if (status == OK && strncmp(endpoint, "ipc://", strlen("ipc://")) == 0)
        status = make_file_absolute(word_at(words, 0), args);
    if (status == OK && options->key)
        status = read_key(options, &key);
    if (status == OK)
        status = control_ask(
            &(struct control_question){
                .endpoint = endpoint,
                .key = options->key ? &key : NULL,
                .command = word_at(words, 0),
                .args = args,
                .deadline_ns = clock_deadline_ns((int64_t)(timeout_of(options, words) * 1000)),
            },
            &answer);
    explicit_bzero(&key, sizeof key);
    json_decref(args);
    TRY(status);
    *was_answered = true;
    return show(options, &answer);
}

static enum status run(const struct ctl_options *options, const struct words *words,
                       bool *was_answered)
{
    const char *command = word_at(words, 0);

    if (!command)
        return fail(ERR_INVALID, "no command; 'tandem ctl --help' lists them");
    if (strcmp(command, "keygen") == 0)
        return keygen(options, words);
    if (strcmp(command, "completion") == 0)
        return completion(words);
    return ask(options, words, was_answered);
}

int cmd_ctl(int argc, char **argv)
{
    struct ctl_options options = {0};
    struct option_set set = ctl_option_set(&options);
    struct words words = {0};
    bool was_answered = false;
    enum status status;

    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return print_help();

    options_init(&set);
    status = split_words(argc, argv, &words);
    if (status == OK)
        status = options_parse(&set, 1, words.num_own, words.own, NULL, NULL);
    if (status == OK)
        status = run(&options, &words, &was_answered);
    if (status != OK)
        fprintf(stderr, "tandem ctl: %s\n", fail_text());
    options_close(&set);
    words_close(&words);
    /* An engine that says of something that it is closed is there itself. */
    return status == ERR_CLOSED && was_answered ? EXIT_OTHER : exit_code_of(status);
}
