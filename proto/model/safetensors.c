#include "proto/model/safetensors.h"

#include "proto/model/json_field.h"

#include <limits.h>
#include <string.h>

enum {
    LENGTH_BYTES = 8,           /* of the header's length */
    MAX_HEADER_BYTES = 32 << 20,/* of JSON; that of a large model has some 100 KiB */
    MAX_TENSORS = 1 << 16,
    MAX_NAME_BYTES = 255,
    MAX_DIMS = 4,
};

static const struct {
    const char *name;
    enum tensor_type type;
} dtypes[] = {
    {"F32", TYPE_F32},
    {"F16", TYPE_F16},
    {"BF16", TYPE_BF16},
    {"F8_E4M3", TYPE_F8_E4M3},
};

/* Where the data is. */
struct section {
    const uint8_t *data;
    size_t bytes;
};

/* ---- one tensor ------------------------------------------------------------------------------ */

/* Printable ASCII, so that it can stand in any sentence. */
static enum status check_name(const char *name)
{
    size_t size = strlen(name);

    if (size == 0 || size > MAX_NAME_BYTES)
        return fail(ERR_CORRUPT, "a tensor's name has %zu bytes, 1 to %d are possible", size, MAX_NAME_BYTES);
    for (size_t i = 0; i < size; i++)
        if (name[i] <= ' ' || name[i] > '~')
            return fail(ERR_CORRUPT, "a tensor's name has the byte 0x%02x in it", (uint8_t)name[i]);
    return OK;
}

static enum status wrong_field(const char *name, enum status status)
{
    return fail(status, "tensor '%s': %s", name, fail_text());
}

static enum status read_dtype(const json_t *entry, struct tensor *tensor)
{
    const char *dtype = NULL;

    TRY(field_text(entry, "dtype", &dtype));
    if (!dtype)
        return field_missing("dtype");
    for (size_t i = 0; i < COUNT_OF(dtypes); i++)
        if (strcmp(dtypes[i].name, dtype) == 0) {
            tensor->type = dtypes[i].type;
            return OK;
        }
    return fail(ERR_UNSUPPORTED, "dtype %.32s is not supported; these are: F32, F16, BF16, F8_E4M3", dtype);
}

/* Rows first, as they lie: the last dimension is that of columns. A number alone has none. */
static enum status read_shape(const json_t *entry, struct tensor *tensor)
{
    const json_t *shape = field_find(entry, "shape");
    size_t num_dims = json_array_size(shape);

    if (!json_is_array(shape) || num_dims > MAX_DIMS)
        return shape ? field_wrong(ERR_CORRUPT, "shape", shape, "0 to 4 dimensions are possible")
                     : field_missing("shape");
    tensor->num_dims = (int32_t)num_dims;
    tensor->num_rows = tensor->num_columns = 1;
    for (size_t i = 0; i < num_dims; i++) {
        const json_t *dim = json_array_get(shape, i);
        json_int_t n = json_integer_value(dim);

        if (!json_is_integer(dim) || n < 1 || n > INT32_MAX)
            return field_wrong(ERR_CORRUPT, "shape", shape, "dimensions from 1 to 2147483647 are possible");
        if (i + 1 == num_dims)
            tensor->num_columns = n;
        else if (mul_overflows(tensor->num_rows, (int64_t)n, &tensor->num_rows))
            return field_wrong(ERR_CORRUPT, "shape", shape, "63 bits count no more rows");
    }
    return OK;
}

static enum status read_place(const json_t *entry, const struct section *section, struct tensor *tensor)
{
    const json_t *offsets = field_find(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    json_int_t start = json_integer_value(first), end = json_integer_value(last);
    int64_t bytes;

    if (!offsets)
        return field_missing("data_offsets");
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) || start < 0 ||
        end < start)
        return field_wrong(ERR_CORRUPT, "data_offsets", offsets, "where it begins and ends is needed");
    if ((uint64_t)end > section->bytes)
        return fail(ERR_CORRUPT, "ends at byte %lld of the data, of which there are %zu: the file is cut short or "
                    "damaged", (long long)end, section->bytes);
    if (mul_overflows(tensor_row_bytes(tensor->type, tensor->num_columns), tensor->num_rows, &bytes) ||
        bytes != end - start)
        return fail(ERR_CORRUPT, "%lld x %lld values of %s are not the %lld bytes from %lld to %lld",
                    (long long)tensor->num_rows, (long long)tensor->num_columns,
                    tensor_type_info(tensor->type)->name, (long long)(end - start), (long long)start,
                    (long long)end);
    tensor->data = section->data + start;
    return OK;
}

static enum status read_tensor(const json_t *entry, const struct section *section, struct tensor *tensor)
{
    if (!json_is_object(entry))
        return fail(ERR_CORRUPT, "is no JSON object");
    TRY(read_dtype(entry, tensor));
    TRY(read_shape(entry, tensor));
    return read_place(entry, section, tensor);
}

/* ---- the file -------------------------------------------------------------------------------- */

static enum status read_header(const json_t *header, const struct section *section, struct arena *arena,
                               struct tensor **tensors_out, int32_t *num_tensors_out)
{
    size_t most = json_object_size(header);
    struct tensor *tensors;
    int32_t n = 0;
    const char *name;
    json_t *entry;

    if (!json_is_object(header))
        return fail(ERR_CORRUPT, "its header is no JSON object");
    if (most > MAX_TENSORS)
        return fail(ERR_UNSUPPORTED, "has %zu tensors; %d is the limit", most, MAX_TENSORS);
    tensors = arena_alloc(arena, most * sizeof *tensors);
    json_object_foreach((json_t *)header, name, entry) {
        struct tensor *tensor = &tensors[n];
        enum status status;

        if (strcmp(name, "__metadata__") == 0)
            continue;
        TRY(check_name(name));
        *tensor = (struct tensor){.name = arena_strndup(arena, name, strlen(name))};
        status = read_tensor(entry, section, tensor);
        if (status != OK)
            return wrong_field(name, status);
        n++;
    }
    *tensors_out = tensors;
    *num_tensors_out = n;
    return OK;
}

bool safetensors_is_likely(const uint8_t *data, size_t bytes)
{
    return bytes > LENGTH_BYTES && data[LENGTH_BYTES] == '{';
}

enum status safetensors_read(const uint8_t *data, size_t bytes, struct arena *arena, struct tensor **tensors_out,
                             int32_t *num_tensors_out)
{
    struct section section;
    enum status status;
    uint64_t length;
    json_t *header;

    if (!safetensors_is_likely(data, bytes))
        return fail(ERR_CORRUPT, "is no file of safetensors: a length of 8 bytes and \"{\" are missing");
    memcpy(&length, data, sizeof length);
    if (length > bytes - LENGTH_BYTES)
        return fail(ERR_CORRUPT, "its header has %llu bytes and the file ends after %zu: it is cut short or "
                    "damaged", (unsigned long long)length, bytes - LENGTH_BYTES);
    if (length > MAX_HEADER_BYTES)
        return fail(ERR_UNSUPPORTED, "its header has %llu bytes; %d is the limit", (unsigned long long)length,
                    MAX_HEADER_BYTES);
    section = (struct section){data + LENGTH_BYTES + length, bytes - LENGTH_BYTES - (size_t)length};
    status = field_parse(data + LENGTH_BYTES, (size_t)length, MAX_HEADER_BYTES, 0, &header);
    if (status != OK)
        return fail(status, "its header, %s", fail_text());
    status = read_header(header, &section, arena, tensors_out, num_tensors_out);
    json_decref(header);
    return status;
}
