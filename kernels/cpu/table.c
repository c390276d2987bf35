#include "kernels/cpu/cpu.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/table.h"

const struct kernels KERNEL(kernels) = {
    .name = VEC_NAME,
    .matrix_bytes = matrix_bytes_cpu,
    .matrix_pack = SHARED(matrix_pack),
    .quantize = SHARED(quantize),
    .matmul = MATMUL(matmul),
    .matmul_groups = MATMUL(matmul_groups),
    .matmul_groups_float = MATMUL(matmul_groups_float),
    .embedding = SHARED(embedding),
    .take_rows = take_rows_cpu,
    .add_norm = SHARED(add_norm),
    .rope_store = SHARED(rope_store),
    .attention = ATTENTION(attention),
    .silu_mul = SHARED(silu_mul),
    .gelu_mul = SHARED(gelu_mul),
    .matmul_silu_mul = MATMUL(matmul_silu_mul),
    .matmul_gelu_mul = MATMUL(matmul_gelu_mul),
};
