/*
 * client: asks a control socket one thing. `tandem ctl` is made of it.
 *
 * Thread: one.
 */
#ifndef ENGINE_CONTROL_CLIENT_H
#define ENGINE_CONTROL_CLIENT_H

#include "engine/control/keys.h"

struct control_question {
    const char *endpoint;               /* ipc://PATH, tcp://HOST:PORT */
    const struct control_key_file *key; /* tcp: ours, and the engine's public key; NULL: none */
    const char *command;
    const json_t *args;
    int64_t deadline_ns;
};

struct control_answer {
    enum status status; /* of the command */
    char *text;         /* JSON, or the sentence of the failure */
};

/*
 * OK: it has answered, whatever the answer says. ERR_CLOSED: nobody is there, or left without a word;
 * ERR_DENIED: we are not let in; ERR_TIMEOUT; ERR_INVALID: the address; ERR_MISMATCH, ERR_CORRUPT: another
 * version's words.
 */
MUST_USE enum status control_ask(const struct control_question *question,
                                 struct control_answer *out);
void control_answer_close(struct control_answer *answer);

/* The control socket of the only engine whose run directory is in `parent` (as run_dir_open has it).
 * ERR_CLOSED: there is none; ERR_INVALID: there are several, which are named. The caller frees it. */
MUST_USE enum status control_find(const char *parent, char **endpoint_out);

#endif
