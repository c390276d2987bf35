/*
 * memory_held: where a rank's memory went, as of the last change of its weights or its KV cache; zeros while it
 * loads. What a device has in use beside these is kernels' own, its driver's, or other processes'.
 */
#ifndef PROTO_WIRE_MEMORY_HELD_H
#define PROTO_WIRE_MEMORY_HELD_H

#include <stdint.h>

struct memory_held {
    int64_t weights_bytes;   /* and of those kept beside the ones in use */
    int64_t kv_cache_bytes;
    int64_t workspace_bytes; /* of steps: activations and logits */
    int64_t free_bytes, total_bytes; /* of its device, which others may use too; on a CPU of its host */
};

#endif
