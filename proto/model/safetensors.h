/*
 * safetensors: a file of tensors: the length of a header, a JSON object that says the type, the shape and the place
 * of each, and their data (github.com/huggingface/safetensors). Everything is little-endian.
 *
 * The file is hostile until checked. What a model calls its tensors is hf_folder.c's.
 *
 * Thread: any.
 */
#ifndef PROTO_MODEL_SAFETENSORS_H
#define PROTO_MODEL_SAFETENSORS_H

#include "proto/model/model_file.h"

/* Does it begin like one? */
bool safetensors_is_likely(const uint8_t *data, size_t bytes);

/*
 * Its tensors, by the names that stand there, in the order of the header; arrays and names are the arena's, and
 * the data, which need not be aligned, is where it lies in `data`. ERR_CORRUPT; ERR_UNSUPPORTED: types other than
 * F32, F16 and BF16, and more than our limits.
 */
MUST_USE enum status safetensors_read(const uint8_t *data, size_t bytes, struct arena *arena,
                                      struct tensor **tensors_out, int32_t *num_tensors_out);

#endif
