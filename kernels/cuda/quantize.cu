/* Activations from floats, as they are or gated: a quad a thread. */
#include "kernels/cuda/exp.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/state.h"

enum gate { NO_GATE, SILU, GELU };

struct gate_task {
    struct activations out; /* the forms that are wanted */
    const float *gate, *up; /* up: not of NO_GATE */
    int64_t stride;
    int32_t pieces;     /* blocks of threads to a row */
    int32_t warp_quads; /* as quad_at wants them */
    bool aligned;       /* gate and up can be read as quads */
};

enum { MAX_THREADS = 256 };

template <enum gate kind> static __device__ __forceinline__ float gated(float g, float up)
{
    if (kind == NO_GATE)
        return g;
    if (kind == SILU)
        return g / (1.0f + exp_cuda(-g)) * up;

    float u = GELU_SCALE * fmaf(GELU_CUBE * g * g, g, g);

    return g / (1.0f + exp_cuda(-2.0f * u)) * up;
}

static __device__ __forceinline__ float4 load_inputs(const struct gate_task &task, const float *p)
{
    return task.aligned ? load_quad(p) : make_float4(p[0], p[1], p[2], p[3]);
}

template <enum gate kind> static __global__ void __launch_bounds__(MAX_THREADS) gate_rows(struct gate_task task)
{
    int32_t row = (int32_t)blockIdx.x / task.pieces, piece = (int32_t)blockIdx.x % task.pieces;
    int32_t at = quad_at((int32_t)(piece * blockDim.x + threadIdx.x), task.warp_quads);
    bool in = at < task.out.k;
    float4 x = make_float4(0, 0, 0, 0), up = x;

    if (in) {
        x = load_inputs(task, task.gate + row * task.stride + at);
        if (kind != NO_GATE)
            up = load_inputs(task, task.up + row * task.stride + at);
    }
    x.x = gated<kind>(x.x, up.x);
    x.y = gated<kind>(x.y, up.y);
    x.z = gated<kind>(x.z, up.z);
    x.w = gated<kind>(x.w, up.w);
    put_quad(task.out, (int64_t)row * task.out.k + at, in, x);
}

static void run(struct device *dev, void (*kernel)(struct gate_task), const struct activations *out,
                const float *gate, const float *up, int64_t stride)
{
    struct cuda_state *state = state_of(dev);
    struct gate_task task = {*out, gate, up, stride};

    if (out->rows == 0)
        return;
    if (!can_write_activations(out)) {
        note_error(state, cudaErrorInvalidValue);
        return;
    }
    task.warp_quads = warp_quads(out);

    int64_t warps = divide_up_64(out->k / QUAD, task.warp_quads), pieces = divide_up_64(warps, MAX_THREADS / WARP);
    int64_t threads = divide_up_64(warps, pieces) * WARP;

    task.pieces = (int32_t)pieces;
    task.aligned = is_aligned(gate) && is_aligned(up) && stride % QUAD == 0;
    launch(kernel, dim3((unsigned)(out->rows * pieces)), dim3((unsigned)threads), 0, state->stream, task);
    note_launch(state);
}

extern "C" void quantize_cuda(struct device *dev, const struct activations *a)
{
    struct activations out = *a;

    out.x = NULL;
    run(dev, gate_rows<NO_GATE>, &out, a->x, NULL, a->k);
}

extern "C" void silu_mul_cuda(struct device *dev, const struct activations *out, const float *gate, const float *up,
                              int64_t stride)
{
    run(dev, gate_rows<SILU>, out, gate, up, stride);
}

extern "C" void gelu_mul_cuda(struct device *dev, const struct activations *out, const float *gate, const float *up,
                              int64_t stride)
{
    run(dev, gate_rows<GELU>, out, gate, up, stride);
}
