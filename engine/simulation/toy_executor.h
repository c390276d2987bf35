/*
 * toy_executor: an executor whose ranks are a cluster; all but them is what real ones use.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_TOY_EXECUTOR_H
#define ENGINE_SIMULATION_TOY_EXECUTOR_H

#include "engine/executor/executor.h"
#include "engine/simulation/cluster.h"

/* Starts a cluster, and waits until its ranks are ready. The config says how many KV blocks. */
MUST_USE enum status toy_executor_open(const struct config *config,
                                       const struct cluster_options *options,
                                       struct executor **out);

#endif
