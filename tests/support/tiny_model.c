#include "tests/support/tiny_model.h"

#include "proto/model/random_weights.h"
#include "tests/support/gguf_writer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TOKENS = 512 };

struct builder {
    struct tiny_model_options options; /* with the defaults filled in */
    struct gguf_writer writer;
    uint64_t random_state;
};

/* ---- tensors --------------------------------------------------------------------------------- */

static void add_matrix(struct builder *builder, const char *name, enum tensor_type type,
                       int32_t columns, int32_t rows, float deviation)
{
    size_t bytes = (size_t)tensor_row_bytes(type, columns) * (size_t)rows;
    AUTO_MEM uint8_t *data = mem_alloc(bytes);

    random_weights_fill(&builder->random_state, type, deviation, data, bytes);
    gguf_add_tensor(&builder->writer, name, type, columns, rows, data);
}

static void add_norm(struct builder *builder, const char *name, int32_t n)
{
    AUTO_MEM float *data = mem_new_array(float, (size_t)n);

    for (int32_t i = 0; i < n; i++)
        data[i] = 1 + random_weights_float(&builder->random_state) / 4;
    gguf_add_tensor(&builder->writer, name, TYPE_F32, n, 0, data);
}

static void add_bias(struct builder *builder, int32_t layer, const char *name, int32_t n)
{
    AUTO_MEM float *data = mem_new_array(float, (size_t)n);
    char full[64];

    for (int32_t i = 0; i < n; i++)
        data[i] = random_weights_float(&builder->random_state);
    sprintf(full, "blk.%d.%s.bias", layer, name);
    gguf_add_tensor(&builder->writer, full, TYPE_F32, n, 0, data);
}

static const char *in_layer(int32_t layer, const char *name, char *out)
{
    sprintf(out, "blk.%d.%s.weight", layer, name);
    return out;
}

static void add_layer(struct builder *builder, int32_t layer)
{
    const struct tiny_model_options *o = &builder->options;
    int32_t q = o->num_heads * o->head_dim, kv = o->num_kv_heads * o->head_dim;
    const struct {
        const char *name;
        enum tensor_type type;
        int32_t columns, rows;
    } matrices[] = {
        {"attn_q", o->attention_type, o->hidden_size, q},
        {"attn_k", o->attention_type, o->hidden_size, kv},
        {"attn_v", o->attention_type, o->hidden_size, kv},
        {"attn_output", o->attention_type, q, o->hidden_size},
        {"ffn_gate", o->ffn_type, o->hidden_size, o->intermediate_size},
        {"ffn_up", o->ffn_type, o->hidden_size, o->intermediate_size},
        {"ffn_down", o->ffn_type, o->intermediate_size, o->hidden_size},
    };
    char name[64];

    for (size_t i = 0; i < COUNT_OF(matrices); i++)
        add_matrix(builder, in_layer(layer, matrices[i].name, name), matrices[i].type,
                   matrices[i].columns, matrices[i].rows, 1 / sqrtf((float)matrices[i].columns));
    add_norm(builder, in_layer(layer, "attn_norm", name), o->hidden_size);
    add_norm(builder, in_layer(layer, "ffn_norm", name), o->hidden_size);
    if (strcmp(o->architecture, "qwen2") == 0) {
        add_bias(builder, layer, "attn_q", q);
        add_bias(builder, layer, "attn_k", kv);
        add_bias(builder, layer, "attn_v", kv);
        return;
    }
    if (strcmp(o->architecture, "llama") == 0)
        return;
    add_norm(builder, in_layer(layer, "attn_q_norm", name), o->head_dim);
    add_norm(builder, in_layer(layer, "attn_k_norm", name), o->head_dim);
    if (strcmp(o->architecture, "qwen3") == 0)
        return;
    add_norm(builder, in_layer(layer, "post_attention_norm", name), o->hidden_size);
    add_norm(builder, in_layer(layer, "post_ffw_norm", name), o->hidden_size);
}

static void add_tensors(struct builder *builder, int32_t num_tokens)
{
    const struct tiny_model_options *o = &builder->options;

    add_matrix(builder, "token_embd.weight", o->embedding_type, o->hidden_size, num_tokens, 0.3f);
    for (int32_t layer = 0; layer < o->num_layers; layer++)
        add_layer(builder, layer);
    add_norm(builder, "output_norm.weight", o->hidden_size);
    if (o->untied)
        add_matrix(builder, "output.weight", o->embedding_type, o->hidden_size, num_tokens, 0.3f);
}

/* ---- vocabulary ------------------------------------------------------------------------------ */

struct token_list {
    const char *texts[MAX_TOKENS];
    int32_t types[MAX_TOKENS];
    float scores[MAX_TOKENS];
    int32_t num;
    struct arena arena;
};

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6 }; /* the file's token types */

static void add_token(struct token_list *tokens, const char *text, int32_t type, float score)
{
    ASSERT(tokens->num < MAX_TOKENS);
    tokens->texts[tokens->num] = arena_strndup(&tokens->arena, text, strlen(text));
    tokens->types[tokens->num] = type;
    tokens->scores[tokens->num++] = score;
}

static void add_token_arrays(struct builder *builder, const struct token_list *tokens,
                             bool has_scores)
{
    struct gguf_writer *w = &builder->writer;
    size_t n = (size_t)tokens->num;

    gguf_add_strings(w, "tokenizer.ggml.tokens", tokens->texts, n);
    gguf_add_i32s(w, "tokenizer.ggml.token_type", tokens->types, n);
    if (has_scores)
        gguf_add_f32s(w, "tokenizer.ggml.scores", tokens->scores, n);
}

/* GPT-2 writes a byte that prints as itself, the others as U+0100, U+0101, … in order. */
static void add_byte_level_tokens(struct token_list *tokens)
{
    int next = 0x100;

    for (int byte = 0; byte < 256; byte++) {
        bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        int c = prints ? byte : next++;
        char text[3] = {(char)c};

        if (c >= 0x80) {
            text[0] = (char)(0xc0 | c >> 6);
            text[1] = (char)(0x80 | (c & 0x3f));
        }
        add_token(tokens, text, NORMAL, 0);
    }
}

#define SPACE "\xc4\xa0" /* U+0120, the byte-level name of a space */

static void add_byte_level_vocabulary(struct builder *builder, struct token_list *tokens)
{
    static const char *const merges[] = {
        SPACE " t", "h e", SPACE " a", "i n", "r e", "o n", "e r", SPACE "t he", "a n", "l l",
        "in g", SPACE "a n", "o u", SPACE "an d",
    };
    struct gguf_writer *w = &builder->writer;

    add_token(tokens, "<|endoftext|>", CONTROL, 0);
    add_token(tokens, "<|im_start|>", CONTROL, 0);
    add_token(tokens, "<|im_end|>", CONTROL, 0);
    add_byte_level_tokens(tokens);
    for (size_t i = 0; i < COUNT_OF(merges); i++) {
        const char *gap = strchr(merges[i], ' ');
        AUTO_MEM char *whole = mem_printf("%.*s%s", (int)(gap - merges[i]), merges[i], gap + 1);

        add_token(tokens, whole, NORMAL, 0);
    }
    gguf_add_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_add_string(w, "tokenizer.ggml.pre", "smollm");
    add_token_arrays(builder, tokens, false);
    gguf_add_strings(w, "tokenizer.ggml.merges", merges, COUNT_OF(merges));
    gguf_add_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_add_u32(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_add_bool(w, "tokenizer.ggml.add_bos_token", false);
}

#undef SPACE
#define SPACE "\xe2\x96\x81" /* U+2581, SentencePiece's space */

static void add_sentencepiece_vocabulary(struct builder *builder, struct token_list *tokens)
{
    static const char *const words[] = {
        SPACE "t", "he", "in", SPACE "the", "er", "an", "on", "re", "ll", "ing", SPACE "a", "ou",
    };
    struct gguf_writer *w = &builder->writer;
    char text[8];

    add_token(tokens, "<pad>", CONTROL, -1000);
    add_token(tokens, "<eos>", CONTROL, -1000);
    add_token(tokens, "<bos>", CONTROL, -1000);
    add_token(tokens, "<unk>", UNKNOWN, -1000);
    for (int byte = 0; byte < 256; byte++) {
        sprintf(text, "<0x%02X>", byte);
        add_token(tokens, text, BYTE, -1000);
    }
    for (size_t i = 0; i < COUNT_OF(words); i++)
        add_token(tokens, words[i], NORMAL, -(float)i);
    add_token(tokens, SPACE, NORMAL, -100);
    for (int c = '!'; c <= '~'; c++) {
        sprintf(text, "%c", c);
        add_token(tokens, text, NORMAL, -100 - (float)(c - ' '));
    }
    gguf_add_string(w, "tokenizer.ggml.model", "llama");
    gguf_add_string(w, "tokenizer.ggml.pre", "default");
    add_token_arrays(builder, tokens, true);
    gguf_add_u32(w, "tokenizer.ggml.bos_token_id", 2);
    gguf_add_u32(w, "tokenizer.ggml.eos_token_id", 1);
    gguf_add_u32(w, "tokenizer.ggml.unknown_token_id", 3);
    gguf_add_u32(w, "tokenizer.ggml.padding_token_id", 0);
    gguf_add_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_add_bool(w, "tokenizer.ggml.add_space_prefix", false);
}

/* ---- metadata -------------------------------------------------------------------------------- */

static void add_config(struct builder *builder)
{
    const struct tiny_model_options *o = &builder->options;
    bool gemma3 = strcmp(o->architecture, "gemma3") == 0;
    const struct {
        const char *key;
        int32_t value;
    } numbers[] = {
        {"block_count", o->num_layers},
        {"context_length", o->max_position},
        {"embedding_length", o->hidden_size},
        {"feed_forward_length", o->intermediate_size},
        {"attention.head_count", o->num_heads},
        {"attention.head_count_kv", o->num_kv_heads},
        {"attention.key_length", o->head_dim},
        {"attention.value_length", o->head_dim},
        {"attention.sliding_window", gemma3 ? o->sliding_window : 0},
        {"attention.sliding_window_pattern", gemma3 ? o->sliding_pattern : 0},
    };
    struct gguf_writer *w = &builder->writer;
    char key[64];

    gguf_add_string(w, "general.architecture", o->architecture);
    gguf_add_string(w, "general.name", "tiny");
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        sprintf(key, "%s.%s", o->architecture, numbers[i].key);
        if (numbers[i].value)
            gguf_add_u32(w, key, (uint32_t)numbers[i].value);
    }
    sprintf(key, "%s.attention.layer_norm_rms_epsilon", o->architecture);
    gguf_add_f32(w, key, 1e-5f);
    sprintf(key, "%s.rope.freq_base", o->architecture);
    gguf_add_f32(w, key, gemma3 ? 1000000 : 10000);
}

static struct tiny_model_options with_defaults(const struct tiny_model_options *given)
{
    struct tiny_model_options o = given ? *given : (struct tiny_model_options){0};

    o.architecture = o.architecture ? o.architecture : "llama";
    o.num_layers = o.num_layers ? o.num_layers : 2;
    o.hidden_size = o.hidden_size ? o.hidden_size : 64;
    o.intermediate_size = o.intermediate_size ? o.intermediate_size : 256;
    o.num_heads = o.num_heads ? o.num_heads : 4;
    o.num_kv_heads = o.num_kv_heads ? o.num_kv_heads : 2;
    o.head_dim = o.head_dim ? o.head_dim : 32;
    o.max_position = o.max_position ? o.max_position : 1024;
    o.sliding_window = o.sliding_window ? o.sliding_window : 16;
    o.sliding_pattern = o.sliding_pattern ? o.sliding_pattern : 2;
    return o;
}

void tiny_model_build(const struct tiny_model_options *options, struct bytes *out)
{
    struct builder builder = {.options = with_defaults(options)};
    AUTO_MEM struct token_list *tokens = mem_new(struct token_list);

    builder.random_state = builder.options.seed;
    add_config(&builder);
    if (strcmp(builder.options.architecture, "gemma3") == 0)
        add_sentencepiece_vocabulary(&builder, tokens);
    else
        add_byte_level_vocabulary(&builder, tokens);
    if (builder.options.chat_template)
        gguf_add_string(&builder.writer, "tokenizer.chat_template", builder.options.chat_template);
    add_tensors(&builder, tokens->num);
    gguf_finish(&builder.writer, out);
    gguf_writer_close(&builder.writer);
    arena_close(&tokens->arena);
}

void tiny_model_write(const char *path, const struct tiny_model_options *options)
{
    AUTO_CLOSE(bytes) struct bytes file = {0};

    tiny_model_build(options, &file);
    gguf_save(&file, path);
}
