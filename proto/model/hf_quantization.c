#include "proto/model/hf_quantization.h"

#include "proto/base/rounding.h"
#include "proto/model/json_field.h"
#include "proto/model/reader.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_BLOCK = 1 << 16, MAX_NAME = 320 };

/* ---- config.json ----------------------------------------------------------------------------- */

/* Is the text of the key, which may be missing, one of these? */
static enum status check_text(const json_t *object, const char *key, const char *const *possible)
{
    AUTO_CLOSE(bytes) struct bytes needed = {0};
    const char *text = NULL;

    TRY(field_text(object, key, &text));
    if (!text)
        return OK;
    bytes_printf(&needed, "supported is");
    for (size_t i = 0; possible[i]; i++) {
        if (strcmp(possible[i], text) == 0)
            return OK;
        bytes_printf(&needed, "%s %s", i ? "," : "", possible[i]);
    }
    return field_wrong(ERR_UNSUPPORTED, key, field_find(object, key), bytes_text(&needed));
}

/* Rows and columns. */
static enum status read_block(const json_t *object, const char *key, struct hf_quantization *out)
{
    const json_t *block = field_find(object, key);
    const json_t *rows = json_array_get(block, 0), *columns = json_array_get(block, 1);
    json_int_t num_rows = json_integer_value(rows), num_columns = json_integer_value(columns);

    if (!block)
        return OK;
    if (json_array_size(block) != 2 || num_rows < 1 || num_rows > MAX_BLOCK || num_columns < 1 ||
        num_columns > MAX_BLOCK)
        return field_wrong(ERR_CORRUPT, key, block, "two numbers from 1 to 65536 are possible");
    if (out->block_rows && (out->block_rows != num_rows || out->block_columns != num_columns))
        return field_wrong(ERR_UNSUPPORTED, key, block, "blocks of one size are supported");
    out->block_rows = (int32_t)num_rows;
    out->block_columns = (int32_t)num_columns;
    return OK;
}

static enum status read_fp8(const json_t *of, struct hf_quantization *out)
{
    TRY(check_text(of, "fmt", (const char *const[]){"e4m3", NULL}));
    TRY(check_text(of, "store_dtype", (const char *const[]){"fp8", NULL}));
    TRY(check_text(of, "activation_scheme", (const char *const[]){"dynamic", "static", NULL}));
    return read_block(of, "weight_block_size", out);
}

static enum status read_fbgemm(const json_t *of, struct hf_quantization *out)
{
    (void)of; /* how activations are rounded */
    (void)out;
    return OK;
}

static const char *const formats[] = {"float-quantized", "naive-quantized", NULL};

static enum status read_group(const json_t *group, struct hf_quantization *out)
{
    const json_t *weights = field_find(group, "weights");
    bool is_symmetric = true;
    int32_t bits = 0;

    if (!json_is_object(group))
        return field_wrong(ERR_CORRUPT, "a group", group, "an object is needed");
    if (!weights)
        return OK;
    if (!json_is_object(weights))
        return field_wrong(ERR_CORRUPT, "weights", weights, "an object is needed");
    TRY(check_text(group, "format", formats));
    TRY(check_text(weights, "type", (const char *const[]){"float", NULL}));
    TRY(check_text(weights, "strategy", (const char *const[]){"tensor", "channel", "block", NULL}));
    TRY(field_integer(weights, "num_bits", 1, 64, &bits));
    if (bits != 8)
        return fail(ERR_UNSUPPORTED, "weights have %d bits; 8 are supported", bits);
    TRY(field_bool(weights, "symmetric", &is_symmetric));
    if (!is_symmetric)
        return fail(ERR_UNSUPPORTED, "symmetric is false; true is supported");
    return read_block(weights, "block_structure", out);
}

static enum status read_compressed(const json_t *of, struct hf_quantization *out)
{
    static const char *const mixed[] = {"float-quantized", "naive-quantized", "mixed-precision", NULL};
    const json_t *groups = field_find(of, "config_groups"), *transform = field_find(of, "transform_config");
    const char *name;
    json_t *group;

    TRY(check_text(of, "format", mixed));
    TRY(check_text(field_find(of, "sparsity_config"), "format", (const char *const[]){"dense", NULL}));
    if (transform && json_object_size(transform) > 0)
        return field_wrong(ERR_UNSUPPORTED, "transform_config", transform, "none is supported");
    if (groups && !json_is_object(groups))
        return field_wrong(ERR_CORRUPT, "config_groups", groups, "an object is needed");
    json_object_foreach((json_t *)groups, name, group) {
        enum status status = read_group(group, out);

        if (status != OK)
            return fail(status, "config_groups, %.64s: %s", name, fail_text());
    }
    return OK;
}

static const struct method {
    const char *name;
    enum status (*read)(const json_t *of, struct hf_quantization *out);
} methods[] = {
    {"compressed-tensors", read_compressed},
    {"fbgemm_fp8", read_fbgemm},
    {"fp8", read_fp8},
};

static enum status read_method(const json_t *of, struct hf_quantization *out)
{
    AUTO_CLOSE(bytes) struct bytes needed = {0};
    const char *name = NULL;

    if (!json_is_object(of))
        return field_wrong(ERR_CORRUPT, "quantization_config", of, "an object is needed");
    TRY(field_text(of, "quant_method", &name));
    if (!name)
        return field_missing("quant_method");
    bytes_printf(&needed, "these are supported:");
    for (size_t i = 0; i < COUNT_OF(methods); i++) {
        if (strcmp(methods[i].name, name) == 0)
            return methods[i].read(of, out);
        bytes_printf(&needed, "%s %s", i ? "," : "", methods[i].name);
    }
    return field_wrong(ERR_UNSUPPORTED, "quant_method", field_find(of, "quant_method"), bytes_text(&needed));
}

enum status hf_quantization_read(const json_t *root, struct hf_quantization *out)
{
    struct hf_quantization quantization = {0};
    const json_t *of = field_find(root, "quantization_config");
    enum status status = of ? read_method(of, &quantization) : OK;

    if (status != OK)
        return fail(status, "quantization_config: %s", fail_text());
    *out = quantization;
    return OK;
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* Scales of which blocks these are. */
static enum status find_blocks(const struct hf_quantization *quantization, const struct tensor *codes,
                               const struct tensor *scales, struct tensor_scales *out)
{
    int64_t rows = scales->num_rows, columns = scales->num_columns;
    const struct tensor_scales ways[] = {
        {NULL, codes->num_rows, codes->num_columns},
        {NULL, 1, codes->num_columns},
        {NULL, quantization->block_rows, quantization->block_columns},
    };
    size_t num_ways = COUNT_OF(ways) - (quantization->block_rows == 0);

    if (scales->num_dims == 1) { /* a column of them */
        rows = columns;
        columns = 1;
    }
    for (size_t i = 0; i < num_ways; i++) {
        *out = ways[i];
        if (scales->num_dims <= 2 && divide_up_64(codes->num_rows, ways[i].rows) == rows &&
            divide_up_64(codes->num_columns, ways[i].columns) == columns)
            return OK;
    }
    if (quantization->block_rows)
        return fail(ERR_CORRUPT, "there are %lld x %lld scales for %lld x %lld codes; 1, one a row, or one for "
                    "each %d x %d are possible", (long long)rows, (long long)columns, (long long)codes->num_rows,
                    (long long)codes->num_columns, quantization->block_rows, quantization->block_columns);
    return fail(ERR_CORRUPT, "there are %lld x %lld scales for %lld x %lld codes; 1, or one a row, are possible",
                (long long)rows, (long long)columns, (long long)codes->num_rows, (long long)codes->num_columns);
}

/* left: bytes of the files that may be scales. All tensors may lie at one place, and be copied without end. */
static enum status read_values(const struct tensor *scales, struct arena *arena, int64_t *left, const float **out)
{
    int64_t count = scales->num_rows * scales->num_columns, bytes = count * tensor_row_bytes(scales->type, 1);
    float *values;

    if (scales->type != TYPE_F32 && scales->type != TYPE_F16 && scales->type != TYPE_BF16)
        return fail(ERR_UNSUPPORTED, "its scales are %s; F32, F16 and BF16 are supported",
                    tensor_type_info(scales->type)->name);
    if (bytes > *left)
        return fail(ERR_CORRUPT, "its scales have %lld bytes, and others have all but %lld of what the files have",
                    (long long)bytes, (long long)*left);
    *left -= bytes;
    values = arena_alloc(arena, (size_t)count * sizeof *values);
    tensor_dequantize(scales->type, scales->data, 0, count, values);
    for (int64_t i = 0; i < count; i++)
        if (!(values[i] >= 0 && isfinite(values[i])))
            return fail(ERR_CORRUPT, "scale %lld of %lld is %g; a number that is not negative is possible",
                        (long long)i, (long long)count, (double)values[i]);
    *out = values;
    return OK;
}

static enum status find_scales(const struct model_file *file, const struct tensor *codes,
                               const struct tensor **out)
{
    const struct tensor *plain, *inverse;
    char name[MAX_NAME];

    snprintf(name, sizeof name, "%s_scale", codes->name);
    plain = model_file_tensor(file, name);
    snprintf(name, sizeof name, "%s_scale_inv", codes->name);
    inverse = model_file_tensor(file, name);
    if (!plain && !inverse)
        return fail(ERR_CORRUPT, "is F8_E4M3, and neither %s nor %.*s is there", name,
                    (int)(strlen(name) - strlen("_inv")), name);
    if (plain && inverse)
        return fail(ERR_CORRUPT, "both %s and %.*s are there", name, (int)(strlen(name) - strlen("_inv")), name);
    *out = plain ? plain : inverse;
    return OK;
}

static enum status take_scales(const struct hf_quantization *quantization, struct model_file *file,
                               struct tensor *codes, int64_t *left)
{
    const struct tensor *scales;

    if (codes->num_dims != 2 || codes->num_rows == 1)
        return fail(ERR_UNSUPPORTED, "%lld x %lld codes of F8_E4M3 in %d dimensions; a matrix is supported",
                    (long long)codes->num_rows, (long long)codes->num_columns, codes->num_dims);
    TRY(find_scales(file, codes, &scales));
    TRY(find_blocks(quantization, codes, scales, &codes->scales));
    return read_values(scales, &file->arena, left, &codes->scales.values);
}

enum status hf_quantization_take_scales(const struct hf_quantization *quantization, struct model_file *file)
{
    int64_t left = model_file_bytes(file);

    for (int32_t i = 0; i < file->num_tensors; i++) {
        struct tensor *tensor = &file->tensors[i];
        enum status status = tensor->type == TYPE_F8_E4M3 ? take_scales(quantization, file, tensor, &left) : OK;

        if (status != OK)
            return fail(status, "tensor '%s': %s", tensor->name, fail_text());
    }
    return OK;
}
