#include "tests/support/float_copy.h"

#include "proto/base/rounding.h"

#include <stdio.h>
#include <string.h>

enum { ALIGNMENT = 32 };

/* The original was checked by model_file_open, so it is walked here without further checks. */
struct cursor {
    const uint8_t *at;
};

static uint64_t take(struct cursor *in, size_t bytes)
{
    uint64_t value = 0;

    memcpy(&value, in->at, bytes);
    in->at += bytes;
    return value;
}

static void skip_string(struct cursor *in)
{
    in->at += take(in, 8);
}

/* GGUF's numbers of value types: 8 is a string, 9 an array. */
static void skip_value(struct cursor *in, uint64_t type)
{
    static const uint8_t bytes_of[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

    if (type == 8) {
        skip_string(in);
    } else if (type == 9) {
        uint64_t element = take(in, 4), count = take(in, 8);

        for (uint64_t i = 0; i < count; i++)
            skip_value(in, element);
    } else {
        in->at += bytes_of[type];
    }
}

static uint64_t aligned(uint64_t bytes)
{
    return round_up(bytes, ALIGNMENT);
}

static uint64_t float_bytes(const struct tensor *tensor)
{
    return (uint64_t)(tensor->num_rows * tensor->num_columns) * sizeof(float);
}

static void put(FILE *out, const void *data, size_t bytes)
{
    ASSERT(fwrite(data, 1, bytes, out) == bytes);
}

static void put_padding(FILE *out, uint64_t written)
{
    static const uint8_t zeros[ALIGNMENT];

    put(out, zeros, aligned(written) - written);
}

/* name, number of dimensions, dimensions | type, offset: what follows the bar is ours. */
static const struct tensor *copy_tensor_row(FILE *out, struct cursor *in,
                                            const struct model_file *file, uint64_t offset)
{
    const uint8_t *start = in->at;
    size_t name_bytes = take(in, 8);
    AUTO_MEM char *name = mem_strndup((const char *)in->at, name_bytes);
    uint32_t type_f32 = 0;

    in->at += name_bytes;
    in->at += 8 * take(in, 4);
    put(out, start, in->at - start);
    put(out, &type_f32, sizeof(type_f32));
    put(out, &offset, sizeof(offset));
    in->at += sizeof(type_f32) + sizeof(offset);
    return model_file_tensor(file, name);
}

static void put_floats(FILE *out, const struct tensor *tensor)
{
    int64_t row_bytes = tensor_row_bytes(tensor->type, tensor->num_columns);
    AUTO_MEM float *row = mem_new_array(float, tensor->num_columns);

    for (int64_t i = 0; i < tensor->num_rows; i++) {
        tensor_dequantize(tensor->type, (const char *)tensor->data + i * row_bytes, 0,
                          tensor->num_columns, row);
        put(out, row, tensor->num_columns * sizeof(float));
    }
    put_padding(out, float_bytes(tensor));
}

static uint8_t *read_whole(const char *path, int64_t bytes)
{
    uint8_t *data = mem_alloc(bytes);
    FILE *in = fopen(path, "rb");

    ASSERT(in && fread(data, 1, bytes, in) == bytes);
    fclose(in);
    return data;
}

void float_copy_write(const char *path, const struct model_file *file, const char *copy_path)
{
    AUTO_MEM uint8_t *original = read_whole(path, model_file_bytes(file));
    struct cursor in = {original + 8};
    uint64_t num_tensors = take(&in, 8), num_values = take(&in, 8), offset = 0;
    AUTO_MEM const struct tensor **tensors = mem_new_array(const struct tensor *, num_tensors);
    FILE *out = fopen(copy_path, "wb");

    ASSERT(out, "%s", copy_path);
    for (uint64_t i = 0; i < num_values; i++) {
        skip_string(&in);
        skip_value(&in, take(&in, 4));
    }
    put(out, original, in.at - original);
    for (uint64_t i = 0; i < num_tensors; i++) {
        tensors[i] = copy_tensor_row(out, &in, file, offset);
        offset += aligned(float_bytes(tensors[i]));
    }
    put_padding(out, in.at - original);
    for (uint64_t i = 0; i < num_tensors; i++)
        put_floats(out, tensors[i]);
    ASSERT(fclose(out) == 0);
}
