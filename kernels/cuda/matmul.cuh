/*
 * matmul: how a warp reads a record and multiplies it, and what kernels do with a product. The arithmetic is that
 * of quant_block.h.
 *
 * With g = lane / 4 and t = lane % 4, a lane has columns 4g..4g + 3 of a panel and the k-groups t and 4 + t of a
 * record (a k-group: four elements of k). Of four bits each, that is 16 bytes: a warp reads the codes of a record
 * in one go. And they are the fragments that mma_s8_k32 wants of two tiles of 16 columns, whose order is free: row
 * g of tile i is column 4g + 2i, row g + 8 the next.
 */
#ifndef KERNELS_CUDA_MATMUL_CUH
#define KERNELS_CUDA_MATMUL_CUH

#include "kernels/cuda/matmul.h"
#include "kernels/numerics.h"

#include <type_traits>

enum {
    TILE_ROWS = 8, /* rows of activations in an mma */
    LANE_COLUMNS = 4,
};

template <enum tensor_type type> static QUANT_CONSTANT bool is_whole()
{
    return quant_form(type).scales == SCALE_WHOLE;
}

/* What sums of products are, and what blocks add them to: of SCALE_WHOLE whole numbers, until a group ends. */
template <enum tensor_type type> using number = std::conditional_t<is_whole<type>(), int32_t, float>;
template <enum tensor_type type> using number_pair = std::conditional_t<is_whole<type>(), int2, float2>;

/* Of column 4g + c: a constant where loops are unrolled. */
static __device__ __forceinline__ uint32_t word_of(const uint4 &words, int c)
{
    return c == 0 ? words.x : c == 1 ? words.y : c == 2 ? words.z : words.w;
}

/* Byte i of eight, without the slow conversion: the last bit of a float from 2^23 on is 1. */
static __device__ __forceinline__ float float_of_u8(const uint2 &bytes, int i)
{
    return __uint_as_float(((i < 4 ? bytes.x : bytes.y) >> 8 * (i % 4) & 0xff) | 0x4b000000) - 8388608.0f;
}

static __device__ __forceinline__ float float_of_s8(const uint2 &bytes, int i)
{
    uint32_t raised = (i < 4 ? bytes.x : bytes.y) ^ 0x80808080; /* by 128 */

    return __uint_as_float((raised >> 8 * (i % 4) & 0xff) | 0x4b000000) - (8388608.0f + 128.0f);
}

/* Half i of four. */
static __device__ __forceinline__ float float_of_half_at(const uint2 &halves, int i)
{
    uint32_t word = i < 2 ? halves.x : halves.y;

    return float_of_half((uint16_t)(i % 2 ? word >> 16 : word & 0xffff));
}

/* ---- codes --------------------------------------------------------------------------------------------------- */

/* As they lie in the record. */
template <enum tensor_type type> struct packed_codes {
    uint4 words[quant_form(type).code_bits == 8 ? 2 : quant_form(type).code_bits - 3];
};

/* Where the four columns of a k-group, or what stands in its place, lie in the record; a piece is 16 bytes. */
static __device__ __forceinline__ int code_piece(int group, int g)
{
    return group * (GROUP_BYTES / 16) + g;
}

/* Where a piece of a record lies in shared memory: codes move, so that eight lanes that read at once find banks of
 * their own. */
template <enum tensor_type type> static __device__ __forceinline__ int moved_piece(int piece)
{
    return piece < packed_code_bytes(type) / 16 ? piece ^ piece / (GROUP_BYTES / 16) % 4 * 2 : piece;
}

/* read: 16 bytes, by their piece. */
template <enum tensor_type type, typename Read>
static __device__ __forceinline__ void read_codes(struct packed_codes<type> *codes, int lane, Read read)
{
    constexpr int bits = quant_form(type).code_bits;
    const int g = lane / 4, t = lane % 4;

    codes->words[0] = read(code_piece(t, g));
    if constexpr (bits == 8)
        codes->words[1] = read(code_piece(4 + t, g));
    if constexpr (bits == 5 || bits == 6)
        codes->words[1] = read(code_piece(4, g));
    if constexpr (bits == 6)
        codes->words[2] = read(code_piece(5, g));
}

/* The offset is taken off four codes at once, but where there is a minimum: this takes it in (whole_scales). */
template <enum tensor_type type> static __device__ __forceinline__ uint32_t signed_codes(uint32_t codes)
{
    constexpr struct quant_form form = quant_form(type);

    if constexpr (form.offset != 0 && !form.has_min)
        return (codes + (128 - form.offset) * 0x01010101u) ^ 0x80808080;
    return codes;
}

/* a: the fragments of both tiles. */
template <enum tensor_type type>
static __device__ __forceinline__ void unpack_codes(uint32_t a[2][4], const struct packed_codes<type> &codes,
                                                    int lane)
{
    constexpr int bits = quant_form(type).code_bits;
    const int t = lane % 4;

#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c++) {
        uint32_t word = word_of(codes.words[0], c), low, high;

        if constexpr (bits == 8) {
            low = word;
            high = word_of(codes.words[1], c);
        } else {
            low = word & 0x0f0f0f0f;
            high = word >> 4 & 0x0f0f0f0f;
        }
        if constexpr (bits == 5) {
            uint32_t fifth = word_of(codes.words[1], c) >> t; /* bits 0 and 4 of every byte */

            low |= fifth << 4 & 0x10101010;
            high |= fifth & 0x10101010;
        }
        if constexpr (bits == 6) {
            low |= word_of(codes.words[1], c) >> 2 * t << 4 & 0x30303030;
            high |= word_of(codes.words[2], c) >> 2 * t << 4 & 0x30303030;
        }
        a[c / 2][c % 2] = signed_codes<type>(low);
        a[c / 2][2 + c % 2] = signed_codes<type>(high);
    }
}

/* int8 scale[PANEL][2] or min[PANEL][2]: of the lane's four columns. */
struct half_scales {
    float of[LANE_COLUMNS][2];
};

static __device__ __forceinline__ struct half_scales half_scales_of(const uint2 &bytes)
{
    struct half_scales scales;

#pragma unroll
    for (int i = 0; i < 2 * LANE_COLUMNS; i++)
        scales.of[i / 2][i % 2] = float_of_s8(bytes, i);
    return scales;
}

/*
 * sum(u * a) of the record's codes and a block of TILE_ROWS rows, with what signed_codes takes off, in SCALE_HALVES
 * with scales applied: of columns 4g + c and rows 2t + r. b: the rows' fragment.
 *
 * Where floats are wanted, sums begin with the bits of the float 1.5 * 2^23, whose last bit is 1: so below 2^22 they
 * end as the bits of a float that is their sum and this. Taking it off is as exact as a conversion, and four times as
 * fast on sm_80. Products with scales are exact below 2^24. 0 is added because there is no -0 among whole numbers.
 */
template <enum tensor_type type>
static __device__ __forceinline__ void dot_record(number<type> sum[LANE_COLUMNS][2], const uint32_t a[2][4],
                                                  const uint32_t b[2], const struct half_scales &scales)
{
    const int32_t START = is_whole<type>() ? 0 : 0x4b400000;
    const float START_FLOAT = 12582912.0f;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        int32_t first[4] = {START, START, START, START}, second[4] = {START, START, START, START};

        if constexpr (quant_form(type).scales == SCALE_HALVES) {
            const uint32_t low[2] = {a[i][0], a[i][1]}, high[2] = {a[i][2], a[i][3]};

            mma_s8_k16(first, low, b[0]);
            mma_s8_k16(second, high, b[1]);
        } else {
            mma_s8_k32(first, a[i], b);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int c = 2 * i + e / 2;

            if constexpr (is_whole<type>()) {
                sum[c][e % 2] = first[e];
            } else {
                float x = __int_as_float(first[e]) - START_FLOAT;

                if constexpr (quant_form(type).scales == SCALE_HALVES)
                    x = fmaf(__int_as_float(second[e]) - START_FLOAT, scales.of[c][1],
                             fmaf(x, scales.of[c][0], 0.0f));
                sum[c][e % 2] = x;
            }
        }
    }
}

/* ---- scales -------------------------------------------------------------------------------------------------- */

/* Of SCALE_WHOLE: what sums of products and of activations are multiplied by, from s and, in the high half, t. */
template <enum tensor_type type> static __device__ __forceinline__ int2 whole_scales(uint32_t word)
{
    constexpr struct quant_form form = quant_form(type);
    const int32_t s = (int16_t)word;

    return make_int2(s, form.has_min ? ((int32_t)word >> 16) - form.offset * s : 0);
}

/* Of the others: d_w and m_w of a column; of SCALE_HALVES d and -m. */
template <enum tensor_type type>
static __device__ __forceinline__ float2 column_scales(float d, float m, float scale, float min)
{
    constexpr struct quant_form form = quant_form(type);

    if constexpr (form.scales == SCALE_SUPER)
        return make_float2(d * scale, m * -min);
    return make_float2(d, -m);
}

/* a: load_pair. min_sum: the sum over halves of min * sum(a), of SCALE_HALVES with a min. Whole numbers stay below
 * 2^31 here too, in this order. */
template <enum tensor_type type>
static __device__ __forceinline__ number<type> add_block(number<type> acc, number<type> sum, number_pair<type> w,
                                                         uint2 a, float min_sum)
{
    constexpr struct quant_form form = quant_form(type);

    if constexpr (is_whole<type>()) {
        acc += w.x * sum;
        return form.has_min ? acc + w.y * (int32_t)a.y : acc;
    } else {
        const float d_a = __uint_as_float(a.x);

        acc = fmaf(sum, w.x * d_a, acc);
        if constexpr (form.scales == SCALE_HALVES)
            return form.has_min ? fmaf(min_sum, w.y * d_a, acc) : acc;
        return form.has_min ? fmaf(w.y, __uint_as_float(a.y), acc) : acc;
    }
}

/* Whether sums of activations over halves are wanted, in the place of z. */
template <enum tensor_type type> static QUANT_CONSTANT bool has_half_mins()
{
    return quant_form(type).scales == SCALE_HALVES && quant_form(type).has_min;
}

/* d of a row's block, and where they are wanted the bits of z, or of both sums, low and high, or of SCALE_WHOLE their
 * sum. */
template <enum tensor_type type>
static __device__ __forceinline__ uint2 load_pair(const struct activations &a, int64_t block)
{
    constexpr struct quant_form form = quant_form(type);
    uint2 pair = make_uint2(__float_as_uint(__ldg(a.d + block)), 0);

    if constexpr (form.has_min && form.scales == SCALE_SUPER)
        pair.y = __float_as_uint(__ldg(a.z + block));
    else if constexpr (form.has_min)
        pair.y = __ldg((const uint32_t *)a.sums + block);
    if constexpr (form.has_min && is_whole<type>())
        pair.y = (uint32_t)((int16_t)pair.y + ((int32_t)pair.y >> 16));
    return pair;
}

/* ---- results ------------------------------------------------------------------------------------------------- */

/* A group's sum, as it is added to others. */
static __device__ __forceinline__ double on_grid(float acc)
{
    return ((double)acc + EXACT_MAGIC) - EXACT_MAGIC;
}

/* Of SCALE_WHOLE: what a sum of groups of activations begins with, how the total of one and its scale are added to it,
 * and what it is in the end. In doubles it is exact in any order of groups. */
static __device__ __forceinline__ void begin_whole(float *sum)
{
    *sum = 0;
}

static __device__ __forceinline__ void begin_whole(double *sum)
{
    *sum = WHOLE_MAGIC;
}

static __device__ __forceinline__ void add_total(float *sum, int32_t total, float d_a)
{
    *sum = fmaf((float)total, d_a, *sum);
}

static __device__ __forceinline__ void add_total(double *sum, int32_t total, float d_a)
{
    *sum = fma((double)total, quant_odd(d_a), *sum);
}

static __device__ __forceinline__ float end_whole(float sum, float step)
{
    return sum * step;
}

static __device__ __forceinline__ double end_whole(double sum, float step)
{
    return (sum - WHOLE_MAGIC) * (double)step;
}

/* Of this type alone: step of a panel's column. */
static __device__ __forceinline__ float load_step(const uint8_t *panel, int column)
{
    return __ldg((const float *)panel + column);
}

/* sum: of groups, where there are some. */
static __device__ __forceinline__ void store_result(const struct matmul_task &task, int64_t row, int32_t column,
                                                    float acc, double sum)
{
    if (column >= task.n)
        return;
    if (!task.out)
        task.sums[row * task.n + column] = sum;
    else
        task.out[row * task.out_stride + column] = task.group ? (float)sum : acc;
}

#endif
