/*
 * fuzz_safetensors: any bytes as a file of safetensors: refused with a sentence, or every tensor can be read, and
 * those of 8 bits with their scales too.
 */
#include "proto/model/hf_quantization.h"
#include "proto/model/reader.h"
#include "proto/model/safetensors.h"

#include <xxhash.h>

static void take_scales(struct model_file *file)
{
    enum status status = model_file_index(file);

    if (status == OK)
        status = hf_quantization_take_scales(&(struct hf_quantization){2, 3}, file);
    ASSERT(status == OK || fail_text()[0] != '\0');
    for (int32_t i = 0; status == OK && i < file->num_tensors; i++) {
        const struct tensor *tensor = &file->tensors[i];
        uint16_t row[64];

        if (tensor->type != TYPE_F8_E4M3)
            continue;
        for (int64_t r = 0; r < tensor->num_rows; r++)
            for (int64_t c = 0; c < tensor->num_columns; c += COUNT_OF(row))
                tensor_to_bf16(tensor, r, c, MIN((int64_t)COUNT_OF(row), tensor->num_columns - c), row);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static volatile uint64_t sink; /* keeps the reads of all files */
    struct model_file file = {.map.bytes = size};

    if (safetensors_read(data, size, &file.arena, &file.tensors, &file.num_tensors) != OK) {
        ASSERT(fail_text()[0] != '\0');
        arena_close(&file.arena);
        return 0;
    }
    for (int32_t i = 0; i < file.num_tensors; i++) {
        const struct tensor *tensor = &file.tensors[i];
        int64_t bytes = tensor_row_bytes(tensor->type, tensor->num_columns) * tensor->num_rows;

        ASSERT(tensor->name[0] && bytes > 0 && (uint64_t)bytes <= size);
        sink = sink ^ XXH3_64bits(tensor->data, (size_t)bytes);
    }
    take_scales(&file);
    arena_close(&file.arena);
    return 0;
}
