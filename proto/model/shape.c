#include "proto/model/shape.h"

#include <stdio.h>
#include <string.h>

enum { NUM_BYTES = 256, END_ID = NUM_BYTES };

/* ---- tensors --------------------------------------------------------------------------------- */

/* Room is there. */
static enum status add_tensor(struct model_file *file, enum tensor_type type, int64_t num_rows,
                              int64_t num_columns, const char *name)
{
    const struct tensor_type_info *info = tensor_type_info(num_rows == 1 ? TYPE_F32 : type);

    if (num_columns % info->block_elements != 0)
        return fail(ERR_CORRUPT, "%s has %lld columns; %s has blocks of %d", name,
                    (long long)num_columns, info->name, info->block_elements);
    file->tensors[file->num_tensors++] = (struct tensor){
        .name = arena_strndup(&file->arena, name, strlen(name)),
        .type = num_rows == 1 ? TYPE_F32 : type,
        .num_dims = num_rows == 1 ? 1 : 2,
        .num_columns = num_columns,
        .num_rows = num_rows,
    };
    return OK;
}

enum { MOST_OF_MODEL = 4, MOST_OF_LAYER = 16 };

static enum status add_layer(struct model_file *file, enum tensor_type type, int32_t layer)
{
    const struct model_config *c = &file->config;
    bool is_gemma3 = strcmp(c->architecture, "gemma3") == 0;
    bool norms_heads = is_gemma3 || strcmp(c->architecture, "qwen3") == 0;
    bool has_biases = strcmp(c->architecture, "qwen2") == 0;
    int64_t q = (int64_t)c->num_heads * c->head_dim, kv = (int64_t)c->num_kv_heads * c->head_dim;
    const struct {
        const char *name;
        int64_t num_rows, num_columns;
        bool is_left_out;
    } rows[] = {
        {"attn_norm.weight", 1, c->hidden_size},
        {"attn_q.weight", q, c->hidden_size},
        {"attn_k.weight", kv, c->hidden_size},
        {"attn_v.weight", kv, c->hidden_size},
        {"attn_q.bias", 1, q, !has_biases},
        {"attn_k.bias", 1, kv, !has_biases},
        {"attn_v.bias", 1, kv, !has_biases},
        {"attn_q_norm.weight", 1, c->head_dim, !norms_heads},
        {"attn_k_norm.weight", 1, c->head_dim, !norms_heads},
        {"attn_output.weight", c->hidden_size, q},
        {"post_attention_norm.weight", 1, c->hidden_size, !is_gemma3},
        {"ffn_norm.weight", 1, c->hidden_size},
        {"ffn_gate.weight", c->intermediate_size, c->hidden_size},
        {"ffn_up.weight", c->intermediate_size, c->hidden_size},
        {"ffn_down.weight", c->hidden_size, c->intermediate_size},
        {"post_ffw_norm.weight", 1, c->hidden_size, !is_gemma3},
    };

    _Static_assert(COUNT_OF(rows) == MOST_OF_LAYER, "room for them");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char name[48];

        if (rows[i].is_left_out)
            continue;
        snprintf(name, sizeof name, "blk.%d.%s", layer, rows[i].name);
        TRY(add_tensor(file, type, rows[i].num_rows, rows[i].num_columns, name));
    }
    return OK;
}

enum status shape_add_tensors(struct model_file *file, enum tensor_type type, bool is_tied)
{
    const struct model_config *config = &file->config;
    enum tensor_type table = type == TYPE_F8_E4M3 ? TYPE_BF16 : type;
    size_t most = MOST_OF_MODEL + (size_t)MOST_OF_LAYER * (size_t)config->num_layers;

    file->tensors = arena_alloc(&file->arena, most * sizeof *file->tensors);
    TRY(add_tensor(file, table, config->vocab_size, config->hidden_size, "token_embd.weight"));
    TRY(add_tensor(file, type, 1, config->hidden_size, "output_norm.weight"));
    if (!is_tied)
        TRY(add_tensor(file, table, config->vocab_size, config->hidden_size, "output.weight"));
    if (config->rope_scaling == ROPE_SCALING_LLAMA3)
        TRY(add_tensor(file, type, 1, config->rope_dim / 2, "rope_freqs.weight"));
    for (int32_t i = 0; i < config->num_layers; i++)
        TRY(add_layer(file, type, i));
    return OK;
}

size_t shape_tensor_bytes(const struct tensor *tensor)
{
    return (size_t)(tensor_row_bytes(tensor->type, tensor->num_columns) * tensor->num_rows);
}

/* ---- vocabulary ------------------------------------------------------------------------------ */

/* GPT-2's letters for bytes: those that can be seen stand for themselves, others for U+0100 on. */
static int letter_of(int byte, int *num_unseen)
{
    bool is_seen = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);

    return is_seen ? byte : 0x100 + (*num_unseen)++;
}

static struct text_view view_of(struct arena *arena, const char *text)
{
    size_t size = strlen(text);

    return (struct text_view){.data = arena_strndup(arena, text, size), .size = size};
}

static struct text_view byte_token(struct arena *arena, int byte, int *num_unseen)
{
    int letter = letter_of(byte, num_unseen);
    char utf8[3] = {(char)letter};

    if (letter >= 0x80) {
        utf8[0] = (char)(0xc0 | letter >> 6);
        utf8[1] = (char)(0x80 | (letter & 0x3f));
    }
    return view_of(arena, utf8);
}

/* "\u0120w300" reads " w300". */
void shape_fill_vocabulary(struct model_file *file)
{
    struct vocabulary *vocabulary = &file->vocabulary;
    int32_t n = file->config.vocab_size;
    struct text_view *tokens;
    int32_t *types;
    int num_unseen = 0;

    vocabulary->num_tokens = n;
    if (file->without_words)
        return;
    tokens = arena_alloc(&file->arena, (size_t)n * sizeof *tokens);
    types = arena_alloc(&file->arena, (size_t)n * sizeof *types);
    for (int32_t id = 0; id < n; id++) {
        char word[24];

        types[id] = id == END_ID ? TOKEN_CONTROL : TOKEN_NORMAL;
        snprintf(word, sizeof word, "\xc4\xa0w%d", id);
        tokens[id] = id < NUM_BYTES ? byte_token(&file->arena, id, &num_unseen)
                     : id == END_ID ? view_of(&file->arena, "<|end|>")
                                    : view_of(&file->arena, word);
    }
    *vocabulary = (struct vocabulary){
        .model = "gpt2",
        .pre = "gpt-2",
        .num_tokens = n,
        .tokens = tokens,
        .types = types,
        .bos_id = -1,
        .eos_id = END_ID,
        .eot_id = -1,
        .unknown_id = -1,
        .padding_id = -1,
    };
}
