/*
 * hf_tokenizer: a vocabulary as Hugging Face's tokenizer.json and the files beside it say it, in the words of GGUF.
 *
 * tokenizer.json describes a tokeniser as a chain of parts of many kinds. Those that make one of ours are
 * recognised, by a table; any other is refused by its name. There are two kinds: byte-level BPE ("gpt2"), and BPE of
 * SentencePiece ("llama"), whose scores are the ranks of its merges.
 *
 * Thread: any.
 */
#ifndef PROTO_MODEL_HF_TOKENIZER_H
#define PROTO_MODEL_HF_TOKENIZER_H

#include "proto/model/model_file.h"

/* Whole files; data NULL: there is none. */
struct hf_tokenizer_files {
    struct text_view tokenizer;     /* tokenizer.json: must be there */
    struct text_view config;        /* tokenizer_config.json */
    struct text_view generation;    /* generation_config.json */
    struct text_view chat_template; /* chat_template.jinja */
};

/*
 * Of vocab_size tokens: those of the files that are behind the last have no weights and are left out; those that
 * the files do not name are empty and TOKEN_UNUSED. What `out` points to is the arena's. ERR_CORRUPT,
 * ERR_UNSUPPORTED: the sentence names the file.
 */
MUST_USE enum status hf_tokenizer_read(const struct hf_tokenizer_files *files, int32_t vocab_size,
                                       struct arena *arena, struct vocabulary *out);

#endif
