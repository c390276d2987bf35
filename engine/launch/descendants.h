/*
 * descendants: what is left below this process, and the end of it.
 *
 * A process group does not hold what calls setsid, nor PR_SET_PDEATHSIG what a child forked; but the
 * children of whoever dies come to the nearest ancestor that is a subreaper. So launcher and agents are
 * that, and before they end they kill all that has come to them.
 *
 * Thread: the main one.
 */
#ifndef ENGINE_LAUNCH_DESCENDANTS_H
#define ENGINE_LAUNCH_DESCENDANTS_H

#include <stdint.h>

/* From now on orphans below us are our children. */
void descendants_adopt(void);
/* Kills every process below this one and reaps those that become its children; returns when there is none
 * any more, or at the deadline. Must not be called while children are to live. */
void descendants_kill(int64_t deadline_ns);

#endif
