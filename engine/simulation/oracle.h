/*
 * oracle: what a client is to be answered, computed without any engine: one token after another, by
 * the model, the parameters and the grammar alone.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_ORACLE_H
#define ENGINE_SIMULATION_ORACLE_H

#include "engine/simulation/scenario.h"

/* Fills in the client's answer, which lives in the scenario's arena. */
void oracle_answer(struct scenario *scenario, struct client *client);

#endif
