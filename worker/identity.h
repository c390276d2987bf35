/*
 * identity: which rank of how many this process is, as whoever started it says in the environment.
 *
 * No launcher's library is linked or asked: mpirun, MPICH's hydra, srun, torchrun, LeaderWorkerSet, Ray and
 * our own launcher all tell their processes by variables. The first of them that is there counts:
 *
 *     tandem     TANDEM_RANK TANDEM_WORLD_SIZE (our launcher, Ray, and whoever knows better)
 *     Open MPI   OMPI_COMM_WORLD_RANK _SIZE
 *     hydra      PMI_RANK PMI_SIZE beside MPI_LOCALRANKID; before Slurm, whose SLURM_PROCID is that of
 *                hydra's proxy inside of an allocation
 *     Slurm      SLURM_PROCID SLURM_STEP_NUM_TASKS, in a step only: a batch script is no rank
 *     PMI        PMI_RANK PMI_SIZE
 *     torchrun   RANK WORLD_SIZE
 *     LWS        LWS_WORKER_INDEX LWS_GROUP_SIZE
 *
 * Where the engine is started beside its ranks, as the first of two programs in one job
 * (`mpirun -np 1 tandem serve … : -np 4 tandem worker …`, `srun -n1 … : -n4 …`), the launcher counts it too.
 * Then it is taken off: rank 1 of 5 is rank 0 of 4. Open MPI and Slurm say which program a process is of;
 * with hydra TANDEM_RANK or --rank is wanted. TANDEM_RANK and TANDEM_WORLD_SIZE are never changed.
 *
 * Thread: any.
 */
#ifndef WORKER_IDENTITY_H
#define WORKER_IDENTITY_H

#include "proto/base/status.h"

#include <stdint.h>

enum { IDENTITY_MAX_WORLD = 256 };

struct identity {
    const char *launcher; /* "tandem", "openmpi", …; "none": nobody has said anything, and it is 0 of 1 */
    int32_t rank, world;
    int32_t local_rank, local_world; /* on this host; -1: not told */
    int32_t node;                    /* of the hosts from 0; -1: not told */
};

/* getenv's shape, with what it may want. NULL: not set. */
typedef const char *(*identity_lookup)(const void *user, const char *name);

/* ERR_INVALID: a variable is no number, or two of them contradict each other: the sentence names them. */
MUST_USE enum status identity_find(identity_lookup lookup, const void *user, struct identity *out);
/* Of this process's environment. */
MUST_USE enum status identity_of_process(struct identity *out);

#endif
