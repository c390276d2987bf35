/*
 * state: a CUDA device as the files of this module see it.
 *
 * Thread: the one that uses it; another may have opened it.
 */
#ifndef KERNELS_CUDA_STATE_H
#define KERNELS_CUDA_STATE_H

#include "kernels/cuda/module.h"
#include "kernels/cuda/simt.h"

#include <pthread.h>

struct cuda_state {
    int32_t ordinal;
    int32_t capability;     /* 10 * major + minor */
    int32_t num_processors; /* streaming multiprocessors */
    int32_t max_shared;     /* bytes of a block at most, opted in */
    cudaStream_t stream;    /* all kernels, in order */
    cudaError_t error;      /* the first that a launch or a mark met; every read tells it */

    /* For one kernel, from one launch to the next: whoever writes it reads it before another kernel runs. */
    char *scratch;
    int64_t scratch_bytes;

    struct cublaslt *cublaslt; /* cublaslt.cu; NULL: not in use */

    /* device.cu's own: */
    pthread_mutex_t recording_lock; /* see stream_is_idle */
    bool is_recording;
    char name[64];
    char *staging[2];      /* page-locked, STAGING_BYTES each: what `write` copies from */
    cudaEvent_t staged[2]; /* that the device has got what was in it */
    int32_t next_staging;
    cudaStream_t clock_stream; /* where its clock is read, beside what runs */
    int64_t *stamp;         /* page-locked: the device's clock; 0: not read yet */
    int64_t asked_ns;       /* when that was asked for, CLOCK_MONOTONIC; 0: nothing is asked */
    int64_t clock_ahead_ns; /* CLOCK_MONOTONIC minus the device's clock */
    int64_t clock_error_ns; /* of that, at most, when it was measured */
    int64_t clock_set_ns;   /* and that is when, CLOCK_MONOTONIC; 0: never yet */
    int64_t heard_ns;       /* when the clock was heard last */
    char text[512];         /* the last sentence that was returned */
};

/* The thread's current device is this one from here on, for what is launched next. */
static inline struct cuda_state *state_of(struct device *dev)
{
    struct cuda_state *state = ((struct cuda_device *)dev)->state;

    cudaSetDevice(state->ordinal); /* a failure comes again as that of the launch */
    return state;
}

static inline void note_error(struct cuda_state *state, cudaError_t error)
{
    if (state->error == cudaSuccess)
        state->error = error;
}

/* What a question about a stream or an event was answered: has it come to its end, or failed? That it has not is no
 * error, and yet one that cudaGetLastError would tell behind the next launch. */
static inline bool is_over(cudaError_t answer)
{
    if (answer == cudaErrorNotReady)
        cudaGetLastError();
    return answer != cudaErrorNotReady;
}

/* Behind every launch. */
static inline void note_launch(struct cuda_state *state)
{
    note_error(state, cudaGetLastError());
}

/* The stream has nothing to do. Any thread may ask, where CUDA's own answer would end a recording. */
bool stream_is_idle(struct cuda_state *state);

/* Kernels that want more shared memory than a block has without asking ask for it here, once, when the device is
 * opened. */
cudaError_t add_norm_prepare(const struct cuda_state *state);
cudaError_t attention_prepare(const struct cuda_state *state);

extern "C" const struct cuda_nccl_table nccl_table; /* nccl.cu */
extern "C" const struct cuda_cublaslt_table cublaslt_table; /* cublaslt.cu */

extern "C" const struct cuda_range_table range_table; /* ranges.cu */
extern "C" void ranges_prepare(); /* whatever is done once for them, when the device is opened */

/* The rows of the table (kernels.h), each in a file of its own; quantize.cu has quantize, silu_mul, gelu_mul. All
 * pointers in their arguments are the device's, but for arrays of pointers (add_norm_args.parts). */
extern "C" {
void quantize_cuda(struct device *dev, const struct activations *a);
void matmul_cuda(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                 const struct matrix *w);
void matmul_groups_cuda(struct device *dev, double *sums, const struct activations *a, const struct matrix *w,
                        int32_t group_k);
void matmul_groups_float_cuda(struct device *dev, float *out, const struct activations *a, const struct matrix *w,
                              int32_t group_k);
void embedding_cuda(struct device *dev, float *out, const int32_t *ids, int32_t rows, const struct matrix *w,
                    int32_t first_id, float scale);
void take_rows_cuda(struct device *dev, const struct take_rows_args *args);
void add_norm_cuda(struct device *dev, const struct add_norm_args *args);
void rope_store_cuda(struct device *dev, const struct rope_args *args);
void attention_cuda(struct device *dev, const struct attention_args *args);
void silu_mul_cuda(struct device *dev, const struct activations *out, const float *gate, const float *up,
                   int64_t stride);
void draw_rows_cuda(struct device *dev, const struct draw_rows_args *args);
void mask_rows_cuda(struct device *dev, const struct mask_rows_args *args);
void take_last_tokens_cuda(struct device *dev, int32_t *ids, int32_t rows, const int32_t *last_tokens);
void gelu_mul_cuda(struct device *dev, const struct activations *out, const float *gate, const float *up,
                   int64_t stride);
}

#endif
