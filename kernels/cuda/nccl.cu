/*
 * Sums among ranks by NCCL, on any hosts. Its library is opened when the first of them is wanted: who runs on one
 * GPU needs none, and does not wait for it.
 *
 * One answer: NCCL adds in an order of its own, which varies with the number of ranks, the machine and its version.
 * Parts are multiples of EXACT_GRID, so whatever some ranks' come to is exact, and so is the sum, in any order.
 * What is one rank's alone (add_disjoint) is moved as whole numbers: its bits come out, where sums of floats, some
 * of which switches add up, might flush what is subnormal.
 *
 * An exchange may be recorded: NCCL's own thread puts it into the capture of the stream, as it would put it on the
 * stream. It is the device that counts exchanges, before and behind each, so that replays are counted too.
 *
 * Kernels of a rank that aborts go on at once, and send what they have not got: its peers, which have not been told
 * yet, take that for an exchange. Where hosts draw tokens from sums, they exchange something then, which fails. Where
 * devices do, from columns, nothing would follow: so behind these each rank tells, by NCCL too, that it had not
 * aborted when it had them. Who is told so by all has the right ones; who is not is not to believe its own.
 */
#include "kernels/cuda/columns.h"
#include "kernels/cuda/library.h"
#include "kernels/cuda/state.h"

#if __has_include(<nccl.h>)

#include <nccl.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the device counts: exchanges that it has come to, and that have ended; columns that were put together. */
enum { BEGUN, ENDED, GATHERED, NUM_COUNTS };

/* What host and device tell each other: the first two of these; what the host says of an abort, and the device of
 * columns, see check_all. */
enum { IS_ABORTED = GATHERED, IS_DOUBTFUL, NUM_WORDS };

struct cuda_nccl {
    struct cuda_state *state;
    int32_t world, rank;
    ncclComm_t comm; /* NULL: there is none yet, or no longer */
    double *part, *sum; /* the device's: [sum_max] */
    float *columns;     /* the device's: [world, columns_max] */
    uint32_t *vouched;  /* the device's: [world] */
    uint32_t *counts;   /* the device's: [NUM_COUNTS] */
    uint32_t *words;    /* page-locked: [NUM_WORDS] */
    bool is_launching;  /* an exchange that has no place on the stream yet */
    char text[512];     /* the last sentence that was returned */
};

/* ---- the library ---------------------------------------------------------------------------------- */

#define NCCL_FUNCTIONS(row)                                                                                \
    row(ncclGetVersion) row(ncclGetErrorString) row(ncclGetLastError) row(ncclGetUniqueId)                 \
        row(ncclCommInitRankConfig) row(ncclCommGetAsyncError) row(ncclAllReduce) row(ncclAllGather)           \
            row(ncclCommAbort)

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

/* ---- kernels -------------------------------------------------------------------------------------- */

static __global__ void count_up(uint32_t *count, uint32_t *word)
{
    store_release_system(word, ++*count);
}

/* Behind an exchange of columns: this rank has not aborted before it had them. `word` is the same for all ranks then,
 * and never was before. */
static __global__ void vouch(uint32_t *word, uint32_t *count, const uint32_t *is_aborted)
{
    ++*count;
    *word = load_acquire_system(is_aborted) ? ~*count : *count;
}

static __global__ void check_all(const uint32_t *words, int32_t world, const uint32_t *count, uint32_t *is_doubtful)
{
    for (int32_t rank = 0; rank < world; rank++)
        if (words[rank] != *count)
            store_release_system(is_doubtful, 1);
}

/* ---- life ----------------------------------------------------------------------------------------- */

static cudaError_t make(struct cuda_nccl *nccl, int64_t sum_max, int64_t columns_max)
{
    size_t bytes = (size_t)sum_max * sizeof(double), world = (size_t)nccl->world;
    const struct { void **at; size_t bytes; } rows[] = {
        {(void **)&nccl->part, bytes},
        {(void **)&nccl->sum, bytes},
        {(void **)&nccl->columns, world * (size_t)columns_max * sizeof *nccl->columns},
        {(void **)&nccl->vouched, world * sizeof *nccl->vouched},
        {(void **)&nccl->counts, NUM_COUNTS * sizeof *nccl->counts},
    };
    cudaError_t error = cudaMallocHost((void **)&nccl->words, NUM_WORDS * sizeof *nccl->words);

    if (error != cudaSuccess)
        return error;
    memset(nccl->words, 0, NUM_WORDS * sizeof *nccl->words);
    for (const auto &row : rows) {
        if (error == cudaSuccess)
            error = cudaMalloc(row.at, row.bytes);
        if (error == cudaSuccess)
            error = cudaMemsetAsync(*row.at, 0, row.bytes, nccl->state->stream);
    }
    return error;
}

static const char *begin(struct cuda_state *state, const struct cuda_nccl_ranks *ranks, const void *id,
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
    nccl->world = ranks->world;
    nccl->rank = ranks->rank;
    cudaSetDevice(state->ordinal);
    error = make(nccl, ranks->sum_max, ranks->columns_max);
    if (error != cudaSuccess) {
        cudaGetLastError();
        snprintf(nccl->text, sizeof nccl->text, "memory for sums among ranks: %s", cudaGetErrorString(error));
        return nccl->text;
    }
    memcpy(&unique, id, sizeof unique);
    config.blocking = 0;
    result = library.ncclCommInitRankConfig(&nccl->comm, nccl->world, unique, nccl->rank, &config);
    return has_failed(result) ? say(nccl, "meeting the other ranks", result) : NULL;
}

static void count_on_stream(struct cuda_nccl *nccl, int which)
{
    cudaSetDevice(nccl->state->ordinal);
    launch(count_up, dim3(1), dim3(1), 0, nccl->state->stream, nccl->counts + which, nccl->words + which);
    note_launch(nccl->state);
}

static const char *look(struct cuda_nccl *nccl, bool *is_over_out)
{
    ncclResult_t state = ncclSuccess, result;

    *is_over_out = true;
    result = library.ncclCommGetAsyncError(nccl->comm, &state);
    if (has_failed(result) || has_failed(state))
        return say(nccl, "with the other ranks", has_failed(result) ? result : state);
    *is_over_out = state == ncclSuccess;
    if (*is_over_out && nccl->is_launching)
        count_on_stream(nccl, ENDED);
    nccl->is_launching &= !*is_over_out;
    return NULL;
}

static void end(struct cuda_nccl *nccl)
{
    if (!nccl->comm)
        return;
    __atomic_store_n(&nccl->words[IS_ABORTED], 1, __ATOMIC_RELEASE); /* before any kernel goes on */
    cudaSetDevice(nccl->state->ordinal);
    library.ncclCommAbort(nccl->comm);
    nccl->comm = NULL;
}

/* Aborts too: whether the others come to an end is theirs to know. */
static void close_nccl(struct cuda_nccl *nccl)
{
    void *memory[] = {nccl->part, nccl->sum, nccl->columns, nccl->vouched, nccl->counts};

    end(nccl);
    cudaSetDevice(nccl->state->ordinal);
    cudaStreamSynchronize(nccl->state->stream);
    for (void *p : memory)
        if (p)
            cudaFree(p);
    if (nccl->words)
        cudaFreeHost(nccl->words);
    free(nccl);
}

/* ---- exchanges ------------------------------------------------------------------------------------ */

static double *buffer(struct cuda_nccl *nccl)
{
    return nccl->part;
}

/* What the library was asked for, behind count_on_stream(BEGUN). */
static const char *has_begun(struct cuda_nccl *nccl, const char *what, ncclResult_t result)
{
    nccl->is_launching = true;
    return has_failed(result) ? say(nccl, what, result) : NULL;
}

static const char *add_up(struct cuda_nccl *nccl, const void *parts, void *sums, int64_t count, ncclDataType_t type)
{
    count_on_stream(nccl, BEGUN);
    return has_begun(nccl, "a sum",
                     library.ncclAllReduce(parts, sums, (size_t)count, type, ncclSum, nccl->comm,
                                           nccl->state->stream));
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

/* In place: all ranks' are side by side, this one's among them. */
static const char *gather(struct cuda_nccl *nccl, const void *own, void *all, int64_t count, ncclDataType_t type)
{
    count_on_stream(nccl, BEGUN);
    return has_begun(nccl, "what ranks put together",
                     library.ncclAllGather(own, all, (size_t)count, type, nccl->comm, nccl->state->stream));
}

/* All ranks' shares are as large as the largest: NCCL wants it so. */
static int64_t share_of(const struct cuda_nccl *nccl, const struct comm_columns *columns)
{
    int32_t widest = 0;

    for (int32_t rank = 0; rank < nccl->world; rank++)
        widest = max(widest, columns->first[rank + 1] - columns->first[rank]);
    return (int64_t)columns->rows * widest;
}

static const char *gather_columns(struct cuda_nccl *nccl, const struct comm_columns *columns)
{
    const int32_t *own = columns->first + nccl->rank;
    int64_t share = share_of(nccl, columns), count = (int64_t)columns->rows * (own[1] - own[0]);
    float *place = nccl->columns + nccl->rank * share;

    cudaSetDevice(nccl->state->ordinal);
    note_error(nccl->state, cudaMemcpyAsync(place, columns->own, (size_t)count * sizeof *place,
                                            cudaMemcpyDeviceToDevice, nccl->state->stream));
    return gather(nccl, place, nccl->columns, share, ncclFloat);
}

static const char *vouch_for_columns(struct cuda_nccl *nccl, const struct comm_columns *columns)
{
    uint32_t *own = nccl->vouched + nccl->rank;

    cudaSetDevice(nccl->state->ordinal);
    for (int32_t rank = 0; rank < nccl->world; rank++)
        put_columns(nccl->state, columns, nccl->world, rank, nccl->columns + rank * share_of(nccl, columns));
    launch(vouch, dim3(1), dim3(1), 0, nccl->state->stream, own, nccl->counts + GATHERED, nccl->words + IS_ABORTED);
    note_launch(nccl->state);
    return gather(nccl, own, nccl->vouched, 1, ncclUint32);
}

static void check_columns(struct cuda_nccl *nccl)
{
    cudaSetDevice(nccl->state->ordinal);
    launch(check_all, dim3(1), dim3(1), 0, nccl->state->stream, nccl->vouched, nccl->world, nccl->counts + GATHERED,
           nccl->words + IS_DOUBTFUL);
    note_launch(nccl->state);
}

/* ---- questions ------------------------------------------------------------------------------------ */

static uint32_t word_of(const struct cuda_nccl *nccl, int which)
{
    return __atomic_load_n(&nccl->words[which], __ATOMIC_ACQUIRE);
}

/* Its end first: what begins between the two looks is no reason. */
static bool waits(const struct cuda_nccl *nccl)
{
    uint32_t ended = word_of(nccl, ENDED);

    return word_of(nccl, BEGUN) == ended + 1;
}

static bool is_idle(const struct cuda_nccl *nccl)
{
    return stream_is_idle(nccl->state);
}

static bool is_doubtful(const struct cuda_nccl *nccl)
{
    return word_of(nccl, IS_DOUBTFUL);
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
    .gather_columns = gather_columns,
    .vouch_for_columns = vouch_for_columns,
    .check_columns = check_columns,
    .is_doubtful = is_doubtful,
    .is_idle = is_idle,
    .waits = waits,
    .abort = end,
    .close = close_nccl,
#endif
};
