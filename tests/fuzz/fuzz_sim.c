/*
 * fuzz_sim: any bytes as the description of a simulated device: refused with a sentence, or a model whose
 * tables can be read. What is no JSON is fuzz_gguf's.
 */
#include "proto/model/model_file.h"
#include "proto/model/sim.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static void read_tables(const struct model_file *file)
{
    const struct vocabulary *vocabulary = model_file_vocabulary(file);

    for (int32_t i = 0; i < model_file_num_tensors(file); i++) {
        const struct tensor *tensor = model_file_tensor_at(file, i);
        int64_t bytes = tensor_row_bytes(tensor->type, tensor->num_columns) * tensor->num_rows;

        ASSERT(bytes > 0 && ((const char *)tensor->data)[bytes - 1] == 0);
        ASSERT(model_file_tensor(file, tensor->name) == tensor);
    }
    for (int32_t i = 0; i < vocabulary->num_tokens; i++)
        ASSERT(vocabulary->tokens[i].size > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    AUTO_FREE(model_file) struct model_file *file = NULL;
    struct sim_device device;
    int32_t tp;

    if (size == 0 || data[0] != '{')
        return 0;
    if (fd < 0) {
        fd = memfd_create("fuzz.json", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    ASSERT(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    if (model_file_open(path, &file) == OK)
        read_tables(file);
    else
        ASSERT(fail_text()[0] != '\0');
    if (sim_file_read(path, &device, &tp) == OK)
        ASSERT(tp > 0 && device.memory_bytes > 0);
    return 0;
}
