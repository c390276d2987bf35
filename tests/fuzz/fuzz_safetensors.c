/*
 * fuzz_safetensors: any bytes as a file of safetensors: refused with a sentence, or every tensor can be read.
 */
#include "proto/model/safetensors.h"

#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static volatile uint64_t sink; /* keeps the reads of all files */
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct tensor *tensors;
    int32_t num_tensors;

    if (safetensors_read(data, size, &arena, &tensors, &num_tensors) != OK) {
        ASSERT(fail_text()[0] != '\0');
        return 0;
    }
    for (int32_t i = 0; i < num_tensors; i++) {
        const struct tensor *tensor = &tensors[i];
        int64_t bytes = tensor_row_bytes(tensor->type, tensor->num_columns) * tensor->num_rows;

        ASSERT(tensor->name[0] && bytes > 0 && (uint64_t)bytes <= size);
        sink = sink ^ XXH3_64bits(tensor->data, (size_t)bytes);
    }
    return 0;
}
