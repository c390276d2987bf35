/*
 * linear: a linear layer's weights on this rank, and its product.
 *
 * Matrices that read the same input (q, k and v; gate and up) are one layer: packed side by side
 * where their types are equal, so one kernel call runs them all, else several matrices that write
 * side by side. The reader of the output can't tell.
 *
 * Weights of 8 bits (F8_E4M3) stand for bf16 of code times scale (tensor_to_bf16), and are multiplied as such: one
 * answer, that of a file of these. A device that multiplies by the codes (fp8_pack, in kernels.h) gets them as they
 * are, a byte each, where scales are of whole rows, or of blocks of 128 x 128 that begin where this rank's part does.
 * Others, and parts of other forms, are packed as bf16.
 *
 * A column-parallel layer holds some of the output columns and needs no sum. A row-parallel layer
 * (pass_add_linear) holds some of the input columns, and every rank's part is added.
 */
#ifndef WORKER_LAYERS_LINEAR_H
#define WORKER_LAYERS_LINEAR_H

#include "proto/model/model_file.h"
#include "worker/slab.h"

struct pass;

enum { LINEAR_MAX_PARTS = 3 };

struct linear {
    int32_t n; /* output columns of all matrices, on this rank */
    int32_t k; /* input columns on this rank */
    int32_t num_matrices;
    struct matrix matrices[LINEAR_MAX_PARTS]; /* side by side along n */
};

/* What this rank takes of a tensor. */
struct linear_part {
    const struct tensor *tensor;
    int32_t first_row, num_rows;
    int32_t first_column, num_columns; /* the same for all parts of a layer */
};

/* Packs the parts, or sizes them while the slab is measuring. The kernels must have the types. */
void linear_load(struct linear *linear, struct slab *slab, struct device *dev,
                 const struct linear_part *parts, int32_t num_parts);

/* Of all its matrices, packed. */
int64_t linear_bytes(const struct linear *linear, const struct device *dev);

/* The type that the tensor's weights are packed as, where they do not stay codes. */
enum tensor_type linear_type(const struct tensor *tensor);
/* Do its codes stay what they are on this device? A rank's part that begins inside of a block may not. */
bool linear_keeps_codes(const struct device *dev, const struct tensor *tensor);

/* All its weights are F16 or BF16, or codes that stand for BF16. */
bool linear_is_half(const struct linear *linear);

/* `rows` rows of `a`, without the forms that no weights of this layer read. */
struct activations linear_reads(const struct linear *linear, const struct activations *a,
                                int32_t rows);

/* out: [x->rows, linear->n] at row stride `out_stride`; x: as linear_reads says. */
void linear_forward(struct pass *pass, const struct linear *linear, const struct activations *x,
                    float *out, int64_t out_stride);

#endif
