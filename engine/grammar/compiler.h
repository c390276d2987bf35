/*
 * compiler: grammars as clients write them, to grammars that requests follow.
 *
 * It starts the host (host.h), has it start a process for each grammar, and keeps those that were used
 * last, so that a grammar that comes again costs nothing. A grammar that takes too long to compile, or
 * for one mask, is killed. A host that dies takes its processes with it; the next grammar starts
 * another.
 *
 * Thread: new and free by the owner; find and compile by any; the listener is called on the compiler's.
 */
#ifndef ENGINE_GRAMMAR_COMPILER_H
#define ENGINE_GRAMMAR_COMPILER_H

#include "engine/grammar/backend.h"
#include "engine/grammar/process.h"
#include "engine/text/tokenizer.h"

struct grammar_compiler;

struct grammar_compiler_options {
    const struct backend_ops *const *backends; /* as in the host's program; NULL at the end */
    const char *program; /* what has the command grammar-host; NULL: this program */
    const char *folder;  /* of the libraries; NULL: `grammar` beside this program */
    const char *backend; /* of specs that name none; NULL: the best for each */
    const struct tokenizer *tokenizer; /* borrowed */
    int32_t num_places;    /* outputs that follow one grammar at a time at most */
    int bell_fd;           /* engine_grammar_fd */
    int64_t memory_bytes;  /* a grammar process's at most */
    int64_t cache_bytes;   /* of processes that no request uses */
    int32_t max_compiling; /* at a time */
    int32_t compile_timeout_ms, mask_timeout_ms;
};

struct grammar_compiler_stats {
    int64_t num_compiled, num_refused, num_killed; /* killed: for their time; among the refused, or after */
    int64_t num_hits;                              /* of the cache */
    int32_t num_processes;
    int64_t bytes; /* that they take */
};

MUST_USE enum status grammar_compiler_new(const struct grammar_compiler_options *options,
                                          struct grammar_compiler **out);
/* Kills its processes: requests that still follow one end with an error, and so do those that wait for
 * one: their listeners are called. NULL is fine. */
void grammar_compiler_free(struct grammar_compiler *compiler);
DEFINE_AUTO_FREE(grammar_compiler)

/* Of the cache: taken; NULL: it is not there, or not yet. */
struct grammar_process *grammar_compiler_find(struct grammar_compiler *compiler,
                                              const struct grammar_spec *spec);

/*
 * What a compilation came to: OK and the process, borrowed during the call; or a status and its sentence:
 * ERR_INVALID (the grammar is at fault), ERR_MISSING (its library is not there), ERR_FULL (too many
 * wait), ERR_INTERNAL.
 */
typedef void grammar_listener(void *user, struct grammar_process *process, enum status status,
                              const char *text);

/* Calls the listener once, later; what compile refuses at once it says itself. Copies the spec. */
MUST_USE enum status grammar_compiler_compile(struct grammar_compiler *compiler,
                                              const struct grammar_spec *spec,
                                              grammar_listener *listener, void *user);

/* Compiles it, or finds it, and waits: taken. Not on a thread that the listener's call would wait for. */
MUST_USE enum status grammar_compiler_wait(struct grammar_compiler *compiler,
                                           const struct grammar_spec *spec,
                                           struct grammar_process **out);

void grammar_compiler_get_stats(struct grammar_compiler *compiler,
                                struct grammar_compiler_stats *out);

#endif
