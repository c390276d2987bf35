/*
 * hf_quantization: weights of 8 bits (F8_E4M3) in folders of Hugging Face's: what quantization_config in
 * config.json says of them, and the scales that lie beside them. Three writers' ways are read:
 *
 *   compressed-tensors  X.weight_scale, [1], [rows, 1] or one for each block (llm-compressor, vLLM)
 *   fbgemm_fp8          X.weight_scale, [rows, 1] (Llama 3.1)
 *   fp8                 X.weight_scale_inv, which is multiplied too, one for each block of weight_block_size
 *                       (DeepSeek, Qwen3), or X.weight_scale, one of the tensor
 *
 * Which tensors are of 8 bits their dtypes say, so lists of modules that are not are passed over. So are scales of
 * activations (input_scale): where activations are rounded to 8 bits at all, each row gets the scale that fits it.
 *
 * Thread: as of model_file.h.
 */
#ifndef PROTO_MODEL_HF_QUANTIZATION_H
#define PROTO_MODEL_HF_QUANTIZATION_H

#include "proto/model/model_file.h"

#include <jansson.h>

struct hf_quantization {
    int32_t block_rows, block_columns; /* of weights that share a scale; 0: there are no blocks */
};

/* root: config.json, as hf_config_parse gives it. A model without quantization_config has zeros. ERR_CORRUPT and
 * ERR_UNSUPPORTED: a sentence that names the key, the value and what is possible. */
MUST_USE enum status hf_quantization_read(const json_t *root, struct hf_quantization *out);

/* Gives each tensor of F8_E4M3 its scales. The file has been indexed. ERR_CORRUPT: they are missing, or of another
 * shape, or one of them is no number that can be; ERR_UNSUPPORTED: codes that are no matrix. */
MUST_USE enum status hf_quantization_take_scales(const struct hf_quantization *quantization,
                                                 struct model_file *file);

#endif
