/*
 * front: what `generate` and `serve` share: the model's file, tokenizer and template, the
 * engine, and which sequence of which generation an engine event belongs to.
 *
 * Thread: one, the front's. It alone calls the engine; openai_read may run on others, and any may ask
 * what is in flight.
 */
#ifndef ENGINE_FRONT_FRONT_H
#define ENGINE_FRONT_FRONT_H

#include "engine/front/openai.h"

struct front;
struct grammar_compiler; /* engine/grammar/compiler.h */

/* Opens the model and starts the engine; the tokenizer is built while the ranks load. `config`
 * is borrowed until front_free. Call it on a thread that lives as long as the front. progress may be NULL and is told each phase in words, on the calling thread. */
MUST_USE enum status front_open(const struct config *config,
                                void (*progress)(void *user, const char *words, double fraction),
                                void *user, struct front **out);
void front_free(struct front *front); /* NULL is fine; aborts what is left */
DEFINE_AUTO_FREE(front)

struct engine *front_engine(const struct front *front);
const struct openai_model *front_model(const struct front *front);
struct grammar_compiler *front_grammars(const struct front *front);

/* Submits every sequence, all or none; `listener` is told of each event from front_poll on.
 * Failures are engine_submit's. The generation stays the caller's. */
MUST_USE enum status front_submit(struct front *front, struct generation *generation,
                                  generation_listener *listener, void *user);
/* Ends what is unfinished and forgets the generation: its listener is not called again. */
void front_abort(struct front *front, struct generation *generation);

/* Ends the requests that are called so: by the engine's number, by the id of their answer or by the
 * client's own. Their listeners are told FINISH_ABORT. Returns how many they are. */
int32_t front_abort_named(struct front *front, const char *name);

/* ---- what is in flight ---------------------------------------------------------------------------- */

struct front_request {
    request_id id;
    char name[64];       /* of its answer: "cmpl-…" */
    char client_id[128]; /* "": the client gave none */
    const char *state;   /* "grammar": awaits it; "prompt": no token yet; "output" */
    int32_t num_prompt_tokens, num_output_tokens;
    int64_t submitted_ns; /* CLOCK_MONOTONIC */
};

/* Oldest first, at most `capacity` of them; returns how many there are. Any thread; waits for no step. */
int32_t front_requests(struct front *front, struct front_request *out, int32_t capacity);

/* Readable while front_poll has something to do. */
int front_fd(const struct front *front);
/* Takes all that the engine has put out and tells the listeners. */
void front_poll(struct front *front);

#endif
