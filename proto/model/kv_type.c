#include "proto/model/kv_type.h"

#include "proto/base/memory.h"

#include <string.h>

static const char *const names[NUM_KV_TYPES] = {
    [KV_BFLOAT16] = "bfloat16", [KV_FLOAT16] = "float16", [KV_FP8] = "fp8", [KV_INT8] = "int8"};

/* vLLM's words mean the same there. */
static const struct {
    const char *word;
    enum kv_type type;
} words[] = {
    {"auto", KV_BFLOAT16}, {"bfloat16", KV_BFLOAT16}, {"float16", KV_FLOAT16}, {"fp8", KV_FP8}, {"fp8_e4m3", KV_FP8},
    {"int8", KV_INT8},     {"int8_per_token_head", KV_INT8},
};

const char *kv_type_name(enum kv_type type)
{
    return names[type];
}

bool kv_type_find(const char *word, enum kv_type *out)
{
    for (size_t i = 0; i < COUNT_OF(words); i++)
        if (strcmp(word ? word : "auto", words[i].word) == 0) {
            *out = words[i].type;
            return true;
        }
    return false;
}
