/*
 * packed: how cpu/ lays a weight matrix out. One layout for every instruction set.
 *
 * 32 columns of W (rows of the file) are a panel, and a panel is one stream in order of k; panels
 * follow each other, so a thread's share of them is contiguous.
 *
 * Float types: for each k, 32 elements of the source's type.
 *
 * Quantised types: first the super scales of SCALE_SUPER and SCALE_HALVES, one entry for each 256 of
 * the source that the shard touches: half d[32] (, half m[32]); of SCALE_WHOLE: float step[32]. Then a record per
 * block of 32:
 *
 *   codes   for k-group g = 0..7 (four elements of k) the bytes [32 columns][4]:
 *           4 bits: 4 × 128 bytes, low nibbles g = 0..3, high nibbles g = 4..7
 *           5 bits: and 128 bytes whose bit g is the fifth bit
 *           6 bits: and 2 × 128 bytes, of which g takes two bits, 2 * (g % 4), of number g / 4
 *           8 bits: 8 × 128 bytes, signed
 *   scales  SCALE_WHOLE: int16 s[32], or with a minimum int16 [32] of s and t side by side
 *           SCALE_PLAIN: half d[32]
 *           SCALE_SUPER: uint8 scale[32], uint8 min[32]
 *           SCALE_HALVES: int8 scale[32][2] (, int8 min[32][2])
 *
 * So bits a weight, but for steps: Q4_0 4.5, Q4_1 5, Q5_0 5.5, Q5_1 6, Q8_0 8.5, Q2_K 5.125, Q3_K 4.5625, Q4_K 4.625,
 * Q5_K 5.625, Q6_K 6.5625.
 *
 * Kept readable by C++ and nvcc: CUDA kernels read the same layout.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_CPU_PACKED_H
#define KERNELS_CPU_PACKED_H

#include "kernels/kernels.h"
#include "kernels/quant_block.h"

#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PANEL = 32, GROUP_BYTES = PANEL * 4 };

static QUANT_CONSTANT int packed_code_bytes(enum tensor_type type)
{
    int bits = quant_form(type).code_bits;

    return bits == 8 ? 8 * GROUP_BYTES : (bits - 4 + 4) * GROUP_BYTES;
}

/* Of a record, or of one k of a float type. */
static QUANT_CONSTANT int packed_record_bytes(enum tensor_type type)
{
    struct quant_form form = quant_form(type);

    if (form.scales == SCALE_NONE)
        return PANEL * (type == TYPE_F32 ? 4 : 2);
    return packed_code_bytes(type) +
           (form.scales == SCALE_SUPER || !form.has_min ? 2 * PANEL : 4 * PANEL);
}

static QUANT_CONSTANT int packed_super_bytes(enum tensor_type type)
{
    struct quant_form form = quant_form(type);

    if (form.scales != SCALE_SUPER && form.scales != SCALE_HALVES)
        return 0;
    return form.has_min ? 4 * PANEL : 2 * PANEL;
}

/* Bytes of all super scales of a panel, wherever in a 256 the shard begins, or of its steps. */
static QUANT_CONSTANT int64_t packed_supers_bytes(enum tensor_type type, int32_t k)
{
    int64_t most = (k / QUANT_BLOCK + 2 * (SUPER_BLOCKS - 1)) / SUPER_BLOCKS;

    if (quant_form(type).scales == SCALE_WHOLE)
        return PANEL * (int64_t)sizeof(float);
    return most * packed_super_bytes(type);
}

/* Records are per element of k for float types. */
static QUANT_CONSTANT int32_t packed_num_records(enum tensor_type type, int32_t k)
{
    return quant_form(type).scales == SCALE_NONE ? k : k / QUANT_BLOCK;
}

static QUANT_CONSTANT int64_t packed_panel_bytes(enum tensor_type type, int32_t k)
{
    return packed_supers_bytes(type, k) +
           (int64_t)packed_num_records(type, k) * packed_record_bytes(type);
}

/* Four codes of a k-group, wherever they lie. */
static inline uint32_t load32(const uint8_t *p)
{
    uint32_t x;

    memcpy(&x, p, 4);
    return x;
}

static inline void store32(uint8_t *p, uint32_t x)
{
    memcpy(p, &x, 4);
}

static inline int64_t matrix_bytes_cpu(enum tensor_type type, int32_t n, int32_t k)
{
    return (int64_t)divide_up(n, PANEL) * packed_panel_bytes(type, k);
}

#ifdef __cplusplus
}
#endif
#endif
