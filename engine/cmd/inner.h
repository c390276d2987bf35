/*
 * inner: what the programs share that the engine starts itself, and tokenize.
 */
#ifndef ENGINE_CMD_INNER_H
#define ENGINE_CMD_INNER_H

#include "proto/config/option.h"

/* Reads the settings, set->target, which are then the caller's to close. false: there is nothing more to do,
 * and *exit_out is the exit status: the usage was printed, or the command line is wrong. */
bool cmd_parse(const char *name, const struct option_set *set, const char *usage, int argc,
               char **argv, enum status (*check)(const void *settings), int *exit_out);

#endif
