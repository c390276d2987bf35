/*
 * emulated_parts: what the machine, which runs kernels (emulated_simt.cc), and the runtime, which has devices,
 * memory and streams (emulated_cuda.cc), are to each other.
 */
#ifndef TESTS_CUDA_EMULATED_PARTS_H
#define TESTS_CUDA_EMULATED_PARTS_H

#include "tests/cuda/emulated_simt.h"

#include "proto/base/rounding.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__has_feature) /* clang's way to say what gcc says by this word */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

enum { LANES = 32, MAX_WARPS = 32, MAX_THREADS = LANES * MAX_WARPS };
enum { PAGE = 4096, SHARED_BYTES = 48 << 10 };
static const int JUNK = 0xff; /* floats: NaN; indices: -1 */

/* ---- the machine ----------------------------------------------------------------------------- */

enum order { FORWARD, BACKWARD, RANDOM, IN_TURN };

struct emulated_turns {
    enum order order; /* of threads */
    uint64_t seed;
};

/* All blocks, on this thread of the host. */
void emulated_run_blocks(const struct emulated_launch *launch, struct emulated_turns turns);
/* Its name, to stderr. */
void emulated_print_kernel(const void *kernel);
/* The end of what runs, with a sentence on who did what. */
__attribute__((format(printf, 1, 2), noreturn)) void emulated_die(const char *format, ...);

/* ---- who watches what kernels touch (emulated_races.cc) -------------------------------------- */

/* FETCH: cp_async_16 sets out for there; ARRIVE: it is waited for. CAREFUL: a read that is volatile. */
enum access { READ, CAREFUL, WRITE, ATOMIC, FETCH, ARRIVE };

/* NULL: nobody does. line: where from, in the code. */
extern void (*emulated_watch)(enum access access, const void *p, size_t bytes, const void *line);

enum space { DYNAMIC, STATIC, GLOBAL, NUM_SPACES }; /* the first two are shared memory */

/* Who touches something there: a thread, behind so many __syncthreads and, of its warp, __syncwarp. */
struct toucher {
    enum space space;
    int thread;
    uint32_t barriers, syncs;
    int32_t launch, block; /* counted over all of them */
};

/* False: it is no memory that threads share, or no kernel runs. */
bool emulated_find_toucher(const void *p, struct toucher *out);

/* ---- the runtime ----------------------------------------------------------------------------- */

bool emulated_is_device_address(const void *p);
/* Is it memory of a device, or of the host and page-locked? */
bool emulated_is_reachable(const void *p, size_t bytes);

/* For a library beside the module that the runtime is in, which finds it by its name, emulated_cuda_door. */
struct emulated_cuda_door {
    cudaError_t (*get_device)(int *out);
    cudaError_t (*get_properties)(struct cudaDeviceProp *out, int ordinal);
    bool (*is_reachable)(const void *p, size_t bytes);
    /* `function` gets a copy of the argument on the stream, or whenever the graph is launched that it is captured for,
     * and may touch device memory. `release` gets it when it will not be called again, and if this fails; it is to do
     * little. NULL: nothing to do. */
    cudaError_t (*launch)(cudaStream_t stream, void (*function)(void *), const void *argument, size_t bytes,
                          void (*release)(void *));
    cudaError_t (*is_capturing)(cudaStream_t stream, enum cudaStreamCaptureStatus *out);
    cudaError_t (*load_code)(); /* a call as those that captures may forbid */
    cudaError_t (*alloc)(void **out, size_t bytes);
    cudaError_t (*free)(void *p);
};

/* What such a library has of the module that TANDEM_TEST_CUDA_MODULE names, which is open. */
static inline const struct emulated_cuda_door *emulated_cuda(const char *library)
{
    const char *path = getenv("TANDEM_TEST_CUDA_MODULE");
    void *module = path ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : NULL;
    void *door = module ? dlsym(module, "emulated_cuda_door") : NULL;

    if (!door) {
        fprintf(stderr, "%s: TANDEM_TEST_CUDA_MODULE names no emulated module that is open\n", library);
        abort();
    }
    return (const struct emulated_cuda_door *)door;
}

static inline int64_t time_of(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

#endif
