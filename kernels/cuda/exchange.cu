/*
 * Sums among ranks that reach each other's memory by CUDA IPC: on one GPU, or on several that are linked.
 *
 * A rank's part lies in its own memory. When it has told the others by a flag in theirs, and they have told it, what
 * comes next on each stream reads all parts. There are two parts, taken in turn: that of exchange e is written over in
 * e + 2, and the others have told of e + 1 behind their reading of e.
 *
 * Exchanges may be recorded and replayed, so it is the device that counts them. The host knows no more than which
 * of the two parts comes next, and a recording has an even number of exchanges.
 */
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/columns.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FLAGS_BYTES = 4096,
    COUNT = FLAGS_BYTES / sizeof(uint32_t) - 1, /* of the rank's own exchanges so far: behind all flags */
    MAX_WORLD = COUNT,
    THREADS = 256,
    SOME = 16,              /* looks at a flag, between two at the host's words and the clock */
    LONG_NS = 50 * 1000000, /* of such looks: who is awaited is then told */
    LENT_BYTES = 2 << 20,   /* what is lent is a multiple, or other allocations would be lent with it */
};

/* What host and kernels tell each other: aborted, or not; 1 + the rank that is waited for, if for long. */
enum word { IS_ABORTED, WAITS_FOR, NUM_WORDS };

struct cuda_exchange {
    struct cuda_state *state;
    int32_t world, rank;
    int64_t sum_max; /* doubles of a part */
    uint32_t turn;   /* which part was the last exchange's */
    char *peers[MAX_WORLD]; /* each rank's memory, at this process's addresses: flags, by rank, and two parts */
    uint32_t *words;        /* page-locked: by enum word */
    uint32_t **flags;       /* the device's: [world], peers' */
    const double **parts;   /* the device's: [2, world] */
    const double *host_parts[2 * MAX_WORLD]; /* the same */
};

static double *part_of(const struct cuda_exchange *exchange, int32_t rank, uint32_t which)
{
    return (double *)(exchange->peers[rank] + FLAGS_BYTES) + which * exchange->sum_max;
}

/* ---- kernels -------------------------------------------------------------------------------------- */

/* One thread a rank, MAX_WORLD at most. */
static __global__ void meet(uint32_t *const *flags, int32_t world, int32_t rank, uint32_t *words)
{
    int32_t peer = (int32_t)threadIdx.x;
    bool is_peer = peer < world && peer != rank, is_long = false;
    uint64_t since_ns = 0;
    uint32_t *own = flags[rank], count = own[COUNT] + 1;

    __threadfence_system();
    if (is_peer)
        store_release_system(flags[peer] + rank, count);
    __syncthreads(); /* all are told before any is waited for, and all have read */
    if (peer == 0)
        own[COUNT] = count;
    for (uint32_t looks = 1; is_peer && (int32_t)(load_acquire_system(own + peer) - count) < 0; looks++) {
        if (looks % SOME) /* the host's words are far away */
            continue;
        if (load_acquire_system(&words[IS_ABORTED]))
            break;
        if (since_ns == 0)
            since_ns = global_timer();
        is_long = global_timer() - since_ns > LONG_NS;
        if (is_long) /* again and again: who has no longer to wait for another takes it back */
            store_release_system(&words[WAITS_FOR], (uint32_t)peer + 1);
    }
    if (is_long)
        store_release_system(&words[WAITS_FOR], 0);
}

/* Of each element one rank has something, the others +0: its bits, which a sum of floats might not keep (-0). */
static __global__ void add_disjoint(uint32_t *x, const double *const *parts, int32_t world, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * THREADS;

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += stride) {
        uint32_t bits = ((const uint32_t *)parts[0])[i];

        for (int32_t rank = 1; rank < world; rank++)
            bits |= ((const uint32_t *)parts[rank])[i];
        x[i] = bits;
    }
}

/* ---- life ----------------------------------------------------------------------------------------- */

static const char *say(struct cuda_state *state, const char *what, cudaError_t error)
{
    cudaGetLastError(); /* or the next launch would seem to have met it */
    snprintf(state->text, sizeof state->text, "%s: %s", what, cudaGetErrorString(error));
    return state->text;
}

void exchange_close(struct cuda_exchange *exchange)
{
    if (!exchange)
        return;
    cudaSetDevice(exchange->state->ordinal);
    cudaStreamSynchronize(exchange->state->stream);
    for (int32_t rank = 0; rank < exchange->world; rank++)
        if (exchange->peers[rank] && rank != exchange->rank)
            cudaIpcCloseMemHandle(exchange->peers[rank]);
    if (exchange->peers[exchange->rank])
        cudaFree(exchange->peers[exchange->rank]);
    if (exchange->flags)
        cudaFree(exchange->flags);
    if (exchange->parts)
        cudaFree(exchange->parts);
    if (exchange->words)
        cudaFreeHost(exchange->words);
    cudaGetLastError(); /* what has become of the others' memory is no launch's concern */
    free(exchange);
}

static const char *make(struct cuda_exchange *exchange, void *handle_out)
{
    struct cuda_state *state = exchange->state;
    int64_t bytes = FLAGS_BYTES + 2 * exchange->sum_max * (int64_t)sizeof(double);
    cudaIpcMemHandle_t handle;
    cudaError_t error;
    void *p;

    cudaSetDevice(state->ordinal);
    error = cudaMalloc(&p, (size_t)round_up(bytes, LENT_BYTES));
    if (error != cudaSuccess)
        return say(state, "memory for sums among ranks", error);
    exchange->peers[exchange->rank] = (char *)p;
    error = cudaMemsetAsync(p, 0, FLAGS_BYTES, state->stream);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(state->stream); /* before any other rank may write to it */
    if (error == cudaSuccess)
        error = cudaIpcGetMemHandle(&handle, p);
    if (error != cudaSuccess)
        return say(state, "memory that other processes are to reach", error);
    memcpy(handle_out, &handle, sizeof handle);

    error = cudaMallocHost(&p, NUM_WORDS * sizeof(uint32_t));
    if (error != cudaSuccess)
        return say(state, "page-locked memory", error);
    exchange->words = (uint32_t *)p;
    memset(p, 0, NUM_WORDS * sizeof(uint32_t));
    return NULL;
}

const char *exchange_open(struct cuda_state *state, int32_t world, int32_t rank, int64_t sum_max, void *handle_out,
                          struct cuda_exchange **out)
{
    struct cuda_exchange *exchange;
    const char *text;

    static_assert(sizeof(cudaIpcMemHandle_t) == CUDA_HANDLE_BYTES, "a handle is as long as module.h says");
    if (world > MAX_WORLD)
        return "sums of so many ranks";
    exchange = (struct cuda_exchange *)calloc(1, sizeof *exchange);
    if (!exchange)
        return "no memory";
    exchange->state = state;
    exchange->world = world;
    exchange->rank = rank;
    exchange->sum_max = sum_max;
    text = make(exchange, handle_out);
    if (text) {
        exchange_close(exchange);
        return text;
    }
    *out = exchange;
    return NULL;
}

static cudaError_t upload(struct cuda_state *state, const void *host, size_t bytes, void **out)
{
    cudaError_t error = cudaMalloc(out, bytes);

    if (error == cudaSuccess)
        error = cudaMemcpyAsync(*out, host, bytes, cudaMemcpyHostToDevice, state->stream);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(state->stream);
    return error;
}

const char *exchange_connect(struct cuda_exchange *exchange, const void *handles)
{
    int32_t world = exchange->world;
    cudaError_t error = cudaSuccess;
    void *flags = NULL, *both = NULL;

    cudaSetDevice(exchange->state->ordinal);
    for (int32_t rank = 0; rank < world; rank++) {
        cudaIpcMemHandle_t handle;
        void *p;

        if (rank == exchange->rank)
            continue;
        memcpy(&handle, (const char *)handles + rank * CUDA_HANDLE_BYTES, sizeof handle);
        error = cudaIpcOpenMemHandle(&p, handle, cudaIpcMemLazyEnablePeerAccess);
        if (error != cudaSuccess)
            return say(exchange->state, "another rank's memory", error);
        exchange->peers[rank] = (char *)p;
    }
    for (int32_t rank = 0; rank < world; rank++)
        for (uint32_t which = 0; which < 2; which++)
            exchange->host_parts[which * (uint32_t)world + (uint32_t)rank] = part_of(exchange, rank, which);
    error = upload(exchange->state, exchange->peers, (size_t)world * sizeof(char *), &flags);
    exchange->flags = (uint32_t **)flags;
    if (error == cudaSuccess)
        error = upload(exchange->state, exchange->host_parts, 2 * (size_t)world * sizeof(double *), &both);
    exchange->parts = (const double **)both;
    return error == cudaSuccess ? NULL : say(exchange->state, "sums among ranks", error);
}

void exchange_abort(struct cuda_exchange *exchange)
{
    __atomic_store_n(&exchange->words[IS_ABORTED], 1, __ATOMIC_RELEASE);
}

int32_t exchange_waits_for(const struct cuda_exchange *exchange)
{
    return (int32_t)__atomic_load_n(&exchange->words[WAITS_FOR], __ATOMIC_ACQUIRE) - 1;
}

/* ---- exchanges ------------------------------------------------------------------------------------ */

double *exchange_buffer(struct cuda_exchange *exchange)
{
    return part_of(exchange, exchange->rank, exchange->turn ^ 1);
}

const double *const *exchange_sum(struct cuda_exchange *exchange)
{
    struct cuda_state *state = exchange->state;

    exchange->turn ^= 1;
    launch(meet, dim3(1), dim3((unsigned)round_up(exchange->world, WARP)), 0, state->stream, exchange->flags,
           exchange->world, exchange->rank, exchange->words);
    note_launch(state);
    return exchange->host_parts + exchange->turn * (uint32_t)exchange->world;
}

void exchange_align(struct cuda_exchange *exchange)
{
    if (exchange->turn != 0)
        exchange_sum(exchange); /* of nothing */
}

/* What is to go to the others: floats. */
static const char *fill_buffer(struct cuda_exchange *exchange, const float *x, int64_t count)
{
    cudaError_t error = cudaMemcpyAsync(exchange_buffer(exchange), x, (size_t)count * sizeof *x,
                                        cudaMemcpyDeviceToDevice, exchange->state->stream);

    return error == cudaSuccess ? NULL : say(exchange->state, "a part of a sum", error);
}

const char *exchange_gather(struct cuda_exchange *exchange, const struct comm_columns *columns)
{
    const int32_t *own = columns->first + exchange->rank;
    const double *const *parts;
    const char *text = fill_buffer(exchange, columns->own, (int64_t)columns->rows * (own[1] - own[0]));

    if (text)
        return text;
    parts = exchange_sum(exchange);
    for (int32_t rank = 0; rank < exchange->world; rank++)
        put_columns(exchange->state, columns, exchange->world, rank, (const float *)parts[rank]);
    return NULL;
}

const char *exchange_add_disjoint(struct cuda_exchange *exchange, float *x, int64_t count)
{
    struct cuda_state *state = exchange->state;
    int64_t most = 2 * exchange->sum_max;

    for (int64_t at = 0; at < count; at += most) {
        int64_t n = count - at < most ? count - at : most;
        const char *text = fill_buffer(exchange, x + at, n);

        if (text)
            return text;
        exchange_sum(exchange);
        launch(add_disjoint, column_blocks(state, n), dim3(THREADS), 0, state->stream,
               (uint32_t *)(x + at), exchange->parts + exchange->turn * (uint32_t)exchange->world, exchange->world, n);
        note_launch(state);
    }
    return NULL;
}
