/*
 * toy_front: the clients of a scenario, and whether they get what they are to get.
 *
 * It submits requests, aborts them, brings their grammars, pauses the engine and resumes it, all at
 * their times; and holds what comes back against the oracle.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_TOY_FRONT_H
#define ENGINE_SIMULATION_TOY_FRONT_H

#include "engine/core/core.h"
#include "engine/simulation/agenda.h"
#include "engine/simulation/scenario.h"

/* Of all runs together: what was tried. */
struct run_totals {
    int64_t num_runs, num_steps;
    int64_t num_faults[NUM_FAULT_KINDS]; /* that have struck */
    int64_t num_epochs_ended;
    int64_t num_recoveries; /* ranks were replaced, and the engine went on */
    int64_t num_requests, num_refused;
    int64_t num_finished[FINISH_ERROR + 1]; /* by enum finish_reason */
    int64_t num_tokens, num_masked_tokens, num_cached_tokens;
    int64_t num_preemptions, num_late_masks;
    int64_t num_orders_done, num_orders_refused;
};

/* A client, as far as it has got. */
struct session {
    request_id id; /* 0: not submitted */
    int32_t num_tokens;
    int32_t num_at_pause; /* of them when the last pause was asked for */
    bool is_over, was_aborted;
    bool must_end; /* with the next turn: the core has heard that it is aborted */
};

/* A pause, a resume, a reset. */
struct order_state {
    struct toy_front *front;
    bool is_given, is_answered;
};

struct toy_front {
    const struct scenario *scenario;
    const struct setup *setup;
    struct agenda *agenda;
    const struct fault_plan *faults;
    struct run_totals *totals;
    int grammar_fd;       /* wakes the core when a mask has come */
    struct core *core;    /* NULL: between two engines */
    bool core_has_failed; /* its owner says so, before outputs are taken */

    struct session sessions[MAX_CLIENTS];
    int32_t by_id[MAX_CLIENTS + 1]; /* request_id → client */
    request_id last_id;
    int32_t num_over;
    int32_t num_settles; /* times that all were over, and some time began to pass */
    struct order_state orders[MAX_ORDERS];
    const struct order_state *pause; /* the last one, until a resume is asked for */
    bool is_frozen;                  /* it has been answered: nothing comes out */
    bool is_settled;                 /* all clients are over, and some time has passed since */

    /* of this engine: requests that were given to it, those it may not have seen yet, those that
     * ended */
    int64_t num_added, num_pending, num_ended;
    int64_t num_events;
    char difference[256]; /* found by a listener; "": none */
};

/* Its clients will come; borrows all but the struct. */
void toy_front_open(struct toy_front *front);
/* The engine that there is from now on; NULL: none. */
void toy_front_connect(struct toy_front *front, struct core *core);
/* The core is about to hear all that it was given. */
void toy_front_expect_heard(struct toy_front *front);
/* ERR_MISMATCH: a difference; what is behind it is thrown away. */
MUST_USE enum status toy_front_take_outputs(struct toy_front *front, struct mailbox *outputs);
/* Is everybody answered? */
MUST_USE enum status toy_front_check_end(const struct toy_front *front);

#endif
