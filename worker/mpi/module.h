/*
 * mpi/module: what tandem_mpi.so gives the program that opens it: this table, by the name TANDEM_MPI. It knows MPI
 * and nothing of tandem, so the program needs no MPI and the module no program.
 *
 * A `const char *` that is returned is NULL, or says what went wrong, and is valid until the next call.
 *
 * Thread: all calls from one.
 */
#ifndef WORKER_MPI_MODULE_H
#define WORKER_MPI_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TANDEM_MPI "tandem_mpi"

struct mpi_module {
    size_t table_bytes; /* another build's module is told by it */

    /* Once a process; returns when all that mpirun has started have called it. */
    const char *(*start)(int32_t *rank_out, int32_t *world_out);
    /* Sends data to each other rank, and receives from each at most capacity bytes. All of it stays as it is until the
     * exchange is over. */
    const char *(*begin)(const void *data, int32_t bytes, void *const *parts, int32_t capacity);
    /* missing_out: a rank that has not sent yet, or not received; -1: the exchange is over. bytes_out: [world], how many came
     * from those that have sent, negative of all others. Never waits. */
    const char *(*look)(int64_t *bytes_out, int32_t *missing_out);
    /* All ranks, with no exchange under way: leaves MPI, for good. */
    const char *(*finish)(void);
};

#endif
