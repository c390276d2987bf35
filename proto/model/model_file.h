/*
 * model_file: one view of any model on disk: its shape, its tensors, its vocabulary.
 *
 * A reader (gguf.c, hf_folder.c) maps the files and checks everything in them against
 * their sizes before it fills this view; whoever reads the view may trust every
 * pointer and every size. Names are the GGUF names ("blk.3.attn_q.weight") for
 * every format; a reader of another format translates. Data need not be aligned.
 *
 * Nothing is read that is not touched: the file is mapped, and a rank that walks
 * only its rows pages in only those.
 *
 * Thread: frozen after open; any thread may read.
 */
#ifndef PROTO_MODEL_MODEL_FILE_H
#define PROTO_MODEL_MODEL_FILE_H

#include "proto/base/memory.h"
#include "proto/model/quant.h"

#include <stdint.h>

/* What the codes of F8_E4M3 are multiplied by; one for each block of rows and columns. */
struct tensor_scales {
    const float *values;   /* [num_rows / rows, num_columns / columns], both rounded up; finite, 0 or more */
    int64_t rows, columns; /* of a block; the last ones may have less */
};

struct tensor {
    const char *name;
    enum tensor_type type;
    int32_t num_dims;
    int64_t num_columns; /* K: the contiguous dimension (ggml's ne[0]) */
    int64_t num_rows;    /* N: product of the other dimensions */
    const void *data;    /* num_rows rows of tensor_row_bytes(type, num_columns) */
    struct tensor_scales scales; /* F8_E4M3: always; others have none */
};

/* Of F8_E4M3, the scales of the blocks that a row goes through: [num_columns / scales.columns], rounded up. */
const float *tensor_row_scales(const struct tensor *tensor, int64_t row);
/* Columns [first, first + n) of a row of F8_E4M3, with its scales, as bf16: fp8_to_bf16. */
void tensor_to_bf16(const struct tensor *tensor, int64_t row, int64_t first, int64_t n, uint16_t *out);

/* LLAMA3: tensor rope_freqs.weight, [rope_dim / 2], holds what divides each frequency. */
enum rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_LLAMA3 };

/* Shape and constants of the model; absent metadata has the architecture's default. */
struct model_config {
    char architecture[32]; /* "llama", "qwen2", "qwen3", "gemma3" */
    char name[128];        /* general.name, or that of the file or folder */
    int32_t num_layers;
    int32_t hidden_size;
    int32_t intermediate_size;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t vocab_size; /* logits of a row; tokens are below vocabulary.num_tokens, which is no more, and less only
                           where a simulated device has taken the words of another model */
    int32_t max_position;    /* context length the model was trained for */
    float rms_norm_eps;
    float rope_theta;
    float rope_theta_local;  /* base of the sliding-window layers; else = rope_theta */
    enum rope_scaling rope_scaling;
    float rope_scaling_factor;
    int32_t rope_dim;        /* rotated dimensions of a head */
    bool rope_is_adjacent;   /* rows of q and k are in pairs (2i, 2i + 1); else (i, i + rope_dim / 2) */
    int32_t sliding_window;  /* 0: none. A row sees positions p - window < q <= p */
    int32_t sliding_pattern; /* every n-th layer is global (6: layers 5, 11, …); 0: all are */
};

/* Does the layer see every earlier position, not only a window of them? */
static inline bool model_config_is_global(const struct model_config *config, int32_t layer)
{
    return config->sliding_window == 0 || config->sliding_pattern == 0 ||
           (layer + 1) % config->sliding_pattern == 0;
}

enum token_type {
    TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5, TOKEN_BYTE = 6
};

struct text_view { /* not NUL-terminated, lives as long as the file */
    const char *data;
    size_t size;
};

enum { VOCABULARY_MORE_EOS = 14 };

struct vocabulary {
    /* tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE). As the file has
     * it: whether there is such a tokeniser is for the tokeniser to say. */
    char model[32];
    char pre[32];                  /* tokenizer.ggml.pre: which pre-tokeniser, "" if absent */
    int32_t num_tokens;
    const struct text_view *tokens;/* [num_tokens] as stored */
    const float *scores;           /* [num_tokens] or NULL */
    const int32_t *types;          /* [num_tokens] enum token_type, or NULL: all normal */
    int32_t num_merges;
    const struct text_view *merges;/* [num_merges] "left right", in order of rank */
    int32_t bos_id, eos_id, eot_id, unknown_id, padding_id; /* -1: none */
    int32_t more_eos_ids[VOCABULARY_MORE_EOS]; /* [num_more_eos_ids] that end an answer too */
    int32_t num_more_eos_ids;
    bool add_bos, add_eos, add_space_prefix;
    bool space_prefix_is_once; /* at the start of a text alone, if no space is there; else before each part */
    bool is_nfc; /* texts are brought to Unicode's form C first; GGUF does not tell */
    const bool *is_normalized; /* [num_tokens] of special tokens those that are looked for in that form, behind the
                                * others, which are found in the text as it stands; NULL: none */
    struct text_view chat_template;/* size 0: none */
};

struct model_file;

/* WITHOUT_WORDS: for ranks, which know tokens by their numbers. The vocabulary is num_tokens and nothing else, and
 * the words are neither looked at nor held: those of a large one take longer to read than the tensors' names. */
enum model_parts { MODEL_WHOLE, MODEL_WITHOUT_WORDS };

/* Opens a .gguf, or a folder as Hugging Face's libraries save a model. Every failure is one sentence that names
 * the path, the offset or tensor, and the numbers: ERR_NOT_FOUND, ERR_IO, ERR_CORRUPT, ERR_UNSUPPORTED. */
MUST_USE enum status model_file_open(const char *path, struct model_file **out);
MUST_USE enum status model_file_open_parts(const char *path, enum model_parts parts, struct model_file **out);
void model_file_free(struct model_file *file); /* NULL is fine */
DEFINE_AUTO_FREE(model_file)

/* Gives those pages of bytes [first, end), of model_file_bytes, that were read so far back to the system: the weights
 * have been packed. Everything stays valid and is read again where it is touched. */
void model_file_drop_pages(const struct model_file *file, int64_t first, int64_t end);

/*
 * Puts the vocabulary of another model file, and with it the chat template, in the place of the file's own:
 * a simulated model has a shape and no words. Of both the same parts are read. ERR_INVALID: there are more tokens
 * than logits; else as model_file_open. Before anybody has the old one.
 */
MUST_USE enum status model_file_take_vocabulary(struct model_file *file, const char *path);

/* It describes a simulated device (sim.h); its weights are zeros. */
bool model_file_is_simulated(const struct model_file *file);
const struct model_config *model_file_config(const struct model_file *file);
const struct vocabulary *model_file_vocabulary(const struct model_file *file);
/* The generation_config.json of a folder as it stands, for whoever samples; size 0: there is none. */
struct text_view model_file_generation_config(const struct model_file *file);

/* NULL when there is none of that name. */
const struct tensor *model_file_tensor(const struct model_file *file, const char *name);
int32_t model_file_num_tensors(const struct model_file *file);
const struct tensor *model_file_tensor_at(const struct model_file *file, int32_t i);

/* XXH3-64 over the configuration, the tensor table and the first and last 4 KiB of every
 * tensor: engine and ranks compare it at HELLO. */
uint64_t model_file_fingerprint(const struct model_file *file);
int64_t model_file_bytes(const struct model_file *file);

#endif
