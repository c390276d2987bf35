/*
 * process: a compiled grammar in the process that fills its masks, as the engine sees it.
 *
 * Each grammar has a process of its own, in which a library compiles it and follows the outputs of all
 * requests that share it. So a grammar that crashes the library, or hangs it, or makes it grow, costs
 * the requests that brought it, and nobody else. The compiler (compiler.h) starts and watches them.
 *
 * A mask is asked for as soon as the token before it is known, and filled while core goes on. Tokens
 * are accepted at once: the mask that was sent with a step says whether they are allowed.
 *
 * Thread: take, drop, fail and is_* by any; the grammars that it starts belong to core.
 */
#ifndef ENGINE_GRAMMAR_PROCESS_H
#define ENGINE_GRAMMAR_PROCESS_H

#include "engine/grammar/grammar.h"
#include "engine/grammar/spec.h"

struct grammar_process;

struct grammar_process_options {
    int64_t id; /* the compiler's */
    int32_t num_places; /* outputs that follow it at a time at most */
    int32_t vocab_size;
    const token_id *stop_tokens; /* that may end an output; borrowed while the process lives */
    int32_t num_stop_tokens;
    int bell_fd; /* see engine_grammar_fd; borrowed likewise */
};

/* The memory that it will share, with the grammar in it; nothing runs yet. */
MUST_USE enum status grammar_process_new(const struct grammar_spec *spec, int32_t backend,
                                         const struct grammar_process_options *options,
                                         struct grammar_process **out);
struct grammar_process *grammar_process_take(struct grammar_process *process);
/* The last one kills it. NULL is fine. */
void grammar_process_drop(struct grammar_process *process);
/* Nobody has it but the caller. */
bool grammar_process_is_idle(const struct grammar_process *process);

int grammar_process_region_fd(const struct grammar_process *process);
/* It runs, under this pid. */
void grammar_process_started(struct grammar_process *process, pid_t pid);
/* What compiling it came to: the sentence is the client's. */
MUST_USE enum status grammar_process_result(const struct grammar_process *process);
int64_t grammar_process_compile_ns(const struct grammar_process *process);
/* Of memory that this grammar takes. */
int64_t grammar_process_bytes(const struct grammar_process *process);
/* Kills it, and ends its requests with this status and sentence; the first reason counts. */
void grammar_process_fail(struct grammar_process *process, enum status status, const char *text);
bool grammar_process_has_failed(const struct grammar_process *process);
/* From now on it gives way to whoever has a token to compute. */
void grammar_process_demote(struct grammar_process *process);
/* How long the oldest question that was not answered has been waiting; 0: there is none. */
int64_t grammar_process_hang_ns(const struct grammar_process *process);
/* Is this what it was made of? */
bool grammar_process_is_of(const struct grammar_process *process, const struct grammar_spec *spec,
                           int32_t backend);

/* For one output, from its beginning; it keeps the process. */
struct grammar *grammar_process_start(struct grammar_process *process);

#endif
