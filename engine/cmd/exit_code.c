#include "engine/cmd/exit_code.h"

#include <sys/wait.h>

static const enum exit_code codes[NUM_STATUS] = {
    [OK] = EXIT_CLEAN,
    [ERR_INVALID] = EXIT_WRONG_USAGE,
    [ERR_NOT_FOUND] = EXIT_OTHER,
    [ERR_FULL] = EXIT_OTHER,
    [ERR_NO_MEMORY] = EXIT_OTHER,
    [ERR_IO] = EXIT_IO,
    [ERR_CORRUPT] = EXIT_OTHER,
    [ERR_UNSUPPORTED] = EXIT_OTHER,
    [ERR_MISMATCH] = EXIT_MISMATCH,
    [ERR_TIMEOUT] = EXIT_TIMED_OUT,
    [ERR_CLOSED] = EXIT_GONE,
    [ERR_ABORTED] = EXIT_OTHER,
    [ERR_EXHAUSTED] = EXIT_RESTARTS_SPENT,
    [ERR_DENIED] = EXIT_NOT_ALLOWED,
    [ERR_MISSING] = EXIT_OTHER,
    [ERR_INTERNAL] = EXIT_INTERNAL,
};

enum exit_code exit_code_of(enum status status)
{
    return codes[status];
}

int exit_code_of_child(int wait_status)
{
    return WIFSIGNALED(wait_status) ? EXIT_SIGNAL + WTERMSIG(wait_status)
                                    : WEXITSTATUS(wait_status);
}
