#include "proto/base/file_read.h"

#include <stdio.h>

enum status file_read(const char *path, size_t most, struct bytes *out)
{
    FILE *file = fopen(path, "rbe");
    size_t n;

    if (!file)
        return fail(ERR_IO, "%s: %m", path);
    n = fread(bytes_reserve(out, most + 1), 1, most + 1, file);
    out->size += n;
    fclose(file);
    return n <= most ? OK : fail(ERR_FULL, "%s: more than %zu bytes", path, most);
}
