/*
 * The module's table, and what of it is no kernel: memory, copies and time. A call that fails leaves a sentence; a
 * launch that fails leaves its error, which every read from then on tells.
 */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/limits.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SCRATCH_BYTES = 64 << 20,
    STAGING_BYTES = 4 << 20, /* of each half: memcpy takes 0.4 ms for it, at 10 GB/s */
    TRIPS_AT_OPEN = 16,      /* to measure its clock */
    CLOCK_LASTS_NS = 100 * 1000 * 1000,
    CLOCK_PATIENCE_NS = 20 * 1000,
    DRIFT = 20 * 1000, /* clocks drift by less than 1 in this: 50 us in a second */
};

/* For all devices of the process, and kernels may write there. */
static const unsigned PAGE_LOCKED = cudaHostAllocPortable | cudaHostAllocMapped;

/* What open says where there is no state to keep it in. */
static thread_local char open_text[512];

static double in_gib(int64_t bytes)
{
    return (double)bytes / (1 << 30);
}

/* Takes a failure back from the runtime, or the next launch would seem to have met it. */
static bool failed(cudaError_t error)
{
    if (error != cudaSuccess)
        cudaGetLastError();
    return error != cudaSuccess;
}

/* What was done, and the error that it met. */
static const char *say(struct cuda_state *state, const char *what, cudaError_t error)
{
    snprintf(state->text, sizeof state->text, "%s on GPU %d (%s) failed with %s: %s", what, state->ordinal,
             state->name, cudaGetErrorName(error), cudaGetErrorString(error));
    return state->text;
}

static const char *say_no_memory(struct cuda_state *state, int64_t bytes)
{
    size_t free_bytes = 0, all_bytes = 0;

    failed(cudaMemGetInfo(&free_bytes, &all_bytes));
    snprintf(state->text, sizeof state->text,
             "GPU %d (%s) has no %lld bytes left (%.2f GiB): %.2f of %.2f GiB are free", state->ordinal,
             state->name, (long long)bytes, in_gib(bytes), in_gib((int64_t)free_bytes), in_gib((int64_t)all_bytes));
    return state->text;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

/* Some, so that every allocation has an address. */
static size_t at_least_one(int64_t bytes)
{
    return bytes > 0 ? (size_t)bytes : 1;
}

static const char *alloc_memory(struct cuda_state *state, int64_t bytes, void **out)
{
    void *p = NULL;
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaMalloc(&p, at_least_one(bytes));
    if (failed(error))
        return error == cudaErrorMemoryAllocation ? say_no_memory(state, bytes)
                                                  : say(state, "an allocation", error);
    error = cudaMemsetAsync(p, 0, at_least_one(bytes), state->stream);
    if (failed(error)) {
        failed(cudaFree(p));
        return say(state, "zeroing new memory", error);
    }
    *out = p;
    return NULL;
}

static void free_memory(struct cuda_state *state, void *p)
{
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaFree(p);
    if (failed(error))
        note_error(state, error);
}

static const char *alloc_host_memory(struct cuda_state *state, int64_t bytes, void **out)
{
    void *p = NULL;
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaHostAlloc(&p, at_least_one(bytes), PAGE_LOCKED);
    if (error == cudaErrorMemoryAllocation) {
        failed(error);
        snprintf(state->text, sizeof state->text,
                 "this machine has no %lld bytes (%.2f GiB) that can be page-locked", (long long)bytes,
                 in_gib(bytes));
        return state->text;
    }
    if (failed(error))
        return say(state, "page-locking memory", error);
    memset(p, 0, at_least_one(bytes));
    *out = p;
    return NULL;
}

static void free_host_memory(struct cuda_state *state, void *p)
{
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaFreeHost(p);
    if (failed(error))
        note_error(state, error);
}

static void tell_memory(struct cuda_state *state, int64_t *free_out, int64_t *total_out)
{
    size_t free_bytes = 0, all_bytes = 0;
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaMemGetInfo(&free_bytes, &all_bytes);
    if (failed(error)) {
        note_error(state, error);
        free_bytes = all_bytes = 0;
    }
    *free_out = (int64_t)free_bytes;
    *total_out = (int64_t)all_bytes;
}

/* ---- time ---------------------------------------------------------------------------------------------------- */

static int64_t now_ns()
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static __global__ void put_time(int64_t *ns)
{
    *(volatile int64_t *)ns = (int64_t)global_timer();
    __threadfence_system();
}

static void mark_time(struct cuda_state *state, int64_t *ns)
{
    cudaSetDevice(state->ordinal);
    launch(put_time, dim3(1), dim3(1), 0, state->stream, ns);
    note_launch(state);
}

/*
 * How far CLOCK_MONOTONIC is ahead of the device's clock: a kernel reads that clock at some time between its launch
 * and the moment when the host sees what it read, and the middle of the two is wrong by half of that trip at most,
 * about 5 us. It is measured every 100 ms while steps run, on a stream of its own: no step waits for it, and the
 * host, which waits for the device then, for 20 us at most; an answer that comes later counts with more doubt.
 * Clocks drift apart by less than 1 in DRIFT, so what is known is wrong by its own doubt and 5 us for each 100 ms
 * since, at most. What is measured counts where it is more certain than that, or contradicts it: clocks step when a
 * machine was suspended. Marks keep the device's own time, so a step is as long as the device says. (Some GPUs'
 * clocks step by 1 us.)
 */
static void ask_clock(struct cuda_state *state)
{
    cudaSetDevice(state->ordinal);
    __atomic_store_n(state->stamp, 0, __ATOMIC_RELAXED);
    state->asked_ns = now_ns();
    launch(put_time, dim3(1), dim3(1), 0, state->clock_stream, state->stamp);
    note_launch(state);
}

static bool hear_clock(struct cuda_state *state)
{
    int64_t device_ns = __atomic_load_n(state->stamp, __ATOMIC_ACQUIRE), end_ns = now_ns();
    int64_t error_ns = (end_ns - state->asked_ns) / 2, ahead_ns = state->asked_ns + error_ns - device_ns;
    int64_t known_ns = state->clock_error_ns + (end_ns - state->clock_set_ns) / DRIFT;

    if (!device_ns)
        return false;
    if (state->clock_set_ns == 0 || error_ns < known_ns ||
        llabs(ahead_ns - state->clock_ahead_ns) > error_ns + known_ns) {
        state->clock_ahead_ns = ahead_ns;
        state->clock_error_ns = error_ns;
        state->clock_set_ns = end_ns;
    }
    state->heard_ns = end_ns;
    state->asked_ns = 0;
    return true;
}

static void keep_time(struct cuda_state *state)
{
    int64_t start_ns = now_ns();
    bool is_new = state->asked_ns == 0;

    if (is_new && start_ns - state->heard_ns < CLOCK_LASTS_NS)
        return;
    if (is_new)
        ask_clock(state);
    while (!hear_clock(state) && is_new && now_ns() - start_ns < CLOCK_PATIENCE_NS)
        continue;
}

/* While nothing runs. */
static cudaError_t set_clock(struct cuda_state *state)
{
    for (int i = 0; i < TRIPS_AT_OPEN; i++) {
        cudaError_t error;

        ask_clock(state);
        error = state->error != cudaSuccess ? state->error : cudaStreamSynchronize(state->clock_stream);
        if (failed(error))
            return error;
        hear_clock(state);
    }
    return cudaSuccess;
}

static int64_t time_of_mark(struct cuda_state *state, int64_t ns)
{
    keep_time(state);
    return ns + state->clock_ahead_ns;
}

/* ---- copies -------------------------------------------------------------------------------------------------- */

static const char *push_memory(struct cuda_state *state, void *device, const void *host, int64_t bytes)
{
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaMemcpyAsync(device, host, (size_t)bytes, cudaMemcpyHostToDevice, state->stream);
    return failed(error) ? say(state, "a copy", error) : NULL;
}

/* One half of the staging memory is filled while the device fetches the other: CUDA's own way from memory that is
 * not page-locked takes turns. */
static const char *write_memory(struct cuda_state *state, void *device, const void *host, int64_t bytes)
{
    cudaError_t error = cudaSuccess;

    cudaSetDevice(state->ordinal);
    for (int64_t at = 0; at < bytes && error == cudaSuccess; at += STAGING_BYTES) {
        size_t piece = (size_t)min(bytes - at, (int64_t)STAGING_BYTES);
        int half = state->next_staging;

        error = cudaEventSynchronize(state->staged[half]); /* one that was never recorded has passed */
        if (error != cudaSuccess)
            break;
        memcpy(state->staging[half], (const char *)host + at, piece);
        error = cudaMemcpyAsync((char *)device + at, state->staging[half], piece, cudaMemcpyHostToDevice,
                                state->stream);
        if (error == cudaSuccess)
            error = cudaEventRecord(state->staged[half], state->stream);
        state->next_staging = !half;
    }
    return failed(error) ? say(state, "a copy", error) : NULL;
}

static const char *check(struct cuda_state *state)
{
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaStreamQuery(state->stream);
    if (state->error != cudaSuccess) {
        failed(error);
        return say(state, "a launch", state->error);
    }
    return is_over(error) && failed(error) ? say(state, "what was launched", error) : NULL;
}

static const char *read_memory(struct cuda_state *state, void *host, const void *device, int64_t bytes)
{
    cudaError_t error = cudaSuccess;

    cudaSetDevice(state->ordinal);
    if (bytes > 0)
        error = cudaMemcpyAsync(host, device, (size_t)bytes, cudaMemcpyDeviceToHost, state->stream);
    keep_time(state);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(state->stream);
    if (state->error != cudaSuccess) {
        failed(error);
        return say(state, "a launch", state->error);
    }
    return failed(error) ? say(state, "what was launched", error) : NULL;
}

/* ---- recordings -------------------------------------------------------------------------------------------------- */

/* A graph, ready to launch: cudaGraphExec_t by the name that the program knows. */
static cudaGraphExec_t graph_of(struct device_recording *recording)
{
    return (cudaGraphExec_t)(void *)recording;
}

static const char *record(struct cuda_state *state)
{
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    pthread_mutex_lock(&state->recording_lock);
    error = cudaStreamBeginCapture(state->stream, cudaStreamCaptureModeThreadLocal);
    state->is_recording = error == cudaSuccess;
    pthread_mutex_unlock(&state->recording_lock);
    return failed(error) ? say(state, "recording launches", error) : NULL;
}

static const char *end_record(struct cuda_state *state, struct device_recording **out)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t error = cudaStreamEndCapture(state->stream, &graph);

    pthread_mutex_lock(&state->recording_lock);
    state->is_recording = false;
    pthread_mutex_unlock(&state->recording_lock);
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&exec, graph, 0);
    if (graph)
        failed(cudaGraphDestroy(graph));
    if (failed(error))
        return say(state, "recording launches", error);
    *out = (struct device_recording *)(void *)exec;
    return NULL;
}

static const char *replay(struct cuda_state *state, struct device_recording *recording)
{
    cudaError_t error;

    cudaSetDevice(state->ordinal);
    error = cudaGraphLaunch(graph_of(recording), state->stream);
    return failed(error) ? say(state, "a launch of what was recorded", error) : NULL;
}

static void free_recording(struct cuda_state *state, struct device_recording *recording)
{
    cudaError_t error = cudaGraphExecDestroy(graph_of(recording));

    if (failed(error))
        note_error(state, error);
}

bool stream_is_idle(struct cuda_state *state)
{
    bool is_idle;

    pthread_mutex_lock(&state->recording_lock);
    is_idle = !state->is_recording && is_over(cudaStreamQuery(state->stream));
    pthread_mutex_unlock(&state->recording_lock);
    return is_idle;
}

/* ---- to begin and end ---------------------------------------------------------------------------------------- */

/* The compute capabilities that there is code for: 8.0 is 800. */
static void list_archs(char *out, size_t out_bytes)
{
#ifdef __CUDA_ARCH_LIST__ /* nvcc's */
    static const int archs[] = {__CUDA_ARCH_LIST__};
#else
    static const int archs[] = {800};
#endif
    const int num_archs = sizeof archs / sizeof archs[0];
    size_t at = 0;

    for (int i = 0; i < num_archs && at < out_bytes; i++)
        at += (size_t)snprintf(out + at, out_bytes - at, "%s%d.%d",
                               i == 0 ? "" : i + 1 < num_archs ? ", " : " and ", archs[i] / 100,
                               archs[i] / 10 % 10);
}

/* Why there is no number of GPUs, to open_text. */
static void say_no_gpus(cudaError_t error)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int runtime = 0, driver = 0;

    failed(cudaRuntimeGetVersion(&runtime));
    failed(cudaDriverGetVersion(&driver)); /* 0: there is none */
    if (error == cudaErrorInsufficientDriver && driver == 0)
        snprintf(open_text, sizeof open_text,
                 "there is no NVIDIA driver here: install one for CUDA %d.%d or later, or give the container GPUs",
                 runtime / 1000, runtime % 1000 / 10);
    else if (error == cudaErrorInsufficientDriver)
        snprintf(open_text, sizeof open_text,
                 "the NVIDIA driver here is for CUDA %d.%d, and this build wants %d.%d: install a later driver",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else if (error == cudaErrorNoDevice && visible)
        snprintf(open_text, sizeof open_text,
                 "the NVIDIA driver shows this process no GPU, CUDA_VISIBLE_DEVICES is \"%s\": see nvidia-smi -L",
                 visible);
    else if (error == cudaErrorNoDevice)
        snprintf(open_text, sizeof open_text, "the NVIDIA driver shows this process no GPU: see nvidia-smi -L");
    else
        snprintf(open_text, sizeof open_text, "CUDA does not start here, see nvidia-smi: %s (%s)",
                 cudaGetErrorString(error), cudaGetErrorName(error));
}

static bool is_without_code(cudaError_t error)
{
    return error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
}

/* Why a GPU can't be used, to open_text; which of the failures it is. */
static enum status say_not_opened(const struct cuda_state *state, const struct cudaDeviceProp *gpu,
                                  cudaError_t error)
{
    char known[128];

    if (is_without_code(error)) {
        list_archs(known, sizeof known);
        snprintf(open_text, sizeof open_text,
                 "GPU %d (%s) has compute capability %d.%d, and tandem_cuda.so code for %s: build one for it",
                 state->ordinal, state->name, gpu->major, gpu->minor, known);
        return ERR_UNSUPPORTED;
    }
    if (error == cudaErrorMemoryAllocation) {
        snprintf(open_text, sizeof open_text,
                 "GPU %d (%s) has less memory left than a process begins with: nvidia-smi says who has it",
                 state->ordinal, state->name);
        return ERR_NO_MEMORY;
    }
    snprintf(open_text, sizeof open_text, "GPU %d (%s) can't be used, see nvidia-smi: %s (%s)", state->ordinal,
             state->name, cudaGetErrorString(error), cudaGetErrorName(error));
    return ERR_MISSING;
}

/* Of one that was opened in part, too. */
static void release(struct cuda_state *state)
{
    cudaSetDevice(state->ordinal);
    if (state->stream)
        failed(cudaStreamSynchronize(state->stream));
    cublaslt_close(state);
    for (int half = 0; half < 2; half++) {
        if (state->staged[half])
            failed(cudaEventDestroy(state->staged[half]));
        failed(cudaFreeHost(state->staging[half]));
    }
    if (state->clock_stream) {
        failed(cudaStreamSynchronize(state->clock_stream));
        failed(cudaStreamDestroy(state->clock_stream));
    }
    failed(cudaFreeHost(state->stamp));
    failed(cudaFree(state->scratch));
    if (state->stream)
        failed(cudaStreamDestroy(state->stream));
    pthread_mutex_destroy(&state->recording_lock);
    free(state);
}

#define TRY_CUDA(call)                                                                                     \
    do {                                                                                                   \
        cudaError_t error_ = (call);                                                                       \
        if (failed(error_))                                                                                \
            return error_;                                                                                 \
    } while (0)

/* What kernels and copies need, and a first kernel, which tells whether there is code for this GPU. */
static cudaError_t prepare(struct cuda_state *state)
{
    ranges_prepare();
    TRY_CUDA(cudaSetDevice(state->ordinal));
    TRY_CUDA(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaStreamCreateWithFlags(&state->clock_stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaHostAlloc((void **)&state->stamp, sizeof *state->stamp, PAGE_LOCKED));
    TRY_CUDA(set_clock(state));
    for (int half = 0; half < 2; half++) {
        TRY_CUDA(cudaHostAlloc((void **)&state->staging[half], STAGING_BYTES, PAGE_LOCKED));
        TRY_CUDA(cudaEventCreateWithFlags(&state->staged[half], cudaEventDisableTiming));
    }
    TRY_CUDA(cudaMalloc((void **)&state->scratch, SCRATCH_BYTES));
    state->scratch_bytes = SCRATCH_BYTES;
    TRY_CUDA(add_norm_prepare(state));
    TRY_CUDA(attention_prepare(state));
    TRY_CUDA(matmul_prepare(state));
    TRY_CUDA(matmul_half_prepare(state));
    return cudaSuccess;
}

static void describe(const struct cudaDeviceProp *gpu, struct cuda_properties *out)
{
    int runtime = 0, driver = 0;

    failed(cudaRuntimeGetVersion(&runtime));
    failed(cudaDriverGetVersion(&driver));
    snprintf(out->name, sizeof out->name, "%.63s", gpu->name);
    out->major = gpu->major;
    out->minor = gpu->minor;
    out->runtime_version = runtime;
    out->driver_version = driver;
    out->memory_bytes = (int64_t)gpu->totalGlobalMem;
    static_assert(sizeof gpu->uuid == CUDA_UUID_BYTES, "a uuid is as long as module.h says");
    memcpy(out->uuid, &gpu->uuid, sizeof gpu->uuid);
}

static const char *open_device(int32_t ordinal, struct cuda_state **out, struct cuda_properties *properties_out,
                               enum status *failure_out)
{
    struct cudaDeviceProp gpu;
    struct cuda_state *state;
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);

    if (!failed(error) && count == 0)
        error = cudaErrorNoDevice;
    if (error != cudaSuccess) {
        say_no_gpus(error);
        *failure_out = ERR_MISSING;
        return open_text;
    }
    state = (struct cuda_state *)calloc(1, sizeof *state);
    if (!state) {
        *failure_out = ERR_NO_MEMORY;
        return "this machine has no memory left";
    }
    pthread_mutex_init(&state->recording_lock, NULL);
    state->ordinal = (ordinal % count + count) % count;
    error = cudaGetDeviceProperties(&gpu, state->ordinal);
    if (!failed(error)) {
        snprintf(state->name, sizeof state->name, "%.63s", gpu.name);
        state->capability = 10 * gpu.major + gpu.minor;
        state->num_processors = gpu.multiProcessorCount;
        state->max_shared = (int32_t)gpu.sharedMemPerBlockOptin;
        error = prepare(state);
    }
    if (error != cudaSuccess) {
        *failure_out = say_not_opened(state, &gpu, error);
        release(state);
        return open_text;
    }
    describe(&gpu, properties_out);
    properties_out->num_devices = count;
    *out = state;
    return NULL;
}

extern "C" {
extern const struct cuda_module tandem_cuda __attribute__((visibility("default")));

const struct cuda_module tandem_cuda = {
    .table_bytes = sizeof(struct cuda_module),
    .kernels = {
        .name = "cuda",
        .quantize = quantize_cuda,
        .matmul = matmul_cuda,
        .matmul_groups = matmul_groups_cuda,
        .matmul_groups_float = matmul_groups_float_cuda,
        .embedding = embedding_cuda,
        .take_rows = take_rows_cuda,
        .add_norm = add_norm_cuda,
        .rope_store = rope_store_cuda,
        .attention = attention_cuda,
        .silu_mul = silu_mul_cuda,
        .gelu_mul = gelu_mul_cuda,
        .draw_rows = draw_rows_cuda,
        .mask_rows = mask_rows_cuda,
        .take_last_tokens = take_last_tokens_cuda,
    },
    .open = open_device,
    .close = release,
    .alloc = alloc_memory,
    .free = free_memory,
    .alloc_host = alloc_host_memory,
    .free_host = free_host_memory,
    .memory = tell_memory,
    .push = push_memory,
    .write = write_memory,
    .read = read_memory,
    .check = check,
    .record = record,
    .end_record = end_record,
    .replay = replay,
    .recording_free = free_recording,
    .limit_read = limit_read,
    .mark = mark_time,
    .time_of_mark = time_of_mark,
    .keep_time = keep_time,
    .exchange_open = exchange_open,
    .exchange_connect = exchange_connect,
    .exchange_abort = exchange_abort,
    .exchange_waits_for = exchange_waits_for,
    .exchange_buffer = exchange_buffer,
    .exchange_sum = exchange_sum,
    .exchange_align = exchange_align,
    .exchange_gather = exchange_gather,
    .exchange_add_disjoint = exchange_add_disjoint,
    .exchange_close = exchange_close,
    .nccl = &nccl_table,
    .ranges = &range_table,
    .cublaslt = &cublaslt_table,
};
}
