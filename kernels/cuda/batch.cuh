/*
 * batch: which request something is of, and where its KV lies. The functions that look for a request are a warp's: all
 * of its lanes come with the same arguments.
 */
#ifndef KERNELS_CUDA_BATCH_CUH
#define KERNELS_CUDA_BATCH_CUH

#include "kernels/cuda/simt.h"
#include "kernels/kernels.h"

/* Places are dealt to requests in order: request i, which begins at row r, has those from
 * r * per_rows / rows + i * spare on. */
struct request_places {
    int32_t per_rows, rows, spare;
};

static __host__ __device__ __forceinline__ int64_t first_place(struct request_places places, int32_t request,
                                                               int32_t row)
{
    return (int64_t)row * places.per_rows / places.rows + (int64_t)request * places.spare;
}

/* The last request that does not begin behind `place`: 32 are asked at a time. */
static __device__ __forceinline__ int32_t request_at(const struct batch_view &batch, struct request_places places,
                                                     int64_t place)
{
    int32_t first = 0, count = batch.num_requests;

    while (count > 1) {
        int32_t step = (count + WARP - 1) / WARP, ahead = (int32_t)(threadIdx.x % WARP) * step;
        bool begins = ahead < count && first_place(places, first + ahead, batch.row_start[first + ahead]) <= place;
        int32_t skipped = (__popc(__ballot_sync(ALL_LANES, begins)) - 1) * step; /* the first has begun */

        first += skipped;
        count = min(step, count - skipped);
    }
    return first;
}

static __device__ __forceinline__ int32_t request_of_row(const struct batch_view &batch, int32_t row)
{
    struct request_places each_row = {1, 1, 0};

    return request_at(batch, each_row, row);
}

/* Of 8 bits. */
static __device__ __forceinline__ bool has_codes(enum kv_type type)
{
    return type == KV_FP8 || type == KV_INT8;
}

/* Of k, or of v, of one block of one KV head, without the scales. */
static __device__ __forceinline__ int32_t kv_element_bytes(const struct kv_layer &kv)
{
    return kv.head_dim * KV_BLOCK_TOKENS << !has_codes(kv.type);
}

/* kv_head_bytes of kernels.h, for a device. */
static __device__ __forceinline__ int32_t kv_block_bytes(const struct kv_layer &kv)
{
    return kv_element_bytes(kv) + (kv.type == KV_INT8 ? KV_BLOCK_TOKENS * (int32_t)sizeof(float) : 0);
}

/* Bytes from a head's part of block 0 to its part of another; block_bytes: kv_block_bytes. */
static __device__ __forceinline__ int64_t kv_block_at(int64_t group_stride, int32_t block_bytes, int32_t block)
{
    return block / KV_GROUP_BLOCKS * group_stride * 2 + block % KV_GROUP_BLOCKS * block_bytes;
}

/* kv_head_at of kernels.h, for a device. */
static __device__ __forceinline__ int64_t kv_block_at(const struct kv_layer &kv, int32_t block, int32_t head)
{
    int32_t bytes = kv_block_bytes(kv);

    return kv_block_at(kv.group_stride, bytes, block) + (int64_t)head * KV_GROUP_BLOCKS * bytes;
}

#endif
