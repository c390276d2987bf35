/* token: makes the file of keys that an engine and its ranks share. */
#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"

#include "proto/wire/curve.h"

#include <stdio.h>
#include <string.h>

static const char help_text[] =
    "usage: tandem token FILE\n"
    "\n"
    "Makes new keys, and FILE (mode 0600) that holds them. An engine that listens on tcp:// and the\n"
    "ranks that join it must have the same file: give it to both as --token FILE. Who has it can\n"
    "join; copy it by a way that others cannot read. A FILE that is there already stays as it is.\n";

int cmd_token(int argc, char **argv)
{
    struct token token;
    enum status status;

    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(help_text, stdout);
        return 0;
    }
    if (argc != 2 || *argv[1] == '-' || *argv[1] == '\0') {
        fputs("tandem token: one FILE is expected; 'tandem token --help' explains it\n", stderr);
        return EXIT_WRONG_USAGE;
    }
    status = token_create(argv[1], &token);
    explicit_bzero(&token, sizeof token);
    if (status == OK)
        return EXIT_CLEAN;
    fprintf(stderr, "tandem token: %s\n", fail_text());
    return exit_code_of(status);
}
