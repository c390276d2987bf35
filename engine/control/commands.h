/*
 * commands: what can be asked of a running engine, a row each.
 *
 * A command looks or acts. One that looks is answered on the control thread from what any thread may
 * read, so it waits for no step; one that acts is carried out by the front, which alone gives the engine
 * orders, and is answered when the engine has answered.
 *
 * Thread: the rows are constant; `look` runs on the control thread, `act` on the front's.
 */
#ifndef ENGINE_CONTROL_COMMANDS_H
#define ENGINE_CONTROL_COMMANDS_H

#include "proto/base/list.h"
#include "proto/base/mailbox.h"

#include <jansson.h>

struct control;
struct option_set;
struct server;

/* Each may what the one before may. */
enum control_role { ROLE_NONE, ROLE_READ, ROLE_OPERATE, ROLE_ADMIN, NUM_CONTROL_ROLES };
/* "none", "read", "operate", "admin" */
const char *control_role_name(enum control_role role);

enum control_arg_kind {
    CONTROL_TEXT,    /* a string */
    CONTROL_FILE,    /* a string, a path on the engine's host; the first argument */
    CONTROL_WORD,    /* a string, one of `words` */
    CONTROL_INTEGER, /* an integer within least..most */
    CONTROL_SECONDS, /* a real within least..most */
};

struct control_arg {
    const char *name; /* NULL: the row ends */
    enum control_arg_kind kind;
    bool is_flag;   /* --name VALUE; else a word in its place */
    bool is_needed;
    double least, most;
    const char *words; /* CONTROL_WORD: "abort wait keep" */
};

enum { MAX_CONTROL_ARGS = 4 };

/* What a command that looks may see. */
struct control_scene {
    const struct server *server; /* NULL: the engine is not there, or not yet */
    const char *progress;        /* what it does meanwhile */
    const json_t *settings;      /* all of them, by name */
    int64_t started_ns;
};

struct control_call;

struct control_command {
    const char *name; /* one word, or two */
    const char *help;
    enum control_role role;
    struct control_arg args[MAX_CONTROL_ARGS + 1];
    /* One of the two. *out is the caller's. */
    enum status (*look)(const struct control_scene *scene, const json_t *args, json_t **out);
    void (*act)(struct control_call *call); /* sees to it that control_call_end is called, once */
};

/* A command on its way through the front. */
struct control_call {
    const struct control_command *command;
    const json_t *args;
    struct server *server;
    struct list_node node; /* the command's: where it waits; zeroed */
    int64_t deadline_ns;   /* the command's */
    json_t *changed;       /* the command's: settings that have other values when it ends well, by name;
                              freed with the call */
};

/* Front. Answers: with JSON (NULL: "done"), or, where the status is not OK, with why. Takes the JSON, and the
 * call is gone. */
void control_call_end(struct control_call *call, enum status status, const char *why, json_t *json);

extern const struct control_command control_commands[];
extern const size_t control_num_commands;

/*
 * The row for `name` and, where that is the first word of several, for the first of `args` if it is a list
 * of words. ERR_INVALID names the nearest one. *num_words_out: of `args` that belong to the name.
 */
MUST_USE enum status control_command_find(const char *name, const json_t *args,
                                          const struct control_command **out,
                                          size_t *num_words_out);
/*
 * Arguments as they came, an object by name, a list of words of which the first `num_skipped` are not meant,
 * or NULL, made into an object in which every value has its kind and is within its bounds. ERR_INVALID says
 * which is not, with how the command is called.
 */
MUST_USE enum status control_args_read(const struct control_command *command, const json_t *args,
                                       size_t num_skipped, json_t **out);
/* "drain [--wait SECONDS]" */
void control_command_usage(const struct control_command *command, struct bytes *out);

/* Front: looks after the calls that wait for something else than an answer of the engine; true: there are
 * such. */
bool control_commands_tick(struct server *server);
/* Front: the server ends; answers them. */
void control_commands_end(struct server *server);

#endif
