/*
 * kernels: arrays in, arrays out, sums across ranks. The door of this room.
 *
 * A device owns memory and runs kernels in order; struct kernels is its table of
 * functions. ref/ is the specification of every kernel in plain C; cpu/ is one
 * source per kernel compiled for each instruction set; a CUDA module fills the
 * same table on a stream.
 *
 * The promises every row of the table keeps (tests/kernels checks them):
 *  - a row's result depends on that row alone: not on how many rows share the
 *    call, not on the number of threads, not on tiling;
 *  - a column of a matmul depends on its weights alone, so a column-parallel
 *    shard has the same bits as the whole;
 *  - matmul_groups sums of disjoint sets of groups, added in any order, are exact.
 * Where a GPU is told to use cuBLASLt (device_options), matmuls of 16-bit weights, and of those that are codes of 8
 * bits, keep none of these, but that sums of matmul_groups are on the grid, and so exact to add up.
 *
 * All floats are little-endian IEEE; `rows` is the number of tokens in the step.
 *
 * Kept readable by C++ and nvcc: no C-only constructs in this header.
 *
 * Thread: a device and all it owns belong to one thread (the worker's device thread).
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "proto/base/rounding.h"
#include "proto/base/status.h"
#include "proto/model/kv_type.h"
#include "proto/model/quant.h"
#include "proto/model/sim.h"

#include <sched.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct device; /* threads (CPU) or a stream (CUDA), and the memory they use */
struct comm;   /* one tensor-parallel group, see below */

/* ---- weights ------------------------------------------------------------------------------- */

/*
 * A weight matrix in the device's packed layout; out = x · Wᵀ, W: [n, k].
 * Quantised types stay quantised; k is a multiple of 32 for them (zero-padded rows of the
 * source never occur: model files guarantee it).
 */
struct matrix {
    enum tensor_type type; /* of the source; F8_E4M3 where a table has fp8_pack */
    int32_t n;             /* output columns held here */
    int32_t k;             /* input columns held here */
    int32_t first_block;   /* k0 / 32 modulo 8, set by matrix_pack: where a K type's 256 begin */
    bool fp8_has_blocks;   /* F8_E4M3: there is a scale for each 128 columns by 128 of k, else for each column */
    void *data;            /* opaque; bytes = kernels->matrix_bytes(type, n, k), or fp8_bytes(n, k, fp8_has_blocks) */
    const struct matrix *next; /* that is likely to be multiplied after it, to be fetched in time; or NULL */
};

/* ---- activations --------------------------------------------------------------------------- */

/* What sums of products with codes that have whole scales begin with on CPUs (numerics.h). */
enum { START_MIN, START_HALVES, START_SECOND, START_PLAIN, NUM_STARTS };

/*
 * rows × k inputs of a matmul, in the form its weights read: floats x for float weights, and for
 * quantised ones q, d, z and sums: per row and group of columns, d = max|x| / 127, q = x * (127 / max|x|)
 * rounded to nearest even, never -128; per block of 32, z = d * sum(q); a group below 2^-100 is zeros. Kernels that
 * write activations write the forms that are not NULL.
 */
struct activations {
    int32_t rows;
    int32_t k;
    int32_t group; /* columns that share d, a multiple of 32: where there are codes */
    float *x;      /* [rows, k], row stride k      caller's memory, all of it */
    int8_t *q;     /* [rows, k]                    64-byte aligned */
    float *d;      /* [rows, k / 32]: each block has its group's */
    float *z;      /* [rows, k / 32]: where weights read it, as with starts */
    int16_t *sums; /* [rows, k / 32, 2]: sum of q over each half of a block */
    int32_t *starts[NUM_STARTS]; /* [rows, k / 32] each: put_starts of numerics.h, of CPUs alone */
};

/* Of 128 columns, Gemma 3's perplexity was 0.3 % higher than of 64, and with an fp8 KV cache 1 %. */
enum { MAX_ACTIVATION_GROUP = 96 };

/* Whether a type's scales become whole numbers (quant_block.h). Groups of activations are there for these types' sake:
 * with them a group has one product with a scale of activations; of other types, each block has one in any case. */
static inline bool has_whole_scales(enum tensor_type type)
{
    return type == TYPE_Q4_0 || type == TYPE_Q4_1 || type == TYPE_Q5_0 || type == TYPE_Q5_1;
}

/* Whether weights of a type read starts[start], and z. What nobody reads is better not written: of all that one core
 * writes and others have read, each line is fetched. */
static inline bool reads_start(enum tensor_type type, int start)
{
    if (type == TYPE_Q5_0 || type == TYPE_Q5_1)
        return start == START_HALVES || start == START_SECOND || (start == START_MIN && type == TYPE_Q5_1);
    return start == START_MIN ? type == TYPE_Q4_1 : start == START_PLAIN && type == TYPE_Q4_0;
}

static inline bool reads_z(enum tensor_type type)
{
    return type == TYPE_Q4_K || type == TYPE_Q5_K;
}

/* How many columns share a scale where so many, a multiple of 32, are to be whole groups: the most that divide them, of
 * 96, 64 and 32. */
static inline int32_t activation_group(int32_t columns)
{
    int32_t group = MAX_ACTIVATION_GROUP;

    while (columns % group != 0)
        group -= 32;
    return group;
}

/* Whether groups of codes are such as kernels know, and rows whole ones of them. */
static inline bool has_whole_groups(const struct activations *a)
{
    return a->group > 0 && a->group <= MAX_ACTIVATION_GROUP && a->group % 32 == 0 && a->k % a->group == 0;
}

/* Rows [first, first + rows) of a, in the forms that it has. */
static inline struct activations activations_rows(const struct activations *a, int64_t first, int32_t rows)
{
    int64_t blocks = first * (a->k / 32);
    struct activations some = *a;

    some.rows = rows;
    some.x = a->x ? a->x + first * a->k : NULL;
    some.q = a->q ? a->q + first * a->k : NULL;
    some.d = a->d ? a->d + blocks : NULL;
    some.z = a->z ? a->z + blocks : NULL;
    some.sums = a->sums ? a->sums + 2 * blocks : NULL;
    for (int i = 0; i < NUM_STARTS; i++)
        some.starts[i] = a->starts[i] ? a->starts[i] + blocks : NULL;
    return some;
}

/* ---- attention ------------------------------------------------------------------------------ */

enum { KV_BLOCK_TOKENS = 16, KV_GROUP_BLOCKS = 16, MAX_HEAD_DIM = 256 };

/*
 * One layer's paged KV cache on this rank, written by rope_store and read by attention. KV_GROUP_BLOCKS consecutive
 * blocks are a group, the last one whole too:
 * k: [num_kv_heads, KV_GROUP_BLOCKS] of [head_dim, KV_BLOCK_TOKENS] (16 keys side by side are one vector),
 * v: [num_kv_heads, KV_GROUP_BLOCKS] of [KV_BLOCK_TOKENS, head_dim],
 * each block of a head in kv_head_bytes. Blocks of a request mostly follow one another, and then its keys of one head
 * are read in one go, not in pieces of 2 KB. All layers of a group lie together, so that the first tokens of a
 * request touch a few MB, not a page a layer. Elements of 8 bits are codes: each position and head has a scale for those of k
 * and one for those of v, which multiplies once: k's the sum of q * codes, v's the exponential that multiplies
 * codes.
 *
 *   KV_BFLOAT16 bfloat16, as bfloat16_of_float (numerics.h) rounds it. What products add up lies side by side, in pairs:
 *               k is [head_dim / 2, KV_BLOCK_TOKENS, 2], v [KV_BLOCK_TOKENS / 2, head_dim, 2]. Attention rounds
 *               q * scale and its exponentials likewise, so that all of its factors are bfloat16
 *   KV_FLOAT16  IEEE half, as it comes
 *   KV_FP8      e4m3fn, rounded to nearest even, what is beyond 448 to 448. A code counts as 1 / 256 of its value
 *               and every scale is 256: half's exponent makes that of its bits, and it is of no effect on a
 *               result. NaN is 480 to the rows that come later; the row that has it is NaN by itself
 *   KV_INT8     x * (127 / max|x|) over the head, rounded to nearest even, never -128; the scale, max|x| / 127, is
 *               one of KV_BLOCK_TOKENS floats behind the codes. A half would save 3 % of the memory, and not
 *               hold every x. max|x| below 2^-100: all is 0; an x that is not finite: the scale is NaN, and so
 *               are its scores
 */
struct kv_layer {
    uint16_t *k;          /* of 8 bits: two codes each; else elements */
    uint16_t *v;
    int32_t num_blocks;
    int32_t num_kv_heads; /* on this rank */
    int32_t head_dim;     /* multiple of 16, at most MAX_HEAD_DIM */
    int64_t group_stride; /* halves (2 bytes) from one group to the next, of k and of v */
    enum kv_type type;
};

/* Of k, or of v, of one block of one KV head: a multiple of 64. */
static inline int64_t kv_head_bytes(enum kv_type type, int32_t head_dim)
{
    int64_t elements = (int64_t)head_dim * KV_BLOCK_TOKENS;

    return type == KV_FP8 ? elements : type == KV_INT8 ? elements + 4 * KV_BLOCK_TOKENS : 2 * elements;
}

/* Bytes from a KV head's part of block 0 to its part of another. head_bytes: kv_head_bytes. Attention asks for each block
 * that it reads, and a number without a sign is divided sooner. */
static inline int64_t kv_from_first_block(const struct kv_layer *kv, int64_t head_bytes, uint32_t block)
{
    return block / KV_GROUP_BLOCKS * kv->group_stride * 2 + block % KV_GROUP_BLOCKS * head_bytes;
}

/* Bytes from k, or from v, to a block of a KV head. */
static inline int64_t kv_head_at(const struct kv_layer *kv, int32_t block, int32_t head)
{
    int64_t head_bytes = kv_head_bytes(kv->type, kv->head_dim);

    return kv_from_first_block(kv, head_bytes, (uint32_t)block) + (int64_t)head * KV_GROUP_BLOCKS * head_bytes;
}

static inline int32_t kv_num_groups(int32_t num_blocks)
{
    return divide_up(num_blocks, KV_GROUP_BLOCKS);
}

/* Bytes of a group: k and v of layer 0, of layer 1, … `like` says what its layers are like; k, v and group_stride are
 * not looked at. */
static inline int64_t kv_group_bytes(const struct kv_layer *like, int32_t num_layers)
{
    return 2 * KV_GROUP_BLOCKS * like->num_kv_heads * kv_head_bytes(like->type, like->head_dim) * num_layers;
}

/* Layers in kv_num_groups groups at `base`. */
static inline void kv_place_layers(const struct kv_layer *like, void *base, int32_t num_layers, struct kv_layer *layers)
{
    int64_t group_bytes = kv_group_bytes(like, num_layers), half_bytes = group_bytes / (2 * num_layers);

    for (int32_t i = 0; i < num_layers; i++) {
        layers[i] = *like;
        layers[i].k = (uint16_t *)((char *)base + 2 * i * half_bytes);
        layers[i].v = (uint16_t *)((char *)base + (2 * i + 1) * half_bytes);
        layers[i].group_stride = group_bytes / (int64_t)sizeof(uint16_t);
    }
}

/*
 * The rows of a step, grouped by request: rows [row_start[i], row_start[i+1]) are consecutive
 * positions of request i. Positions are given per row.
 */
struct batch_view {
    int32_t rows;
    int32_t num_requests;
    const int32_t *row_start;    /* [num_requests + 1] */
    const int32_t *positions;    /* [rows] */
    const int32_t *block_tables; /* [num_requests, block_table_stride]: block of position p is [p / 16] */
    int32_t block_table_stride;
    int32_t max_position; /* the largest of positions; wanted where the device has memory of its own */
};

/* Between the projection of q, k and v and attention: see rope_store. */
struct rope_args {
    float *qkv;                    /* rows of q's heads, k's and v's, side by side */
    int64_t stride;                /* of a row */
    const struct kv_layer *kv;
    const struct batch_view *batch;
    int32_t num_heads;             /* of q, on this rank; k and v have kv->num_kv_heads */
    const float *bias;             /* [heads of q, k and v, head_dim]: added to a row first; NULL: none */
    const float *q_norm, *k_norm;  /* [head_dim]: weights of an RMS norm of every head; NULL: none */
    float eps;
    const float *cos_sin;          /* [max_position, rope_dim / 2, 2] */
    int32_t rope_dim;              /* that turn, of head_dim */
    bool adjacent;                 /* pairs are (2i, 2i + 1), else (i, i + rope_dim / 2) */
};

struct attention_args {
    float *out;            /* [rows, num_heads * head_dim] */
    /* NULL, or rows that become what quantize makes of out, which is their x; groups are within heads. Then a device
     * need not write out. */
    const struct activations *quantized;
    const float *q;        /* [rows, num_heads * head_dim] at row stride q_stride, rotated, not scaled */
    int64_t q_stride;      /* so q may lie beside k and v, where one matmul put it */
    const struct kv_layer *kv;
    const struct batch_view *batch;
    int32_t num_heads;     /* on this rank */
    const int32_t *kv_head_of; /* [num_heads]: which local KV head each local head reads */
    float scale;           /* multiplies q·k */
    int32_t window;        /* 0: all; else positions p - window < j <= p */
    /* A device other than a CPU may add up in an order of its own, and round on the way (cuda/attention_half.cu).
     * One answer all the same: the bits of a row depend on its q, the KV that it sees and its position alone. */
    bool device_order;
};

/* ---- the table ------------------------------------------------------------------------------- */

/* Rows of floats that are wanted elsewhere: out's row i is row row_ids[i] of `in`. They do not overlap. */
struct take_rows_args {
    int32_t rows, n;
    float *out;             /* [rows, n] */
    const float *in;        /* [.., n] */
    int64_t stride;         /* of a row, of both */
    const int32_t *row_ids; /* [rows] */
};

/* Between two sublayers: see add_norm. */
struct add_norm_args {
    int32_t rows, n;            /* n: a multiple of 32 */
    float *residual;            /* [rows, n] */
    const float *sum;           /* [rows, n]: what is added; NULL: the parts are */
    const double *const *parts; /* [num_parts]: [rows, n], added in this order, then rounded to float */
    int32_t num_parts;          /* 0 where sum is NULL: nothing is added */
    const float *post_norm;     /* [n]: what is added is first normed by these weights; NULL: as it is */
    const float *norm;          /* [n]: weights of the norm of the residual; NULL: it is not wanted */
    float eps;
    const struct activations *out; /* rows × n: that norm */
    const int32_t *row_ids;     /* [rows]: out's row i is of residual row row_ids[i]; NULL: i. Where
                                 * nothing is added */
};

/* One token to draw on a device. */
struct draw_args {
    int32_t vocab_size;
    uint64_t seed;           /* of the request, its prompt included */
    int32_t previous;        /* the token before */
    int32_t position;        /* of the token that is drawn */
    const uint32_t *bitmask; /* bit t % 32 of word t / 32 set: token t is allowed; NULL: all are */
};

/* A row whose token is drawn where its logits lie. What each means is the sampler's law, proto/base/sampling_law.h. */
struct draw_row {
    float temperature; /* divides the logits; 0: the likeliest token */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    int32_t top_k;     /* 0: off */
    uint64_t seed;
    int64_t position;  /* of the token */
    int32_t mask;      /* which of masks says what is allowed; -1: all is */
    int32_t slot;      /* of last_tokens */
};

struct draw_rows_args {
    int32_t rows;
    int32_t num_tokens;          /* the whole vocabulary */
    const float *logits;         /* [rows, num_tokens] */
    const struct draw_row *draws; /* [rows] */
    const uint32_t *masks;       /* [.., words]: bit t % 32 of word t / 32 set: token t is allowed; NULL: all are */
    int32_t words;
    int32_t *drawn;              /* [rows]: tokens; -1: none can come */
    int32_t *last_tokens;        /* [slots]: the same by slot; 0 where none can come */
};

/* What rows' masks forbid, of a part of the vocabulary, becomes -inf. */
struct mask_rows_args {
    int32_t rows;
    int32_t first_token, num_tokens;
    float *logits;               /* [rows, num_tokens] */
    const struct draw_row *draws; /* [rows], of which mask counts alone */
    const uint32_t *masks;       /* [.., words], from word first_token / 32 on */
    int32_t words;
};

struct kernels {
    const char *name; /* "ref", "sse2", "avx2", "avxvnni", "avx512", "avx512bf16", "amx", "sim", "cuda" */

    /* Packed size of W: [n, k] of this type; -1: this type has no kernel here. */
    int64_t (*matrix_bytes)(enum tensor_type type, int32_t n, int32_t k);
    /*
     * Packs n rows of the source into w->data at column `at` (w->n stays the total): source row r
     * starts at `src + r * src_row_bytes`, and elements [k0, k0 + w->k) of it are taken. k0 is a
     * multiple of 32. Several calls fill one matrix (q, k and v side by side); `at` is a
     * multiple of 32 or the call is the only one. Host memory in, device memory out.
     */
    void (*matrix_pack)(struct device *dev, struct matrix *w, int32_t at, int32_t n,
                        const void *src, int64_t src_row_bytes, int64_t k0);

    /*
     * Weights of F8_E4M3: codes of 8 bits and scales, a byte a weight. They stand for BF16 (fp8_to_bf16), and what
     * matmuls and embeddings make of them has the bits that this BF16 gives; not by cuBLASLt (device_options), which
     * multiplies by the codes, and has activations rounded to 8 bits. Packed size; NULL: this table has no such
     * weights, and who has some packs the BF16.
     */
    int64_t (*fp8_bytes)(int32_t n, int32_t k, bool has_blocks);
    /* Packs n rows of w->k codes, `row_bytes` apart, into w->data at column `at`. scales: [n], or [n / 128,
     * w->k / 128], both rounded up, and `at` is a multiple of 128. Several calls fill one matrix. Host memory in,
     * device memory out. */
    void (*fp8_pack)(struct device *dev, const struct matrix *w, int32_t at, int32_t n, const uint8_t *codes,
                     int64_t row_bytes, const float *scales);

    /* a->q, d, z from a->x. */
    void (*quantize)(struct device *dev, const struct activations *a);

    /* out: [rows, n] with row stride out_stride (floats).  out = a · Wᵀ: per output, blocks of 32
     * in order of k as quant_block.h says; float types acc = fma(x, w, acc) in order of k, but for those of 16 bits on
     * GPUs, whose rule is in cuda/matmul_half.cu. */
    void (*matmul)(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                   const struct matrix *w);

    /*
     * The row-parallel matmul: out: [rows, n] double. Each group of `group_k` columns of k (a
     * multiple of 32 dividing k) is accumulated as in matmul from zero, rounded to a multiple of
     * 2^-24 (EXACT_GRID) and added in double, where such sums are exact below 2^28. Of types that
     * has_whole_scales, what each group of activations gives is rounded, to a multiple of its column's step * 2^-10
     * (quant_block.h), and added; group_k is a multiple of a->group. Ranks hold whole groups, so the sum over ranks has
     * the same bits for any split.
     */
    void (*matmul_groups)(struct device *dev, double *sums, const struct activations *a,
                          const struct matrix *w, int32_t group_k);
    /* The same for a rank that is alone: out: [rows, n], the sums rounded to float. */
    void (*matmul_groups_float)(struct device *dev, float *out, const struct activations *a,
                                const struct matrix *w, int32_t group_k);

    /* out: [rows, k]. Row ids[i] - first_id of w where that lies in [0, w->n), else zeros: a
     * vocabulary-parallel embedding, whose sum over ranks is exact. Dequantised as the matmul
     * sees it, times `scale`. */
    void (*embedding)(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                      const struct matrix *w, int32_t first_id, float scale);

    void (*take_rows)(struct device *dev, const struct take_rows_args *args);

    /* residual += sum (or its norm), then out = norm of residual, where the RMS norm of x by w is
     * x / sqrt(mean(x²) + eps) * w. */
    void (*add_norm)(struct device *dev, const struct add_norm_args *args);

    /* A bias is added, q's and k's heads are normed (both where wanted) and turned to their rows' positions, in
     * place; k and v are written into the slots of these positions. */
    void (*rope_store)(struct device *dev, const struct rope_args *args);

    /* Causal paged attention, softmax in float over KV tiles at fixed absolute positions, which are
     * merged in order: however a long request is shared out, its bits are the same. GPUs have another order for
     * those who let them (device_order). */
    void (*attention)(struct device *dev, const struct attention_args *args);

    /* out = act(gate) * up; gate and up: [out->rows, out->k] at row stride `stride`; k is a
     * multiple of 32. */
    void (*silu_mul)(struct device *dev, const struct activations *out, const float *gate,
                     const float *up, int64_t stride);
    void (*gelu_mul)(struct device *dev, const struct activations *out, const float *gate,
                     const float *up, int64_t stride); /* tanh form */

    /* A matmul of gates and ups side by side (w: [2 * out->k, a->k], gates first) and what comes of them, in one: the
     * bits of matmul, then silu_mul or gelu_mul, without their floats going through memory. NULL: these are to be called. */
    void (*matmul_silu_mul)(struct device *dev, const struct activations *out, const struct activations *a,
                            const struct matrix *w);
    void (*matmul_gelu_mul)(struct device *dev, const struct activations *out, const struct activations *a,
                            const struct matrix *w);

    /* Where a device has memory of its own; NULL elsewhere: the host samples. The tokens are those that the host would
     * draw. */
    void (*draw_rows)(struct device *dev, const struct draw_rows_args *args);
    void (*mask_rows)(struct device *dev, const struct mask_rows_args *args);
    /* ids: [rows]: each that is negative becomes last_tokens[-1 - id]. */
    void (*take_last_tokens)(struct device *dev, int32_t *ids, int32_t rows, const int32_t *last_tokens);

    /* A token without logits; -1: the mask allows none. NULL where there are logits to sample from. */
    int32_t (*draw)(struct device *dev, const struct draw_args *args);
};

/* 2^-24: partial sums of row-parallel matmuls are multiples of this. */
#define EXACT_GRID 5.9604644775390625e-8

/* ---- devices ---------------------------------------------------------------------------------- */

struct device_options {
    const char *name;    /* "cpu", "sim", "cuda" */
    const char *isa;     /* NULL: the best this CPU has; another name of kernels forces one */
    int32_t num_threads; /* CPU: threads of one op, the caller included; >= 1. CUDA: that pack weights */
    /* CPU: [num_threads], where each runs; NULL: anywhere. Thread 0 is the caller, and stays bound. */
    const cpu_set_t *cpus;
    const struct sim_device *sim; /* "sim": what it is like; copied */
    int32_t ordinal;     /* CUDA: which of the GPUs that the process may see; counted round where there are fewer */
    int32_t num_users;   /* CUDA: ordinals in use on this host, from 0 on; they share the memory of a GPU. 0: this one alone */
    const char *module;  /* CUDA: its file; NULL: tandem_cuda.so beside the program */
    /* CUDA: matmuls of 16-bit weights are cuBLASLt's, of so many rows and more: a row's bits may depend on the rows
     * beside it then. So are those by codes of 8 bits, where the GPU has them. 0: none is. */
    int32_t cublaslt_rows;
    const char *cublaslt; /* its file; NULL: as the system finds it */
};

/* ERR_UNSUPPORTED says which instruction sets there are, ERR_MISSING that this machine has no such device or no module
 * for it, ERR_NOT_FOUND that it has, and no cuBLASLt. TANDEM_ISA in the environment is read by the caller (a
 * configuration row), not here. */
MUST_USE enum status device_open(const struct device_options *options, struct device **out);
void device_close(struct device *dev); /* NULL is fine */
const struct kernels *device_kernels(const struct device *dev);

/* Memory of the device, zeroed, 64-byte aligned; ERR_NO_MEMORY names `what` and the size. */
MUST_USE enum status device_alloc(struct device *dev, int64_t bytes, const char *what, void **out);
void device_free(struct device *dev, void *p, int64_t bytes);
/* All of it is about to be written; memory that is not is better taken page by page, as it is touched. */
void device_expect_full(struct device *dev, void *p, int64_t bytes);
/* Has it come now, by all threads, where memory comes as it is touched. */
void device_touch(struct device *dev, void *p, int64_t bytes);
/* Part of an allocation that kernels are going to write to soon. Where memory comes as it is touched, it is, meanwhile,
 * instead of what is left of what was expected before. */
void device_expect_soon(struct device *dev, void *p, int64_t bytes);

/* As the system tells it now; zeros where it does not. On a CPU it is the machine's, which all ranks share. */
struct device_memory {
    int64_t total_bytes;
    int64_t free_bytes;
    int64_t available_bytes; /* for this rank's KV: on a GPU its part of what is free, as several may be on it */
};
struct device_memory device_memory(const struct device *dev);

/*
 * Work of the host's own, beside kernels: calls of part(args, first, end, thread) over items [0, count), any number of
 * them by a thread. On a CPU device its threads do it, `thread` in [0, device_num_threads); elsewhere the caller alone
 * is thread 0.
 */
int32_t device_num_threads(const struct device *dev);
void device_share_out(struct device *dev, int64_t count,
                      void (*part)(void *args, int64_t first, int64_t end, int32_t thread), void *args);

/*
 * A device with memory of its own: the host reads and writes none of what device_alloc gave, and kernels nothing else.
 * What they tell each other is copied, in the order of execution. Failures are also those of kernels before.
 */
bool device_has_own_memory(const struct device *dev);
/* From any memory of the host, which is free when it returns. */
MUST_USE enum status device_write(struct device *dev, void *to, const void *from, int64_t bytes);
/* To any memory of the host. Returns when it is there, and all that was launched before has run. */
MUST_USE enum status device_read(struct device *dev, void *to, const void *from, int64_t bytes);

/* What has gone wrong with kernels, as far as that is known by now: then no mark will be passed any more. */
MUST_USE enum status device_check(struct device *dev);

/* Memory of the host's and the device's of the same meaning, zeroed: one and the same where they share memory. */
struct device_mirror {
    char *host, *device; /* kernels may write to the host's too: there when the device has passed a mark */
    int64_t bytes;
};
MUST_USE enum status device_mirror_open(struct device *dev, int64_t bytes, const char *what,
                                        struct device_mirror *out);
void device_mirror_close(struct device *dev, struct device_mirror *mirror); /* a zeroed one is fine */
/* The first `bytes`, from the host to the device. The host leaves them alone until the device has passed here. */
MUST_USE enum status device_mirror_push(struct device *dev, const struct device_mirror *mirror, int64_t bytes);
/* The first `bytes`, from the device to the host; as device_read. */
MUST_USE enum status device_mirror_pull(struct device *dev, const struct device_mirror *mirror, int64_t bytes);

/*
 * What is launched may be recorded instead of run, and then be launched as often as one likes, at the cost of one launch:
 * with the same arguments, so with other inputs in the same arrays. Nothing is read, written or marked in between.
 */
struct device_recording;
bool device_can_record(const struct device *dev);
MUST_USE enum status device_record(struct device *dev); /* from here on */
MUST_USE enum status device_end_record(struct device *dev, struct device_recording **out);
MUST_USE enum status device_replay(struct device *dev, struct device_recording *recording);
void device_recording_free(struct device *dev, struct device_recording *recording); /* NULL is fine */

/*
 * A place in the order of what was launched. A device may run behind its caller: what is launched runs
 * later, and a mark tells when the device gets there. A CPU's kernels have run when their calls return.
 */
struct device_mark {
    int64_t ns;   /* the device's own */
    int32_t slot; /* likewise */
};
void device_mark(struct device *dev, struct device_mark *mark_out);
/* true: everything before the mark has run; ns_out: when the last of it ended, CLOCK_MONOTONIC. false: not
 * yet; ns_out: when to ask again. A mark is told of until 32 others were made. */
bool device_has_passed(const struct device *dev, const struct device_mark *mark, int64_t *ns_out);

/*
 * What this thread does from here to the end of the range, for a profiler of such devices that is attached; else,
 * and on devices that have none, nothing. name: a literal. Ranges nest. Thread: any.
 */
void device_begin_range(const struct device *dev, const char *name, int64_t step);
void device_end_range(const struct device *dev);

/* ISA names this CPU can run, best first, NULL-terminated. Always ends with "ref". */
const char *const *device_isas(void);

/* ---- ranks ------------------------------------------------------------------------------------- */

/*
 * comm_shm: ranks of one host, through one shared file. Rank 0 sets it up with comm_create; for the
 * others comm_open is ERR_NOT_FOUND until then. Sums of doubles on the exact grid come out the same in
 * any order, but ranks are added in rank order anyway. A rank waits by spinning for a bounded time,
 * then parks on a futex. When a peer is gone, comm_abort (any thread, any process that has opened the
 * file) makes every waiting and every later call return ERR_ABORTED.
 */
/* buffer_bytes: of one rank's contribution to one exchange, longer arrays go in pieces; shared_bytes: of
 * comm_shared. Pages that nobody touches cost nothing. */
MUST_USE enum status comm_create(const char *path, int32_t world, int64_t buffer_bytes,
                                 int64_t shared_bytes);
MUST_USE enum status comm_open(const char *path, int32_t rank, int32_t world, struct comm **out);
/* Ranks whose devices only take time: nothing is exchanged, and sums stay as they are. */
MUST_USE enum status comm_open_sim(struct device *dev, int32_t world, struct comm **out);
/*
 * Ranks whose devices have memory of their own: sums are of arrays there. There are three ways: "ipc", between
 * devices of one host that reach each other; "nccl", whose library every rank is to have, and a GPU to itself,
 * between hosts by name alone, since it does not encrypt; "host", through the hosts. host: the comm of these,
 * borrowed; its exchanges are used to meet.
 */
struct comm_device_options {
    int32_t rank;
    bool is_one_host;   /* all ranks are on one */
    const char *by;     /* the way; NULL, "auto": the first of them that all ranks can go */
    const char *nccl;   /* NCCL's file; NULL: libnccl.so.2, as the system finds it */
    int64_t timeout_ms; /* that meeting by NCCL may take */
};
/* ERR_UNSUPPORTED, for all ranks alike, where they can't go the way that `by` wants: it says why. */
MUST_USE enum status comm_open_device(struct device *dev, struct comm *host,
                                      const struct comm_device_options *options, struct comm **out);
void comm_close(struct comm *comm); /* NULL is fine */
void comm_abort(struct comm *comm);
bool comm_is_aborted(const struct comm *comm); /* by any rank that this one has heard of */
/* The rank without which this one can't go on, -1: none. Any thread. */
int32_t comm_waits_for(const struct comm *comm);

/* What has ended it, ERR_ABORTED or ERR_CLOSED: then what devices have of its sums is worth nothing. NULL: OK. */
MUST_USE enum status comm_check(const struct comm *comm);

/* world 1 (or comm NULL): nothing to add, OK. Disjoint: of each number all ranks' but one are +0, and
 * that one's bits come out. */
MUST_USE enum status comm_all_reduce_f64(struct comm *comm, double *x, int64_t count);
MUST_USE enum status comm_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count);
/*
 * A sum of doubles without copies. A rank writes its part, at most comm_sum_max doubles, to
 * comm_sum_buffer; comm_sum tells it to all, and what is to be added, in this order: each rank's part, or one
 * that a device has summed up already. They are valid until this rank's next call that exchanges something.
 */
struct comm_parts {
    const double *const *parts; /* [num_parts] */
    int32_t num_parts;
};
double *comm_sum_buffer(struct comm *comm);
int64_t comm_sum_max(const struct comm *comm);
MUST_USE enum status comm_sum(struct comm *comm, int64_t count, struct comm_parts *out);

/*
 * device_record, device_end_record and device_replay of what sums among ranks do, where it is the device that counts
 * the sums. All ranks record alike, and replay alike: what one replays none launches piece by piece (NCCL wants it so).
 * A recording that can't be made by one is made by none, which comm_agree tells. Recordings are freed before the comm
 * is closed, and when it is aborted.
 */
bool comm_can_record(const struct comm *comm); /* one alone (or NULL): true */
MUST_USE enum status comm_record(struct comm *comm, struct device *dev);
MUST_USE enum status comm_end_record(struct comm *comm, struct device *dev, struct device_recording **out);
MUST_USE enum status comm_replay(struct comm *comm, struct device *dev, struct device_recording *recording);
/* Every rank calls it, and waits for all. all_out: `own` of each of them is true. */
MUST_USE enum status comm_agree(struct comm *comm, bool own, bool *all_out);

/* A matrix of whose columns each rank has a share, to be put together by every rank; arrays are the device's. */
struct comm_columns {
    int32_t rows;
    const int32_t *first; /* [world + 1]: the host's; rank r has the columns from first[r] to first[r + 1] */
    const float *own;     /* [rows, own columns] */
    float *out;           /* [rows, first[world]] */
};
/* How many rows at once; 0: these ranks can't. The same for all. */
int32_t comm_columns_max(const struct comm *comm, const int32_t *first);
/* Every rank calls it. What `out` has when the device has passed is worth something if comm_check says OK then. */
MUST_USE enum status comm_gather_columns(struct comm *comm, const struct comm_columns *columns);

/* Memory that all ranks see, zeroed at first, shared_bytes of it; NULL: these ranks share none. */
void *comm_shared(const struct comm *comm);
/* Returns when every rank has called it: what they wrote to shared memory before is there to read. */
MUST_USE enum status comm_barrier(struct comm *comm);
/*
 * Every rank tells every rank `bytes` bytes, each as many as it likes up to `stride`, on which they
 * agree: rank r's come to out + r * stride, bytes_out[r] says how many. out: [world * stride],
 * bytes_out: [world]. A sim comm has no other rank's bytes: it leaves both as they are.
 */
MUST_USE enum status comm_all_gather(struct comm *comm, const void *data, int64_t bytes,
                                     int64_t stride, void *out, int64_t *bytes_out);

#ifdef __cplusplus
}
#endif
#endif
