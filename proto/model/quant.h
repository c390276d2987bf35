/*
 * quant: the tensor types of model files: names, block layouts, dequantisation.
 *
 * Layouts and formulas are those of ggml (ggml-common.h, ggml-quants.c), little-endian.
 * The dequantiser here is the reference for every packed layout the kernels use.
 *
 * Thread: any (no state).
 */
#ifndef PROTO_MODEL_QUANT_H
#define PROTO_MODEL_QUANT_H

#include "proto/base/status.h"

#include <stdint.h>
#include <string.h>

/* Our own numbering; the reader of each file format maps its own numbers to these. */
enum tensor_type {
    TYPE_F32, TYPE_F16, TYPE_BF16,
    TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1, TYPE_Q8_0,
    TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K,
    NUM_TENSOR_TYPES, /* that kernels multiply */
    TYPE_F8_E4M3 = NUM_TENSOR_TYPES, /* stands for BF16, with its scales (model_file.h) */
};

struct tensor_type_info {
    const char *name;       /* "Q4_1" */
    int32_t block_elements; /* 1, 32 or 256 */
    int32_t block_bytes;
};

const struct tensor_type_info *tensor_type_info(enum tensor_type type);
/* By its name, in letters of either case; false: there is none. */
bool tensor_type_find(const char *name, enum tensor_type *out);

/* Bytes of a row of `n` elements, n a multiple of block_elements. */
int64_t tensor_row_bytes(enum tensor_type type, int64_t n);

/* out: [n] from element `first` of the row at `row`; first and n are multiples of 32
 * (of 1 for F32, F16, BF16, F8_E4M3). Same bits as gguf-py's dequantize. */
void tensor_dequantize(enum tensor_type type, const void *row, int64_t first, int64_t n,
                       float *out);

/* Inline, since loading a model does it for every block. Scaling by a power of two makes normal floats of subnormals. */
static inline float half_to_float(uint16_t h)
{
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    bool is_special = bits >= 0x0f800000; /* infinity, or NaN with its payload */
    float f;

    memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    memcpy(&bits, &f, 4);
    bits |= (is_special ? 0x7f800000 : 0) | (uint32_t)(h & 0x8000) << 16;
    memcpy(&f, &bits, 4);
    return f;
}

uint16_t float_to_half(float f); /* round to nearest even */

/* e4m3fn: 4 bits of exponent, 3 of mantissa, no infinity, NaN is 0x7f. Rounded to nearest even; what is larger than
 * 448, infinity too, is 448. */
float fp8_to_float(uint8_t code);
uint8_t float_to_fp8(float f);
/* out[i]: the value of codes[i] times `scale`, rounded to a float, and that to bf16, both to nearest even: what
 * DeepSeek's and Hugging Face's own conversions give. */
void fp8_to_bf16(const uint8_t *codes, int64_t n, float scale, uint16_t *out);

#endif
