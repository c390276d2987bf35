#include "tests/cuda/cublasLt.h"
#include "tests/cuda/emulated_parts.h"

#include <pthread.h>

#define DOOR extern "C" __attribute__((visibility("default")))

enum { COLUMNS_OF_PART = 24, MOST_PARTS = 4 };

/* ---- what there is ----------------------------------------------------------------------------- */

struct cublasLtContext {
    bool has_code;
};

struct emulated_product {
    cublasOperation_t transposed_a;
};

/* Column major. */
struct emulated_layout {
    uint32_t type;
    uint64_t rows, columns;
    int64_t stride;
};

struct emulated_preference {
    uint64_t workspace_bytes;
    uint32_t align[4];
};

/* In the place of cublasLtMatmulAlgo_t. */
struct algorithm {
    uint64_t magic, columns, num_parts, workspace_bytes;
    uint32_t align[4];
    uint64_t rest[2];
};

static const uint64_t MAGIC = 0x743163737562; /* that a caller did not make up */

static_assert(sizeof(struct algorithm) == sizeof(cublasLtMatmulAlgo_t), "");

static const struct emulated_cuda_door *cuda;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_runtime()
{
    cuda = emulated_cuda("emulated_cublaslt");
}

static bool has_fault(const char *name)
{
    const char *text = getenv("EMULATED_CUBLASLT_FAULT");

    return text && strcmp(text, name) == 0;
}

/* ---- a product, on the stream ------------------------------------------------------------------ */

/* d = transposed a · b: [n, columns]. */
struct task {
    const uint16_t *a, *b;
    float *d, *parts; /* parts: [num_parts] */
    uint64_t n, columns, k, num_parts;
    int64_t a_stride, b_stride, d_stride;
    bool is_bf16;
};

static float number(const struct task *task, uint16_t bits)
{
    return task->is_bf16 ? float_of_bf16(bits) : float_of_half(bits);
}

static void run(void *argument)
{
    const struct task *task = (const struct task *)argument;

    for (uint64_t column = 0; column < task->columns; column++)
        for (uint64_t i = 0; i < task->n; i++) {
            const uint16_t *a = task->a + (int64_t)i * task->a_stride;
            const uint16_t *b = task->b + (int64_t)column * task->b_stride;
            float sum = 0;

            for (uint64_t part = 0; part < task->num_parts; part++) {
                float acc = 0;

                for (uint64_t k = task->k * part / task->num_parts; k < task->k * (part + 1) / task->num_parts; k++)
                    acc += number(task, a[k]) * number(task, b[k]);
                task->parts[part] = acc;
            }
            for (uint64_t part = 0; part < task->num_parts; part++)
                sum += task->parts[part];
            task->d[(int64_t)column * task->d_stride + (int64_t)i] = sum;
        }
}

/* ---- calls ------------------------------------------------------------------------------------- */

DOOR size_t cublasLtGetVersion(void)
{
    return (size_t)(CUBLAS_VER_MAJOR - has_fault("version")) * 10000 + 100;
}

DOOR const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the functionality requested is not supported";
    default:
        return "an internal operation failed";
    }
}

DOOR cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    pthread_once(&once, find_runtime);
    if (has_fault("create"))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    *out = (cublasLtHandle_t)calloc(1, sizeof **out);
    return CUBLAS_STATUS_SUCCESS;
}

DOOR cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

DOOR cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                             cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *out = (cublasLtMatmulDesc_t)calloc(1, sizeof **out);
    return CUBLAS_STATUS_SUCCESS;
}

DOOR cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product)
{
    free(product);
    return CUBLAS_STATUS_SUCCESS;
}

/* A field of what is described. */
struct field {
    int name;
    void *to;
    size_t bytes;
};

static cublasStatus_t set(const struct field *fields, size_t count, int name, const void *from, size_t bytes)
{
    for (size_t i = 0; i < count; i++)
        if (fields[i].name == name && fields[i].bytes == bytes) {
            memcpy(fields[i].to, from, bytes);
            return CUBLAS_STATUS_SUCCESS;
        }
    return CUBLAS_STATUS_INVALID_VALUE;
}

#define FIELD(name, member) {name, &(member), sizeof(member)}
#define SET(fields, name, from, bytes) set(fields, sizeof fields / sizeof fields[0], name, from, bytes)

DOOR cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                                   cublasLtMatmulDescAttributes_t what, const void *from,
                                                   size_t bytes)
{
    const struct field fields[] = {FIELD(CUBLASLT_MATMUL_DESC_TRANSA, product->transposed_a)};

    return SET(fields, what, from, bytes);
}

DOOR cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
                                               uint64_t columns, int64_t stride)
{
    *out = (cublasLtMatrixLayout_t)malloc(sizeof **out);
    **out = {(uint32_t)type, rows, columns, stride};
    return CUBLAS_STATUS_SUCCESS;
}

DOOR cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

DOOR cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                     cublasLtMatrixLayoutAttribute_t what, const void *from,
                                                     size_t bytes)
{
    const struct field fields[] = {
        FIELD(CUBLASLT_MATRIX_LAYOUT_TYPE, layout->type),
        FIELD(CUBLASLT_MATRIX_LAYOUT_ROWS, layout->rows),
        FIELD(CUBLASLT_MATRIX_LAYOUT_COLS, layout->columns),
        FIELD(CUBLASLT_MATRIX_LAYOUT_LD, layout->stride),
    };

    return SET(fields, what, from, bytes);
}

DOOR cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    *out = (cublasLtMatmulPreference_t)malloc(sizeof **out);
    **out = {0, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

DOOR cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

DOOR cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                         cublasLtMatmulPreferenceAttributes_t what,
                                                         const void *from, size_t bytes)
{
    const struct field fields[] = {
        FIELD(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, preference->workspace_bytes),
        FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, preference->align[0]),
        FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, preference->align[1]),
        FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, preference->align[2]),
        FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, preference->align[3]),
    };

    return SET(fields, what, from, bytes);
}

static size_t element_bytes(const struct emulated_layout *layout)
{
    return layout->type == CUDA_R_32F ? 4 : 2;
}

/* Of a layout, from its first element to its last. */
static size_t span(const struct emulated_layout *layout)
{
    return ((size_t)layout->stride * (layout->columns - 1) + layout->rows) * element_bytes(layout);
}

static bool is_emulated(const struct emulated_product *product, const struct emulated_layout *a,
                        const struct emulated_layout *b, const struct emulated_layout *c,
                        const struct emulated_layout *d)
{
    const struct emulated_layout *const all[] = {a, b, c, d};

    for (int i = 0; i < 4; i++)
        if (all[i]->rows == 0 || all[i]->columns == 0 || all[i]->stride < (int64_t)all[i]->rows)
            return false;
    return product->transposed_a == CUBLAS_OP_T && (a->type == CUDA_R_16F || a->type == CUDA_R_16BF) &&
           a->type == b->type && c->type == CUDA_R_32F && d->type == CUDA_R_32F && a->rows == b->rows &&
           d->rows == a->columns && d->columns == b->columns && c->rows == d->rows && c->columns == d->columns;
}

DOOR cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product,
                                                   cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                   cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                   cublasLtMatmulPreference_t preference, int most,
                                                   cublasLtMatmulHeuristicResult_t *results, int *count)
{
    struct algorithm algorithm = {MAGIC, d->columns, min(1 + d->columns / COLUMNS_OF_PART, (uint64_t)MOST_PARTS)};

    *count = 0;
    if (!is_emulated(product, a, b, c, d) || most < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    algorithm.workspace_bytes = algorithm.num_parts * sizeof(float);
    memcpy(algorithm.align, preference->align, sizeof algorithm.align);
    if (has_fault("heuristic") || algorithm.workspace_bytes > preference->workspace_bytes)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *count = 1;
    results[0].workspaceSize = algorithm.workspace_bytes;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    memcpy(&results[0].algo, &algorithm, sizeof algorithm);
    return CUBLAS_STATUS_SUCCESS;
}

static bool fits(const void *p, uint32_t align, size_t bytes)
{
    return align && (uintptr_t)p % align == 0 && cuda->is_reachable(p, bytes);
}

DOOR cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product, const void *alpha,
                                   const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                                   cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                                   cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                                   const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                                   cudaStream_t stream)
{
    struct algorithm algorithm;
    struct task task;

    memcpy(&algorithm, algo, sizeof algorithm);
    if (algorithm.magic != MAGIC || *(const float *)alpha != 1 || *(const float *)beta != 0 ||
        !is_emulated(product, a_layout, b_layout, c_layout, d_layout) ||
        !fits(a, algorithm.align[0], span(a_layout)) || !fits(b, algorithm.align[1], span(b_layout)) ||
        !fits(c, algorithm.align[2], span(c_layout)) || !fits(d, algorithm.align[3], span(d_layout)) ||
        workspace_bytes < algorithm.workspace_bytes || !fits(workspace, 16, workspace_bytes))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (has_fault("matmul") || d_layout->columns > algorithm.columns ||
        (has_fault("narrow") && d_layout->columns != algorithm.columns))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!handle->has_code && cuda->load_code() != cudaSuccess)
        return CUBLAS_STATUS_INTERNAL_ERROR;
    handle->has_code = true;
    task = {(const uint16_t *)a, (const uint16_t *)b, (float *)d, (float *)workspace, d_layout->rows,
            d_layout->columns, a_layout->rows, algorithm.num_parts, a_layout->stride, b_layout->stride,
            d_layout->stride, a_layout->type == CUDA_R_16BF};
    return cuda->launch(stream, run, &task, sizeof task) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                        : CUBLAS_STATUS_INTERNAL_ERROR;
}
