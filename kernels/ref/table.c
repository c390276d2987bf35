#include "kernels/ref/ref.h"

const struct kernels kernels_ref = {
    .name = "ref",
    .matrix_bytes = matrix_bytes_ref,
    .matrix_pack = matrix_pack_ref,
    .quantize = quantize_ref,
    .matmul = matmul_ref,
    .matmul_groups = matmul_groups_ref,
    .matmul_groups_float = matmul_groups_float_ref,
    .embedding = embedding_ref,
    .take_rows = take_rows_ref,
    .add_norm = add_norm_ref,
    .rope_store = rope_store_ref,
    .attention = attention_ref,
    .silu_mul = silu_mul_ref,
    .gelu_mul = gelu_mul_ref,
};
