/*
 * openai: OpenAI's JSON to submissions, and outputs back to OpenAI's JSON. No HTTP here.
 *
 *   body --openai_decode--> json --openai_read--> generation --front_submit--> engine
 *   engine --front_poll--> generation->outputs --openai_response | openai_stream_*--> body
 *
 * Semantics are vLLM's where OpenAI's are silent. A field is one of four kinds: understood;
 * known and harmless (user, metadata, …), ignored; known and without its function here (tools,
 * suffix, …), refused as not supported yet unless it has the value that asks for nothing; and
 * unknown, refused by name with the nearest name that exists.
 *
 * Thread: decode and read may run on any thread (the model is frozen); a generation belongs to
 * one thread at a time.
 */
#ifndef ENGINE_FRONT_OPENAI_H
#define ENGINE_FRONT_OPENAI_H

#include "engine/engine.h"
#include "engine/front/generation_config.h"
#include "engine/front/output_processor.h"
#include "engine/grammar/spec.h"
#include "engine/text/template.h"
#include "engine/text/tokenizer.h"

#include <jansson.h>

enum openai_endpoint {
    OPENAI_COMPLETIONS,
    OPENAI_CHAT,
    OPENAI_EITHER /* chat where the body has messages, else completions */
};

struct openai_model {              /* what bodies are read against; frozen */
    const char *name;              /* UTF-8: what "model" must say if it is there; NULL: anything */
    const struct tokenizer *tokenizer;
    const struct template *chat_template; /* NULL: the model has none, chat is refused */
    int32_t max_model_len;
    int64_t seed; /* of requests that bring none; -1: random */
    int32_t max_logprobs; /* -1: no limit */
    int32_t default_tokens; /* of an answer, or as many as fit; 0: OpenAI's 16, of a chat what fits */
    const struct generation_config *generation_config; /* NULL: the model asks for nothing */
    bool serves_by_priority; /* --scheduling-policy priority; else a request's must be 0 */
};

struct openai_prompt {
    struct token_list tokens;
    char *text; /* completions: as it was given, for echo; NULL: it was given in tokens */
    size_t text_size;
};

/* Where an engine event goes; front.c's. */
struct sequence_route {
    struct generation *generation;
    request_id id; /* 0: not submitted */
    bool awaits_grammar;
    int64_t submitted_ns;
    int32_t num_prompt_tokens;
    _Atomic int32_t num_output_tokens; /* so far: other threads look while it goes on */
};

/* What stands before and behind the text in a sequence's stream events; openai_answer.c's. */
struct event_ends {
    char *text; /* NULL until the first event */
    size_t begin_bytes, end_bytes;
};

struct generation;
/* `sequence` has brought something: text, tokens, its end. May free the generation. */
typedef void generation_listener(void *user, struct generation *generation, int32_t sequence);

/* One body: num_prompts prompts, params.n sequences of each; sequence i answers prompt i / n. */
struct generation {
    enum openai_endpoint endpoint;
    char id[48];     /* "cmpl-…", "chatcmpl-…" */
    const char *client_id; /* what the client calls it, in `arena`; NULL: nothing */
    char *model;     /* the name in the answer */
    int64_t created; /* Unix seconds */
    char system_fingerprint[40]; /* of the weights, when it was submitted; "": not told */
    bool stream, include_usage, continuous_usage, echo, return_token_ids;
    bool is_mute;                /* echo with max_tokens 0: nothing but the prompt is told */
    bool tells_prompt_logprobs;  /* beside those that echo with logprobs brings */
    int32_t priority;
    const char *cache_salt; /* in `arena`; NULL: none */

    struct openai_prompt *prompts; /* [num_prompts] */
    int32_t num_prompts;
    const struct grammar_spec *grammar; /* in `arena`; NULL: the answers may be anything */
    struct sampling_params params; /* arrays in `arena`; a seed that was not given is random */

    struct output_processor *outputs; /* [num_sequences] */
    int32_t num_sequences, num_finished;
    struct event_ends *event_ends; /* [num_sequences] */

    /* ---- front.c's: who is told, and of what ---- */
    generation_listener *listener;
    void *user;
    struct sequence_route *routes; /* [num_sequences] */

    struct arena arena;
};

/* Bytes to JSON. ERR_INVALID: line and column of what is no JSON or no UTF-8, a key given twice,
 * too much nesting. first_line: the body's place in its file, counted from 1. */
MUST_USE enum status openai_decode(const char *body, size_t size, int32_t first_line,
                                   json_t **out);

/*
 * JSON to a generation: renders, tokenizes and checks all that needs no engine. ERR_INVALID,
 * ERR_UNSUPPORTED, ERR_NOT_FOUND (the model): one sentence for the client, and the field at
 * fault in param_out (borrowed from `body` or static), NULL when there is no single one.
 */
MUST_USE enum status openai_read(const struct openai_model *model, enum openai_endpoint endpoint,
                                 const json_t *body, struct generation **out,
                                 const char **param_out);
void generation_free(struct generation *generation); /* NULL is fine; front_abort first */
DEFINE_AUTO_FREE(generation)

/* What goes to the engine for one sequence, with a seed of its own (seed + i % n); it borrows
 * from the generation and from params_out. */
void generation_submission(const struct generation *generation, int32_t sequence,
                           const struct tokenizer *tokenizer, struct submission *submission_out,
                           struct sampling_params *params_out);

/* ---- answers: each appends to `out` ------------------------------------------------------------ */

/* The whole answer, when all sequences are finished: {"id", "object", …, "choices", "usage"}. */
void openai_response(const struct openai_model *model, const struct generation *generation,
                     struct bytes *out);
/* The text of one sequence, behind its prompt where echo is asked for. */
void generation_text(const struct openai_model *model, const struct generation *generation,
                     int32_t sequence, struct bytes *out);
/* That sequence of the same prompt which brings its logprobs, where they are wanted. */
const struct output_processor *generation_scored_output(const struct generation *generation,
                                                        int32_t sequence);
/* The first sequence that ended in FINISH_ERROR, or NULL: the answer is then openai_error. */
const struct output_processor *generation_failure(const struct generation *generation);

/* Server-sent events ("data: {…}\n\n"). Start: a chat's role chunks, completions' echo, unless that is to
 * have logprobs: then it comes with the first delta. */
void openai_stream_start(const struct openai_model *model, struct generation *generation,
                         struct bytes *out);
/* What is new in one sequence since the last call; nothing when nothing is. Its end, a failure
 * too, is told once. */
void openai_stream_delta(const struct openai_model *model, struct generation *generation,
                         int32_t sequence, struct bytes *out);
/* The usage chunk where asked for, and "data: [DONE]\n\n". */
void openai_stream_end(const struct generation *generation, struct bytes *out);

/* ---- refusals ---------------------------------------------------------------------------------- */

/* ERR_INVALID and ERR_UNSUPPORTED 400, ERR_NOT_FOUND 404, ERR_FULL and ERR_CLOSED 503, … */
int openai_http_status(enum status status);
/* {"error": {"message", "type", "param", "code": HTTP status}} as vLLM does; param may be NULL. */
void openai_error(enum status status, const char *message, const char *param, struct bytes *out);
/* The same for a refusal that is HTTP's own. */
void openai_http_error(int http_status, const char *message, const char *param, struct bytes *out);

#endif
