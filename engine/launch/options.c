#include "engine/launch/options.h"

#include "proto/config/option.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ---------------------------------------------------------------------------------- */

struct parser {
    struct launch_options *options;
    struct launch_app *app;
    const char *flag; /* as the user wrote it */
};

static enum status read_count(const struct parser *parser, const char *text, long least, long most,
                              int32_t *out)
{
    char *end;

    errno = 0;
    long value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || errno || isspace((unsigned char)*text))
        return fail(ERR_INVALID, "%s must be a number, not '%.64s'", parser->flag, text);
    if (value < least || value > most)
        return fail(ERR_INVALID, "%s must be %ld to %ld, not %ld", parser->flag, least, most,
                    value);
    *out = (int32_t)value;
    return OK;
}

static enum status read_seconds(const struct parser *parser, const char *text, double *out)
{
    char *end;
    double value = strtod(text, &end);

    if (*text == '\0' || *end != '\0' || !isfinite(value))
        return fail(ERR_INVALID, "%s must be a number of seconds, not '%.64s'", parser->flag, text);
    if (value < 0 || value > 86400)
        return fail(ERR_INVALID, "%s must be 0 to 86400 seconds, not %g", parser->flag, value);
    *out = value;
    return OK;
}

static enum status read_word(const struct parser *parser, const char *text,
                             const char *const *words, int *out)
{
    AUTO_CLOSE(bytes) struct bytes all = {0};

    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0) {
            *out = i;
            return OK;
        }
        bytes_printf(&all, "%s%s", i ? ", " : "", words[i]);
    }
    return fail(ERR_INVALID, "%s must be one of %s, not '%.64s'", parser->flag, bytes_text(&all),
                text);
}

/* ---- flags ----------------------------------------------------------------------------------- */

static enum status take_num(struct parser *parser, const char *value)
{
    return read_count(parser, value, 1, MAX_LAUNCHED, &parser->app->num);
}

static enum status take_host(struct parser *parser, const char *value)
{
    return host_list_add_words(&parser->options->hosts, value);
}

static enum status take_hostfile(struct parser *parser, const char *value)
{
    return host_list_add_file(&parser->options->hosts, value);
}

static enum status take_oversubscribe(struct parser *parser, const char *value)
{
    (void)value;
    parser->options->oversubscribe = true;
    return OK;
}

static bool is_name_of_variable(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (!isalnum((unsigned char)text[i]) && text[i] != '_')
            return false;
    return size > 0 && !isdigit((unsigned char)text[0]);
}

static enum status take_variable(struct parser *parser, const char *value)
{
    static const char *const ours[] = {"TANDEM_ENGINE",       "TANDEM_TOKEN",
                                       "TANDEM_RANK",         "TANDEM_WORLD_SIZE",
                                       "TANDEM_LOCAL_RANK",   "TANDEM_LOCAL_WORLD_SIZE",
                                       "TANDEM_NODE",         "TANDEM_RESTARTS",
                                       "TANDEM_ADDRESS_FILE", "TANDEM_MAX_RESTARTS",
                                       "TANDEM_RESTART_WINDOW", "NOTIFY_SOCKET"};
    size_t size = strcspn(value, "=");
    AUTO_MEM char *name = mem_strndup(value, size);
    const char *found = value[size] ? value + size + 1 : getenv(name);

    if (!is_name_of_variable(value, size))
        return fail(ERR_INVALID, "-x wants NAME or NAME=VALUE, not '%.64s'", value);
    if (!found)
        return fail(ERR_INVALID,
                    "-x %.64s: there is no such variable here; give it a value by -x %.64s=VALUE",
                    name, name);
    for (size_t i = 0; i < COUNT_OF(ours); i++)
        if (strcmp(name, ours[i]) == 0)
            return fail(ERR_INVALID, "-x %s: the launcher sets it itself", name);
    if (parser->app->num_variables == MAX_VARIABLES)
        return fail(ERR_INVALID, "more than %d -x", MAX_VARIABLES);
    parser->app->variables[parser->app->num_variables++] = mem_printf("%s=%s", name, found);
    return OK;
}

static enum status take_directory(struct parser *parser, const char *value)
{
    parser->app->directory = value;
    return OK;
}

static enum status take_bind_to(struct parser *parser, const char *value)
{
    static const char *const words[] = {[BIND_NONE] = "none",
                                        [BIND_CORE] = "core",
                                        [BIND_SOCKET] = "socket",
                                        [BIND_NUMA] = "numa",
                                        NULL};
    int found;

    TRY(read_word(parser, value, words, &found));
    parser->options->binding.bind_to = (enum bind_to)found;
    return OK;
}

/* "slot", "node:PE=4" */
static enum status take_map_by(struct parser *parser, const char *value)
{
    static const char *const words[] = {[MAP_SLOT] = "slot",
                                        [MAP_NODE] = "node",
                                        [MAP_SOCKET] = "socket",
                                        [MAP_NUMA] = "numa",
                                        NULL};
    struct binding *binding = &parser->options->binding;
    size_t size = strcspn(value, ":");
    AUTO_MEM char *word = mem_strndup(value, size);
    int found;

    TRY(read_word(parser, word, words, &found));
    binding->map_by = (enum map_by)found;
    if (value[size] == '\0')
        return OK;
    if (strncasecmp(value + size, ":pe=", 4) != 0)
        return fail(ERR_INVALID, "%s takes :PE=N, cores for each rank, not '%.64s'", parser->flag,
                    value + size);
    return read_count(parser, value + size + 4, 1, MAX_LAUNCHED, &binding->cores_per_rank);
}

static enum status take_report_bindings(struct parser *parser, const char *value)
{
    (void)value;
    parser->options->report_bindings = true;
    return OK;
}

static enum status take_tag(struct parser *parser, const char *value)
{
    (void)value;
    parser->options->tagging = TAG_ALWAYS;
    return OK;
}

static enum status take_no_tag(struct parser *parser, const char *value)
{
    (void)value;
    parser->options->tagging = TAG_NEVER;
    return OK;
}

static enum status take_timestamps(struct parser *parser, const char *value)
{
    (void)value;
    parser->options->timestamps = true;
    return OK;
}

static enum status take_output_folder(struct parser *parser, const char *value)
{
    if (*value == '\0')
        return fail(ERR_INVALID, "%s wants the name of a folder", parser->flag);
    parser->options->output_folder = value;
    return OK;
}

static enum status take_stdin(struct parser *parser, const char *value)
{
    static const char *const words[] = {"none", "engine", NULL};
    int found;

    TRY(read_word(parser, value, words, &found));
    parser->options->has_stdin = found == 1;
    return OK;
}

static enum status take_agent(struct parser *parser, const char *value)
{
    if (value[strspn(value, " \t")] == '\0')
        return fail(ERR_INVALID, "%s wants a command, such as ssh", parser->flag);
    parser->options->agent = value;
    return OK;
}

static enum status take_max_restarts(struct parser *parser, const char *value)
{
    return read_count(parser, value, 0, 1000, &parser->options->max_restarts);
}

static enum status take_restart_window(struct parser *parser, const char *value)
{
    return read_seconds(parser, value, &parser->options->restart_window_s);
}

static enum status take_grace(struct parser *parser, const char *value)
{
    return read_seconds(parser, value, &parser->options->grace_s);
}

static const struct flag {
    const char *names[3]; /* the help shows the first, and a second of one letter */
    const char *value;    /* NULL: it takes none */
    enum status (*take)(struct parser *parser, const char *value);
    bool is_of_app; /* may also follow a ":" */
    const char *group;
    const char *help;
} flags[] = {
    {{"-np", "-n", "--np"}, "N", take_num, true, "What",
     "processes of this program (1); of an engine: its ranks, beside itself"},
    {{"-x"}, "VAR[=VALUE]", take_variable, true, NULL,
     "a variable of their environment, ours if it has no VALUE"},
    {{"--wdir", "-wdir"}, "FOLDER", take_directory, true, NULL, "where they start (here)"},
    {{"--stdin"}, "WHO", take_stdin, false, NULL,
     "who reads our standard input: engine (or rank 0 where there is none), none (engine)"},
    {{"--host", "-H", "-host"}, "H1:2,H2", take_host, false, "Where",
     "hosts, and how many ranks each is meant for (1)"},
    {{"--hostfile", "-hostfile", "--machinefile"}, "FILE", take_hostfile, false, NULL,
     "a host a line: NAME slots=2 max_slots=4, or NAME:2"},
    {{"--oversubscribe"}, NULL, take_oversubscribe, false, NULL, "more ranks than slots are fine"},
    {{"--launch-agent"}, "CMD", take_agent, false, NULL,
     "runs a command on another host, as CMD HOST COMMAND... does (ssh)"},
    {{"--map-by"}, "HOW", take_map_by, false, NULL,
     "slot: a host is filled, then the next; node: hosts in turn; socket, numa: in turn within a host; "
     ":PE=N behind it: N cores for each rank (slot)"},
    {{"--bind-to"}, "WHAT", take_bind_to, false, NULL,
     "none, core, socket or numa; none leaves it to the engine's --cpu-bind (none)"},
    {{"--report-bindings"}, NULL, take_report_bindings, false, NULL, "say where each rank is bound"},
    {{"--tag-output", "-tag-output"}, NULL, take_tag, false, "Output",
     "[rank R] or [engine] before each line; so it is with several processes, and on a terminal"},
    {{"--no-tag-output"}, NULL, take_no_tag, false, NULL, "never; output passes as it comes"},
    {{"--timestamp-output", "-timestamp-output"}, NULL, take_timestamps, false, NULL,
     "the time before each line"},
    {{"--output-filename", "-output-filename"}, "DIR", take_output_folder, false, NULL,
     "also write DIR/rank.R/stdout and stderr, and DIR/engine/"},
    {{"--max-restarts"}, "N", take_max_restarts, false, "When one dies",
     "a rank is started again up to N times within the window, and the engine bears N of all ranks "
     "together (with an engine 3 and one for each rank, else 0)"},
    {{"--restart-window"}, "S", take_restart_window, false, NULL, "seconds (60)"},
    {{"--grace"}, "S", take_grace, false, NULL,
     "seconds from a signal to SIGKILL (40 with an engine, whose requests may end; else 5)"},
};

static bool has_name(const struct flag *flag, const char *word, size_t size)
{
    for (size_t i = 0; i < COUNT_OF(flag->names) && flag->names[i]; i++)
        if (strlen(flag->names[i]) == size && memcmp(flag->names[i], word, size) == 0)
            return true;
    return false;
}

static enum status refuse_unknown(const char *word)
{
    const char *names[COUNT_OF(flags) * 3 + 2] = {"--help"}, *nearest;

    for (size_t i = 0, n = 1; i < COUNT_OF(flags); i++)
        for (size_t k = 0; k < COUNT_OF(flags[i].names) && flags[i].names[k]; k++)
            names[n++] = flags[i].names[k];
    nearest = nearest_word(word, names);
    return nearest ? fail(ERR_INVALID, "%.64s is unknown; did you mean %s?", word, nearest)
                   : fail(ERR_INVALID, "%.64s is unknown", word);
}

/* Reads one flag; *at is the place of the word behind it afterwards. */
static enum status read_flag(struct parser *parser, int argc, char **argv, int *at)
{
    const char *word = argv[*at], *value = NULL;
    size_t size = word[1] == '-' ? strcspn(word, "=") : strlen(word);
    const struct flag *flag = NULL;

    for (size_t i = 0; i < COUNT_OF(flags) && !flag; i++)
        if (has_name(&flags[i], word, size))
            flag = &flags[i];
    if (!flag)
        return refuse_unknown(word);
    AUTO_MEM char *name = mem_strndup(word, size);
    parser->flag = name;
    if (!flag->is_of_app && parser->app != parser->options->apps)
        return fail(ERR_INVALID, "%s belongs before the first program", name);
    (*at)++;
    if (!flag->value)
        return word[size] ? fail(ERR_INVALID, "%s takes no value", name) : flag->take(parser, NULL);
    if (word[size])
        value = word + size + 1;
    else if (*at < argc)
        value = argv[(*at)++];
    else
        return fail(ERR_INVALID, "%s %s: the value is missing", name, flag->value);
    return flag->take(parser, value);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static bool is_word(const char *word, const char *wanted)
{
    return strcmp(word, wanted) == 0;
}

/* Flags, then the program and its words up to a ":" */
static enum status read_app(struct parser *parser, int argc, char **argv, int *at)
{
    while (*at < argc && argv[*at][0] == '-' && argv[*at][1] && !is_word(argv[*at], "--")) {
        if (is_word(argv[*at], "--help") || is_word(argv[*at], "-h")) {
            parser->options->wants_help = true;
            return OK;
        }
        TRY(read_flag(parser, argc, argv, at));
    }
    if (*at < argc && is_word(argv[*at], "--"))
        (*at)++;
    parser->app->words = argv + *at;
    while (*at < argc && !is_word(argv[*at], ":"))
        parser->app->num_words++, (*at)++;
    if (parser->app->num_words == 0 || parser->app->words[0][0] == '\0')
        return fail(ERR_INVALID, parser->app == parser->options->apps
                                     ? "no program is named; 'tandem launch --help' shows examples"
                                     : "no program is named behind ':'");
    return OK;
}

static enum status read_apps(struct launch_options *options, int argc, char **argv)
{
    for (int at = 1;; at++) {
        if (options->num_apps == MAX_APPS)
            return fail(ERR_INVALID, "more than %d programs", MAX_APPS);
        struct parser parser = {options, &options->apps[options->num_apps++], NULL};

        TRY(read_app(&parser, argc, argv, &at));
        if (options->wants_help || at >= argc)
            return OK;
        argv[at] = NULL; /* the ":" ends the words of the program */
    }
}

enum status launch_options_parse(int argc, char **argv, struct launch_options *out)
{
    *out = (struct launch_options){
        .apps = mem_new_array(struct launch_app, MAX_APPS),
        .binding = {.cores_per_rank = 1},
        .agent = "ssh",
        .max_restarts = -1,
        .restart_window_s = 60,
        .grace_s = -1,
        .has_stdin = true,
    };
    TRY(read_apps(out, argc, argv));
    if (out->binding.cores_per_rank > 1 && out->binding.bind_to != BIND_CORE && !out->wants_help)
        return fail(ERR_INVALID,
                    "--map-by ...:PE=%d gives each rank cores: it wants --bind-to core",
                    out->binding.cores_per_rank);
    return OK;
}

void launch_options_close(struct launch_options *options)
{
    for (int32_t i = 0; i < options->num_apps; i++)
        for (int32_t k = 0; k < options->apps[i].num_variables; k++)
            mem_free(options->apps[i].variables[k]);
    mem_free(options->apps);
    host_list_close(&options->hosts);
    *options = (struct launch_options){0};
}

/* ---- help ------------------------------------------------------------------------------------ */

enum { HELP_COLUMN = 30, HELP_WIDTH = 100 };

static void add_wrapped(struct bytes *out, const char *text)
{
    int column = HELP_COLUMN;

    while (*text) {
        int size = (int)strcspn(text, " ");
        bool is_first = column == HELP_COLUMN;

        if (!is_first && column + 1 + size > HELP_WIDTH) {
            bytes_printf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
            is_first = true;
        }
        bytes_printf(out, "%s%.*s", is_first ? "" : " ", size, text);
        column += size + !is_first;
        text += size;
        text += *text == ' ';
    }
    bytes_printf(out, "\n");
}

static void add_flag(struct bytes *out, const struct flag *flag)
{
    AUTO_CLOSE(bytes) struct bytes left = {0};

    if (flag->group)
        bytes_printf(out, "\n%s:\n", flag->group);
    for (size_t i = 0; i < 2 && flag->names[i]; i++)
        if (i == 0 || strlen(flag->names[i]) == 2)
            bytes_printf(&left, "%s%s", i ? ", " : "", flag->names[i]);
    if (flag->value)
        bytes_printf(&left, " %s", flag->value);
    bytes_printf(out, "  %-*s", HELP_COLUMN - 2, bytes_text(&left));
    if (left.size > HELP_COLUMN - 3)
        bytes_printf(out, "\n%*s", HELP_COLUMN, "");
    add_wrapped(out, flag->help);
}

void launch_options_help(struct bytes *out)
{
    bytes_printf(
        out, "usage: tandem launch [OPTION]... [--] PROGRAM [ARG]... [: [OPTION]... PROGRAM "
             "[ARG]...]\n\n"
             "Starts an engine with its ranks, or any program as N ranks, here and on other hosts; "
             "passes\n"
             "their output on, starts a dead rank again, and leaves nothing behind.\n\n"
             "  tandem launch -np 2 -- tandem serve --model FILE\n"
             "      An engine and two ranks on this machine.\n"
             "  tandem launch -np 4 --host node1:2,node2:2 -- tandem serve --model FILE\n"
             "      The engine here, two ranks on each host. ssh must get there without a "
             "password, and\n"
             "      tandem must be where it is here.\n"
             "  tandem launch --hostfile hosts --launch-agent 'ssh -F config' -np 8 -- PROGRAM\n"
             "  tandem launch -np 4 -x OMP_NUM_THREADS=1 --bind-to core --map-by socket:PE=2 -- "
             "PROGRAM\n"
             "  tandem launch -np 1 -- PROGRAM1 : -np 3 -x LOG=debug -- PROGRAM2\n"
             "      Rank 0 runs the one, ranks 1 to 3 the other.\n");
    for (size_t i = 0; i < COUNT_OF(flags); i++)
        add_flag(out, &flags[i]);
    bytes_printf(
        out,
        "\nWhat a rank finds in its environment: TANDEM_RANK of TANDEM_WORLD_SIZE,\n"
        "TANDEM_LOCAL_RANK of TANDEM_LOCAL_WORLD_SIZE (those of its host), TANDEM_NODE (which "
        "host),\n"
        "TANDEM_RESTARTS (how often it was started again), NOTIFY_SOCKET (as systemd's: READY=1,\n"
        "STATUS=..., WATCHDOG=1). With an engine also TANDEM_ENGINE (file:PATH, which will hold "
        "its address)\n"
        "and TANDEM_TOKEN (a file, keys). The engine finds TANDEM_LISTEN, TANDEM_ADDRESS_FILE, "
        "TANDEM_TOKEN,\n"
        "TANDEM_MAX_RESTARTS and TANDEM_RESTART_WINDOW (the launcher's; its own words count for more).\n"
        "\nSignals: SIGINT and SIGTERM go to the engine, which ends what runs and tells its ranks "
        "to go; the\n"
        "ranks are told when it has ended. A second one ends all at once. SIGHUP restarts the "
        "ranks one\n"
        "after the other, each when the one before is ready, if --max-restarts has one for each. "
        "SIGUSR1,\n"
        "SIGUSR2, SIGTSTP and SIGCONT are passed to all.\n"
        "\nThe launcher ends, with all it started, when the process that started it ends; not so "
        "under nohup\n"
        "(SIGHUP is ignored) or as the leader of a session of its own (setsid tandem launch ...).\n"
        "\nExit status: the engine's if it failed, else that of the first rank that failed, 128+N "
        "for signal N;\n"
        "2 a wrong command line, 69 a host is lost, 75 a rank died more often than "
        "--max-restarts,\n"
        "126 and 127 a program can't be run or is not there.\n");
}
