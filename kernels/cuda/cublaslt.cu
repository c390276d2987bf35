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
 *  - Weights that are codes of 8 bits (e4m3) with scales are multiplied by rows that become such codes too, each
 *    with a scale of its own (or one for each 128 of k, where the weights have them): max / 448. Where the library
 *    and the GPU multiply by scales, they do; else it adds up products of codes, and a kernel behind multiplies its
 *    results by the two scales. It keeps to its slower way to add up codes, which rounds less. Scales for blocks it
 *    has on Hopper alone.
 *  - Weights lie as half_layout.h and fp8_layout.h say, which is a matrix that cuBLASLt reads as it is: k x n,
 *    columns one after another. With rows of activations as columns of another, out is their n x rows: "TN", its
 *    quickest form, and the only one that it has for codes. Of these each 16 of k are in an order of their own, and so
 *    are rows that are made codes for them.
 *  - Which of its kernels a shape is for is asked once for a range of rows, and kept. What it refuses is
 *    matmul_half's.
 *
 * All memory that it may use is allocated before the first matmul, and nothing waits for the device, so that it can
 * be recorded. (Code comes to the device at its first use, in a recording too.)
 */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/fp8_layout.h"
#include "kernels/cuda/half_layout.h"
#include "kernels/cuda/kv_codes.cuh"
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
    MOST_FP8 = 448,
    FP8_CAPABILITY = 89,         /* and more */
    SCALE_MODES_CAPABILITY = 90, /* alone */
};
#define LEAST_SCALE 0x1p-100f /* of codes: a row that is smaller loses what it has */

enum product {
    PRODUCT_F16,
    PRODUCT_BF16,
    PRODUCT_FP8,         /* scales are our affair */
    PRODUCT_FP8_VECTORS, /* one of each column and row */
    PRODUCT_FP8_BLOCKS,  /* of 128 x 128, and of 128 of each row */
    NUM_PRODUCTS
};

static const struct product_kind {
    const char *name;
    cudaDataType_t type;
    int32_t element_bytes;
    int32_t row_unit; /* rows are filled up to a multiple */
} kinds[NUM_PRODUCTS] = {
    {"f16", CUDA_R_16F, 2, 1}, {"bf16", CUDA_R_16BF, 2, 1}, {"fp8", CUDA_R_8F_E4M3, 1, 1},
    {"fp8", CUDA_R_8F_E4M3, 1, 1}, {"fp8", CUDA_R_8F_E4M3, 1, 4},
};

static bool is_fp8(int32_t product)
{
    return product >= PRODUCT_FP8;
}

/* What a choice depends on; no padding. */
struct shape {
    int32_t product, n, k, rows; /* rows: the most of the range */
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
    cublasLtMatmulDesc_t plain, vectors, blocks; /* vectors, blocks: NULL where it has no such scales */
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

static cublasLtMatmulDesc_t description_of(const struct cublaslt *lt, int32_t product)
{
    return product == PRODUCT_FP8_VECTORS ? lt->vectors : product == PRODUCT_FP8_BLOCKS ? lt->blocks : lt->plain;
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

    set_layout(&status, lt->weights, kinds[shape->product].type, k, n, shape->k);
    set_layout(&status, lt->x, kinds[shape->product].type, k, (uint64_t)rows, shape->k);
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
        status = library.cublasLtMatmulAlgoGetHeuristic(lt->handle, description_of(lt, plan->shape.product),
                                                        lt->weights, lt->x, lt->out, lt->out, lt->preference, 1,
                                                        &result, &count);
    if (status == CUBLAS_STATUS_SUCCESS && count > 0)
        status = result.state;
    else if (status == CUBLAS_STATUS_SUCCESS)
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    plan->algo = result.algo;
    return status;
}

/* ---- life ----------------------------------------------------------------------------------------- */

static cublasStatus_t make_description(cublasLtMatmulDesc_t *out)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t status = library.cublasLtMatmulDescCreate(out, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (status == CUBLAS_STATUS_SUCCESS)
        status = library.cublasLtMatmulDescSetAttribute(*out, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                        sizeof transposed);
    return status;
}

/* Modes of scales came with 12.9. */
#if CUBLAS_VER_MAJOR > 12 || (CUBLAS_VER_MAJOR == 12 && CUBLAS_VER_MINOR >= 9)

/* NULL: the library is older than its header. */
static cublasLtMatmulDesc_t make_scaled(cublasLtMatmulMatrixScale_t weights_mode,
                                        cublasLtMatmulMatrixScale_t x_mode)
{
    const int32_t modes[] = {weights_mode, x_mode};
    cublasLtMatmulDesc_t made = NULL;
    cublasStatus_t status = make_description(&made);

    if (status != CUBLAS_STATUS_SUCCESS)
        return NULL;
    also(&status, library.cublasLtMatmulDescSetAttribute(made, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &modes[0],
                                                         sizeof modes[0]));
    also(&status, library.cublasLtMatmulDescSetAttribute(made, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &modes[1],
                                                         sizeof modes[1]));
    if (status == CUBLAS_STATUS_SUCCESS)
        return made;
    library.cublasLtMatmulDescDestroy(made);
    return NULL;
}

static void make_all_scaled(struct cublaslt *lt, int32_t capability)
{
    if (capability != SCALE_MODES_CAPABILITY)
        return;
    lt->vectors = make_scaled(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
                              CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    lt->blocks = make_scaled(CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
                             CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
}

#else

static void make_all_scaled(struct cublaslt *, int32_t)
{
}

#endif

static cublasStatus_t make(struct cublaslt *lt, int32_t capability)
{
    const uint64_t workspace_bytes = WORKSPACE_BYTES;
    cublasStatus_t status = library.cublasLtCreate(&lt->handle);

    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    also(&status, make_description(&lt->plain));
    make_all_scaled(lt, capability);
    also(&status, library.cublasLtMatmulPreferenceCreate(&lt->preference));
    also(&status, library.cublasLtMatrixLayoutCreate(&lt->weights, CUDA_R_16BF, 1, 1, 1));
    also(&status, library.cublasLtMatrixLayoutCreate(&lt->x, CUDA_R_16BF, 1, 1, 1));
    also(&status, library.cublasLtMatrixLayoutCreate(&lt->out, CUDA_R_32F, 1, 1, 1));
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
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
    if (lt->plain)
        library.cublasLtMatmulDescDestroy(lt->plain);
    if (lt->vectors)
        library.cublasLtMatmulDescDestroy(lt->vectors);
    if (lt->blocks)
        library.cublasLtMatmulDescDestroy(lt->blocks);
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
    status = error == cudaSuccess ? make(lt, state->capability) : CUBLAS_STATUS_SUCCESS;
    if (error == cudaSuccess && status == CUBLAS_STATUS_SUCCESS)
        return NULL;
    cudaGetLastError();
    snprintf(load_text, sizeof load_text, "cuBLASLt does not start on GPU %d (%s): %s", state->ordinal, state->name,
             error != cudaSuccess ? cudaGetErrorString(error) : library.cublasLtGetStatusString(status));
    cublaslt_close(state);
    return load_text;
}

static bool has_fp8(const struct cuda_state *state, bool has_blocks)
{
    const struct cublaslt *lt = state->cublaslt;

    return lt && state->capability >= FP8_CAPABILITY && (!has_blocks || lt->blocks);
}

static const char *news(struct cuda_state *state)
{
    struct cublaslt *lt = state->cublaslt;

    if (!lt || !lt->has_news)
        return NULL;
    lt->has_news = false;
    return lt->news;
}

/* The first time. Vectors of scales are one way of two. */
static void note_refusal(struct cublaslt *lt, const struct shape *shape, cublasStatus_t status)
{
    if (lt->had_news || shape->product == PRODUCT_FP8_VECTORS)
        return;
    lt->has_news = lt->had_news = true;
    snprintf(lt->news, sizeof lt->news,
             "cuBLASLt refuses a matmul of %d rows by %d x %d of %s, maybe others too (%s): our own kernels do it",
             shape->rows, shape->n, shape->k, kinds[shape->product].name, library.cublasLtGetStatusString(status));
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

struct fp8_task {
    struct stage_task row; /* out: QUADs of codes */
    int32_t rows, asked;   /* rows from `rows` on are zeros */
};

static __device__ __forceinline__ float fp8_scale(float most)
{
    return fmaxf(most / (float)MOST_FP8, LEAST_SCALE);
}

/* What codes of quad i are of: elements 2t, 2t + 1 of 16, and 8 + 2t, 9 + 2t. */
static __device__ __forceinline__ float4 load_ordered(const struct stage_task &task, const float *x, int32_t i)
{
    const int32_t first = (i & -FP8_ORDERED) + i % FP8_ORDERED / 2, second = first + FP8_ORDERED / 2;

    if (task.is_aligned && second < task.k) {
        const float2 low = __ldg((const float2 *)(x + first)), high = __ldg((const float2 *)(x + second));

        return make_float4(low.x, low.y, high.x, high.y);
    }
    return make_float4(first < task.k ? x[first] : 0.0f, first + 1 < task.k ? x[first + 1] : 0.0f,
                       second < task.k ? x[second] : 0.0f, second + 1 < task.k ? x[second + 1] : 0.0f);
}

static __device__ __forceinline__ uint32_t fp8_quad(float4 quad, float inverse)
{
    return fp8_of_float(quad.x * inverse) | fp8_of_float(quad.y * inverse) << 8 |
           fp8_of_float(quad.z * inverse) << 16 | (uint32_t)fp8_of_float(quad.w * inverse) << 24;
}

/* Blocks [rows], a scale of each. */
static __global__ void __launch_bounds__(ROW_THREADS) stage_fp8_row(struct fp8_task task)
{
    const int64_t row = blockIdx.x;
    const float *x = task.row.x + row * task.row.k;
    uint32_t *out = (uint32_t *)task.row.out + row * (task.row.stride / QUAD);
    const float scale = fp8_scale(largest_of_row(task.row, x)), inverse = 1.0f / scale;

    if (threadIdx.x == 0)
        task.row.scales[row] = scale;
    for (int32_t i = (int32_t)threadIdx.x * QUAD; i < task.row.stride; i += ROW_THREADS * QUAD)
        out[i / QUAD] = fp8_quad(load_ordered(task.row, x, i), inverse);
}

/* Blocks [asked]; a warp has 128 of k at a time, and a scale for them: scales [k / 128, asked]. */
static __global__ void __launch_bounds__(ROW_THREADS) stage_fp8_blocks(struct fp8_task task)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64_t row = blockIdx.x;
    const float *x = task.row.x + row * task.row.k;
    uint32_t *out = (uint32_t *)task.row.out + row * (task.row.stride / QUAD);

    static_assert(FP8_BLOCK == WARP * QUAD, "a lane has a quad of a block");
#pragma unroll 1
    for (int32_t first = warp * FP8_BLOCK; first < task.row.stride; first += ROW_THREADS / WARP * FP8_BLOCK) {
        const int32_t i = first + lane * QUAD;
        const float4 quad = row < task.rows ? load_ordered(task.row, x, i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float most = fmaxf(fmaxf(fabsf(quad.x), fabsf(quad.y)), fmaxf(fabsf(quad.z), fabsf(quad.w)));

#pragma unroll
        for (int width = WARP / 2; width; width /= 2)
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, width));
        if (lane == 0)
            task.row.scales[(int64_t)(first / FP8_BLOCK) * task.asked + row] = fp8_scale(most);
        if (i < task.row.stride)
            out[i / QUAD] = fp8_quad(quad, 1.0f / fp8_scale(most));
    }
}

struct finish_task {
    const float *parts;          /* [rows, n], `stride` from one row to the next; may be out */
    int64_t stride;
    double *sums;                /* [rows, n]; NULL: out is wanted */
    float *out;
    int64_t out_stride;
    const float *scales;         /* [rows]; NULL: 1 */
    const float *column_scales;  /* [n]; NULL: 1 */
    int32_t n;
};

/* Blocks [rows]. */
static __global__ void __launch_bounds__(ROW_THREADS) finish_row(struct finish_task task)
{
    const int64_t row = blockIdx.x;
    const float scale = task.scales ? task.scales[row] : 1.0f;
    const float *parts = task.parts + row * task.stride;
    const bool is_there = !task.sums && parts == task.out + row * task.out_stride;

    if (is_there && scale == 1.0f && !task.column_scales)
        return;
    for (int32_t i = (int32_t)threadIdx.x; i < task.n; i += ROW_THREADS) {
        float part = parts[i] * scale;

        if (task.column_scales)
            part *= task.column_scales[i];
        if (task.sums)
            task.sums[row * task.n + i] = on_grid(part);
        else
            task.out[row * task.out_stride + i] = part;
    }
}

/* ---- matmuls -------------------------------------------------------------------------------------- */

/* Some rows, and where what belongs to them is in the scratch memory. */
struct piece {
    struct shape shape;
    const uint8_t *weights;
    const float *from; /* [rows, k] */
    int32_t rows, asked; /* asked: with those that fill them up */
    float *to;    /* cuBLASLt's results; shape.out_stride */
    float *out;   /* NULL: sums are wanted */
    int64_t out_stride;
    double *sums;
    char *x;
    float *scales; /* F16, and codes */
    const float *column_scales; /* of codes */
};

/* The end of the range that `rows` are in: one of four in an octave. */
static int32_t range_end(int32_t rows)
{
    int32_t step = 1;

    while (step * 8 <= rows)
        step *= 2;
    return divide_up(rows, step) * step;
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
    cublasStatus_t status = set_layouts(lt, &plan->shape, piece->asked);

    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    return library.cublasLtMatmul(lt->handle, description_of(lt, plan->shape.product), &one, piece->weights,
                                  lt->weights, piece->x, lt->x, &zero, piece->to, lt->out, piece->to, lt->out,
                                  &plan->algo, lt->workspace, WORKSPACE_BYTES, state->stream);
}

/* What is right for the most rows of a range may not be for less: then these are asked for themselves. */
static bool multiply_somehow(struct cuda_state *state, struct plan *plan, const struct piece *piece)
{
    cublasStatus_t status = multiply(state, plan, piece);

    if (status != CUBLAS_STATUS_SUCCESS && choose(state->cublaslt, plan, piece->asked) == CUBLAS_STATUS_SUCCESS)
        status = multiply(state, plan, piece);
    plan->is_refused = status != CUBLAS_STATUS_SUCCESS;
    if (plan->is_refused)
        note_refusal(state->cublaslt, &plan->shape, status);
    return !plan->is_refused;
}

static void launch_stage(struct cuda_state *state, const struct piece *piece, int32_t k)
{
    const int32_t product = piece->shape.product;
    struct fp8_task task = {};
    const dim3 blocks((unsigned)piece->asked), threads(ROW_THREADS);

    task.row.x = piece->from;
    task.row.out = (uint2 *)piece->x;
    task.row.scales = piece->scales;
    task.row.k = k;
    task.row.stride = piece->shape.k;
    task.row.is_aligned = k % QUAD == 0 && is_aligned(piece->from);
    task.rows = piece->rows;
    task.asked = piece->asked;
    if (is_fp8(product))
        launch(product == PRODUCT_FP8_BLOCKS ? stage_fp8_blocks : stage_fp8_row, blocks, threads, 0, state->stream,
               task);
    else
        launch(product == PRODUCT_F16 ? stage_row<TYPE_F16> : stage_row<TYPE_BF16>, blocks, threads, 0,
               state->stream, task.row);
    note_launch(state);
}

/* Does the library multiply by what the row's and the column's scales are? */
static bool is_scaled_there(int32_t product)
{
    return product == PRODUCT_FP8_VECTORS || product == PRODUCT_FP8_BLOCKS;
}

static void launch_finish(struct cuda_state *state, const struct piece *piece)
{
    const bool is_scaled = is_scaled_there(piece->shape.product);
    struct finish_task task = {};

    task.parts = piece->to;
    task.stride = piece->shape.out_stride;
    task.sums = piece->sums;
    task.out = piece->out;
    task.out_stride = piece->out_stride;
    task.scales = is_scaled ? NULL : piece->scales;
    task.column_scales = is_scaled ? NULL : piece->column_scales;
    task.n = piece->shape.n;
    launch(finish_row, dim3((unsigned)piece->rows), dim3(ROW_THREADS), 0, state->stream, task);
    note_launch(state);
}

/* Where the next product of scaled codes finds its scales. */
static bool point_at_scales(struct cublaslt *lt, const struct piece *piece)
{
    const void *of_weights = piece->column_scales, *of_x = piece->scales;
    cublasLtMatmulDesc_t description = description_of(lt, piece->shape.product);
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;

    also(&status, library.cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                                                         &of_weights, sizeof of_weights));
    also(&status, library.cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                                                         &of_x, sizeof of_x));
    return status == CUBLAS_STATUS_SUCCESS;
}

static bool run_piece(struct cuda_state *state, struct piece *piece, int32_t k)
{
    const bool is_scaled = is_scaled_there(piece->shape.product);
    struct plan *plan;

    piece->shape.rows = (int32_t)round_up(range_end(piece->asked), kinds[piece->shape.product].row_unit);
    piece->shape.out_align = align_of(piece->to);
    if (is_scaled && !point_at_scales(state->cublaslt, piece))
        return false;
    plan = plan_of(state->cublaslt, &piece->shape);
    if (plan->is_refused)
        return false;
    launch_stage(state, piece, k);
    if (!multiply_somehow(state, plan, piece))
        return false;
    if (piece->to != piece->out || (piece->scales && !is_scaled))
        launch_finish(state, piece);
    return true;
}

/* Codes want results that begin at multiples of 16 bytes, and have all rows that are asked for. */
static bool can_go_to_out(const struct piece *piece)
{
    if (!piece->out || !is_fp8(piece->shape.product))
        return piece->out;
    return piece->asked == piece->rows && is_aligned(piece->out) && piece->out_stride % QUAD == 0;
}

static int64_t scales_of_row(const struct shape *shape)
{
    return shape->product == PRODUCT_FP8_BLOCKS ? fp8_num_blocks(shape->k) : 1;
}

/* Of scratch memory, for each row: activations, scales, and results that can't go where they are wanted. */
static int64_t row_bytes(const struct shape *shape, const struct matmul_task *task)
{
    const bool has_parts = !task->out || is_fp8(shape->product);

    return (int64_t)shape->k * kinds[shape->product].element_bytes +
           (int64_t)sizeof(float) * (scales_of_row(shape) + (has_parts ? shape->n : 0));
}

/* Puts what belongs to the piece's rows into the scratch memory. */
static void place_piece(struct cuda_state *state, struct piece *piece)
{
    const struct product_kind *kind = &kinds[piece->shape.product];
    char *end = state->scratch;

    piece->asked = (int32_t)round_up(piece->rows, kind->row_unit);
    piece->x = end;
    end += round_up((int64_t)piece->asked * piece->shape.k * kind->element_bytes, MOST_ALIGN);
    piece->scales = piece->shape.product == PRODUCT_BF16 ? NULL : (float *)end;
    end += round_up(piece->asked * scales_of_row(&piece->shape) * (int64_t)sizeof(float), MOST_ALIGN);
    piece->to = can_go_to_out(piece) ? piece->out : (float *)end;
    piece->shape.out_stride = piece->to == piece->out ? piece->out_stride : piece->shape.n;
}

/* piece: of the matrix, without what belongs to its rows. */
static bool run_pieces(struct cuda_state *state, struct piece piece, const struct matmul_task *task)
{
    const int32_t unit = kinds[piece.shape.product].row_unit;
    int64_t most = (state->scratch_bytes - 2 * MOST_ALIGN) / row_bytes(&piece.shape, task);

    most = most > PIECE_ROWS ? most / PIECE_ROWS * PIECE_ROWS : most / unit * unit;
    piece.shape.weights_align = align_of(piece.weights);
    piece.out_stride = task->out_stride;
    for (int64_t first = 0; first < task->a.rows; first += most) {
        if (most == 0)
            return false;
        piece.from = task->a.x + first * task->a.k;
        piece.rows = (int32_t)min(most, task->a.rows - first);
        piece.out = task->out ? task->out + first * task->out_stride : NULL;
        piece.sums = task->out ? NULL : task->sums + first * task->n;
        place_piece(state, &piece);
        if (!run_piece(state, &piece, task->a.k))
            return false;
    }
    return true;
}

static bool run_halves(struct cuda_state *state, enum tensor_type type, const struct matmul_task *task)
{
    struct piece piece = {};

    piece.weights = task->weights;
    piece.shape.product = type == TYPE_BF16 ? PRODUCT_BF16 : PRODUCT_F16;
    piece.shape.n = task->n;
    piece.shape.k = (int32_t)half_row_stride(task->a.k);
    return run_pieces(state, piece, task);
}

static bool run_codes(struct cuda_state *state, const struct matrix *w, const struct matmul_task *task)
{
    struct piece piece = {};

    if (w->n % FP8_COLUMNS != 0 || !has_fp8(state, w->fp8_has_blocks))
        return false;
    piece.weights = (const uint8_t *)w->data;
    piece.column_scales = (const float *)((const char *)w->data + fp8_scales_at(w->n, w->k));
    piece.shape.n = task->n;
    piece.shape.k = (int32_t)fp8_row_stride(w->k);
    piece.shape.product = w->fp8_has_blocks ? PRODUCT_FP8_BLOCKS : PRODUCT_FP8_VECTORS;
    if (description_of(state->cublaslt, piece.shape.product) && run_pieces(state, piece, task))
        return true;
    piece.shape.product = PRODUCT_FP8;
    return !w->fp8_has_blocks && run_pieces(state, piece, task);
}

bool cublaslt_matmul(struct cuda_state *state, const struct matrix *w, const struct matmul_task *task)
{
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    bool is_done;

    if (!state->cublaslt || task->a.rows < state->cublaslt->from_rows)
        return false;
    /* The library may bring code to the device, which a recording does not forbid then. */
    note_error(state, cudaThreadExchangeStreamCaptureMode(&mode));
    is_done = w->type == TYPE_F8_E4M3 ? run_codes(state, w, task) : run_halves(state, w->type, task);
    note_error(state, cudaThreadExchangeStreamCaptureMode(&mode));
    return is_done;
}

#else

bool cublaslt_matmul(struct cuda_state *, const struct matrix *, const struct matmul_task *)
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
    .has_fp8 = has_fp8,
    .news = news,
#endif
};
