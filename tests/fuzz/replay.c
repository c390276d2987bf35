/*
 * replay: runs a fuzz target without a fuzzer: every file of a corpus, then a fixed number of
 * mutations of them from a fixed seed. So each decoder meets hostile bytes in every test run,
 * with any compiler; the coverage-guided run (clang, libFuzzer) is tests/fuzz/run.
 *
 * usage: fuzz_X CORPUS_DIR [MUTATIONS]
 */
#include "proto/base/memory.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_FILES = 256, MAX_BYTES = 1 << 20, MAX_EDITS = 8 };

static struct bytes files[MAX_FILES];
static int num_files;
static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t next_random(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1d;
}

static size_t random_below(size_t n)
{
    return n ? (size_t)(next_random() % n) : 0;
}

static void read_file(const char *folder, const char *name)
{
    AUTO_MEM char *path = mem_printf("%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    struct bytes *file = &files[num_files];

    if (!f || num_files == MAX_FILES)
        return;
    file->size = fread(bytes_reserve(file, MAX_BYTES), 1, MAX_BYTES, f);
    num_files++;
    fclose(f);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void mutate(struct bytes *input)
{
    static const uint8_t favourites[] = {0, 1, 0x7f, 0x80, 0xff, 0xc1, '{', '"', '\\', '%'};

    for (size_t edits = 1 + random_below(MAX_EDITS); edits > 0 && input->size > 0; edits--) {
        size_t at = random_below(input->size), n = 1 + random_below(16);

        n = MIN(n, input->size - at);
        switch (random_below(5)) {
        case 0:
            input->data[at] ^= (uint8_t)(1u << random_below(8));
            break;
        case 1:
            input->data[at] = favourites[random_below(sizeof favourites)];
            break;
        case 2: /* cut the end off */
            input->size = at;
            break;
        case 3: /* drop a few bytes */
            memmove(input->data + at, input->data + at + n, input->size - at - n);
            input->size -= n;
            break;
        default: /* say a few bytes twice */
            bytes_reserve(input, n);
            memmove(input->data + at + n, input->data + at, input->size - at);
            input->size += n;
        }
    }
}

int main(int argc, char **argv)
{
    struct dirent **names = NULL;
    int n = argc > 1 ? scandir(argv[1], &names, NULL, by_name) : -1;
    long mutations = argc > 2 ? strtol(argv[2], NULL, 10) : 2000;

    if (n < 0) {
        fprintf(stderr, "usage: %s CORPUS_DIR [MUTATIONS]\n", argv[0]);
        return 2;
    }
    for (int i = 0; i < n; i++) {
        if (names[i]->d_name[0] != '.')
            read_file(argv[1], names[i]->d_name);
        free(names[i]);
    }
    free(names);
    if (num_files == 0) {
        fprintf(stderr, "%s holds no file\n", argv[1]);
        return 1;
    }

    struct bytes input = {0};

    for (long i = 0; i < num_files + mutations; i++) {
        const struct bytes *file = &files[i < num_files ? (size_t)i : random_below((size_t)num_files)];
        uint8_t *copy;

        input.size = 0;
        bytes_append(&input, file->data, file->size);
        if (i >= num_files)
            mutate(&input);
        /* An exact allocation, so that a sanitizer sees a read past the end. */
        copy = mem_alloc(input.size);
        if (input.size)
            memcpy(copy, input.data, input.size);
        LLVMFuzzerTestOneInput(copy, input.size);
        mem_free(copy);
    }
    printf("%d files and %ld mutations survived\n", num_files, mutations);
    bytes_close(&input);
    for (int i = 0; i < num_files; i++)
        bytes_close(&files[i]);
    return 0;
}
