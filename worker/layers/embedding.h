/*
 * embedding: tokens to vectors and back, over this rank's slice of the vocabulary.
 *
 * A file without an output matrix ties the two: one matrix serves both ways.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_LAYERS_EMBEDDING_H
#define WORKER_LAYERS_EMBEDDING_H

#include "worker/layers/pass.h"

/* residual = the tokens' vectors, times scale. */
MUST_USE enum status embedding_look_up(struct pass *pass, float scale);
/* logits_out = the output projection of the normed residual of the rows that are wanted, to this
 * rank's slice of the vocabulary. */
void embedding_logits(struct pass *pass);

#endif
