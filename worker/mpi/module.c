/* Exchanges are sends and receives between all pairs: MPI's own sums are added in an order that MPI chooses. */
#include "worker/mpi/module.h"

#include <mpi.h>
#include <stdlib.h>

enum { TAG = 1 };

/* There is one MPI a process. */
static int own_rank, num_ranks;
static MPI_Request *requests; /* [2 * num_ranks]: to receive from each rank, then to send to each */
static MPI_Status *statuses;
static int *indices;
static char text[MPI_MAX_ERROR_STRING];

static const char *sentence(int error)
{
    int size;

    if (error == MPI_SUCCESS)
        return NULL;
    MPI_Error_string(error, text, &size);
    return text;
}

static const char *start(int32_t *rank_out, int32_t *world_out)
{
    int is_used = 0, level;

    MPI_Initialized(&is_used);
    if (is_used)
        return "a process joins MPI once";

    int error = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);

    if (error != MPI_SUCCESS)
        return sentence(error);
    if (level < MPI_THREAD_FUNNELED)
        return "this MPI does not bear other threads";
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &own_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &num_ranks);
    requests = calloc(2 * (size_t)num_ranks, sizeof *requests);
    statuses = calloc(2 * (size_t)num_ranks, sizeof *statuses);
    indices = calloc(2 * (size_t)num_ranks, sizeof *indices);
    if (!requests || !statuses || !indices)
        return "no memory";
    for (int i = 0; i < 2 * num_ranks; i++)
        requests[i] = MPI_REQUEST_NULL;
    *rank_out = own_rank;
    *world_out = num_ranks;
    return NULL;
}

static const char *begin(const void *data, int32_t bytes, void *const *parts, int32_t capacity)
{
    int error = MPI_SUCCESS;

    for (int r = 0; r < num_ranks && error == MPI_SUCCESS; r++)
        if (r != own_rank)
            error = MPI_Irecv(parts[r], capacity, MPI_BYTE, r, TAG, MPI_COMM_WORLD, &requests[r]);
    for (int r = 0; r < num_ranks && error == MPI_SUCCESS; r++)
        if (r != own_rank)
            error = MPI_Isend(data, bytes, MPI_BYTE, r, TAG, MPI_COMM_WORLD, &requests[num_ranks + r]);
    return sentence(error);
}

static const char *look(int64_t *bytes_out, int32_t *missing_out)
{
    int count, error = MPI_Testsome(2 * num_ranks, requests, &count, indices, statuses);

    for (int i = 0; error == MPI_ERR_IN_STATUS && i < count; i++)
        if (statuses[i].MPI_ERROR != MPI_SUCCESS)
            error = statuses[i].MPI_ERROR;
    if (error != MPI_SUCCESS)
        return sentence(error);
    for (int i = 0; i < count; i++) /* MPI_UNDEFINED, which is negative: none was under way */
        if (indices[i] < num_ranks) {
            int bytes;

            MPI_Get_count(&statuses[i], MPI_BYTE, &bytes);
            bytes_out[indices[i]] = bytes;
        }
    *missing_out = -1;
    for (int i = 2 * num_ranks; i-- > 0;)
        if (requests[i] != MPI_REQUEST_NULL)
            *missing_out = i % num_ranks;
    return NULL;
}

static const char *finish(void)
{
    return sentence(MPI_Finalize());
}

extern const struct mpi_module tandem_mpi;
__attribute__((visibility("default"))) const struct mpi_module tandem_mpi = {
    .table_bytes = sizeof tandem_mpi,
    .start = start,
    .begin = begin,
    .look = look,
    .finish = finish,
};
