#include "kernels/kernels.h"

enum status comm_create(const char *path, int32_t world, int64_t max_bytes)
{
    (void)path, (void)max_bytes;
    return world == 1 ? OK : fail(ERR_UNSUPPORTED, "%d ranks: not yet", world);
}

enum status comm_open(const char *path, int32_t rank, int32_t world, struct comm **out)
{
    (void)path, (void)rank;
    *out = NULL;
    return world == 1 ? OK : fail(ERR_UNSUPPORTED, "%d ranks: not yet", world);
}

void comm_close(struct comm *comm)
{
    (void)comm;
}

void comm_abort(struct comm *comm)
{
    (void)comm;
}

enum status comm_all_reduce_f64(struct comm *comm, double *x, int64_t count)
{
    (void)comm, (void)x, (void)count;
    return OK;
}

enum status comm_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    (void)comm, (void)x, (void)count;
    return OK;
}

enum status comm_gather_f32(struct comm *comm, const float *x, int32_t rows, const int32_t *counts,
                            float *out)
{
    (void)comm;
    for (int64_t i = 0; out && i < (int64_t)rows * counts[0]; i++)
        out[i] = x[i];
    return OK;
}
