#include "worker/layers/linear.h"

#include "worker/layers/pass.h"

/* matrix_pack fills a matrix in several calls only at multiples of this. */
enum { PACK_UNIT = 32 };

static bool fit_in_one_matrix(const struct linear_part *parts, int32_t num_parts)
{
    for (int32_t i = 0; i + 1 < num_parts; i++)
        if (parts[i].tensor->type != parts[i + 1].tensor->type ||
            parts[i].num_rows % PACK_UNIT != 0)
            return false;
    return true;
}

static struct matrix *add_matrix(struct linear *linear, struct slab *slab, struct device *dev,
                                 enum tensor_type type, int32_t n)
{
    struct matrix *w = &linear->matrices[linear->num_matrices++];
    int64_t bytes = device_kernels(dev)->matrix_bytes(type, n, linear->k);

    ASSERT(bytes >= 0);
    *w = (struct matrix){
        .type = type,
        .n = n,
        .k = linear->k,
        .data = slab_take(slab, bytes),
    };
    return w;
}

static void pack(struct matrix *w, int32_t at, struct slab *slab, struct device *dev,
                 const struct linear_part *part)
{
    int64_t row_bytes = tensor_row_bytes(part->tensor->type, part->tensor->num_columns);

    if (!slab_is_measuring(slab))
        device_kernels(dev)->matrix_pack(dev, w, at, part->num_rows,
                                         (const char *)part->tensor->data +
                                             part->first_row * row_bytes,
                                         row_bytes, part->first_column);
}

void linear_load(struct linear *linear, struct slab *slab, struct device *dev,
                 const struct linear_part *parts, int32_t num_parts)
{
    bool together = fit_in_one_matrix(parts, num_parts);
    struct matrix *w = NULL;
    int32_t at = 0;

    ASSERT(num_parts >= 1 && num_parts <= LINEAR_MAX_PARTS);
    *linear = (struct linear){.k = parts[0].num_columns};
    for (int32_t i = 0; i < num_parts; i++)
        linear->n += parts[i].num_rows;

    if (together)
        w = add_matrix(linear, slab, dev, parts[0].tensor->type, linear->n);
    for (int32_t i = 0; i < num_parts; i++) {
        if (!together)
            w = add_matrix(linear, slab, dev, parts[i].tensor->type, parts[i].num_rows);
        pack(w, together ? at : 0, slab, dev, &parts[i]);
        at += parts[i].num_rows;
    }
}

bool linear_is_half(const struct linear *linear)
{
    for (int32_t i = 0; i < linear->num_matrices; i++)
        if (linear->matrices[i].type != TYPE_F16 && linear->matrices[i].type != TYPE_BF16)
            return false;
    return true;
}

struct activations linear_reads(const struct linear *linear, const struct activations *a,
                                int32_t rows)
{
    struct activations out = {.rows = rows, .k = linear->k};

    for (int32_t i = 0; i < linear->num_matrices; i++) {
        if (tensor_type_info(linear->matrices[i].type)->block_elements == 1) {
            out.x = a->x;
        } else {
            out.q = a->q;
            out.d = a->d;
            out.z = a->z;
            out.sums = a->sums;
        }
    }
    return out;
}

int64_t linear_bytes(const struct linear *linear, const struct device *dev)
{
    int64_t bytes = 0;

    for (int32_t i = 0; i < linear->num_matrices; i++)
        bytes += device_kernels(dev)->matrix_bytes(linear->matrices[i].type, linear->matrices[i].n,
                                                   linear->matrices[i].k);
    return bytes;
}

void linear_forward(struct pass *pass, const struct linear *linear, const struct activations *x,
                    float *out, int64_t out_stride)
{
    for (int32_t i = 0; i < linear->num_matrices; i++) {
        pass->kernels->matmul(pass->dev, out, out_stride, x, &linear->matrices[i]);
        out += linear->matrices[i].n;
    }
}
