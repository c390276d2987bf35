/*
 * cpus: which cores this process may use, and how ranks share them.
 *
 * Cores are physical: two hardware threads of one share its arithmetic, so the second adds nothing to a
 * kernel. They are those of the affinity mask, no more than the CPU quota of the cgroups that we are in
 * (v2's cpu.max, v1's cpu.cfs_quota_us), in the order of their NUMA nodes.
 *
 * Thread: frozen after open; any thread may read.
 */
#ifndef PROTO_BASE_CPUS_H
#define PROTO_BASE_CPUS_H

#include "proto/base/memory.h"

#include <sched.h>
#include <stdint.h>

struct cpus;

struct cpus_options {
    const char *root; /* where proc and sys/fs/cgroup are; NULL: "" */
    /* A machine in hwloc's words, "numa:2 core:4 pu:2", without a mask; NULL: this one. */
    const char *synthetic;
};

/* options NULL: this machine, this process. ERR_IO: hwloc can't tell; ERR_INVALID: nor read those words. */
MUST_USE enum status cpus_open(const struct cpus_options *options, struct cpus **out);
void cpus_free(struct cpus *cpus); /* NULL is fine */
DEFINE_AUTO_FREE(cpus)

int32_t cpus_num_nodes(const struct cpus *cpus); /* NUMA nodes with cores of ours */
/* Cores that are worth a thread each, at least 1: a part of one that a quota leaves is worth none, as
 * threads that wait for each other would all wait for the one that is held back. */
int32_t cpus_num_cores(const struct cpus *cpus);

/* What cgroups allow, in cores; 0: all. */
double cpus_quota(const struct cpus *cpus);

/*
 * Where the threads of a rank are to run: sets_out: [num_threads]. A thread has a core of its own if
 * the ranks have as many threads as there are cores; ranks with fewer, on several nodes, have a node
 * each, in which their threads may move. false: bound to nothing, sets_out is not written. That is so
 * with more threads than cores, with a quota (others use those cores too), and with fewer threads on one
 * node, where two engines would meet on the first cores while others idle.
 */
bool cpus_place(const struct cpus *cpus, int32_t rank, int32_t world, int32_t num_threads,
                cpu_set_t *sets_out);

#endif
