#include "engine/cmd/inner.h"

#include "engine/cmd/exit_code.h"

#include <stdio.h>
#include <string.h>

bool cmd_parse(const char *name, const struct option_set *set, const char *usage, int argc,
               char **argv, enum status (*check)(const void *settings), int *exit_out)
{
    enum status status;

    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
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
