/*
 * team: threads that run one operation together, the caller among them.
 *
 * Between operations a thread spins for a bounded time, since the next kernel of a running step
 * comes within microseconds, and then parks on a futex: an idle team costs nothing.
 *
 * Thread: team_share and team_run are called by one thread at a time, the owner's.
 */
#ifndef KERNELS_CPU_TEAM_H
#define KERNELS_CPU_TEAM_H

#include "proto/base/memory.h"
#include "proto/base/status.h"

#include <sched.h>
#include <stdint.h>

struct team;

/* num_threads - 1 threads are started; ERR_IO when the system refuses one. */
MUST_USE enum status team_new(int32_t num_threads, struct team **out);
void team_free(struct team *team); /* NULL is fine */
DEFINE_AUTO_FREE(team)

/* Thread i runs on cpus[i] from now on; the caller is thread 0, and stays bound when the team is gone.
 * ERR_IO: the system refuses one. */
MUST_USE enum status team_bind(struct team *team, const cpu_set_t *cpus);

int32_t team_num_threads(const struct team *team);

/* Items [first, end) of some work. */
struct span {
    int64_t first, end;
};

/*
 * Does items [0, count), at most TEAM_MAX_ITEMS, by calls of part(args, piece, share, thread). A thread does its share,
 * which is contiguous, piece by piece, and then pieces of what others have not come to: nobody waits for one that has
 * not begun a piece, as its core is slow, or somebody else's for a while. Fewer than `grain` items a thread, at most
 * TEAM_MAX_GRAIN, are not worth waking it, and are done by the caller in one call.
 * share: where the thread began, and where it is going to end, as things are; a piece of another's is one of its own.
 * Thread 0 is the caller.
 */
enum { TEAM_MAX_ITEMS = (1 << 28) - 1, TEAM_MAX_GRAIN = 255 };
void team_share(struct team *team, int64_t count, int64_t grain,
                void (*part)(const void *args, struct span piece, struct span share, int32_t thread), const void *args);

/* Calls part(args, thread) for every thread in [0, num_threads), each on its own, and returns when
 * all have returned. Thread 0 is the caller. */
void team_run(struct team *team, void (*part)(void *args, int32_t thread), void *args);

#endif
