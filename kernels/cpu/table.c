#include "kernels/cpu/cpu.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/table.h"

const struct kernels KERNEL(kernels) = {
    .name = VEC_NAME,
    .has_kv_codes = true,
    .matrix_bytes = matrix_bytes_cpu,
    .matrix_pack = matrix_pack_cpu,
    .quantize = KERNEL(quantize),
    .matmul = KERNEL(matmul),
    .matmul_groups = KERNEL(matmul_groups),
    .matmul_groups_float = KERNEL(matmul_groups_float),
    .embedding = KERNEL(embedding),
    .add_norm = KERNEL(add_norm),
    .rope_store = KERNEL(rope_store),
    .attention = KERNEL(attention),
    .silu_mul = KERNEL(silu_mul),
    .gelu_mul = KERNEL(gelu_mul),
    .matmul_silu_mul = KERNEL(matmul_silu_mul),
    .matmul_gelu_mul = KERNEL(matmul_gelu_mul),
};
