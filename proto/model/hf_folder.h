/*
 * hf_folder: a model as Hugging Face's libraries save it: config.json, model.safetensors or the shards that
 * model.safetensors.index.json names, tokenizer.json and the small files beside it.
 *
 * What differs from GGUF is made the same here: tensors have the names of GGUF; gemma3's norms, of which a file has
 * what is added to 1, are whole; the factors of Llama 3's RoPE, which config.json describes, are a tensor. Weights
 * are read where they lie; those of 8 bits get their scales (hf_quantization.h). Rows of q and k stay as they are:
 * see rope_is_adjacent in model_file.h.
 *
 * Thread: as of model_file.h.
 */
#ifndef PROTO_MODEL_HF_FOLDER_H
#define PROTO_MODEL_HF_FOLDER_H

#include "proto/model/model_file.h"

/* As model_file_open_parts; sentences name the folder and the file in it. */
MUST_USE enum status hf_folder_open(const char *path, enum model_parts parts, struct model_file **out);

#endif
