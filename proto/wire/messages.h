/*
 * messages: the schema: what the engine and its workers tell each other.
 *
 * The dialogue of one worker, S the engine and W the worker:
 *
 *   join   = W:HELLO S:WELCOME W:READY                a refused HELLO ends it
 *   run    = { step | S:CALL W:REPLY | W:HEARTBEAT }
 *   step   = S:PREPARE_INPUTS S:EXECUTE_MODEL S:SAMPLE W:MODEL_RUNNER_OUTPUT
 *   end    = S:SHUTDOWN
 *   W:FAULT may come at any time, and ends it.
 *
 * Whoever operates the engine, O, on a socket of its own: { O:CONTROL_REQUEST S:CONTROL_REPLY }, the
 * replies in the order in which the commands are done.
 *
 * PREPARE_INPUTS and EXECUTE_MODEL of step N+1 may come before step N is answered.
 * The header's step is the step; it is -1 where there is none.
 *
 * Pointers in a decoded message live in the arena it was decoded into.
 */
#ifndef PROTO_WIRE_MESSAGES_H
#define PROTO_WIRE_MESSAGES_H

#include "proto/wire/memory_held.h"
#include "proto/wire/message.h"
#include "proto/wire/pass_counts.h"
#include "proto/wire/sampling_params.h"

/* On the wire: numbers are never used again. */
enum message_id {
    MESSAGE_HELLO = 1,
    MESSAGE_WELCOME = 2,
    MESSAGE_READY = 3,
    MESSAGE_PREPARE_INPUTS = 4, /* body: scheduler_output */
    MESSAGE_EXECUTE_MODEL = 5,  /* no body */
    MESSAGE_SAMPLE = 6,         /* body: grammar_output */
    MESSAGE_MODEL_RUNNER_OUTPUT = 7,
    MESSAGE_CALL = 8,
    MESSAGE_REPLY = 9,
    MESSAGE_FAULT = 10,
    MESSAGE_HEARTBEAT = 11,
    MESSAGE_SHUTDOWN = 12, /* no body */
    MESSAGE_CONTROL_REQUEST = 32,
    MESSAGE_CONTROL_REPLY = 33,
};

/* Limits of one frame; a length is refused before memory is taken for it. */
enum {
    MAX_ROWS = 65536,             /* requests in a step */
    MAX_TOKENS = 16 << 20,        /* in one list of a step */
    MAX_BLOCKS = 16 << 20,
    MAX_BITMASK_BYTES = 256 << 20,
    MAX_PROMPT_LOGPROBS = 4 << 20, /* in one step, or of one prompt */
    MAX_SHORT_TEXT = 1024,        /* names, ids */
    MAX_LONG_TEXT = 1 << 20,      /* settings, arguments, replies */
    MAX_COMMAND_TEXT = 64,        /* the name of a control command */
    MAX_COMMAND_ARGS = 16 << 10,
    MAX_CONTROL_FRAME = 32 << 10, /* bytes of a whole CONTROL_REQUEST */
};

/* ---- a step ---------------------------------------------------------------------------------- */

/* A request that the workers do not know yet, or that they are to learn again. */
struct new_request {
    int32_t slot;                    /* what the workers call it from now on */
    const char *id;                  /* for people */
    const int32_t *prompt_token_ids;
    int32_t num_prompt_token_ids;
    const int32_t *output_token_ids; /* sampled before: none for a request that is really new */
    int32_t num_output_token_ids;
    const int32_t *block_ids;        /* its whole block table */
    int32_t num_block_ids;
    struct sampling_params sampling_params;
};

/*
 * What to compute in one step. A row is a request; rows are in batch order, and every
 * column has num_rows elements. `new_requests` describes the slots that are new, each
 * of which is also a row: their tokens and blocks are in new_requests, not in the columns. A request that
 * comes back from preemption is new again. What a worker sampled itself needs no wire.
 */
struct scheduler_output {
    const int32_t *finished_slots; /* forget these first */
    int32_t num_finished_slots;
    const struct new_request *new_requests;
    int32_t num_new_requests;

    int32_t num_rows;
    const int32_t *slots;
    const int32_t *num_computed_tokens;  /* tokens whose KV is there before this step */
    const int32_t *num_scheduled_tokens; /* >= 1: tokens to compute now */
    const uint8_t *samples;              /* 1: the last scheduled token's logits are sampled */
    const uint8_t *needs_bitmask;        /* 1: SAMPLE brings a bitmask for it, and it is not
                                            sampled without */
    const int32_t *new_block_counts;     /* of new_block_ids, row by row */
    const int32_t *new_block_ids;        /* appended to the row's block table */
    int32_t num_new_block_ids;

    /* Rows of prompts whose logprobs are wanted, in order, and of how many tokens: of those at
     * num_computed_tokens + 1 and on, which the scheduled tokens foretell. */
    const int32_t *prompt_logprob_rows;
    int32_t num_prompt_logprob_rows;
    const int32_t *prompt_logprob_lengths;

    int32_t total_num_scheduled_tokens;
};

/* How many slots there are: as many requests as run may have left, while the step in flight still
 * has rows for them. */
static inline int32_t num_slots_for(int32_t max_num_seqs)
{
    return 2 * max_num_seqs;
}

/* Do the columns add up? ERR_MISMATCH names the row. Limits: slots in [0, max_slots), at most
 * max_tokens scheduled. Says nothing about what a worker knows of its slots. */
MUST_USE enum status scheduler_output_check(const struct scheduler_output *plan, int32_t max_slots,
                                            int32_t max_tokens);
/* The request that is new in this plan under this slot; NULL: none is. */
const struct new_request *scheduler_output_find_new(const struct scheduler_output *plan, int32_t slot);

/*
 * Which tokens a row may sample: 1 bits of little-endian 32-bit words, a row of words for each mask
 * that is different: rows of the step may share one. A mask belongs to one state of one grammar,
 * that before the token at its position; a worker refuses it for any other.
 *
 * Each rank gets the words that cover its slice of the vocabulary, which its READY names: from word
 * first_token / 32 of a mask of the whole vocabulary up to that of its last token, so bit b of word
 * w of a row is token 32 * (first_token / 32 + w) + b. Bits of tokens before and behind the slice
 * mean nothing.
 */
struct grammar_output {
    const int32_t *slots; /* in batch order; a row that is not here is not masked */
    int32_t num_rows;
    const int32_t *positions; /* of the token that the mask is for, in its request */
    const int32_t *bitmask_rows; /* which row of the bitmask is its mask */
    int32_t num_bitmask_rows;
    int32_t words_per_row;
    const uint8_t *bitmask; /* 4-byte aligned when decoded */
    int32_t num_bitmask_bytes;
};

/* Words that cover num_tokens tokens from first_token on. */
static inline int32_t grammar_words_for(int32_t first_token, int32_t num_tokens)
{
    return num_tokens < 1 ? 0 : (first_token + num_tokens - 1) / 32 - first_token / 32 + 1;
}

/* ERR_MISMATCH: the bitmask's size is not num_bitmask_rows rows for such a slice of the vocabulary,
 * or a row has a mask that there is not. */
MUST_USE enum status grammar_output_check(const struct grammar_output *grammar, int32_t first_token,
                                          int32_t num_tokens);
/* What the rank with this slice gets of masks of the whole vocabulary: ERR_MISMATCH when they are
 * of a smaller one. The words go into `arena`, the rest is shared. */
MUST_USE enum status grammar_output_slice(const struct grammar_output *whole, int32_t first_token,
                                          int32_t num_tokens, struct arena *arena,
                                          struct grammar_output *out);

/* Rank 0 tells the tokens; the others send it with num_sampled 0: they are alive, and in step. */
struct model_runner_output {
    int32_t rank;
    int32_t num_rows; /* of the step it answers */
    const int32_t *slots; /* rows that sampled, in batch order */
    int32_t num_sampled;
    const int32_t *positions; /* of the tokens, in their requests: an answer to another step differs */
    const int32_t *sampled_token_ids;
    /* logprob_counts[i] = 0, or k + 1 entries: the sampled token first, then the k likeliest */
    const int32_t *logprob_counts;
    const int32_t *sampled_token_ranks; /* 1 is the likeliest; 0 where no logprobs were wanted */
    const int32_t *logprob_token_ids;
    int32_t num_logprobs;
    const float *logprobs; /* natural, as many as logprob_token_ids */

    /* Of the plan's prompt_logprob_rows, in order: num_prompt_runs runs of tokens. */
    const int32_t *prompt_slots;
    int32_t num_prompt_runs;
    const int32_t *prompt_positions; /* of a run's first token */
    const int32_t *prompt_lengths;   /* of a run, in tokens */
    const int32_t *prompt_ranks;     /* of each token of all runs */
    int32_t num_prompt_tokens;
    const int32_t *prompt_logprob_counts; /* k + 1 entries: the token itself, then the k likeliest */
    const int32_t *prompt_logprob_token_ids;
    int32_t num_prompt_logprobs;
    const float *prompt_logprobs;

    int64_t prepare_ns, execute_ns, sample_ns;
    int64_t idle_ns; /* of the device: between the step before and this one, and before its sampling */
};

/* ERR_MISMATCH: counts that do not add up. */
MUST_USE enum status model_runner_output_check(const struct model_runner_output *output);

/* ---- joining --------------------------------------------------------------------------------- */

struct hello {
    int32_t rank, world;
    int32_t pid;
    const char *host;
    const char *boot_id;  /* ranks with one boot id share memory */
    const char *build_id; /* the header has its first 8 bytes */
};

struct welcome {
    const char *refusal; /* "": come in */
    const char *config;  /* the engine's settings as JSON, what config_from_json reads */
};

struct ready {
    int32_t rank;
    const char *fingerprint;  /* of the model: the same on every rank */
    int64_t weights_bytes;    /* as the device holds them */
    int64_t step_weights_bytes; /* that a step reads: not those of an embedding table of its own */
    int64_t free_bytes;       /* left for KV; less, where the ranks have yet to meet */
    int64_t kv_block_bytes;   /* one block of all layers on this rank */
    int64_t max_num_blocks;   /* that fit */
    int32_t max_position;     /* tokens the model was made for */
    int32_t vocab_size;
    int32_t first_token, num_tokens; /* the slice of the vocabulary whose masks it wants */
    double load_ms;
};

/* ---- the rest -------------------------------------------------------------------------------- */

struct call {
    int64_t id;
    const char *name;
    const char *args; /* JSON */
};

struct reply {
    int64_t id;     /* of the call */
    int32_t rank;
    int32_t status; /* enum status */
    const char *text; /* JSON, or the sentence of a failure */
};

struct fault {
    int32_t rank;
    int32_t code; /* enum status */
    const char *text;
};

enum { HEARTBEAT_INTERVAL_MS = 500 }; /* of every rank, real or not */

struct heartbeat {
    int32_t rank;
    int64_t seq;
    int64_t step;       /* that its device works on; -1: idle */
    int64_t ms_in_step;
    int64_t progress;   /* rises with whatever its device gets done, at least once a layer */
    int32_t waits_for;  /* the rank without which it can't go on; -1: none */
    struct memory_held memory;
    struct pass_counts passes;
};
/* ERR_MISMATCH: no device holds so much, or less than nothing. */
MUST_USE enum status heartbeat_check(const struct heartbeat *heartbeat);

struct control_request {
    int64_t id;          /* the client's own: the reply has the same */
    const char *command; /* a row of engine/control/commands.c: "status", "config get" */
    const char *args;    /* JSON: {"name": value}, or a list of words as on the command line; "": none */
};

struct control_reply {
    int64_t id;
    int32_t status;   /* enum status */
    const char *text; /* JSON, or the sentence of a failure */
};

extern const struct message_type sampling_params_type, new_request_type, memory_held_type;
extern const struct message_type hello_type, welcome_type, ready_type;
extern const struct message_type scheduler_output_type, execute_model_type, grammar_output_type,
    model_runner_output_type;
extern const struct message_type call_type, reply_type, fault_type, heartbeat_type, shutdown_type;
extern const struct message_type control_request_type, control_reply_type;

#endif
