/*
 * wanted_rows: the rows of a step whose logits are wanted, as a batch of their own.
 *
 * Nobody reads what the last layer makes of the others, but for their keys and values: behind these it goes on with this
 * batch. Rows of a request that follow one another are a request of it.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_MODELS_WANTED_ROWS_H
#define WORKER_MODELS_WANTED_ROWS_H

#include "kernels/kernels.h"

struct wanted_rows {
    int32_t max_position;   /* positions are below it */
    int32_t *positions;     /* [max_rows] */
    int32_t *row_start;     /* [max_rows + 1] */
    int32_t *block_tables;  /* [max_rows, blocks of max_position]: of each what is used */
};

void wanted_rows_open(struct wanted_rows *wanted, int32_t max_rows, int32_t max_position);
void wanted_rows_close(struct wanted_rows *wanted); /* zeroed ones are fine */

/* rows: [num_rows], ascending, at most max_rows. The arrays of *out are valid until the next call. */
void wanted_rows_find(struct wanted_rows *wanted, const struct batch_view *batch, const int32_t *rows,
                      int32_t num_rows, struct batch_view *out);

#endif
