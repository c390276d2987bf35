/*
 * options: the command line of `tandem launch`, which is mpirun's as far as that goes.
 *
 * Words of the command line are borrowed: argv must outlive the struct.
 *
 * Thread: any; a struct belongs to its owner.
 */
#ifndef ENGINE_LAUNCH_OPTIONS_H
#define ENGINE_LAUNCH_OPTIONS_H

#include "engine/launch/binding.h"
#include "engine/launch/hosts.h"

enum { MAX_APPS = 16, MAX_LAUNCHED = 1024, MAX_VARIABLES = 256 };

/* Programs of one kind: what is between two ":". */
struct launch_app {
    int32_t num; /* how many of them; 0: not said */
    char **words; /* [num_words], then NULL; borrowed */
    int32_t num_words;
    char *variables[MAX_VARIABLES]; /* "NAME=value" of -x; owned */
    int32_t num_variables;
    const char *directory; /* NULL: where the launcher is */
};

enum tagging { TAG_AUTO, TAG_ALWAYS, TAG_NEVER };

struct launch_options {
    struct launch_app *apps; /* [num_apps] */
    int32_t num_apps;
    struct host_list hosts; /* empty: this machine */
    bool oversubscribe;
    struct binding binding;
    bool report_bindings;
    enum tagging tagging;
    bool timestamps;
    const char *output_folder; /* NULL: no files */
    const char *agent;         /* words of a shell: "ssh -F config" */
    int32_t max_restarts;      /* of each rank within the window; -1: not said */
    double restart_window_s;
    double grace_s; /* -1: not said */
    bool has_stdin; /* the engine, or rank 0, reads ours */
    bool wants_help;
};

/* argv[0] is "launch". ERR_INVALID: one sentence about the first thing that is wrong. The struct is to be
 * closed in either case. */
MUST_USE enum status launch_options_parse(int argc, char **argv, struct launch_options *out);
void launch_options_close(struct launch_options *options);
void launch_options_help(struct bytes *out);

#endif
