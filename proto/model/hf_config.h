/*
 * hf_config: the shape of a model as Hugging Face's config.json says it.
 *
 * What would change the arithmetic and is not computed here is refused by name; keys that do not matter to it are
 * passed over. A key that is null is not there.
 *
 * Thread: any.
 */
#ifndef PROTO_MODEL_HF_CONFIG_H
#define PROTO_MODEL_HF_CONFIG_H

#include "proto/model/model_file.h"

#include <jansson.h>

struct hf_config {
    struct model_config model; /* without a name */
    bool is_tied;              /* the embedding is the output matrix too */
    struct {                   /* where the RoPE is scaled as LLAMA3 */
        float factor, low_freq_factor, high_freq_factor;
        float original_max_position;
    } llama3;
};

/* A whole config.json, for hf_config_read and hf_quantization_read. As field_parse. */
MUST_USE enum status hf_config_parse(const void *data, size_t size, json_t **out);
/* ERR_CORRUPT and ERR_UNSUPPORTED: a sentence that names the key, the value and what is possible. */
MUST_USE enum status hf_config_read(const json_t *root, struct hf_config *out);
/* What divides the frequency of this pair, where the RoPE is scaled so. */
float hf_config_llama3_factor(const struct hf_config *config, int32_t pair);

#endif
