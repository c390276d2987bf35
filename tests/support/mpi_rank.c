/*
 * mpi_rank: one rank of a comm_mpi as a program, for tests: mpirun starts it.
 *
 *   mpi_rank MODULE            every rank keeps its promises: exit 0
 *   mpi_rank MODULE abort      rank 0 waits for others that never come, until a thread of its own aborts; the others end a
 *                              while later. It prints what it waited for, and how long the abort took: exit 0
 *
 * Exit 1, with the reason: a call failed, or brought what it should not.
 */
#include "proto/base/clock.h"
#include "tests/support/comm_promises.h"
#include "worker/comm_mpi.h"
#include "worker/identity.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

enum { ROUNDS = 50, WAIT_MS = 100, OTHERS_MS = 1500 };

static int64_t abort_ns;

static void *abort_soon(void *comm)
{
    int32_t awaited;

    usleep(WAIT_MS * 1000);
    awaited = comm_waits_for(comm);
    printf("waits for rank %d\n", awaited);
    abort_ns = clock_now_ns();
    comm_abort(comm);
    return NULL;
}

static enum status be_aborted(struct comm *comm)
{
    double x = 1;
    pthread_t thread;
    enum status status;

    ASSERT(pthread_create(&thread, NULL, abort_soon, comm) == 0);
    status = comm_all_reduce_f64(comm, &x, 1);
    pthread_join(thread, NULL);
    printf("%s after %lld ms: %s\n", status_name(status), (long long)(clock_now_ns() - abort_ns) / 1000000,
           fail_text());
    if (status != ERR_ABORTED || comm_barrier(comm) != ERR_ABORTED || !comm_is_aborted(comm))
        return fail(ERR_INTERNAL, "the abort was not heard");
    return OK;
}

static enum status run(const char *module, bool aborts)
{
    struct identity identity;
    struct comm *comm;
    enum status status = OK;

    TRY(identity_of_process(&identity));
    TRY(comm_mpi_start(module, identity.rank, identity.world));
    TRY(comm_mpi_open(PROMISE_BUFFER_BYTES, clock_deadline_ns(20000), &comm));
    if (!aborts && !comm_keeps_its_promises(comm, identity.rank, identity.world, ROUNDS))
        status = fail(ERR_INTERNAL, "rank %d: a promise is broken (%s)", identity.rank, fail_text());
    if (aborts && identity.rank == 0)
        status = be_aborted(comm);
    else if (aborts)
        usleep(OTHERS_MS * 1000);
    fflush(stdout);
    comm_close(comm);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (run(argv[1], argc > 2) == OK)
        return 0;
    fprintf(stderr, "%s\n", fail_text());
    return 1;
}
