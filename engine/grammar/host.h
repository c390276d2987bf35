/*
 * host: the program of the grammar processes, `tandem grammar-host`.
 *
 * The engine's compiler starts one host. It opens the libraries, and makes of the vocabulary what they
 * need, once; then it forks a process for each grammar, which has all that already. Such a process
 * compiles, fills masks until it is killed, and has no more memory than it is allowed. It ends with the
 * host, and the host with the engine.
 *
 * Thread: the host has one; a grammar process one, and one more to compile on.
 */
#ifndef ENGINE_GRAMMAR_HOST_H
#define ENGINE_GRAMMAR_HOST_H

#include "engine/grammar/backend.h"

/* ---- the vocabulary on its way to the host ---------------------------------------------------- */

/* Writes it to a fresh anonymous file, which is the caller's. */
MUST_USE enum status vocabulary_write(const struct grammar_vocabulary *vocabulary, int *fd_out);

/* ---- the program ------------------------------------------------------------------------------ */

struct host_options {
    const struct backend_ops *const *backends; /* as the engine has them */
    int socket_fd;     /* orders in, news out: region.h */
    int vocabulary_fd; /* vocabulary_write's */
    int bell_fd;       /* an eventfd: masks were filled */
    const char *folder; /* of the libraries */
    int64_t memory_bytes; /* that a grammar process may take beside what the host has */
};

/* Until the engine hangs up: the exit status. */
int host_main(const struct host_options *options);

#endif
