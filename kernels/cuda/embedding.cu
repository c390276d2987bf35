/* Rows of a vocabulary are columns of the packed matrix: each is gathered from its panel, a quad a thread. Those of 16
 * bits lie as half_layout.h says, and codes of 8 as fp8_layout.h. */
#include "kernels/cpu/packed.h"
#include "kernels/cuda/fp8_codes.cuh"
#include "kernels/cuda/fp8_layout.h"
#include "kernels/cuda/half_layout.h"
#include "kernels/cuda/state.h"

enum { MAX_THREADS = 256, QUAD = 4, BLOCK_QUADS = QUANT_BLOCK / QUAD };

struct embedding_task {
    float *out; /* [rows, k] */
    const int32_t *ids;
    const uint8_t *weights;
    int32_t n, k;
    int32_t first_id, first_block;
    int64_t panel_bytes, supers_bytes;
    int64_t column_bytes; /* of 16 bits an element, or 8 */
    int64_t scales_at;    /* of codes */
    int32_t scales_stride;
    bool has_blocks;
    float scale;
    int32_t pieces; /* blocks of threads to a row */
};

static __device__ __forceinline__ uint32_t load_word(const uint8_t *p)
{
    return __ldg((const uint32_t *)p);
}

static __device__ __forceinline__ float load_half(const uint8_t *halves, int c)
{
    return float_of_half(__ldg((const uint16_t *)halves + c));
}

/* The codes of k-group g, a byte each; of a column whose words are at `codes`. */
template <enum tensor_type type>
static __device__ __forceinline__ uint32_t codes_of_group(const uint8_t *codes, int g)
{
    constexpr int bits = quant_form(type).code_bits;

    if constexpr (bits == 8)
        return load_word(codes + g * GROUP_BYTES);

    uint32_t word = load_word(codes + g % 4 * GROUP_BYTES) >> 4 * (g / 4) & 0x0f0f0f0f;

    if constexpr (bits == 5)
        word |= (load_word(codes + 4 * GROUP_BYTES) >> g & 0x01010101) << 4;
    if constexpr (bits == 6)
        word |= (load_word(codes + (4 + g / 4) * GROUP_BYTES) >> 2 * (g % 4) & 0x03030303) << 4;
    return word;
}

/* w = code * d + m, or where halves have scales of their own code * scale is first taken together. Of SCALE_WHOLE
 * w = d * (code * scale + base), where d is the step. */
struct quad_scales {
    float d, m;
    int scale, base;
};

template <enum tensor_type type>
static __device__ __forceinline__ struct quad_scales scales_of_group(const uint8_t *scales, const uint8_t *super,
                                                                     int c, int g)
{
    constexpr struct quant_form form = quant_form(type);

    if constexpr (form.scales == SCALE_WHOLE) {
        const int s = __ldg((const int16_t *)scales + (form.has_min ? 2 * c : c));
        const int t = form.has_min ? __ldg((const int16_t *)scales + 2 * c + 1) : 0;

        return {__ldg((const float *)super + c), 0, s, t - form.offset * s};
    }

    const uint8_t *halves = form.scales == SCALE_PLAIN ? scales : super;
    struct quad_scales out = {load_half(halves, c), 0, 1, 0};
    float min = 0;

    if constexpr (form.has_min)
        out.m = load_half(halves + 2 * PANEL, c);
    if constexpr (form.scales == SCALE_HALVES) {
        const int h = g / 4;

        out.scale = __ldg((const int8_t *)scales + 2 * c + h);
        if constexpr (form.has_min)
            min = (float)__ldg((const int8_t *)scales + 2 * PANEL + 2 * c + h);
        out.m = -(out.m * min);
    } else if constexpr (form.scales == SCALE_SUPER) {
        out.d *= (float)__ldg(scales + c);
        out.m *= -(float)__ldg(scales + PANEL + c);
    }
    return out;
}

/* As quant_block_weight. */
template <enum tensor_type type>
static __device__ __forceinline__ float weight_of(uint32_t codes, int i, const struct quad_scales &scales)
{
    constexpr struct quant_form form = quant_form(type);
    int code = (int)(codes >> 8 * i & 0xff);

    if constexpr (form.code_bits == 8)
        code = (int8_t)code;
    if constexpr (form.scales == SCALE_WHOLE)
        return scales.d * (float)(code * scales.scale + scales.base);
    if constexpr (form.scales == SCALE_HALVES)
        code = scales.scale * (code - form.offset);
    return fmaf((float)code, scales.d, scales.m);
}

/* The column of an id, below 0: it is not here. */
static __device__ __forceinline__ int64_t column_of(const struct embedding_task &task, int32_t row)
{
    int64_t column = (int64_t)__ldg(task.ids + row) - task.first_id;

    return column < task.n ? column : -1;
}

template <enum tensor_type type>
static __global__ void __launch_bounds__(MAX_THREADS) embed_quantised(struct embedding_task task)
{
    const int32_t row = (int32_t)blockIdx.x / task.pieces, piece = (int32_t)blockIdx.x % task.pieces;
    const int32_t quad = (int32_t)(piece * blockDim.x + threadIdx.x), b = quad / BLOCK_QUADS;
    const int64_t column = column_of(task, row);
    const int c = (int)(column % PANEL), g = quad % BLOCK_QUADS;
    float4 out = make_float4(0, 0, 0, 0);

    if (quad >= task.k / QUAD)
        return;
    if (column >= 0) {
        const uint8_t *panel = task.weights + column / PANEL * task.panel_bytes;
        const uint8_t *record = panel + task.supers_bytes + (int64_t)b * packed_record_bytes(type);
        const uint8_t *super = panel + (task.first_block + b) / SUPER_BLOCKS * packed_super_bytes(type);
        uint32_t codes = codes_of_group<type>(record + 4 * c, g);
        struct quad_scales scales = scales_of_group<type>(record + packed_code_bytes(type), super, c, g);

        out.x = weight_of<type>(codes, 0, scales) * task.scale;
        out.y = weight_of<type>(codes, 1, scales) * task.scale;
        out.z = weight_of<type>(codes, 2, scales) * task.scale;
        out.w = weight_of<type>(codes, 3, scales) * task.scale;
    }
    ((float4 *)(task.out + (int64_t)row * task.k))[quad] = out;
}

template <enum tensor_type type>
static __device__ __forceinline__ float load_float(const uint8_t *weights, int64_t i)
{
    if constexpr (type == TYPE_F16)
        return float_of_half(__ldg((const uint16_t *)weights + i));
    else if constexpr (type == TYPE_BF16)
        return float_of_bf16(__ldg((const uint16_t *)weights + i));
    else
        return __ldg((const float *)weights + i);
}

/* Any k: an element at a time. */
template <enum tensor_type type>
static __global__ void __launch_bounds__(MAX_THREADS) embed_floats(struct embedding_task task)
{
    const int32_t row = (int32_t)blockIdx.x / task.pieces, piece = (int32_t)blockIdx.x % task.pieces;
    const int64_t column = column_of(task, row);
    float *out = task.out + (int64_t)row * task.k;

    for (int i = 0; i < QUAD; i++) {
        int32_t k = (int32_t)((piece * QUAD + i) * blockDim.x + threadIdx.x);

        if (k >= task.k)
            break;
        out[k] = 0;
        if (column < 0)
            continue;
        if constexpr (type == TYPE_F32)
            out[k] = load_float<type>(task.weights + column / PANEL * task.panel_bytes,
                                      (int64_t)k * PANEL + column % PANEL) * task.scale;
        else
            out[k] = load_float<type>(task.weights + column * task.column_bytes, k) * task.scale;
    }
}

/* Codes: a word of a column a thread, elements 2t, 2t + 1 of 16, and 8 + 2t, 9 + 2t. */
static __global__ void __launch_bounds__(MAX_THREADS) embed_codes(struct embedding_task task)
{
    const int32_t row = (int32_t)blockIdx.x / task.pieces, piece = (int32_t)blockIdx.x % task.pieces;
    const int32_t at = (int32_t)(piece * blockDim.x + threadIdx.x) * QUAD;
    const int32_t first = (at & -FP8_ORDERED) + at % FP8_ORDERED / 2;
    const int64_t column = column_of(task, row);
    float *out = task.out + (int64_t)row * task.k;
    uint32_t pairs[2] = {0, 0};

    if (first >= task.k)
        return;
    if (column >= 0) {
        const float *scales = (const float *)(task.weights + task.scales_at);

        scales += task.has_blocks ? column / FP8_BLOCK * task.scales_stride + first / FP8_BLOCK : column;
        bf16_pairs_of_fp8(pairs, load_word(task.weights + column * task.column_bytes + at), __ldg(scales));
    }
#pragma unroll
    for (int i = 0; i < QUAD; i++) {
        const int32_t k = first + i / 2 * (FP8_ORDERED / 2) + i % 2;

        if (k < task.k)
            out[k] = float_of_bf16((uint16_t)(pairs[i / 2] >> i % 2 * 16)) * task.scale;
    }
}

/* In the order of enum tensor_type. */
static void (*const kernels[TYPE_F8_E4M3 + 1])(struct embedding_task task) = {
    embed_floats<TYPE_F32>,     embed_floats<TYPE_F16>,     embed_floats<TYPE_BF16>,    embed_quantised<TYPE_Q4_0>,
    embed_quantised<TYPE_Q4_1>, embed_quantised<TYPE_Q5_0>, embed_quantised<TYPE_Q5_1>, embed_quantised<TYPE_Q8_0>,
    embed_quantised<TYPE_Q2_K>, embed_quantised<TYPE_Q3_K>, embed_quantised<TYPE_Q4_K>, embed_quantised<TYPE_Q5_K>,
    embed_quantised<TYPE_Q6_K>, embed_codes,
};

extern "C" void embedding_cuda(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                               const struct matrix *w, int32_t first_id, float scale)
{
    struct cuda_state *state = state_of(dev);
    bool are_codes = w->type == TYPE_F8_E4M3;
    int32_t quads = (int32_t)divide_up_64(are_codes ? fp8_row_stride(w->k) : w->k, QUAD);
    int32_t pieces = divide_up(quads, MAX_THREADS);
    int32_t threads = (int32_t)round_up(divide_up(quads, pieces), WARP);
    struct embedding_task task = {};

    if (rows == 0 || w->k == 0)
        return;
    if (quant_form(w->type).scales != SCALE_NONE && (uintptr_t)out % sizeof(float4) != 0) {
        note_error(state, cudaErrorInvalidValue);
        return;
    }
    task.out = out;
    task.ids = ids;
    task.weights = (const uint8_t *)w->data;
    task.n = w->n;
    task.k = w->k;
    task.first_id = first_id;
    task.first_block = w->first_block;
    task.panel_bytes = packed_panel_bytes(w->type, w->k);
    task.column_bytes = are_codes ? fp8_row_stride(w->k) : half_row_stride(w->k) * HALF_BYTES;
    task.scales_at = fp8_scales_at(w->n, w->k);
    task.scales_stride = fp8_block_stride(w->k);
    task.has_blocks = w->fp8_has_blocks;
    task.supers_bytes = packed_supers_bytes(w->type, w->k);
    task.scale = scale;
    task.pieces = pieces;
    launch(kernels[w->type], dim3((unsigned)(rows * (int64_t)pieces)), dim3((unsigned)threads), 0, state->stream,
           task);
    note_launch(state);
}

/* ---- rows of floats -------------------------------------------------------------------------------- */

/* A block a row. */
static __global__ void __launch_bounds__(MAX_THREADS) copy_rows(struct take_rows_args task)
{
    int64_t row = blockIdx.x;
    const float *in = task.in + task.row_ids[row] * task.stride;

    for (int32_t i = (int32_t)threadIdx.x; i < task.n; i += (int32_t)blockDim.x)
        task.out[row * task.stride + i] = in[i];
}

extern "C" void take_rows_cuda(struct device *dev, const struct take_rows_args *args)
{
    struct cuda_state *state = state_of(dev);
    int32_t threads = args->n < MAX_THREADS ? (int32_t)round_up(args->n, WARP) : MAX_THREADS;

    if (args->rows == 0 || args->n == 0)
        return;
    launch(copy_rows, dim3((unsigned)args->rows), dim3((unsigned)threads), 0, state->stream, *args);
    note_launch(state);
}
