/*
 * crew: the processes of one host, children of its agent.
 *
 * Each is the leader of a process group that gets its signals, has a notify socket of its own in the run
 * directory, and a core or none (binding.h). What happens to them is told to the launcher as parcels.
 *
 * Thread: the agent's, which must live as long as they do (proto/base/spawn.h).
 */
#ifndef ENGINE_LAUNCH_CREW_H
#define ENGINE_LAUNCH_CREW_H

#include "engine/launch/leash.h"

#include <poll.h>

struct crew;

/* Borrows both until crew_free. */
struct crew *crew_new(struct leash *leash, const char *run_path);
/* Kills those that still run. */
void crew_free(struct crew *crew);
DEFINE_AUTO_FREE(crew)

/* JOB: what holds for all. ERR_IO: the token could not be written. */
MUST_USE enum status crew_set_job(struct crew *crew, const struct parcel *job);
/* ADDRESS of an engine elsewhere, for those here. */
MUST_USE enum status crew_set_address(struct crew *crew, struct text address);
/* START; answered with STARTED or REFUSED. */
void crew_start(struct crew *crew, const struct parcel *start);
void crew_signal(struct crew *crew, int32_t process, int signal);
void crew_input(struct crew *crew, int32_t process, struct text text);
int32_t crew_num_alive(const struct crew *crew);
/* Is this child of ours one of them? */
bool crew_has(const struct crew *crew, pid_t pid);

/* Adds what is to be waited for to fds, which has room for crew_num_fds; returns how many. Without
 * wants_output nothing is read from the processes, and they wait. */
size_t crew_num_fds(const struct crew *crew);
size_t crew_poll(const struct crew *crew, bool wants_output, struct pollfd *fds);
/* When crew_turn is wanted even if they tell nothing; INT64_MAX: never. */
int64_t crew_deadline_ns(const struct crew *crew);
/* Takes what those fds tell. Returns the bytes of output that were sent. */
size_t crew_turn(struct crew *crew, const struct pollfd *fds, size_t num_fds);

#endif
