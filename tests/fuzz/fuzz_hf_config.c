/*
 * fuzz_hf_config: any bytes as a config.json: refused with a sentence, or a shape whose numbers make a model, and
 * blocks of weights of 8 bits that can be.
 */
#include "proto/model/hf_config.h"
#include "proto/model/hf_quantization.h"

#include <math.h>
#include <string.h>

static void check(const struct hf_config *config)
{
    const struct model_config *model = &config->model;

    ASSERT(model->architecture[0] && model->num_layers > 0 && model->num_layers <= 1024);
    ASSERT(model->hidden_size >= 32 && model->intermediate_size >= 32 && model->max_position > 0);
    ASSERT(model->num_kv_heads > 0 && model->num_heads % model->num_kv_heads == 0);
    ASSERT(model->head_dim % 16 == 0 && model->head_dim <= 256 && model->rope_dim == model->head_dim);
    ASSERT(model->vocab_size > 256 && model->vocab_size <= 1 << 20);
    ASSERT(model->rms_norm_eps > 0 && model->rope_theta >= 1 && model->rope_theta_local >= 1);
    ASSERT(model->rope_scaling_factor > 0 && model->sliding_window >= 0);
    for (int32_t i = 0; model->rope_scaling == ROPE_SCALING_LLAMA3 && i < model->rope_dim / 2; i++) {
        float factor = hf_config_llama3_factor(config, i);

        ASSERT(isfinite(factor) && factor > 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hf_quantization quantization;
    struct hf_config config;
    json_auto_t *root = NULL;

    if (hf_config_parse(data, size, &root) != OK) {
        ASSERT(fail_text()[0] != '\0');
        return 0;
    }
    if (hf_config_read(root, &config) == OK)
        check(&config);
    else
        ASSERT(fail_text()[0] != '\0');
    if (hf_quantization_read(root, &quantization) == OK)
        ASSERT(quantization.block_rows >= 0 && (quantization.block_rows > 0) == (quantization.block_columns > 0));
    else
        ASSERT(fail_text()[0] != '\0');
    return 0;
}
