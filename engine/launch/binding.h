/*
 * binding: which cores a rank may run on, among those that its agent may use.
 *
 * Ranks of a host are dealt over its cores, sockets or NUMA nodes in the order of their local ranks. What
 * is bound here limits the engine's own placement of threads (--cpu-bind), which looks at the mask.
 *
 * Thread: the owner.
 */
#ifndef ENGINE_LAUNCH_BINDING_H
#define ENGINE_LAUNCH_BINDING_H

#include "proto/base/status.h"

#include <sched.h>
#include <stdint.h>

enum bind_to { BIND_NONE, BIND_CORE, BIND_SOCKET, BIND_NUMA, NUM_BIND_TO };
enum map_by { MAP_SLOT, MAP_NODE, MAP_SOCKET, MAP_NUMA, NUM_MAP_BY };

struct binding {
    enum bind_to bind_to;
    enum map_by map_by;     /* MAP_NODE is of hosts: a host after the other. MAP_SOCKET, MAP_NUMA: cores are
                               taken from one after the other, not from the first until it is full */
    int32_t cores_per_rank; /* with BIND_CORE, from 1 */
};

enum { BINDING_MAX_TEXT = 128 };

/* The cores of one rank, with anything but BIND_NONE. `synthetic` is a machine in hwloc's words for tests,
 * NULL this one. text_out: "core 3 (cpus 3,7)". ERR_INVALID: the ranks of this host want more cores than
 * there are; sockets and nodes they share. */
MUST_USE enum status binding_place(const struct binding *binding, const char *synthetic,
                                   int32_t local_rank, int32_t local_world, cpu_set_t *cpus_out,
                                   char text_out[static BINDING_MAX_TEXT]);

#endif
