/*
 * comm_mpi: sums across ranks that mpirun has started, through MPI: for networks that MPI knows better than tcp.
 *
 * MPI is in a module beside the program, tandem_mpi.so, which is opened when it is wanted. A comm like any other
 * (kernels/kernels.h): parts are added in rank order, so the bits are those of comm_shm; comm_shared is NULL.
 *
 * By MPI's nature a rank that dies takes all of mpirun's with it, so they are started again together; a process
 * joins MPI once, and opens one comm. comm_abort is heard by this rank alone, within a millisecond; the engine tells each.
 * Who listens to MPI's network hears what ranks exchange: it has no keys.
 *
 * Thread: the one that called comm_mpi_start; comm_abort by any.
 */
#ifndef WORKER_COMM_MPI_H
#define WORKER_COMM_MPI_H

#include "kernels/kernels.h"

/*
 * Joins MPI; returns when all ranks have. path: of the module; NULL: beside the program. ERR_INVALID: no module, or
 * this process is not mpirun's; ERR_MISMATCH: MPI counts other ranks than the engine.
 */
MUST_USE enum status comm_mpi_start(const char *path, int32_t rank, int32_t world);
/* Meets the other ranks. buffer_bytes: see comm_create. ERR_TIMEOUT names who is missing. comm_close leaves MPI, where
 * the other ranks do too. */
MUST_USE enum status comm_mpi_open(int64_t buffer_bytes, int64_t deadline_ns, struct comm **out);

#endif
