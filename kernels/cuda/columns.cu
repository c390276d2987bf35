#include "kernels/cuda/columns.h"

enum { THREADS = 256 };

/* part: [rows, columns], out: [rows, stride], from column 0 on. */
static __global__ void put(float *out, int64_t stride, const float *part, int32_t columns, int64_t count)
{
    int64_t step = (int64_t)gridDim.x * THREADS;

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step)
        out[i / columns * stride + i % columns] = part[i];
}

dim3 column_blocks(const struct cuda_state *state, int64_t count)
{
    int64_t blocks = divide_up_64(count, THREADS), most = 4 * state->num_processors;

    return dim3((unsigned)(blocks < most ? blocks : most));
}

void put_columns(struct cuda_state *state, const struct comm_columns *columns, int32_t world, int32_t rank,
                 const float *part)
{
    const int32_t *first = columns->first;
    int32_t width = first[rank + 1] - first[rank];
    int64_t count = (int64_t)columns->rows * width;

    if (count == 0)
        return;
    launch(put, column_blocks(state, count), dim3(THREADS), 0, state->stream, columns->out + first[rank],
           (int64_t)first[world], part, width, count);
    note_launch(state);
}
