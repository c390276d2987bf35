/*
 * attention: the ways to attend. Which one it is follows from attention_args.device_order alone; attention.cu
 * shares out either way's work.
 *
 * Thread: the device's.
 */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/state.h"

struct attention_way {
    int32_t tile_tokens;                       /* of a softmax of its own */
    int32_t few_queries;                       /* of a block of few, at most */
    int32_t most_group_tiles;
    int32_t blocks_wanted;                     /* of few queries, for a processor */
    int32_t busy_queries;                      /* for a processor: from here on blocks of many keep it busy */
    /* of a block of many; 0: the GPU has no room for one, and few give the same bits */
    int32_t (*many_queries)(const struct cuda_state *state, int32_t head_dim, int32_t num_heads);
    int32_t (*part_floats)(int32_t head_dim);  /* a multiple of 4 */
    /* groups: of tiles, that its rows see at most. queries: few_queries, or so few that blocks need no more. */
    void (*few)(struct cuda_state *state, const struct attention_task &task, int32_t queries, int32_t groups);
    void (*many)(struct cuda_state *state, const struct attention_task &task);
    void (*merge)(struct cuda_state *state, const struct attention_task &task);
};

/* With the bits of ref. */
extern const struct attention_way attention_exact;
/* On tensor cores, by a rule of their own. */
extern const struct attention_way attention_half;

/* Once, when the device is opened. */
cudaError_t attention_half_prepare(const struct cuda_state *state);

/* What a kernel may ask for that has `own` bytes of shared memory without asking: that comes first, up to where what
 * is asked for may begin, at a multiple of 16. */
static inline int32_t rest_of_shared(const struct cuda_state *state, size_t own)
{
    return state->max_shared - (int32_t)round_up((int64_t)own, 16);
}

template <typename Kernel>
static inline cudaError_t allow_all_shared(const struct cuda_state *state, Kernel kernel, size_t own)
{
    return allow_shared(kernel, rest_of_shared(state, own));
}

#endif
