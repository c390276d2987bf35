/*
 * tracing: the commands that turn traces on and off while the engine runs, and write them.
 *
 * The ranks are told first, by the call `trace`; each writes its part beside the file that the engine makes
 * of all. A rank on another host writes there: its part is left out.
 *
 * Thread: front; files are written on a jobs thread.
 */
#ifndef ENGINE_CONTROL_TRACING_H
#define ENGINE_CONTROL_TRACING_H

#include "engine/control/commands.h"

void tracing_start(struct control_call *call);
void tracing_stop(struct control_call *call);
/* Into the file of the argument `file`. */
void tracing_dump(struct control_call *call);
/* Stops, writes a file of its own, and answers with what `tandem trace` says of it. */
void tracing_profile(struct control_call *call);

#endif
