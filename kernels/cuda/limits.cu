/* What a GPU does at most, to hold kernels against: the best of several runs. */
#include "kernels/cuda/limits.h"
#include "kernels/cuda/state.h"

#include <stdio.h>

enum { THREADS = 256, RUNS = 10, AHEAD = 8 };
static const int64_t MOST_BYTES = (int64_t)4 << 30; /* far more than caches hold */

/* Reads all of it; what comes of it is only there so that it is not left out. */
static __global__ void __launch_bounds__(THREADS) read_all(const uint4 *from, int64_t count, uint32_t *sink)
{
    const int64_t stride = (int64_t)gridDim.x * THREADS;
    uint32_t all = 0;

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += stride * AHEAD) {
        uint4 words[AHEAD];

#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            words[j] = i + j * stride < count ? __ldg(from + i + j * stride) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            all |= words[j].x | words[j].y | words[j].z | words[j].w;
    }
    if (all)
        *sink = all;
}

#define TRY_CUDA(call)                                                                                                \
    do {                                                                                                              \
        cudaError_t error_ = (call);                                                                                  \
        if (error_ != cudaSuccess)                                                                                    \
            return error_;                                                                                            \
    } while (0)

struct measurement {
    char *memory;
    int64_t bytes;
    cudaEvent_t begin, end;
};

static cudaError_t measure(struct cuda_state *state, struct measurement *m, double *gb_s_out)
{
    size_t free_bytes, all_bytes;

    cudaSetDevice(state->ordinal);
    TRY_CUDA(cudaMemGetInfo(&free_bytes, &all_bytes));
    m->bytes = min((int64_t)(free_bytes / 4), MOST_BYTES) / 4096 * 4096;
    TRY_CUDA(cudaMalloc((void **)&m->memory, (size_t)m->bytes + 16));
    TRY_CUDA(cudaMemsetAsync(m->memory, 0, (size_t)m->bytes + 16, state->stream));
    TRY_CUDA(cudaEventCreateWithFlags(&m->begin, cudaEventDefault));
    TRY_CUDA(cudaEventCreateWithFlags(&m->end, cudaEventDefault));
    *gb_s_out = 0;
    for (int run = 0; run < RUNS; run++) {
        float ms = 0;

        TRY_CUDA(cudaEventRecord(m->begin, state->stream));
        launch(read_all, dim3((unsigned)(8 * state->num_processors)), dim3(THREADS), 0, state->stream,
               (const uint4 *)m->memory, m->bytes / 16, (uint32_t *)(m->memory + m->bytes));
        TRY_CUDA(cudaGetLastError());
        TRY_CUDA(cudaEventRecord(m->end, state->stream));
        TRY_CUDA(cudaEventSynchronize(m->end));
        TRY_CUDA(cudaEventElapsedTime(&ms, m->begin, m->end));
        if (ms > 0 && (double)m->bytes / (double)ms / 1e6 > *gb_s_out)
            *gb_s_out = (double)m->bytes / (double)ms / 1e6;
    }
    return cudaSuccess;
}

const char *limit_read(struct cuda_state *state, double *gb_s_out)
{
    struct measurement m = {};
    cudaError_t error = measure(state, &m, gb_s_out);

    cudaStreamSynchronize(state->stream);
    if (m.begin)
        cudaEventDestroy(m.begin);
    if (m.end)
        cudaEventDestroy(m.end);
    cudaFree(m.memory);
    if (error == cudaSuccess)
        return NULL;
    cudaGetLastError();
    snprintf(state->text, sizeof state->text, "measuring its memory failed: %s", cudaGetErrorString(error));
    return state->text;
}
