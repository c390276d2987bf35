/*
 * exit_code: what a program of ours ends with, so that scripts, systemd and batch systems can tell
 * why without reading. The numbers of 64 to 78 are those of sysexits.h, the others a shell's.
 */
#ifndef ENGINE_CMD_EXIT_CODE_H
#define ENGINE_CMD_EXIT_CODE_H

#include "proto/base/status.h"

enum exit_code {
    EXIT_CLEAN = 0,
    EXIT_OTHER = 1,          /* it failed, and none of the others says why */
    EXIT_WRONG_USAGE = 2,    /* a wrong command line or setting */
    EXIT_GONE = 69,          /* a host, the engine or a rank is gone */
    EXIT_INTERNAL = 70,      /* a promise of ours broke */
    EXIT_IO = 74,            /* the operating system refused */
    EXIT_RESTARTS_SPENT = 75, /* ranks died more often than they may */
    EXIT_MISMATCH = 76,      /* build, model, world or keys do not fit together */
    EXIT_NOT_ALLOWED = 77,
    EXIT_TIMED_OUT = 124,
    EXIT_CANNOT_RUN = 126,   /* a program is there and can't be run */
    EXIT_NO_PROGRAM = 127,   /* a program is not there */
    EXIT_SIGNAL = 128,       /* plus the signal that ended it */
};

/* What a failure of this kind ends a program with. */
enum exit_code exit_code_of(enum status status);
/* The same of a child that ended, as waitpid tells it: its own code, or 128 + its signal. */
int exit_code_of_child(int wait_status);

#endif
