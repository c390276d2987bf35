/*
 * Weights of 16 bits by cuBLASLt, the other way beside matmul_half.cu: a row's bits may depend on the rows beside
 * it, since which kernel it takes, and in which order that adds up, is the library's affair. Its file is opened
 * when it is wanted: who keeps to one answer needs none.
 *
 *  - Activations are rounded to the weights' type, by a kernel before. Halves have the bits of tf32, to which
 *    matmul_half rounds, but not its exponents: a row whose largest is far from 1 is multiplied by a power of two
 *    before, and its results are divided by it by a kernel behind.
 *  - Products are added up in float over all of k. Of groups there are none: their sum is rounded to the exact grid
 *    once, so that ranks' parts may be added in any order.
 *  - Weights lie as half_layout.h says, which is a matrix that cuBLASLt reads as it is: k x n, columns one after
 *    another. With rows of activations as columns of another, out is their n x rows: "TN", its quickest form.
 *  - Which of its kernels a shape is for is asked once for a range of rows, and kept. What it refuses is
 *    matmul_half's.
 *
 * All memory that it may use is allocated before the first matmul, and nothing waits for the device, so that it can
 * be recorded. (Code comes to the device at its first use, in a recording too.)
 */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/half_layout.h"
#include "kernels/cuda/library.h"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/rows.cuh"

#if __has_include(<cublasLt.h>)

#include <cublasLt.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WORKSPACE_BYTES = 32 << 20, /* as NVIDIA advises for Hopper */
    NUM_PLANS = 2048,           /* shapes of a model are few, and there are four of each in an octave of rows */
    MOST_ALIGN = 256,
    PIECE_ROWS = 256, /* rows that go through scratch memory at a time are a multiple */
    ROW_THREADS = 256,
    /* 2^LEAST to 2^MOST is the largest of a row of activations that is rounded to halves as it is. */
    LEAST_EXPONENT = -8,
    MOST_EXPONENT = 15,
    SCALED_EXPONENT = 14, /* that it has else */
};

/* What a choice depends on; no padding. */
struct shape {
    int32_t type, n, k, rows; /* rows: the most of the range */
    int32_t weights_align, out_align;
    int64_t out_stride;
};

struct plan {
    struct shape shape;
    bool is_known, is_refused;
    cublasLtMatmulAlgo_t algo;
};

struct cublaslt {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t product;
    cublasLtMatmulPreference_t preference;
    cublasLtMatrixLayout_t weights, x, out;
    int32_t from_rows;
    void *workspace;
    struct plan plans[NUM_PLANS]; /* by their shapes' hash; one that finds another in its place takes it */
    bool has_news, had_news;
    char news[256];
};

/* ---- the library ---------------------------------------------------------------------------------- */

#define CUBLASLT_FUNCTIONS(row)                                                                            \
    row(cublasLtGetVersion) row(cublasLtGetStatusString) row(cublasLtCreate) row(cublasLtDestroy)          \
        row(cublasLtMatmulDescCreate) row(cublasLtMatmulDescDestroy) row(cublasLtMatmulDescSetAttribute)   \
            row(cublasLtMatrixLayoutCreate) row(cublasLtMatrixLayoutDestroy)                               \
                row(cublasLtMatrixLayoutSetAttribute) row(cublasLtMatmulPreferenceCreate)                  \
                    row(cublasLtMatmulPreferenceDestroy) row(cublasLtMatmulPreferenceSetAttribute)         \
                        row(cublasLtMatmulAlgoGetHeuristic) row(cublasLtMatmul)

static struct {
    bool is_open;
    CUBLASLT_FUNCTIONS(LIBRARY_MEMBER)
} library;

static thread_local char load_text[512];

/* The first function that the library lacks; NULL: it has all. */
static const char *find_functions(void *file)
{
    CUBLASLT_FUNCTIONS(LIBRARY_FIND)
    return NULL;
}

/* Structures and numbers are those of one major version. */
static const char *load(const char *path, int32_t *version_out)
{
    char name[64];
    void *file;
    const char *missing;

    snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    file = library.is_open ? NULL : library_open(path ? path : name);
    missing = file ? find_functions(file) : NULL;
    *version_out = 0;
    if (!library.is_open && !file)
        snprintf(load_text, sizeof load_text,
                 "cuBLASLt is not found: %s; install CUDA %d's, or say --cublaslt-library FILE", dlerror(),
                 CUBLAS_VER_MAJOR);
    else if (missing)
        snprintf(load_text, sizeof load_text, "%s is no cuBLASLt: it has no %s", path ? path : name, missing);
    else if (library.cublasLtGetVersion() / 10000 != CUBLAS_VER_MAJOR)
        snprintf(load_text, sizeof load_text,
                 "%s is cuBLASLt of version number %zu, and tandem_cuda.so was built for CUDA %d's: say "
                 "--cublaslt-library FILE of that one",
                 path ? path : name, library.cublasLtGetVersion(), CUBLAS_VER_MAJOR);
    else
        library.is_open = true;
    if (!library.is_open)
        return load_text;
    *version_out = (int32_t)library.cublasLtGetVersion();
    return NULL;
}

/* ---- what it is told ------------------------------------------------------------------------------ */

/* The first failure of several calls. */
static void also(cublasStatus_t *status, cublasStatus_t more)
{
    if (*status == CUBLAS_STATUS_SUCCESS)
        *status = more;
}

static cudaDataType_t data_type(int32_t type)
{
    return type == TYPE_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static void set_layout(cublasStatus_t *status, cublasLtMatrixLayout_t layout, cudaDataType_t type, uint64_t rows,
                       uint64_t columns, int64_t stride)
{
    const uint32_t type_number = (uint32_t)type;

    also(status, library.cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_TYPE, &type_number,
                                                          sizeof type_number));
    also(status, library.cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, sizeof rows));
    also(status, library.cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &columns,
                                                          sizeof columns));
    also(status, library.cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_LD, &stride,
                                                          sizeof stride));
}

static cublasStatus_t set_layouts(struct cublaslt *lt, const struct shape *shape, int32_t rows)
{
    const uint64_t n = (uint64_t)shape->n, k = (uint64_t)shape->k;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;

    set_layout(&status, lt->weights, data_type(shape->type), k, n, shape->k);
    set_layout(&status, lt->x, data_type(shape->type), k, (uint64_t)rows, shape->k);
    set_layout(&status, lt->out, CUDA_R_32F, n, (uint64_t)rows, shape->out_stride);
    return status;
}

static void prefer(cublasStatus_t *status, struct cublaslt *lt, cublasLtMatmulPreferenceAttributes_t what,
                   int32_t value)
{
    const uint32_t number = (uint32_t)value;

    also(status, library.cublasLtMatmulPreferenceSetAttribute(lt->preference, what, &number, sizeof number));
}

/* The best for so many rows, as far as it knows without measuring. */
static cublasStatus_t choose(struct cublaslt *lt, struct plan *plan, int32_t rows)
{
    cublasLtMatmulHeuristicResult_t result = {};
    cublasStatus_t status = set_layouts(lt, &plan->shape, rows);
    int count = 0;

    prefer(&status, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, plan->shape.weights_align);
    prefer(&status, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, MOST_ALIGN);
    prefer(&status, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, plan->shape.out_align);
    prefer(&status, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, plan->shape.out_align);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = library.cublasLtMatmulAlgoGetHeuristic(lt->handle, lt->product, lt->weights, lt->x, lt->out,
                                                        lt->out, lt->preference, 1, &result, &count);
    if (status == CUBLAS_STATUS_SUCCESS && count > 0)
        status = result.state;
    else if (status == CUBLAS_STATUS_SUCCESS)
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    plan->algo = result.algo;
    return status;
}

/* ---- life ----------------------------------------------------------------------------------------- */

static cublasStatus_t make(struct cublaslt *lt)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const uint64_t workspace_bytes = WORKSPACE_BYTES;
    cublasStatus_t status = library.cublasLtCreate(&lt->handle);

    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    also(&status, library.cublasLtMatmulDescCreate(&lt->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    also(&status, library.cublasLtMatmulPreferenceCreate(&lt->preference));
    also(&status, library.cublasLtMatrixLayoutCreate(&lt->weights, CUDA_R_16BF, 1, 1, 1));
    also(&status, library.cublasLtMatrixLayoutCreate(&lt->x, CUDA_R_16BF, 1, 1, 1));
    also(&status, library.cublasLtMatrixLayoutCreate(&lt->out, CUDA_R_32F, 1, 1, 1));
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    also(&status, library.cublasLtMatmulDescSetAttribute(lt->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                         sizeof transposed));
    also(&status, library.cublasLtMatmulPreferenceSetAttribute(lt->preference,
                                                               CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                               &workspace_bytes, sizeof workspace_bytes));
    return status;
}

void cublaslt_close(struct cuda_state *state)
{
    struct cublaslt *lt = state->cublaslt;

    if (!lt)
        return;
    if (lt->weights)
        library.cublasLtMatrixLayoutDestroy(lt->weights);
    if (lt->x)
        library.cublasLtMatrixLayoutDestroy(lt->x);
    if (lt->out)
        library.cublasLtMatrixLayoutDestroy(lt->out);
    if (lt->preference)
        library.cublasLtMatmulPreferenceDestroy(lt->preference);
    if (lt->product)
        library.cublasLtMatmulDescDestroy(lt->product);
    if (lt->handle)
        library.cublasLtDestroy(lt->handle);
    if (cudaFree(lt->workspace) != cudaSuccess)
        cudaGetLastError();
    free(lt);
    state->cublaslt = NULL;
}

static const char *use(struct cuda_state *state, int32_t from_rows)
{
    struct cublaslt *lt = (struct cublaslt *)calloc(1, sizeof *lt);
    cudaError_t error;
    cublasStatus_t status;

    if (!lt)
        return "no memory";
    cublaslt_close(state);
    state->cublaslt = lt;
    lt->from_rows = from_rows;
    cudaSetDevice(state->ordinal);
    error = cudaMalloc(&lt->workspace, (size_t)WORKSPACE_BYTES);
    status = error == cudaSuccess ? make(lt) : CUBLAS_STATUS_SUCCESS;
    if (error == cudaSuccess && status == CUBLAS_STATUS_SUCCESS)
        return NULL;
    cudaGetLastError();
    snprintf(load_text, sizeof load_text, "cuBLASLt does not start on GPU %d (%s): %s", state->ordinal, state->name,
             error != cudaSuccess ? cudaGetErrorString(error) : library.cublasLtGetStatusString(status));
    cublaslt_close(state);
    return load_text;
}

static const char *news(struct cuda_state *state)
{
    struct cublaslt *lt = state->cublaslt;

    if (!lt || !lt->has_news)
        return NULL;
    lt->has_news = false;
    return lt->news;
}

/* The first time. */
static void note_refusal(struct cublaslt *lt, const struct shape *shape, cublasStatus_t status)
{
    if (lt->had_news)
        return;
    lt->has_news = lt->had_news = true;
    snprintf(lt->news, sizeof lt->news,
             "cuBLASLt refuses a matmul of %d rows by %d x %d of %s, maybe others too (%s): our own kernels do it",
             shape->rows, shape->n, shape->k, shape->type == TYPE_BF16 ? "bf16" : "f16",
             library.cublasLtGetStatusString(status));
}

/* ---- kernels -------------------------------------------------------------------------------------- */

struct stage_task {
    const float *x; /* [rows, k] */
    uint2 *out;     /* [rows, stride / QUAD]: zeros beyond k */
    float *scales;  /* [rows]: what results are to be multiplied by; F16 */
    int32_t k, stride;
    bool is_aligned; /* rows of x to QUADs */
};

static __device__ __forceinline__ float4 load_some(const struct stage_task &task, const float *x, int32_t i)
{
    if (task.is_aligned && i < task.k)
        return load_quad(x + i);
    return make_float4(i < task.k ? x[i] : 0.0f, i + 1 < task.k ? x[i + 1] : 0.0f, i + 2 < task.k ? x[i + 2] : 0.0f,
                       i + 3 < task.k ? x[i + 3] : 0.0f);
}

/* 2^exponent, of a normal number. */
static __device__ __forceinline__ float power_of_two(int32_t exponent)
{
    return __uint_as_float((uint32_t)(127 + exponent) << 23);
}

/* By what power of two a row is multiplied. most: the largest of it; what is no number is none to look at. */
static __device__ __forceinline__ int32_t scale_exponent(float most)
{
    const int32_t exponent = (int32_t)(__float_as_uint(most) >> 23) - 127;

    if (most == 0.0f || exponent == 128 || (exponent >= LEAST_EXPONENT && exponent < MOST_EXPONENT))
        return 0;
    return min(SCALED_EXPONENT - exponent, 126);
}

/* The largest |x| of the row, in all threads. */
static __device__ __forceinline__ float largest_of_row(const struct stage_task &task, const float *x)
{
    __shared__ float largest[ROW_THREADS / WARP];
    float most = 0.0f;

    for (int32_t i = (int32_t)threadIdx.x * QUAD; i < task.stride; i += ROW_THREADS * QUAD) {
        float4 quad = load_some(task, x, i);

        most = fmaxf(fmaxf(fabsf(quad.x), fabsf(quad.y)), fmaxf(fmaxf(fabsf(quad.z), fabsf(quad.w)), most));
    }
#pragma unroll
    for (int width = WARP / 2; width; width /= 2)
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, width));
    if (threadIdx.x % WARP == 0)
        largest[threadIdx.x / WARP] = most;
    __syncthreads();
    for (int i = 0; i < ROW_THREADS / WARP; i++)
        most = fmaxf(most, largest[i]);
    return most;
}

/* Blocks [rows]. */
template <enum tensor_type type>
static __global__ void __launch_bounds__(ROW_THREADS) stage_row(struct stage_task task)
{
    const float *x = task.x + (int64_t)blockIdx.x * task.k;
    uint2 *out = task.out + (int64_t)blockIdx.x * (task.stride / QUAD);
    float scale = 1.0f;

    if constexpr (type == TYPE_F16) {
        const int32_t exponent = scale_exponent(largest_of_row(task, x));

        scale = power_of_two(exponent);
        if (threadIdx.x == 0)
            task.scales[blockIdx.x] = power_of_two(-exponent);
    }
    for (int32_t i = (int32_t)threadIdx.x * QUAD; i < task.stride; i += ROW_THREADS * QUAD) {
        float4 quad = load_some(task, x, i);

        if constexpr (type == TYPE_F16)
            out[i / QUAD] = make_uint2(half_pair_of_floats(quad.x * scale, quad.y * scale),
                                       half_pair_of_floats(quad.z * scale, quad.w * scale));
        else
            out[i / QUAD] = make_uint2(bf16_pair_of_floats(quad.x, quad.y), bf16_pair_of_floats(quad.z, quad.w));
    }
}

struct finish_task {
    const float *parts;  /* [rows, n] */
    double *sums;        /* likewise; NULL: out is multiplied by its scales, where it is */
    float *out;
    int64_t out_stride;
    const float *scales; /* [rows]; NULL: 1 */
    int32_t n;
};

/* Blocks [rows]. */
static __global__ void __launch_bounds__(ROW_THREADS) finish_row(struct finish_task task)
{
    const int64_t row = blockIdx.x;
    const float scale = task.scales ? task.scales[row] : 1.0f;

    if (task.sums) {
        for (int32_t i = (int32_t)threadIdx.x; i < task.n; i += ROW_THREADS)
            task.sums[row * task.n + i] = on_grid(task.parts[row * task.n + i] * scale);
    } else if (scale != 1.0f) {
        for (int32_t i = (int32_t)threadIdx.x; i < task.n; i += ROW_THREADS)
            task.out[row * task.out_stride + i] *= scale;
    }
}

/* ---- matmuls -------------------------------------------------------------------------------------- */

/* Some rows, and where what belongs to them is in the scratch memory. */
struct piece {
    struct shape shape;
    const uint8_t *weights;
    const float *from; /* [rows, k] */
    int32_t rows;
    float *to;    /* cuBLASLt's results */
    double *sums; /* NULL: none */
    char *x;
    float *scales; /* F16 */
};

/* The end of the range that `rows` are in: one of four in an octave. */
static int32_t range_end(int32_t rows)
{
    int32_t step = 1;

    while (step * 8 <= rows)
        step *= 2;
    return (rows + step - 1) / step * step;
}

static int32_t align_of(const void *p)
{
    const uintptr_t address = (uintptr_t)p | MOST_ALIGN;

    return (int32_t)(address & -address);
}

/* FNV-1a. */
static uint32_t hash_of(const struct shape *shape)
{
    uint32_t hash = 2166136261u;

    static_assert(sizeof *shape == 6 * sizeof(int32_t) + sizeof(int64_t), "padding has bytes of its own");
    for (size_t i = 0; i < sizeof *shape; i++)
        hash = (hash ^ ((const unsigned char *)shape)[i]) * 16777619u;
    return hash;
}

static struct plan *plan_of(struct cublaslt *lt, const struct shape *shape)
{
    struct plan *plan = &lt->plans[hash_of(shape) % NUM_PLANS];
    cublasStatus_t status;

    if (plan->is_known && memcmp(&plan->shape, shape, sizeof *shape) == 0)
        return plan;
    plan->shape = *shape;
    status = choose(lt, plan, shape->rows);
    plan->is_known = true;
    plan->is_refused = status != CUBLAS_STATUS_SUCCESS;
    if (plan->is_refused)
        note_refusal(lt, shape, status);
    return plan;
}

static cublasStatus_t multiply(struct cuda_state *state, const struct plan *plan, const struct piece *piece)
{
    struct cublaslt *lt = state->cublaslt;
    const float one = 1, zero = 0;
    cublasStatus_t status = set_layouts(lt, &plan->shape, piece->rows);

    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    return library.cublasLtMatmul(lt->handle, lt->product, &one, piece->weights, lt->weights, piece->x, lt->x,
                                  &zero, piece->to, lt->out, piece->to, lt->out, &plan->algo, lt->workspace,
                                  WORKSPACE_BYTES, state->stream);
}

/* What is right for the most rows of a range may not be for less: then these are asked for themselves. */
static bool multiply_somehow(struct cuda_state *state, struct plan *plan, const struct piece *piece)
{
    cublasStatus_t status = multiply(state, plan, piece);

    if (status != CUBLAS_STATUS_SUCCESS && choose(state->cublaslt, plan, piece->rows) == CUBLAS_STATUS_SUCCESS)
        status = multiply(state, plan, piece);
    plan->is_refused = status != CUBLAS_STATUS_SUCCESS;
    if (plan->is_refused)
        note_refusal(state->cublaslt, &plan->shape, status);
    return !plan->is_refused;
}

static void launch_stage(struct cuda_state *state, const struct piece *piece, int32_t k)
{
    struct stage_task task = {};

    task.x = piece->from;
    task.out = (uint2 *)piece->x;
    task.scales = piece->scales;
    task.k = k;
    task.stride = piece->shape.k;
    task.is_aligned = k % QUAD == 0 && is_aligned(piece->from);
    launch(piece->shape.type == TYPE_F16 ? stage_row<TYPE_F16> : stage_row<TYPE_BF16>, dim3((unsigned)piece->rows),
           dim3(ROW_THREADS), 0, state->stream, task);
    note_launch(state);
}

static void launch_finish(struct cuda_state *state, const struct piece *piece)
{
    struct finish_task task = {};

    task.parts = piece->to;
    task.sums = piece->sums;
    task.out = piece->to;
    task.out_stride = piece->shape.out_stride;
    task.scales = piece->scales;
    task.n = piece->shape.n;
    launch(finish_row, dim3((unsigned)piece->rows), dim3(ROW_THREADS), 0, state->stream, task);
    note_launch(state);
}

static bool run_piece(struct cuda_state *state, struct piece *piece, int32_t k)
{
    struct plan *plan;

    piece->shape.rows = range_end(piece->rows);
    piece->shape.out_align = align_of(piece->to);
    plan = plan_of(state->cublaslt, &piece->shape);
    if (plan->is_refused)
        return false;
    launch_stage(state, piece, k);
    if (!multiply_somehow(state, plan, piece))
        return false;
    if (piece->sums || piece->scales)
        launch_finish(state, piece);
    return true;
}

/* Of scratch memory, for each row: activations, a scale, and parts where doubles are wanted. */
static int64_t row_bytes(const struct shape *shape, const struct matmul_task *task)
{
    return (int64_t)shape->k * HALF_BYTES + (int64_t)sizeof(float) * (1 + (task->out ? 0 : shape->n));
}

static bool run_pieces(struct cuda_state *state, enum tensor_type type, const struct matmul_task *task)
{
    struct piece piece = {};
    int64_t most;

    piece.weights = task->weights;
    piece.shape.type = type;
    piece.shape.n = task->n;
    piece.shape.k = (int32_t)half_row_stride(task->a.k);
    piece.shape.weights_align = align_of(task->weights);
    piece.shape.out_stride = task->out ? task->out_stride : task->n;
    most = (state->scratch_bytes - 2 * MOST_ALIGN) / row_bytes(&piece.shape, task);
    if (most > PIECE_ROWS)
        most = most / PIECE_ROWS * PIECE_ROWS;
    for (int64_t first = 0; first < task->a.rows; first += most) {
        if (most == 0)
            return false;
        piece.from = task->a.x + first * task->a.k;
        piece.rows = (int32_t)min(most, task->a.rows - first);

        char *end = state->scratch;

        piece.x = end;
        end += round_up((int64_t)piece.rows * piece.shape.k * HALF_BYTES, MOST_ALIGN);
        piece.scales = type == TYPE_F16 ? (float *)end : NULL;
        end += round_up(piece.rows * (int64_t)sizeof(float), MOST_ALIGN);
        piece.to = task->out ? task->out + first * task->out_stride : (float *)end;
        piece.sums = task->out ? NULL : task->sums + first * task->n;
        if (!run_piece(state, &piece, task->a.k))
            return false;
    }
    return true;
}

bool cublaslt_matmul(struct cuda_state *state, enum tensor_type type, const struct matmul_task *task)
{
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    bool is_done;

    if (!state->cublaslt || task->a.rows < state->cublaslt->from_rows)
        return false;
    /* The library may bring code to the device, which a recording does not forbid then. */
    note_error(state, cudaThreadExchangeStreamCaptureMode(&mode));
    is_done = run_pieces(state, type, task);
    note_error(state, cudaThreadExchangeStreamCaptureMode(&mode));
    return is_done;
}

#else

bool cublaslt_matmul(struct cuda_state *, enum tensor_type, const struct matmul_task *)
{
    return false;
}

void cublaslt_close(struct cuda_state *)
{
}

#endif

extern "C" const struct cuda_cublaslt_table cublaslt_table = {
#if __has_include(<cublasLt.h>)
    .load = load,
    .use = use,
    .news = news,
#endif
};
