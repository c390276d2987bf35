#include "worker/layers/linear.h"

#include "proto/base/rounding.h"
#include "worker/layers/pass.h"

/* matrix_pack fills a matrix in several calls only at multiples of this. */
enum { PACK_UNIT = 32 };

enum { EXPAND_BYTES = 8 << 20 }; /* of weights that are expanded at a time */

enum tensor_type linear_type(const struct tensor *tensor)
{
    return tensor->type == TYPE_F8_E4M3 ? TYPE_BF16 : tensor->type;
}

static bool fit_in_one_matrix(const struct linear_part *parts, int32_t num_parts)
{
    for (int32_t i = 0; i + 1 < num_parts; i++)
        if (linear_type(parts[i].tensor) != linear_type(parts[i + 1].tensor) ||
            parts[i].num_rows % PACK_UNIT != 0)
            return false;
    return true;
}

/* ---- codes of 8 bits that become BF16 ------------------------------------------------------------- */

/* Some rows of a part of F8_E4M3. */
struct expansion {
    const struct linear_part *part;
    int32_t first_row; /* of the part */
    uint16_t *out;     /* [rows, part->num_columns] */
};

static void expand_rows(void *args, int64_t first, int64_t end, int32_t thread)
{
    const struct expansion *expansion = args;
    const struct linear_part *part = expansion->part;

    (void)thread;
    for (int64_t i = first; i < end; i++)
        tensor_to_bf16(part->tensor, part->first_row + expansion->first_row + i, part->first_column,
                       part->num_columns, expansion->out + i * part->num_columns);
}

/* A few rows at a time, so that the host needs little memory beside the file. */
static void pack_expanded(struct matrix *w, int32_t at, struct device *dev, const struct linear_part *part)
{
    int64_t row_bytes = part->num_columns * (int64_t)sizeof(uint16_t);
    int32_t piece = (int32_t)MAX((int64_t)1, EXPAND_BYTES / row_bytes / PACK_UNIT) * PACK_UNIT;
    AUTO_MEM uint16_t *out = mem_new_array(uint16_t, MIN(piece, part->num_rows) * (int64_t)part->num_columns);

    for (int32_t first = 0; first < part->num_rows; first += piece) {
        int32_t count = MIN(piece, part->num_rows - first);

        device_share_out(dev, count, expand_rows, &(struct expansion){part, first, out});
        device_kernels(dev)->matrix_pack(dev, w, at + first, count, out, row_bytes, 0);
    }
}

/* ---- and that stay codes -------------------------------------------------------------------------- */

enum { FP8_BLOCK = 128 }; /* as fp8_pack has them */

enum code_form { NO_CODES, ROW_SCALES, BLOCK_SCALES };

/* Is there a scale for each row of all parts, one after another? */
static bool has_row_scales(const struct linear_part *parts, int32_t num_parts)
{
    for (int32_t i = 0; i < num_parts; i++) {
        const struct tensor_scales *scales = &parts[i].tensor->scales;

        if (parts[i].tensor->type != TYPE_F8_E4M3 || scales->columns != parts[i].tensor->num_columns ||
            (scales->rows != 1 && scales->rows != parts[i].tensor->num_rows))
            return false;
    }
    return true;
}

/* Are blocks of the tensors blocks of the matrix? Not where a rank's part begins inside of one. */
static bool has_block_scales(const struct linear_part *parts, int32_t num_parts)
{
    for (int32_t i = 0; i < num_parts; i++) {
        const struct tensor_scales *scales = &parts[i].tensor->scales;

        if (parts[i].tensor->type != TYPE_F8_E4M3 || scales->rows != FP8_BLOCK || scales->columns != FP8_BLOCK ||
            parts[i].first_row % FP8_BLOCK != 0 || parts[i].first_column % FP8_BLOCK != 0 ||
            (i + 1 < num_parts && parts[i].num_rows % FP8_BLOCK != 0))
            return false;
    }
    return true;
}

/* Of one matrix of all parts; NO_CODES: it can't be, or not on this device. */
static enum code_form code_form_of(const struct device *dev, const struct linear_part *parts, int32_t num_parts)
{
    if (!device_kernels(dev)->fp8_bytes)
        return NO_CODES;
    return has_row_scales(parts, num_parts) ? ROW_SCALES : has_block_scales(parts, num_parts) ? BLOCK_SCALES : NO_CODES;
}

bool linear_keeps_codes(const struct device *dev, const struct tensor *tensor)
{
    return code_form_of(dev, &(struct linear_part){tensor, 0, (int32_t)tensor->num_rows, 0,
                                                   (int32_t)tensor->num_columns}, 1) != NO_CODES;
}

static void pack_codes(const struct matrix *w, int32_t at, struct device *dev, const struct linear_part *part)
{
    const struct tensor *tensor = part->tensor;
    int32_t height = w->fp8_has_blocks ? FP8_BLOCK : 1, width = w->fp8_has_blocks ? FP8_BLOCK : w->k;
    int64_t rows = divide_up(part->num_rows, height), columns = divide_up(part->num_columns, width);
    AUTO_MEM float *scales = mem_new_array(float, rows * columns);

    for (int64_t r = 0; r < rows; r++) {
        const float *of_row = tensor_row_scales(tensor, part->first_row + r * height);

        for (int64_t c = 0; c < columns; c++)
            scales[r * columns + c] = of_row[(part->first_column + c * width) / tensor->scales.columns];
    }
    device_kernels(dev)->fp8_pack(dev, w, at, part->num_rows,
                                  (const uint8_t *)tensor->data + part->first_row * tensor->num_columns +
                                      part->first_column,
                                  tensor->num_columns, scales);
}

/* ---- a layer ---------------------------------------------------------------------------------- */

static void pack(struct matrix *w, int32_t at, struct device *dev, const struct linear_part *part)
{
    int64_t row_bytes = tensor_row_bytes(part->tensor->type, part->tensor->num_columns);

    if (w->type == TYPE_F8_E4M3)
        pack_codes(w, at, dev, part);
    else if (part->tensor->type == TYPE_F8_E4M3)
        pack_expanded(w, at, dev, part);
    else
        device_kernels(dev)->matrix_pack(dev, w, at, part->num_rows,
                                         (const char *)part->tensor->data +
                                             part->first_row * row_bytes,
                                         row_bytes, part->first_column);
}

static int64_t bytes_of(const struct matrix *w, const struct device *dev)
{
    const struct kernels *kernels = device_kernels(dev);

    return w->type == TYPE_F8_E4M3 ? kernels->fp8_bytes(w->n, w->k, w->fp8_has_blocks)
                                   : kernels->matrix_bytes(w->type, w->n, w->k);
}

static void add_matrix(struct linear *linear, struct slab *slab, struct device *dev,
                       const struct linear_part *parts, int32_t num_parts)
{
    struct matrix *w = &linear->matrices[linear->num_matrices++];
    enum code_form form = code_form_of(dev, parts, num_parts);
    int64_t bytes;

    *w = (struct matrix){.type = form == NO_CODES ? linear_type(parts[0].tensor) : TYPE_F8_E4M3,
                         .k = linear->k,
                         .fp8_has_blocks = form == BLOCK_SCALES};
    for (int32_t i = 0; i < num_parts; i++)
        w->n += parts[i].num_rows;
    linear->n += w->n;
    bytes = bytes_of(w, dev);
    ASSERT(bytes >= 0);
    w->data = slab_take(slab, bytes);
    if (slab_is_measuring(slab))
        return;
    for (int32_t i = 0, at = 0; i < num_parts; at += parts[i++].num_rows)
        pack(w, at, dev, &parts[i]);
}

/* Where not all parts can be codes of one matrix, each is one that may be. */
static bool are_one_matrix(const struct device *dev, const struct linear_part *parts, int32_t num_parts)
{
    if (code_form_of(dev, parts, num_parts) != NO_CODES)
        return true;
    for (int32_t i = 0; i < num_parts; i++)
        if (code_form_of(dev, &parts[i], 1) != NO_CODES)
            return false;
    return fit_in_one_matrix(parts, num_parts);
}

void linear_load(struct linear *linear, struct slab *slab, struct device *dev,
                 const struct linear_part *parts, int32_t num_parts)
{
    int32_t of_matrix = are_one_matrix(dev, parts, num_parts) ? num_parts : 1;

    ASSERT(num_parts >= 1 && num_parts <= LINEAR_MAX_PARTS);
    *linear = (struct linear){.k = parts[0].num_columns};
    for (int32_t i = 0; i < num_parts; i += of_matrix)
        add_matrix(linear, slab, dev, parts + i, of_matrix);
}

bool linear_is_half(const struct linear *linear)
{
    for (int32_t i = 0; i < linear->num_matrices; i++)
        if (linear->matrices[i].type != TYPE_F16 && linear->matrices[i].type != TYPE_BF16 &&
            linear->matrices[i].type != TYPE_F8_E4M3)
            return false;
    return true;
}

struct activations linear_reads(const struct linear *linear, const struct activations *a,
                                int32_t rows)
{
    struct activations out = {.rows = rows, .k = linear->k, .group = 32};

    for (int32_t i = 0; i < linear->num_matrices; i++) {
        enum tensor_type type = linear->matrices[i].type;

        if (tensor_type_info(type)->block_elements == 1) {
            out.x = a->x;
        } else {
            out.q = a->q;
            out.d = a->d;
            out.sums = a->sums;
            if (reads_z(type))
                out.z = a->z;
            for (int start = 0; start < NUM_STARTS; start++)
                if (reads_start(type, start))
                    out.starts[start] = a->starts[start];
            if (has_whole_scales(type))
                out.group = a->group;
        }
    }
    return out;
}

int64_t linear_bytes(const struct linear *linear, const struct device *dev)
{
    int64_t bytes = 0;

    for (int32_t i = 0; i < linear->num_matrices; i++)
        bytes += bytes_of(&linear->matrices[i], dev);
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
