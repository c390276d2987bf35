/* main: which subcommand runs. */
#include "engine/cmd/cmd.h"
#include "proto/base/memory.h"

#include <stdio.h>
#include <string.h>

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"generate", cmd_generate, "prompts in, text out"},
    {"serve", cmd_serve, "answer OpenAI's HTTP API"},
    {"tokenize", cmd_tokenize, "text to token ids and back, as JSON lines"},
    {"bench", cmd_bench, "parts of the engine, measured without a model"},
    {"worker", cmd_worker, "one rank of an engine, which starts it itself"},
};

static int print_help(FILE *out)
{
    fputs("usage: tandem COMMAND [OPTION]...\n\n", out);
    for (size_t i = 0; i < COUNT_OF(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n'tandem COMMAND --help' explains one of them; 'tandem --version' tells the build.\n",
          out);
    return 0;
}

static int print_version(void)
{
    puts("tandem " TANDEM_VERSION);
    return 0;
}

/* How many letters must be changed, added or dropped (Levenshtein's distance); b has at most 31. */
static size_t distance(const char *a, const char *b)
{
    size_t row[32], length = strlen(b);

    for (size_t k = 0; k <= length; k++)
        row[k] = k;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t k = 1; k <= length; k++) {
            size_t changed = diagonal + (a[i - 1] != b[k - 1]);
            size_t added_or_dropped = MIN(row[k], row[k - 1]) + 1;

            diagonal = row[k];
            row[k] = MIN(changed, added_or_dropped);
        }
    }
    return row[length];
}

static int refuse_unknown(const char *name)
{
    const struct command *closest = &commands[0];

    fprintf(stderr, "tandem: '%.64s' is no command", name);
    if (strlen(name) < 32) {
        for (size_t i = 1; i < COUNT_OF(commands); i++)
            if (distance(commands[i].name, name) < distance(closest->name, name))
                closest = &commands[i];
        if (distance(closest->name, name) <= 3)
            fprintf(stderr, "; did you mean '%s'?", closest->name);
    }
    fputs("\n'tandem --help' lists the commands.\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
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
