/*
 * simulation: many scenarios, one after another, each from a seed of its own.
 *
 * Scenario i has the seed `seed` + i, so one that differs runs alone with --seed, and a long
 * simulation is shared among processes by giving each its own range of seeds.
 *
 * Thread: any one.
 */
#ifndef ENGINE_SIMULATION_SIMULATION_H
#define ENGINE_SIMULATION_SIMULATION_H

#include "engine/simulation/run.h"

struct simulation_options {
    uint64_t seed;
    int64_t num_steps; /* at least: the last scenario is finished */
    /* Is told of each run before it begins: an assertion may end it, and all. May be NULL. */
    void (*begin)(void *user, const struct scenario *scenario, int32_t setup);
    /* Is told of each difference, and in which run it was; may be NULL. */
    void (*report)(void *user, const struct scenario *scenario, int32_t setup,
                   const char *sentence);
    void *user;
};

struct simulation_result {
    int64_t num_scenarios, num_differences;
    struct run_totals totals;
};

void simulation_run(const struct simulation_options *options, struct simulation_result *out);

#endif
