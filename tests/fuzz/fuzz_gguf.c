/*
 * fuzz_gguf: any bytes as a model file: refused with a sentence, or every pointer and size of the
 * view can be read; and what is whole can be had without its words. The corpus holds tiny models
 * of both architectures and one of keys alone.
 */
#include "proto/model/model_file.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

static uint64_t touch(const struct text_view *texts, int32_t n)
{
    uint64_t sum = 0;

    for (int32_t i = 0; i < n; i++)
        sum += XXH3_64bits(texts[i].data, texts[i].size);
    return sum;
}

static uint64_t touch_all(const struct model_file *file)
{
    const struct vocabulary *vocabulary = model_file_vocabulary(file);
    uint64_t sum = model_file_fingerprint(file);

    for (int32_t i = 0; i < model_file_num_tensors(file); i++) {
        const struct tensor *tensor = model_file_tensor_at(file, i);
        int64_t bytes = tensor_row_bytes(tensor->type, tensor->num_columns) * tensor->num_rows;

        sum += XXH3_64bits(tensor->data, (size_t)bytes);
        ASSERT(model_file_tensor(file, tensor->name) == tensor);
    }
    return sum + touch(vocabulary->tokens, vocabulary->num_tokens) +
           touch(vocabulary->merges, vocabulary->num_merges) + touch(&vocabulary->chat_template, 1);
}

/* whole: NULL where it is refused with its words. */
static uint64_t touch_without_words(const char *path, const struct model_file *whole)
{
    AUTO_FREE(model_file) struct model_file *file = NULL;

    if (model_file_open_parts(path, MODEL_WITHOUT_WORDS, &file) != OK) {
        ASSERT(!whole, "%s", fail_text());
        return 0;
    }
    ASSERT(!model_file_vocabulary(file)->tokens);
    ASSERT(!whole || (model_file_fingerprint(file) == model_file_fingerprint(whole) &&
                      model_file_vocabulary(file)->num_tokens == model_file_vocabulary(whole)->num_tokens));
    return model_file_fingerprint(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static volatile uint64_t sink; /* keeps the reads of all files */
    static int fd = -1;
    static char path[64];
    AUTO_FREE(model_file) struct model_file *file = NULL;

    if (size > 0 && data[0] == '{')
        return 0; /* fuzz_sim's: tensors that are larger than any file */
    if (fd < 0) {
        fd = memfd_create("fuzz.gguf", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    ASSERT(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    if (model_file_open(path, &file) == OK)
        sink = sink ^ touch_all(file);
    else
        ASSERT(fail_text()[0] != '\0');
    sink = sink ^ touch_without_words(path, file);
    return 0;
}
