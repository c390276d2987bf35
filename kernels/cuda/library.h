/*
 * library: a library of NVIDIA's that is opened when it is wanted, and never linked. A file lists its functions in a
 * macro FUNCTIONS(row), has `static struct { FUNCTIONS(LIBRARY_MEMBER) } library;`, and finds them by
 * `FUNCTIONS(LIBRARY_FIND)` in a function of `void *file`, which returns the name of the first that there is not.
 */
#ifndef KERNELS_CUDA_LIBRARY_H
#define KERNELS_CUDA_LIBRARY_H

#include <dlfcn.h>

#define LIBRARY_MEMBER(name) decltype(&::name) name;

#define LIBRARY_FIND(name)                                                                                 \
    *(void **)&library.name = dlsym(file, #name);                                                          \
    if (!library.name)                                                                                     \
        return #name;

/* It stays, as its threads may. NULL: see dlerror. */
static inline void *library_open(const char *path)
{
    return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

#endif
