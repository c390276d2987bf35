/*
 * random_weights: seeded random weights of every tensor type, which are finite and have a mean of about 0.
 *
 * A state is any number and moves on with each call. The same one makes the same bytes on every machine.
 *
 * Thread: any; a state belongs to one.
 */
#ifndef PROTO_MODEL_RANDOM_WEIGHTS_H
#define PROTO_MODEL_RANDOM_WEIGHTS_H

#include "proto/model/quant.h"

#include <stddef.h>
#include <stdint.h>

uint64_t random_weights_bits(uint64_t *state);
/* Uniform in (-1, 1). */
float random_weights_float(uint64_t *state);
/* Of the codes of F8_E4M3, which are whole numbers from -15 to 15: their scales give weights their own. */
#define RANDOM_F8_DEVIATION 8.94f
/* Whole blocks, whose weights have about this standard deviation. */
void random_weights_fill(uint64_t *state, enum tensor_type type, float deviation, void *out, size_t bytes);

#endif
