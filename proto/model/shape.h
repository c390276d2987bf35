/*
 * shape: a model of which there is a shape and nothing else: the tensors that it must have, without their data,
 * and a vocabulary of bytes. What sim.c and dummy.c share; for nobody else.
 *
 * Thread: the opener's.
 */
#ifndef PROTO_MODEL_SHAPE_H
#define PROTO_MODEL_SHAPE_H

#include "proto/model/reader.h"

enum { SHAPE_MIN_VOCAB = 257 }; /* the bytes and an end */

/* All that file->config asks for: matrices of this type, vectors of F32; one of RoPE factors where it is LLAMA3's.
 * Beside matrices of F8_E4M3 embeddings and logits are of BF16, as folders have them.
 * ERR_CORRUPT names a matrix whose columns the blocks of the type do not fill. */
MUST_USE enum status shape_add_tensors(struct model_file *file, enum tensor_type type, bool is_tied);
/* Of that tensor. */
size_t shape_tensor_bytes(const struct tensor *tensor);
/* The bytes, an end, and words that nobody writes, up to file->config.vocab_size. */
void shape_fill_vocabulary(struct model_file *file);

#endif
