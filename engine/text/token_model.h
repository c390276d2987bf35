/*
 * token_model: what differs between kinds of vocabulary: a row of functions for each
 * tokenizer.ggml.model. tokenizer.c is the only caller; special tokens are its business.
 *
 * Thread: frozen after create.
 */
#ifndef ENGINE_TEXT_TOKEN_MODEL_H
#define ENGINE_TEXT_TOKEN_MODEL_H

#include "engine/text/merge.h"
#include "engine/text/token_map.h"

struct token_model {
    const struct token_model_ops *ops;
};

struct token_model_ops {
    const char *name; /* tokenizer.ggml.model */

    /* Borrows `tokens` for its life, `vocabulary` only for the call. */
    enum status (*create)(const struct vocabulary *vocabulary, const struct token_map *tokens,
                          struct token_model **out);
    void (*free)(struct token_model *model);

    /* Appends the text as the vocabulary writes it, before special tokens are looked for.
     * NULL: as it is. */
    void (*normalize)(const char *text, size_t size, struct bytes *out);

    /* Appends the tokens of a normalised text without special tokens: valid UTF-8, size > 0. is_start: no special
     * token was before it. */
    enum status (*encode)(const struct token_model *model, const char *text, size_t size, bool is_start,
                          struct merge *scratch, struct token_list *out);

    /* Appends the bytes that a normal, user-defined or byte token stands for. */
    void (*piece)(const struct token_model *model, token_id id, struct bytes *out);
};

extern const struct token_model_ops bpe_ops; /* bpe.c: byte-level BPE */
extern const struct token_model_ops spm_ops; /* spm.c: SentencePiece-style BPE */

#endif
