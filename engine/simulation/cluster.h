/*
 * cluster: simulated ranks behind a simulated network, for one epoch.
 *
 * They join, are called and take steps as real ones do. They compute the toy model together: a step
 * is over when each was told all of it, and their contexts are compared as an all-reduce would.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_CLUSTER_H
#define ENGINE_SIMULATION_CLUSTER_H

#include "engine/simulation/network.h"
#include "engine/simulation/toy_rank.h"

struct cluster;

struct cluster_options {
    struct agenda *agenda; /* borrowed, with the next */
    struct fault_plan *faults;
    uint64_t seed; /* of what takes how long */
    uint32_t epoch;
    int32_t world;
    struct toy_rank_limits limits; /* but for the rank */
    int64_t latency_max_ns;        /* of a frame */
    int64_t step_max_ns;           /* of the device */
};

/* The ranks start, and say HELLO. */
struct cluster *cluster_new(const struct cluster_options *options);
void cluster_free(struct cluster *cluster); /* NULL is fine */
DEFINE_AUTO_FREE(cluster)

/* Lives as long as the cluster. */
struct network *cluster_network(struct cluster *cluster);

#endif
