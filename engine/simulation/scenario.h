/*
 * scenario: what happens to an engine, drawn from a seed: its clients, and the setups in which it
 * is to give them the same tokens.
 *
 * Thread: that of the simulation; constant once it is drawn.
 */
#ifndef ENGINE_SIMULATION_SCENARIO_H
#define ENGINE_SIMULATION_SCENARIO_H

#include "engine/bench/toy_grammar.h"
#include "engine/core/wait_queue.h"
#include "engine/simulation/faults.h"

#define NEVER_NS INT64_MAX

/* One request: when it comes, what it asks for, and what it gets. */
struct client {
    int64_t arrives_ns;
    int64_t abort_after_ns; /* its arrival; NEVER_NS */
    struct sampling_params params;
    const token_id *prompt;
    int32_t num_prompt;
    const char *cache_salt;
    int32_t priority;
    token_id eos;
    bool has_grammar;
    struct toy_grammar_options language; /* of its grammar */
    int64_t grammar_after_ns;            /* 0: it comes with the request */
    bool grammar_fails;                  /* to compile */

    /* by the model alone: what any engine is to answer */
    const token_id *tokens;
    int32_t num_tokens;
    enum finish_reason finish; /* STOP, LENGTH; ERROR: no token may come after these */
    token_id stop_token;
};

/* What an operator does. */
enum planned_order_kind { ORDER_PAUSE_CORE, ORDER_RESUME_CORE, ORDER_RESET_CACHE };

struct planned_order {
    int64_t at_ns;
    enum planned_order_kind kind;
    enum pause_mode mode;
    bool clear_cache, reset_running;
};

/* An engine, and what it runs on. */
struct setup {
    bool async_scheduling, enable_prefix_caching, enable_chunked_prefill;
    enum scheduling_policy policy;
    int32_t world;
    int32_t num_blocks, max_num_seqs, max_num_active_seqs;
    int32_t max_num_batched_tokens, long_prefill_token_threshold;
    bool long_prefill_token_threshold_adaptive;
    double decode_slowdown, watermark;
    int64_t latency_max_ns, step_max_ns;
    bool replaces_ranks; /* that have failed; else the engine fails with them */
    struct planned_fault faults[MAX_FAULTS];
    int32_t num_faults;
};

enum { MAX_CLIENTS = 24, MAX_ORDERS = 6, MAX_SETUPS = 3 };

struct scenario {
    uint64_t seed;
    int32_t vocab_size, max_model_len, block_size;
    struct client clients[MAX_CLIENTS]; /* in order of arrival */
    int32_t num_clients;
    struct planned_order orders[MAX_ORDERS]; /* behind the last pause comes a resume */
    int32_t num_orders;
    struct setup setups[MAX_SETUPS];
    int32_t num_setups;
    struct arena arena;
};

/* Draws anew, into one that is zeroed or was drawn before. */
void scenario_draw(uint64_t seed, struct scenario *out);
void scenario_close(struct scenario *scenario);

#endif
