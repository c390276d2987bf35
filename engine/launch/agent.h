/*
 * agent: the part of `tandem launch` that runs on a host and owns the processes there.
 *
 * It does what the launcher says over its leash, and ends with all its processes when the launcher is gone:
 * the leash is closed or silent, or a signal tells it to.
 *
 * Thread: the main one of its process.
 */
#ifndef ENGINE_LAUNCH_AGENT_H
#define ENGINE_LAUNCH_AGENT_H

/* Runs one and returns its exit code. Takes the descriptors. */
int agent_run(int in_fd, int out_fd);

/* `tandem launch-agent`: an agent on stdin and stdout, below a process that does nothing but outlive it and
 * then kill what it left. */
int agent_run_guarded(void);

#endif
