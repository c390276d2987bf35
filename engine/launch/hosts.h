/*
 * hosts: where ranks may run, and how many at each place.
 *
 * A host file has a line a host, in mpirun's words or in hydra's; # begins a comment:
 *
 *     node1 slots=4 max_slots=8
 *     root@node2:4
 *
 * Thread: any; a list belongs to its owner.
 */
#ifndef ENGINE_LAUNCH_HOSTS_H
#define ENGINE_LAUNCH_HOSTS_H

#include "proto/base/memory.h"

#include <stdint.h>

enum { MAX_HOSTS = 256, MAX_SLOTS = 1024, MAX_HOST_NAME = 255, MAX_HOST_FILE_BYTES = 1 << 20 };

struct host {
    char *name;        /* letters, digits and . _ - @; owned */
    int32_t slots;     /* ranks that it is meant for, from 1 */
    int32_t max_slots; /* with --oversubscribe; INT32_MAX: any */
    int32_t line;      /* of the file; 0: of the command line */
};

struct host_list {
    struct host *hosts; /* [count], in the order that they were named */
    int32_t count;
};

void host_list_close(struct host_list *list);

/* "node1:4,node2" as --host has it. ERR_INVALID: what is wrong; hosts before it stay in the list. */
MUST_USE enum status host_list_add_words(struct host_list *list, const char *words);
/* The text of a file called `name`. ERR_INVALID: "NAME, line N: why". */
MUST_USE enum status host_list_add_text(struct host_list *list, const char *name, const char *text,
                                        size_t size);
/* ERR_INVALID, also where the file can't be read. */
MUST_USE enum status host_list_add_file(struct host_list *list, const char *path);

/* Is it this machine? "localhost", 127.0.0.1 and what gethostname says are. */
bool host_is_local(const char *name);

#endif
