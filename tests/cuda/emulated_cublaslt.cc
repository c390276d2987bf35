#include "tests/cuda/cublasLt.h"
#include "tests/cuda/emulated_parts.h"

#include <math.h>
#include <pthread.h>

#define DOOR extern "C" __attribute__((visibility("default")))

enum { COLUMNS_OF_PART = 24, MOST_PARTS = 4 };

/* ---- what there is ----------------------------------------------------------------------------- */

struct cublasLtContext {
    bool has_code;
};

struct emulated_product {
    cublasOperation_t transposed_a;
    const void *a_scales, *b_scales; /* NULL: 1 */
    int32_t a_mode, b_mode;
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
    const char *a, *b;
    float *d, *parts; /* parts: [num_parts] */
    uint64_t n, columns, k, num_parts;
    int64_t a_stride, b_stride, d_stride;
    uint32_t type;
    struct emulated_product product;
};

static size_t bytes_of(uint32_t type)
{
    return type == CUDA_R_32F ? 4 : type == CUDA_R_8F_E4M3 ? 1 : 2;
}

static float make_e4m3(int code)
{
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const float magnitude = exponent ? ldexpf((float)(8 + fraction), exponent - 10) : ldexpf((float)fraction, -9);

    if ((code & 0x7f) == 0x7f)
        return NAN;
    return code & 0x80 ? -magnitude : magnitude;
}

static struct e4m3_values {
    float of[0x100];

    e4m3_values()
    {
        for (int code = 0; code < 0x100; code++)
            of[code] = make_e4m3(code);
    }
} e4m3;

static float number(const struct task *task, const char *at)
{
    uint16_t bits;

    if (task->type == CUDA_R_8F_E4M3)
        return e4m3.of[(uint8_t)*at];
    memcpy(&bits, at, sizeof bits);
    return task->type == CUDA_R_16BF ? float_of_bf16(bits) : float_of_half(bits);
}

/* What element (i, k) of a matrix of `outer` times k is multiplied by. */
static float scale_of(int32_t mode, const void *scales, uint64_t outer, uint64_t i, uint64_t k, uint64_t all_k)
{
    const float *values = (const float *)scales;
    const uint64_t stride = round_up(divide_up_64(all_k, 128), 4);

    switch (mode) {
    case CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F:
        return values[i];
    case CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F:
        return values[k / 128 * outer + i];
    case CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F:
        return values[i / 128 * stride + k / 128];
    default:
        return values ? values[0] : 1;
    }
}

static size_t bytes_of_scales(int32_t mode, uint64_t outer, uint64_t k)
{
    const uint64_t blocks = divide_up_64(k, 128);

    switch (mode) {
    case CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F:
        return 4 * outer;
    case CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F:
        return 4 * outer * blocks;
    case CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F:
        return 4 * round_up(blocks, 4) * divide_up_64(outer, 128);
    default:
        return 4;
    }
}

/* Of element (i, k) of a, and (k, column) of b. */
static float scales_of(const struct task *task, uint64_t i, uint64_t column, uint64_t k)
{
    const struct emulated_product *product = &task->product;

    return scale_of(product->a_mode, product->a_scales, task->n, i, k, task->k) *
           scale_of(product->b_mode, product->b_scales, task->columns, column, k, task->k);
}

static void run(void *argument)
{
    const struct task *task = (const struct task *)argument;

    for (uint64_t column = 0; column < task->columns; column++)
        for (uint64_t i = 0; i < task->n; i++) {
            const size_t bytes = bytes_of(task->type);
            const char *a = task->a + (int64_t)(i * bytes) * task->a_stride;
            const char *b = task->b + (int64_t)(column * bytes) * task->b_stride;
            float sum = 0;

            for (uint64_t part = 0; part < task->num_parts; part++) {
                float acc = 0, scale = 0;

                for (uint64_t k = task->k * part / task->num_parts, first = k;
                     k < task->k * (part + 1) / task->num_parts; k++) {
                    if (k == first || k % 128 == 0)
                        scale = scales_of(task, i, column, k);
                    acc += number(task, a + k * bytes) * number(task, b + k * bytes) * scale;
                }
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
    const struct field fields[] = {
        FIELD(CUBLASLT_MATMUL_DESC_TRANSA, product->transposed_a),
        FIELD(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product->a_scales),
        FIELD(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product->b_scales),
        FIELD(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, product->a_mode),
        FIELD(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, product->b_mode),
    };

    if (what >= CUBLASLT_MATMUL_DESC_A_SCALE_MODE && has_fault("modes"))
        return CUBLAS_STATUS_INVALID_VALUE;
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

/* Of a layout, from its first element to its last. */
static size_t span(const struct emulated_layout *layout)
{
    return ((size_t)layout->stride * (layout->columns - 1) + layout->rows) * bytes_of(layout->type);
}

static bool is_emulated(const struct emulated_product *product, const struct emulated_layout *a,
                        const struct emulated_layout *b, const struct emulated_layout *c,
                        const struct emulated_layout *d)
{
    const struct emulated_layout *const all[] = {a, b, c, d};

    for (int i = 0; i < 4; i++)
        if (all[i]->rows == 0 || all[i]->columns == 0 || all[i]->stride < (int64_t)all[i]->rows)
            return false;
    return product->transposed_a == CUBLAS_OP_T &&
           (a->type == CUDA_R_16F || a->type == CUDA_R_16BF || a->type == CUDA_R_8F_E4M3) && a->type == b->type &&
           c->type == CUDA_R_32F && d->type == CUDA_R_32F && a->rows == b->rows && d->rows == a->columns &&
           d->columns == b->columns && c->rows == d->rows && c->columns == d->columns;
}

/* 10 * major + minor, of the device that is current. */
static int capability()
{
    struct cudaDeviceProp properties;
    int ordinal = 0;

    if (cuda->get_device(&ordinal) != cudaSuccess || cuda->get_properties(&properties, ordinal) != cudaSuccess)
        return 0;
    return 10 * properties.major + properties.minor;
}

/* What codes of 8 bits want beyond what is_emulated says; a and b begin where 16 bytes do, and d. */
static bool has_codes(const struct emulated_product *product, const struct emulated_layout *a,
                      const struct emulated_layout *b, const struct emulated_layout *d)
{
    const int32_t modes[] = {product->a_mode, product->b_mode};
    const bool has_vectors = modes[0] == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F && modes[1] == modes[0];
    const bool has_blocks = modes[0] == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F &&
                            modes[1] == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;

    if (a->type != CUDA_R_8F_E4M3)
        return modes[0] == 0 && modes[1] == 0 && !product->a_scales && !product->b_scales;
    if (capability() < 89 || a->rows % 16 || a->columns % 16 || a->stride % 16 || b->stride % 16 || d->stride % 4)
        return false;
    if (has_blocks && (a->columns % 4 || b->columns % 4))
        return false;
    return (modes[0] == 0 && modes[1] == 0) || ((has_vectors || has_blocks) && capability() == 90);
}

static bool has_scales(const struct emulated_product *product, const struct emulated_layout *a,
                       const struct emulated_layout *b)
{
    const struct {
        int32_t mode;
        const void *scales;
        uint64_t outer;
    } of[] = {{product->a_mode, product->a_scales, a->columns}, {product->b_mode, product->b_scales, b->columns}};

    for (int i = 0; i < 2; i++)
        if ((of[i].mode && !of[i].scales) || (uintptr_t)of[i].scales % 16 ||
            (of[i].scales && !cuda->is_reachable(of[i].scales, bytes_of_scales(of[i].mode, of[i].outer, a->rows))))
            return false;
    return true;
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
    if (has_fault("heuristic") || algorithm.workspace_bytes > preference->workspace_bytes ||
        (has_fault("fp8") && a->type == CUDA_R_8F_E4M3) || !has_codes(product, a, b, d) ||
        (has_fault("vectors") && product->a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; a->type == CUDA_R_8F_E4M3 && i < 4; i++)
        if (preference->align[i] < 16)
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
        workspace_bytes < algorithm.workspace_bytes || !fits(workspace, 16, workspace_bytes) ||
        !has_scales(product, a_layout, b_layout))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (has_fault("matmul") || !has_codes(product, a_layout, b_layout, d_layout) ||
        d_layout->columns > algorithm.columns || (has_fault("narrow") && d_layout->columns != algorithm.columns))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!handle->has_code && cuda->load_code() != cudaSuccess)
        return CUBLAS_STATUS_INTERNAL_ERROR;
    handle->has_code = true;
    task = {(const char *)a, (const char *)b, (float *)d, (float *)workspace, d_layout->rows,
            d_layout->columns, a_layout->rows, algorithm.num_parts, a_layout->stride, b_layout->stride,
            d_layout->stride, a_layout->type, *product};
    return cuda->launch(stream, run, &task, sizeof task, NULL) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                              : CUBLAS_STATUS_INTERNAL_ERROR;
}
