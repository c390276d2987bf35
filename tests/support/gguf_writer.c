#include "tests/support/gguf_writer.h"

#include <stdio.h>
#include <string.h>

enum { UINT32 = 4, INT32 = 5, FLOAT32 = 6, BOOL = 7, STRING = 8, ARRAY = 9 };

static const uint32_t ggml_numbers[NUM_TENSOR_TYPES] = {
    [TYPE_F32] = 0,   [TYPE_F16] = 1,   [TYPE_BF16] = 30, [TYPE_Q4_0] = 2,  [TYPE_Q4_1] = 3,
    [TYPE_Q5_0] = 6,  [TYPE_Q5_1] = 7,  [TYPE_Q8_0] = 8,  [TYPE_Q2_K] = 10, [TYPE_Q3_K] = 11,
    [TYPE_Q4_K] = 12, [TYPE_Q5_K] = 13, [TYPE_Q6_K] = 14,
};

static void put_u32(struct bytes *out, uint32_t value)
{
    bytes_append(out, &value, sizeof value);
}

static void put_u64(struct bytes *out, uint64_t value)
{
    bytes_append(out, &value, sizeof value);
}

static void put_string(struct bytes *out, const char *text)
{
    put_u64(out, strlen(text));
    bytes_append(out, text, strlen(text));
}

static struct bytes *put_key(struct gguf_writer *writer, const char *key, uint32_t type)
{
    writer->num_values++;
    put_string(&writer->values, key);
    put_u32(&writer->values, type);
    return &writer->values;
}

static struct bytes *put_array_key(struct gguf_writer *writer, const char *key, uint32_t type,
                                   size_t n)
{
    struct bytes *out = put_key(writer, key, ARRAY);

    put_u32(out, type);
    put_u64(out, n);
    return out;
}

void gguf_add_string(struct gguf_writer *writer, const char *key, const char *text)
{
    put_string(put_key(writer, key, STRING), text);
}

void gguf_add_u32(struct gguf_writer *writer, const char *key, uint32_t value)
{
    put_u32(put_key(writer, key, UINT32), value);
}

void gguf_add_f32(struct gguf_writer *writer, const char *key, float value)
{
    bytes_append(put_key(writer, key, FLOAT32), &value, sizeof value);
}

void gguf_add_bool(struct gguf_writer *writer, const char *key, bool value)
{
    bytes_append(put_key(writer, key, BOOL), &value, 1);
}

void gguf_add_strings(struct gguf_writer *writer, const char *key, const char *const *texts,
                      size_t n)
{
    struct bytes *out = put_array_key(writer, key, STRING, n);

    for (size_t i = 0; i < n; i++)
        put_string(out, texts[i]);
}

void gguf_add_f32s(struct gguf_writer *writer, const char *key, const float *values, size_t n)
{
    bytes_append(put_array_key(writer, key, FLOAT32, n), values, n * sizeof *values);
}

void gguf_add_i32s(struct gguf_writer *writer, const char *key, const int32_t *values, size_t n)
{
    bytes_append(put_array_key(writer, key, INT32, n), values, n * sizeof *values);
}

static uint32_t alignment_of(const struct gguf_writer *writer)
{
    return writer->alignment ? writer->alignment : 32;
}

static void pad(struct bytes *out, uint32_t alignment)
{
    static const uint8_t zeros[1];

    while (out->size % alignment != 0)
        bytes_append(out, zeros, 1);
}

void gguf_add_tensor(struct gguf_writer *writer, const char *name, enum tensor_type type,
                     int64_t num_columns, int64_t num_rows, const void *data)
{
    int64_t bytes = tensor_row_bytes(type, num_columns) * MAX(num_rows, (int64_t)1);

    pad(&writer->data, alignment_of(writer));
    writer->num_tensors++;
    put_string(&writer->tensors, name);
    put_u32(&writer->tensors, num_rows ? 2 : 1);
    put_u64(&writer->tensors, (uint64_t)num_columns);
    if (num_rows)
        put_u64(&writer->tensors, (uint64_t)num_rows);
    put_u32(&writer->tensors, ggml_numbers[type]);
    put_u64(&writer->tensors, writer->data.size);
    bytes_append(&writer->data, data, (size_t)bytes);
}

void gguf_finish(const struct gguf_writer *writer, struct bytes *out)
{
    AUTO_CLOSE(gguf_writer) struct gguf_writer extra = {0};

    if (writer->alignment)
        gguf_add_u32(&extra, "general.alignment", writer->alignment);
    bytes_append(out, "GGUF", 4);
    put_u32(out, writer->version ? writer->version : 3);
    put_u64(out, writer->num_tensors);
    put_u64(out, writer->num_values + extra.num_values);
    bytes_append(out, extra.values.data, extra.values.size);
    bytes_append(out, writer->values.data, writer->values.size);
    bytes_append(out, writer->tensors.data, writer->tensors.size);
    pad(out, alignment_of(writer));
    bytes_append(out, writer->data.data, writer->data.size);
}

void gguf_save(const struct bytes *bytes, const char *path)
{
    FILE *f = fopen(path, "wb");

    ASSERT(f != NULL, "%s: %m", path);
    ASSERT(bytes->size == 0 || fwrite(bytes->data, 1, bytes->size, f) == bytes->size, "%s: %m",
           path);
    ASSERT(fclose(f) == 0, "%s: %m", path);
}

void gguf_writer_close(struct gguf_writer *writer)
{
    bytes_close(&writer->values);
    bytes_close(&writer->tensors);
    bytes_close(&writer->data);
}
