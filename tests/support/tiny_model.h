/*
 * tiny_model: a small random model with a small real vocabulary, so that tests need no weights.
 *
 * llama, qwen2, qwen3: byte-level BPE ("gpt2"), ids 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|> (eos), then
 * the 256 bytes, then a few merges. gemma3: SentencePiece BPE ("llama"), ids 0 <pad>, 1 <eos>,
 * 2 <bos> (added to prompts), 3 <unk>, then 256 byte tokens, printable ASCII and a few merges.
 * The same options make the same bytes, everywhere.
 */
#ifndef TESTS_SUPPORT_TINY_MODEL_H
#define TESTS_SUPPORT_TINY_MODEL_H

#include "proto/base/memory.h"
#include "proto/model/quant.h"

/* 0 and NULL stand for what the comment says. */
struct tiny_model_options {
    const char *architecture;  /* "llama"; or "qwen2", "qwen3", "gemma3" */
    uint64_t seed;
    int32_t num_layers;        /* 2 */
    int32_t hidden_size;       /* 64 */
    int32_t intermediate_size; /* 256 */
    int32_t num_heads;         /* 4 */
    int32_t num_kv_heads;      /* 2 */
    int32_t head_dim;          /* 32 */
    int32_t max_position;      /* 1024 */
    int32_t sliding_window;    /* gemma3 only: 16 */
    int32_t sliding_pattern;   /* gemma3 only: 2, the second layer is global */
    bool untied;               /* an output.weight of its own */
    /* F32. Columns (hidden_size; num_heads * head_dim and intermediate_size of attn_output and
     * ffn_down) must be multiples of the type's block: of 256 for the K types. */
    enum tensor_type embedding_type, attention_type, ffn_type;
    const char *chat_template; /* none */
};

/* options NULL: all defaults. Aborts when the file cannot be written. */
void tiny_model_write(const char *path, const struct tiny_model_options *options);
/* The same, appended to `out`. */
void tiny_model_build(const struct tiny_model_options *options, struct bytes *out);

#endif
