/*
 * gguf_writer: builds a GGUF file for a test.
 *
 * A zeroed struct gguf_writer is an empty version 3 file with alignment 32. It writes what it is
 * told, sensible or not: refusing nonsense is the reader's part.
 */
#ifndef TESTS_SUPPORT_GGUF_WRITER_H
#define TESTS_SUPPORT_GGUF_WRITER_H

#include "proto/base/memory.h"
#include "proto/model/quant.h"

struct gguf_writer {
    uint32_t version;   /* 0: 3 */
    uint32_t alignment; /* 0: 32. Anything else is also written as general.alignment */
    uint64_t num_values, num_tensors;
    struct bytes values, tensors, data;
};

void gguf_add_string(struct gguf_writer *writer, const char *key, const char *text);
void gguf_add_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_add_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_add_bool(struct gguf_writer *writer, const char *key, bool value);
void gguf_add_strings(struct gguf_writer *writer, const char *key, const char *const *texts,
                      size_t n);
void gguf_add_f32s(struct gguf_writer *writer, const char *key, const float *values, size_t n);
void gguf_add_i32s(struct gguf_writer *writer, const char *key, const int32_t *values, size_t n);
/* data: num_rows rows of tensor_row_bytes(type, num_columns). num_rows 0: one dimension. */
void gguf_add_tensor(struct gguf_writer *writer, const char *name, enum tensor_type type,
                     int64_t num_columns, int64_t num_rows, const void *data);

/* Appends the whole file to `out`. */
void gguf_finish(const struct gguf_writer *writer, struct bytes *out);
/* Writes bytes to a file, or aborts. */
void gguf_save(const struct bytes *bytes, const char *path);
void gguf_writer_close(struct gguf_writer *writer);

#endif
