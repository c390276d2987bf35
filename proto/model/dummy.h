/*
 * dummy: a model of random weights: of any shape, to be run and measured where there are no weights.
 *
 * The shape is a Hugging Face config.json (hf_config.h). For its readers it is a model like any other: its
 * tensors have the names and shapes of a GGUF file, matrices are of the type that was asked for (see
 * shape_add_tensors) and about as large as trained ones, norms are near 1, biases near 0, and its vocabulary is of
 * bytes. Matrices of F8_E4M3 have a scale for each row.
 *
 * The weights of a type take 64 MiB of memory, whatever the shape: each tensor begins elsewhere in one piece of random
 * blocks, which is mapped as often as it takes. So rows of a large one come again. The same shape, type and seed
 * make the same bits on every machine.
 *
 * Thread: as of model_file.h.
 */
#ifndef PROTO_MODEL_DUMMY_H
#define PROTO_MODEL_DUMMY_H

#include "proto/model/model_file.h"

struct dummy_options {
    enum tensor_type type; /* of matrices */
    uint64_t seed;
};

/* path: a config.json or its folder. As model_file_open_parts, and ERR_NO_MEMORY. */
MUST_USE enum status dummy_open(const char *path, const struct dummy_options *options, enum model_parts parts,
                                struct model_file **out);

#endif
