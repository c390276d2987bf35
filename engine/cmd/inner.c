#include "engine/cmd/inner.h"

#include "engine/cmd/exit_code.h"

#include <stdio.h>
#include <string.h>

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

bool cmd_parse(const char *name, const struct option_set *set, const char *usage, int argc,
               char **argv, enum status (*check)(const void *settings), int *exit_out)
{
    enum status status;

    if (asks_for_help(argc, argv)) {
        AUTO_CLOSE(bytes) struct bytes text = {0};

        options_help(set, 1, &text);
        printf("%s\n%s", usage, bytes_text(&text));
        *exit_out = 0;
        return false;
    }
    options_init(set);
    status = options_parse(set, 1, argc, argv, NULL, NULL);
    if (status == OK)
        status = check(set->target);
    if (status == OK)
        return true;
    fprintf(stderr, "tandem %s: %s\n", name, fail_text());
    options_close(set);
    *exit_out = EXIT_WRONG_USAGE;
    return false;
}
