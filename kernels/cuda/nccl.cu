/*
 * Sums among ranks by NCCL, on any hosts. Its library is opened when the first of them is wanted: who runs on one
 * GPU needs none, and does not wait for it.
 *
 * One answer: NCCL adds in an order of its own, which varies with the number of ranks, the machine and its version.
 * Parts are multiples of EXACT_GRID, so whatever some ranks' come to is exact, and so is the sum, in any order.
 * What is one rank's alone (add_disjoint) is moved as whole numbers: its bits come out, where sums of floats, some
 * of which switches add up, might flush what is subnormal.
 */
#include "kernels/cuda/library.h"
#include "kernels/cuda/state.h"

#if __has_include(<nccl.h>)

#include <nccl.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SUMS = 512 }; /* that the stream is behind, at most, where waits is to know */

struct cuda_nccl {
    struct cuda_state *state;
    ncclComm_t comm; /* NULL: aborted */
    double *part, *sum; /* the device's: [sum_max] */
    cudaEvent_t begun[MAX_SUMS], ended[MAX_SUMS]; /* in turn */
    int64_t num_sums;  /* so far */
    bool is_launching; /* the next */
    char text[512];    /* the last sentence that was returned */
};

/* ---- the library ---------------------------------------------------------------------------------- */

#define NCCL_FUNCTIONS(row)                                                                                \
    row(ncclGetVersion) row(ncclGetErrorString) row(ncclGetLastError) row(ncclGetUniqueId)                 \
        row(ncclCommInitRankConfig) row(ncclCommGetAsyncError) row(ncclAllReduce) row(ncclCommAbort)

static struct {
    bool is_open;
    NCCL_FUNCTIONS(LIBRARY_MEMBER)
} library;

/* What is said where there is no cuda_nccl to keep it in. */
static thread_local char load_text[512];

/* The first function that the library lacks; NULL: it has all. */
static const char *find_functions(void *file)
{
    NCCL_FUNCTIONS(LIBRARY_FIND)
    return NULL;
}

static const char *load(const char *path, int32_t *version_out)
{
    void *file = library.is_open ? NULL : library_open(path ? path : "libnccl.so.2");
    const char *missing = file ? find_functions(file) : NULL;
    int version = 0;

    if (!library.is_open && !file)
        snprintf(load_text, sizeof load_text, "NCCL is not found: %s; install it, or say --nccl-library FILE",
                 dlerror());
    else if (missing)
        snprintf(load_text, sizeof load_text, "NCCL is too old, 2.14 is wanted: its library has no %s", missing);
    else if (library.ncclGetVersion(&version) != ncclSuccess)
        snprintf(load_text, sizeof load_text, "NCCL does not tell its version");
    else
        library.is_open = true;
    *version_out = version;
    return library.is_open ? NULL : load_text;
}

/* nccl: NULL, where there is none yet. */
static const char *say(struct cuda_nccl *nccl, const char *what, ncclResult_t result)
{
    char *text = nccl ? nccl->text : load_text;
    const char *last = library.ncclGetLastError(nccl ? nccl->comm : NULL);

    snprintf(text, nccl ? sizeof nccl->text : sizeof load_text, "NCCL: %s: %s%s%.300s", what,
             library.ncclGetErrorString(result), last && *last ? ": " : "", last ? last : "");
    return text;
}

static bool has_failed(ncclResult_t result)
{
    return result != ncclSuccess && result != ncclInProgress;
}

static const char *make_id(void *id_out)
{
    ncclUniqueId id;
    ncclResult_t result = library.ncclGetUniqueId(&id);

    static_assert(sizeof id == CUDA_NCCL_ID_BYTES, "an id is as long as module.h says");
    if (has_failed(result))
        return say(NULL, "an id for ranks to meet by", result);
    memcpy(id_out, &id, sizeof id);
    return NULL;
}

/* ---- life ----------------------------------------------------------------------------------------- */

static cudaError_t make(struct cuda_nccl *nccl, int64_t sum_max)
{
    size_t bytes = (size_t)sum_max * sizeof(double);
    cudaError_t error = cudaMalloc((void **)&nccl->part, bytes);

    if (error == cudaSuccess)
        error = cudaMalloc((void **)&nccl->sum, bytes);
    if (error == cudaSuccess)
        error = cudaMemsetAsync(nccl->part, 0, bytes, nccl->state->stream);
    for (int i = 0; i < MAX_SUMS && error == cudaSuccess; i++) {
        error = cudaEventCreateWithFlags(&nccl->begun[i], cudaEventDisableTiming);
        if (error == cudaSuccess)
            error = cudaEventCreateWithFlags(&nccl->ended[i], cudaEventDisableTiming);
    }
    return error;
}

static const char *begin(struct cuda_state *state, int32_t world, int32_t rank, int64_t sum_max, const void *id,
                         struct cuda_nccl **out)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId unique;
    ncclResult_t result;
    cudaError_t error;
    struct cuda_nccl *nccl = (struct cuda_nccl *)calloc(1, sizeof *nccl);

    if (!nccl)
        return "no memory";
    *out = nccl;
    nccl->state = state;
    cudaSetDevice(state->ordinal);
    error = make(nccl, sum_max);
    if (error != cudaSuccess) {
        cudaGetLastError();
        snprintf(nccl->text, sizeof nccl->text, "memory for sums among ranks: %s", cudaGetErrorString(error));
        return nccl->text;
    }
    memcpy(&unique, id, sizeof unique);
    config.blocking = 0;
    result = library.ncclCommInitRankConfig(&nccl->comm, world, unique, rank, &config);
    return has_failed(result) ? say(nccl, "meeting the other ranks", result) : NULL;
}

/* Of the sum that has its place on the stream now. */
static const char *mark_end(struct cuda_nccl *nccl)
{
    cudaError_t error;

    cudaSetDevice(nccl->state->ordinal);
    error = cudaEventRecord(nccl->ended[nccl->num_sums++ % MAX_SUMS], nccl->state->stream);
    nccl->is_launching = false;
    if (error == cudaSuccess)
        return NULL;
    cudaGetLastError();
    snprintf(nccl->text, sizeof nccl->text, "the end of a sum: %s", cudaGetErrorString(error));
    return nccl->text;
}

static const char *look(struct cuda_nccl *nccl, bool *is_over_out)
{
    ncclResult_t state = ncclSuccess, result;

    *is_over_out = true;
    if (!nccl->comm)
        return "NCCL: it was aborted";
    result = library.ncclCommGetAsyncError(nccl->comm, &state);
    if (has_failed(result) || has_failed(state))
        return say(nccl, "with the other ranks", has_failed(result) ? result : state);
    *is_over_out = state == ncclSuccess;
    return *is_over_out && nccl->is_launching ? mark_end(nccl) : NULL;
}

static void end(struct cuda_nccl *nccl)
{
    if (nccl->comm) {
        cudaSetDevice(nccl->state->ordinal);
        library.ncclCommAbort(nccl->comm); /* its kernels end */
    }
    nccl->comm = NULL;
}

/* Aborts too: whether the others come to an end is theirs to know. */
static void close_nccl(struct cuda_nccl *nccl)
{
    if (!nccl)
        return;
    end(nccl);
    cudaSetDevice(nccl->state->ordinal);
    cudaStreamSynchronize(nccl->state->stream);
    for (int i = 0; i < MAX_SUMS; i++) {
        if (nccl->begun[i])
            cudaEventDestroy(nccl->begun[i]);
        if (nccl->ended[i])
            cudaEventDestroy(nccl->ended[i]);
    }
    if (nccl->part)
        cudaFree(nccl->part);
    if (nccl->sum)
        cudaFree(nccl->sum);
    free(nccl);
}

/* ---- sums ----------------------------------------------------------------------------------------- */

static double *buffer(struct cuda_nccl *nccl)
{
    return nccl->part;
}

static const char *add_up(struct cuda_nccl *nccl, const void *parts, void *sums, int64_t count, ncclDataType_t type)
{
    struct cuda_state *state = nccl->state;
    int turn = (int)(nccl->num_sums % MAX_SUMS);
    ncclResult_t result;

    if (!nccl->comm)
        return "NCCL: it was aborted";
    cudaSetDevice(state->ordinal);
    note_error(state, cudaEventRecord(nccl->begun[turn], state->stream));
    result = library.ncclAllReduce(parts, sums, (size_t)count, type, ncclSum, nccl->comm, state->stream);
    nccl->is_launching = true;
    return has_failed(result) ? say(nccl, "a sum", result) : NULL;
}

static const char *sum_parts(struct cuda_nccl *nccl, int64_t count, const double **out)
{
    *out = nccl->sum;
    return add_up(nccl, nccl->part, nccl->sum, count, ncclDouble);
}

/* In place: of each number one rank's bits are not all zero. */
static const char *add_disjoint(struct cuda_nccl *nccl, float *x, int64_t count)
{
    return add_up(nccl, x, x, count, ncclUint32);
}

static bool is_idle(const struct cuda_nccl *nccl)
{
    return cudaStreamQuery(nccl->state->stream) != cudaErrorNotReady;
}

static bool has_passed(cudaEvent_t event)
{
    return cudaEventQuery(event) != cudaErrorNotReady;
}

static bool waits(const struct cuda_nccl *nccl)
{
    int64_t end = nccl->num_sums, low = end > MAX_SUMS ? end - MAX_SUMS : 0, high = end;

    while (low < high) { /* to the first that has not ended */
        int64_t middle = low + (high - low) / 2;

        if (has_passed(nccl->ended[middle % MAX_SUMS]))
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && has_passed(nccl->begun[low % MAX_SUMS]);
}

#endif

extern "C" const struct cuda_nccl_table nccl_table = {
#if __has_include(<nccl.h>)
    .load = load,
    .make_id = make_id,
    .begin = begin,
    .poll = look,
    .buffer = buffer,
    .sum = sum_parts,
    .add_disjoint = add_disjoint,
    .is_idle = is_idle,
    .waits = waits,
    .abort = end,
    .close = close_nccl,
#endif
};
