#include "kernels/cpu/cpu.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/table.h"
#include "kernels/ref/ref.h"

const struct kernels KERNEL(kernels) = {
    .name = VEC_NAME,
    .matrix_bytes = matrix_bytes_cpu,
    .matrix_pack = matrix_pack_cpu,
    .quantize = KERNEL(quantize),
    .matmul = KERNEL(matmul),
    .matmul_groups = KERNEL(matmul_groups),
    .matmul_groups_float = KERNEL(matmul_groups_float),
    .embedding = embedding_cpu,
    .rms_norm = KERNEL(rms_norm),
    .add_exact = KERNEL(add_exact),
    .add = KERNEL(add),
    .round_exact = KERNEL(round_exact),
    .rope = KERNEL(rope),
    .kv_store = KERNEL(kv_store),
    .attention = KERNEL(attention),
    .silu_mul = KERNEL(silu_mul),
    .gelu_mul = KERNEL(gelu_mul),
    .gather_rows = gather_rows_ref, /* copies */
};
