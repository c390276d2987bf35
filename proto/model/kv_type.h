/*
 * kv_type: the types that a KV cache may be kept in. What each means is in kernels/kernels.h.
 *
 * Thread: any (no state).
 */
#ifndef PROTO_MODEL_KV_TYPE_H
#define PROTO_MODEL_KV_TYPE_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum kv_type { KV_BFLOAT16, KV_FLOAT16, KV_FP8, KV_INT8, NUM_KV_TYPES };

/* What --kv-cache-dtype takes, for a row of options. */
#define KV_TYPE_WORDS "auto bfloat16 float16 fp8 fp8_e4m3 int8 int8_per_token_head"

const char *kv_type_name(enum kv_type type); /* "bfloat16" */
/* By one of KV_TYPE_WORDS, NULL is auto; false: there is none. */
bool kv_type_find(const char *word, enum kv_type *out);

#ifdef __cplusplus
}
#endif
#endif
