/*
 * rope: the cosines and sines of rotary position embedding, for every position.
 *
 * Pair i of a head turns by position * base^(-2i / dim) (Su et al., arXiv 2104.09864), divided by
 * `factor` (linear scaling) and by factors[i] (Llama 3's scaling, from the model file).
 *
 * Thread: the device thread.
 */
#ifndef WORKER_LAYERS_ROPE_H
#define WORKER_LAYERS_ROPE_H

#include <stdbool.h>
#include <stdint.h>

struct rope_table {
    const float *cos_sin; /* [max_position, dim / 2, 2] */
    int32_t dim;
    bool adjacent; /* pairs (2i, 2i + 1), as llama files of GGUF store them; else (i, i + dim / 2) */
};

struct rope_frequencies {
    int32_t dim; /* even */
    double base;
    double factor;        /* 1: no scaling */
    const float *factors; /* [dim / 2] or NULL */
};

/* cos_sin: [max_position, dim / 2, 2]. Right to the last bit or two of a float. */
void rope_fill(float *cos_sin, int32_t max_position, const struct rope_frequencies *frequencies);

#endif
