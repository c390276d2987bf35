/*
 * emulated_simt: the words of kernels/cuda/simt.h, and as much of the CUDA runtime as a device needs, in ordinary
 * C++: the sources of kernels/cuda run in it on machines without a GPU, and what they do wrong shows.
 *
 *  - The device runs behind its caller: each stream is a thread of the host, which does what it was given, in
 *    order. A copy from page-locked memory reads it when the stream gets there, so that memory that is changed too
 *    early shows; one from other memory has taken what it copies when the call returns.
 *  - Blocks run one after another; a block's threads are fibers that yield where they wait for each other.
 *  - The order in which they run varies from block to block: forward, backward, at random. A barrier that is
 *    missing gives other results in one of them.
 *  - Shared memory holds junk when a block begins (`__shared__`: when a launch does), and memory that cudaMalloc
 *    gave. Behind dynamic shared memory lies an unreadable page; behind device memory, under ASan, poison.
 *  - A kernel may ask for shared memory in pieces of 16 bytes: `__shared__`, of which nobody here knows how large
 *    it is, ends where dynamic shared memory may begin; what a kernel has of the one it can't have of the other.
 *  - cp_async_16 copies when it is waited for, not before.
 *  - The host cannot touch device memory but in cudaMemcpy. Where the CPU has protection keys (pku) that holds at
 *    all times; where it has none, while no stream has work: EMULATED_CUDA_SYNCHRONOUS=1 is stricter there.
 *  - A kernel's arguments may not point to memory of the host that is not page-locked (not even in fields that it
 *    does not use: give every field a value).
 *  - A warp's words want all of its 32 lanes.
 *
 * What a kernel does wrong ends the process with a sentence; what a caller of the runtime does wrong is a
 * cudaError_t.
 *
 * Environment, read at the first call:
 *  EMULATED_CUDA_ORDER        forward, backward, or a number that random orders begin with; else all in turn
 *  EMULATED_CUDA_DEVICES      how many there are, 2
 *  EMULATED_CUDA_MEMORY       bytes of each, 1 GiB
 *  EMULATED_CUDA_CAPABILITY   compute capabilities: "8.0,8.9" is that of device 0, and of the others; 8.0. By it
 *                             goes how much shared memory a block may ask for, and nothing else
 *  EMULATED_CUDA_OPEN_MEMORY  1: the host may touch device memory, for debuggers
 *  EMULATED_CUDA_SYNCHRONOUS  1: what is launched or copied has been done when the call returns, by the thread that
 *                             called
 *  EMULATED_CUDA_LATE_US      microseconds that a kernel waits before it runs, so that the host gets far ahead
 *  EMULATED_CUDA_CLOCK_PPM    by how much a device's clock is faster than the host's, in millionths
 *  EMULATED_CUDA_FAULT        no_device, no_driver, old_driver; no_memory:BYTES, a device has no more than these;
 *                             no_ipc, other processes' memory is out of reach; launch:N, the Nth launch of the
 *                             process breaks its device (cudaErrorIllegalAddress); no_graph:N, there is no memory
 *                             for graphs after N, and with @GPU behind it none of that GPU's
 *
 * Not here: memory models weaker than the host's, blocks that run at the same time, registers, speed; captures that
 * fork to other streams, or copy what is not page-locked. Variables of a thread that are a function's (`static
 * thread_local`) are taken for __shared__ in the whole module that kernels are in.
 *
 * Thread: any.
 */
#ifndef TESTS_CUDA_EMULATED_SIMT_H
#define TESTS_CUDA_EMULATED_SIMT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- the language ---------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __forceinline__        inline __attribute__((always_inline))
#define __align__(n)           __attribute__((aligned(n)))
#define __launch_bounds__(...) /* nothing */
#define __shared__             static thread_local

#define EMULATED_VECTORS(T, name)                                                                                  \
    struct __align__(2 * sizeof(T)) name##2                                                                        \
    {                                                                                                              \
        T x, y;                                                                                                    \
    };                                                                                                             \
    struct name##3                                                                                                 \
    {                                                                                                              \
        T x, y, z;                                                                                                 \
    };                                                                                                             \
    struct __align__(16) name##4                                                                                   \
    {                                                                                                              \
        T x, y, z, w;                                                                                              \
    };                                                                                                             \
    static inline name##2 make_##name##2(T x, T y)                                                                 \
    {                                                                                                              \
        return name##2 {x, y};                                                                                     \
    }                                                                                                              \
    static inline name##4 make_##name##4(T x, T y, T z, T w)                                                       \
    {                                                                                                              \
        return name##4 {x, y, z, w};                                                                               \
    }

EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(float, float)

struct dim3 {
    unsigned x, y, z;

    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

/* Of the thread that runs. (Not dim3: a variable of a thread that others read wants no constructor.) */
extern __thread struct uint3 threadIdx, blockIdx, blockDim, gridDim;

#define EMULATED_MIN_MAX(T)                                                                                        \
    static inline T min(T a, T b)                                                                                  \
    {                                                                                                              \
        return a < b ? a : b;                                                                                      \
    }                                                                                                              \
    static inline T max(T a, T b)                                                                                  \
    {                                                                                                              \
        return a > b ? a : b;                                                                                      \
    }

EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)

static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}

/* The bits of one type as another of the same size. */
template <typename To, typename From> static inline To emulated_bits(From from)
{
    To to;

    static_assert(sizeof to == sizeof from, "");
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline unsigned __float_as_uint(float f)
{
    return emulated_bits<unsigned>(f);
}

static inline int __float_as_int(float f)
{
    return emulated_bits<int>(f);
}

static inline float __uint_as_float(unsigned bits)
{
    return emulated_bits<float>(bits);
}

static inline float __int_as_float(int bits)
{
    return emulated_bits<float>(bits);
}

static inline float float_of_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;

    if (exponent == 0) {
        float magnitude = (float)mantissa * 0x1p-24f;

        return sign ? -magnitude : magnitude;
    }
    return __uint_as_float(sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13);
}

uint16_t half_of_float(float f);

static inline float float_of_bf16(uint16_t b)
{
    return __uint_as_float((uint32_t)b << 16);
}

static inline int32_t unforeseen(int32_t x)
{
    return x;
}

uint32_t bf16_pair_of_floats(float low, float high);
uint32_t half_pair_of_floats(float low, float high);
uint32_t half_pair_fma(uint32_t a, uint32_t b, uint32_t c);
uint32_t tf32_of_float(float f);
float exp2_approx(float x);

/* ---- memory ---------------------------------------------------------------------------------- */

char *dynamic_shared();
void cp_async_16(void *shared, const void *global);
void cp_async_commit();
void emulated_cp_async_wait(int pending);
void store_release_system(uint32_t *p, uint32_t value);
uint32_t load_acquire_system(const uint32_t *p); /* other threads get a turn */
uint64_t global_timer(); /* no clock that the host knows by another name but CLOCK_REALTIME */

template <int pending> static inline void cp_async_wait()
{
    emulated_cp_async_wait(pending);
}

template <typename T> static inline T __ldg(const T *p)
{
    return *p;
}

static inline void __threadfence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void __threadfence_system()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Each returns what was there. */
template <typename T, typename X> static inline T atomicAdd(T *p, X x)
{
    T old, sum;

    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do
        sum = old + (T)x;
    while (!__atomic_compare_exchange(p, &old, &sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

template <typename T, typename X> static inline T atomicMax(T *p, X x)
{
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);

    while (old < (T)x && !__atomic_compare_exchange_n(p, &old, (T)x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    return old;
}

/* ---- threads that meet ----------------------------------------------------------------------- */

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);
unsigned __ballot_sync(unsigned mask, int predicate);
void mma_s8_k32(int32_t d[4], const uint32_t a[4], const uint32_t b[2]);
void mma_s8_k16(int32_t d[4], const uint32_t a[2], uint32_t b);
/* As GPUs do it: products are exact, and some of them at a time are added to d, in order; bits that lie far below
 * the highest of the largest are cut off. */
void mma_bf16_k16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void mma_f16_k16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void mma_tf32_k8(float d[4], const uint32_t a[4], const uint32_t b[2]);
void ldmatrix_x4(uint32_t words[4], const void *row);
void ldmatrix_x4_trans(uint32_t words[4], const void *row);

/* What the lanes of the warp came to `word` with, in order. */
const uint64_t *emulated_shuffle(const char *word, unsigned mask, uint64_t value);
int emulated_lane();

static inline int __any_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}

/* `from`: a lane; one that is not in the part of `width` lanes gives the thread its own value. */
template <typename T> static inline T emulated_shfl(const char *word, unsigned mask, T value, int from, int width)
{
    uint64_t bits = 0;
    T got;

    static_assert(sizeof value == 4 || sizeof value == 8, "as on the device");
    memcpy(&bits, &value, sizeof value);

    const uint64_t *values = emulated_shuffle(word, mask, bits);
    int lane = emulated_lane();

    memcpy(&got, &values[(from ^ lane) & -width ? lane : from], sizeof got);
    return got;
}

template <typename T> static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32)
{
    return emulated_shfl("__shfl_sync", mask, value, (emulated_lane() & -width) | (from & (width - 1)), width);
}

template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32)
{
    return emulated_shfl("__shfl_xor_sync", mask, value, emulated_lane() ^ other, width);
}

template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32)
{
    return emulated_shfl("__shfl_down_sync", mask, value, emulated_lane() + (int)by, width);
}

/* ---- the runtime: names and numbers are CUDA's ----------------------------------------------- */

#define CUDART_VERSION 13000

/* A row: name, number, what cudaGetErrorString says. */
/* clang-format off */
#define EMULATED_ERRORS(row)                                                                                       \
    row(cudaSuccess, 0, "no error")                                                                                \
    row(cudaErrorInvalidValue, 1, "invalid argument")                                                              \
    row(cudaErrorMemoryAllocation, 2, "out of memory")                                                             \
    row(cudaErrorInitializationError, 3, "initialization error")                                                   \
    row(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                        \
    row(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")           \
    row(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                             \
    row(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                              \
    row(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                     \
    row(cudaErrorDeviceUninitialized, 201, "invalid device context")                                               \
    row(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")          \
    row(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                            \
    row(cudaErrorIllegalState, 401, "the operation cannot be performed in the present state")                      \
    row(cudaErrorNotReady, 600, "device not ready")                                                                \
    row(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                                  \
    row(cudaErrorPeerAccessAlreadyEnabled, 704, "peer access is already enabled")                                  \
    row(cudaErrorHostMemoryAlreadyRegistered, 712, "part or all of the requested memory range is already mapped")  \
    row(cudaErrorHostMemoryNotRegistered, 713, "pointer does not correspond to a registered memory region")        \
    row(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                                 \
    row(cudaErrorNotSupported, 801, "operation not supported")                                                     \
    row(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")                \
    row(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")         \
    row(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")           \
    row(cudaErrorStreamCaptureImplicit, 906,                                                                       \
        "operation would make the legacy stream depend on a capturing blocking stream")                            \
    row(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream")    \
    row(cudaErrorStreamCaptureWrongThread, 908,                                                                    \
        "attempt to terminate a thread-local capture sequence from another thread")                                \
    row(cudaErrorUnknown, 999, "unknown error")
/* clang-format on */

#define EMULATED_ERROR_ENUM(name, number, text) name = number,
enum cudaError_t { EMULATED_ERRORS(EMULATED_ERROR_ENUM) };

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};

enum {
    cudaStreamDefault = 0,
    cudaStreamNonBlocking = 1,
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
    cudaEventInterprocess = 4,
    cudaHostAllocDefault = 0,
    cudaHostAllocPortable = 1,
    cudaHostAllocMapped = 2,
    cudaHostRegisterDefault = 0,
    cudaHostRegisterPortable = 1,
    cudaHostRegisterMapped = 2,
    cudaIpcMemLazyEnablePeerAccess = 1
};

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

/* A row: what cudaDeviceGetAttribute calls it, its number, what cudaDeviceProp does. */
#define EMULATED_ATTRIBUTES(row)                                                                                   \
    row(cudaDevAttrMaxThreadsPerBlock, 1, maxThreadsPerBlock)                                                      \
        row(cudaDevAttrMaxSharedMemoryPerBlock, 8, sharedMemPerBlock) row(cudaDevAttrWarpSize, 10, warpSize) row(  \
            cudaDevAttrMultiProcessorCount, 16, multiProcessorCount) row(cudaDevAttrIntegrated, 18, integrated)    \
            row(cudaDevAttrGlobalMemoryBusWidth, 37, memoryBusWidth) row(cudaDevAttrL2CacheSize, 38, l2CacheSize)  \
                row(cudaDevAttrMaxThreadsPerMultiProcessor, 39, maxThreadsPerMultiProcessor)                       \
                    row(cudaDevAttrUnifiedAddressing, 41, unifiedAddressing)                                       \
                        row(cudaDevAttrComputeCapabilityMajor, 75, major)                                          \
                            row(cudaDevAttrComputeCapabilityMinor, 76, minor)                                      \
                                row(cudaDevAttrMaxSharedMemoryPerMultiprocessor, 81, sharedMemPerMultiprocessor)   \
                                    row(cudaDevAttrMaxSharedMemoryPerBlockOptin, 97, sharedMemPerBlockOptin)

#define EMULATED_ATTRIBUTE_ENUM(name, number, member) name = number,
enum cudaDeviceAttr { EMULATED_ATTRIBUTES(EMULATED_ATTRIBUTE_ENUM) };

struct cudaUUID_t {
    char bytes[16];
};

struct cudaDeviceProp {
    char name[256];
    struct cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor;
    int regsPerBlock, l2CacheSize, memoryBusWidth, integrated, unifiedAddressing;
    int pciDomainID, pciBusID, pciDeviceID;
};

typedef struct emulated_stream *cudaStream_t;
typedef struct emulated_event *cudaEvent_t;
typedef struct emulated_graph *cudaGraph_t;
typedef struct emulated_graph_exec *cudaGraphExec_t;

enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};

enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};

struct cudaIpcMemHandle_t {
    char reserved[64];
};

extern "C" {
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

cudaError_t cudaDriverGetVersion(int *out);
cudaError_t cudaRuntimeGetVersion(int *out);
cudaError_t cudaGetDeviceCount(int *out);
cudaError_t cudaSetDevice(int ordinal);
cudaError_t cudaGetDevice(int *out);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int ordinal);
cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr attribute, int ordinal);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags);

cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out);
cudaError_t cudaMalloc(void **out, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **out, size_t bytes);
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *p);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemset(void *p, int byte, size_t bytes);
cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t stream);
cudaError_t cudaIpcGetMemHandle(struct cudaIpcMemHandle_t *out, void *p);
cudaError_t cudaIpcOpenMemHandle(void **out, struct cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void *p);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = 0);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms_out, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaEventDestroy(cudaEvent_t event);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out);
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value);
}

template <typename T> static inline cudaError_t cudaMalloc(T **out, size_t bytes)
{
    return cudaMalloc((void **)out, bytes);
}

template <typename T> static inline cudaError_t cudaMallocHost(T **out, size_t bytes)
{
    return cudaMallocHost((void **)out, bytes);
}

template <typename T> static inline cudaError_t cudaHostAlloc(T **out, size_t bytes, unsigned flags)
{
    return cudaHostAlloc((void **)out, bytes, flags);
}

/* ---- launches -------------------------------------------------------------------------------- */

/* As EMULATED_CUDA_ORDER, for what is launched from here on; NULL: all in turn. */
void emulated_cuda_order(const char *order);

/* One launch: `call` is what each thread does. */
struct emulated_launch {
    const void *kernel; /* its address, to name it by */
    struct dim3 grid, block;
    size_t shared_bytes;
    void (*call)(const void *closure);
    const void *closure; /* copied, and later launched again from a graph */
    size_t closure_bytes;
};

/* argument, bytes: one of the kernel's, before it is launched. */
void emulated_check_argument(const void *kernel, int index, const void *argument, size_t bytes);
void emulated_enqueue(const struct emulated_launch *launch, cudaStream_t stream);

/* There addresses of long ago may be. */
template <typename T> static void emulated_clear_padding(T *x)
{
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(x);
#else
    (void)x;
#endif
}

template <typename T> static void emulated_check(const void *kernel, int index, T *argument)
{
    emulated_clear_padding(argument);
    emulated_check_argument(kernel, index, argument, sizeof *argument);
}

template <typename Closure> static void emulated_call(const void *closure)
{
    (*(const Closure *)closure)();
}

template <typename... Params, typename... Args>
static void launch(void (*kernel)(Params...), struct dim3 grid, struct dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Args... args)
{
    int index = 0;
    const int checked[] = {0, (emulated_check((const void *)kernel, index++, &args), 0)...};
    auto closure = [kernel, args...] { kernel(args...); };

    static_assert(__is_trivially_copyable(decltype(closure)) && alignof(decltype(closure)) <= 16, "");
    (void)checked;
    emulated_clear_padding(&closure);

    struct emulated_launch launch = {
        (const void *)kernel, grid, block, shared_bytes, emulated_call<decltype(closure)>, &closure,
        sizeof closure};

    emulated_enqueue(&launch, stream);
}

template <typename... Params> static cudaError_t allow_shared(void (*kernel)(Params...), int bytes)
{
    return cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

#ifdef __SANITIZE_THREAD__ /* Who looks for races (emulated_races.cc) is told of small copies by the compiler. */
extern "C" void *emulated_memcpy(void *to, const void *from, size_t bytes);
#define memcpy(to, from, bytes)                                                                                    \
    ((bytes) <= 16 ? __builtin_memcpy(to, from, bytes) : emulated_memcpy(to, from, bytes))
#endif

#endif
