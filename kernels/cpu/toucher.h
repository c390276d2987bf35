/*
 * toucher: a thread that touches memory before kernels do.
 *
 * The system gives a page when it is first touched, and clears it. On a virtual machine the host may have to find it, too:
 * then the 2 MB of a big page take 5 ms, which all threads of a kernel wait for. This thread has such waits behind
 * their backs, at low priority.
 *
 * Thread: the owner's, for the calls.
 */
#ifndef KERNELS_CPU_TOUCHER_H
#define KERNELS_CPU_TOUCHER_H

#include "proto/base/memory.h"

#include <sched.h>

struct toucher;

/* Runs on the CPUs of all `num_cpus` sets; NULL: anywhere. Its thread starts when it has something to do. */
struct toucher *toucher_new(const cpu_set_t *cpus, int32_t num_cpus);
void toucher_free(struct toucher *toucher); /* NULL is fine */
DEFINE_AUTO_FREE(toucher)

/* Memory of mem_map, instead of what is left of what was asked for before. It is as it was, and may be used. */
void toucher_ask(struct toucher *toucher, void *p, int64_t bytes);
/* Touches none of it any more, so that it may be unmapped. */
void toucher_forget(struct toucher *toucher, const void *p, int64_t bytes);
/* What has not been touched of what was asked for. */
int64_t toucher_bytes_left(struct toucher *toucher);

#endif
