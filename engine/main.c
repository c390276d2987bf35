/* main: which subcommand runs. */
#include "engine/cmd/cmd.h"
#include "proto/base/memory.h"
#include "proto/config/option.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help; /* NULL: started by ourselves only */
} commands[] = {
    {"generate", cmd_generate, "prompts in, text out"},
    {"serve", cmd_serve, "answer OpenAI's HTTP API"},
    {"ctl", cmd_ctl, "one command to an engine that runs: status, drain, config set, …"},
    {"tokenize", cmd_tokenize, "text to token ids and back, as JSON lines"},
    {"launch", cmd_launch, "an engine with its ranks, or any program as ranks, here and elsewhere"},
    {"token", cmd_token, "make the keys that an engine and its ranks share"},
    {"bench", cmd_bench, "the engine, its parts and a model, measured"},
    {"replay", cmd_replay, "a step that failed, run again"},
    {"trace", cmd_trace, "what a trace file says: how busy the devices were, and a picture"},
    {"worker", cmd_worker, "one rank of an engine, for launchers; an engine on one host starts its own"},
    {"grammar-host", cmd_grammar_host, "where grammars are compiled; the engine starts it itself"},
    {"launch-agent", cmd_launch_agent, NULL},
};

static int print_help(FILE *out)
{
    fputs("usage: tandem COMMAND [OPTION]...\n\n", out);
    for (size_t i = 0; i < COUNT_OF(commands); i++)
        if (commands[i].help)
            fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].help);
    fputs("\n'tandem COMMAND --help' explains one of them; 'tandem --version' tells the build.\n",
          out);
    return 0;
}

static int print_version(void)
{
    puts("tandem " TANDEM_VERSION);
    return 0;
}

static int refuse_unknown(const char *name)
{
    const char *names[COUNT_OF(commands) + 1] = {NULL}, *nearest;

    for (size_t i = 0, n = 0; i < COUNT_OF(commands); i++)
        if (commands[i].help)
            names[n++] = commands[i].name;
    nearest = nearest_word(name, names);
    fprintf(stderr, "tandem: '%.64s' is no command", name);
    if (nearest)
        fprintf(stderr, "; did you mean '%s'?", nearest);
    fputs("\n'tandem --help' lists the commands.\n", stderr);
    return 2;
}

/* Where 0, 1 or 2 is closed (`2>&-`) a socket would be opened, and logged into. /dev/null the wrong way round fails
 * whoever reads or prints, as what is closed does. */
static void hold_standard_fds(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY); /* gets the lowest that is free: fd */
}

/* hwloc's plug-ins find GPUs, screens and the like, and bring some thirty libraries along for it, every time that it
 * is asked for cores. */
static void do_without_plugins_of_hwloc(void)
{
    setenv("HWLOC_PLUGINS_PATH", "", 0);
}

int main(int argc, char **argv)
{
    hold_standard_fds();
    do_without_plugins_of_hwloc();
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return print_help(stdout);
    if (strcmp(argv[1], "--version") == 0)
        return print_version();
    for (size_t i = 0; i < COUNT_OF(commands); i++)
        if (strcmp(commands[i].name, argv[1]) == 0)
            return commands[i].run(argc - 1, argv + 1);
    return refuse_unknown(argv[1]);
}
