#include "proto/base/module.h"

#include "proto/base/memory.h"

#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

static char *path_beside_program(const char *name)
{
    char path[4096];
    ssize_t size = readlink("/proc/self/exe", path, sizeof path);
    char *slash = size > 0 ? memrchr(path, '/', (size_t)size) : NULL;

    return mem_printf("%.*s/%s.so", slash ? (int)(slash - path) : 1, slash ? path : ".", name);
}

enum status module_open(const char *path, const char *name, size_t table_bytes, const void **table_out)
{
    AUTO_MEM char *file = path ? mem_strdup(path) : path_beside_program(name);
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const size_t *table = library ? dlsym(library, name) : NULL;

    if (!table)
        return fail(ERR_MISSING, "%s", dlerror());
    if (*table != table_bytes)
        return fail(ERR_MISMATCH, "%s is of another build than the program", file);
    *table_out = table;
    return OK;
}
