/*
 * run: one setup of a scenario, from the first client to the last.
 *
 * The real core, scheduler, link and messages run over simulated ranks. Held against what happens:
 * each client gets the tokens of the oracle, as far as it gets any; a request ends once; those that
 * came in are those that ended and those that live, after every turn; the scheduler's own check; no
 * KV block stays taken; something goes on. An engine fails only because of a fault, and then it
 * does. A new one follows it, in the next epoch.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_RUN_H
#define ENGINE_SIMULATION_RUN_H

#include "engine/simulation/toy_front.h"

/* ERR_MISMATCH: a difference; the sentence says where and what. */
MUST_USE enum status run_setup(const struct scenario *scenario, const struct setup *setup,
                               struct run_totals *totals);

#endif
