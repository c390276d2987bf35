/*
 * stacks: where every thread of a process is: for people, when something hangs.
 *
 *   process 4711 (tandem), 3 threads
 *   thread 4711 wire, sleeping
 *     #0 __poll+0x4f (libc.so.6)
 *     #1 channel_poll+0x9b (tandem)
 *   ...
 *
 * Frames are read by a short-lived child of ours, with libdw where it is installed: it stops one thread at a
 * time for a moment, and cannot take us or that process down whatever becomes of it: a tracer that ends lets
 * its threads go on. Where frames can't be had a line says why, and threads show what /proc tells.
 * A process that was stopped stays so, one that ran runs on.
 *
 * Thread: any, one at a time. It takes some 10 ms and STACKS_MAX_MS at most.
 */
#ifndef PROTO_BASE_STACKS_H
#define PROTO_BASE_STACKS_H

#include "proto/base/memory.h"

enum {
    STACKS_MAX_THREADS = 256, /* of a process; the rest are counted only */
    STACKS_MAX_FRAMES = 64,   /* of a thread, the innermost */
    STACKS_MAX_BYTES = 256 << 10,
    STACKS_MAX_MS = 2500,
};

/* Appends the text, STACKS_MAX_BYTES of it at most. pid: of this host; may be ours. ERR_NOT_FOUND: there is no
 * such process, or it has ended. */
MUST_USE enum status stacks_of_process(int32_t pid, struct bytes *out);

/* What the main thread of a process does, as in /proc/PID/stat: 'R' it runs or would like to, 'D' it waits for a
 * disk, 'S' for anything else, 'T' it was stopped. 0: not known. Takes some 10 us. */
char stacks_state_of_process(int32_t pid);

/* Lets this process, and those that it starts, read our stacks where only our ancestors could (Yama). */
void stacks_allow(int32_t pid);

#endif
