#include "tests/support/expect.h"

#include "proto/model/model_file.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- files in memory ------------------------------------------------------------------------- */

static int memory_file = -1;
static char memory_path[64];

static int open_memory_file(void **state)
{
    (void)state;
    memory_file = memfd_create("test.gguf", MFD_CLOEXEC);
    snprintf(memory_path, sizeof memory_path, "/proc/self/fd/%d", memory_file);
    return memory_file < 0;
}

static int close_memory_file(void **state)
{
    (void)state;
    return close(memory_file);
}

static enum status open_bytes(const struct bytes *bytes, struct model_file **out)
{
    gguf_save(bytes, memory_path);
    return model_file_open(memory_path, out);
}

static enum status open_writer(const struct gguf_writer *writer, struct model_file **out)
{
    AUTO_CLOSE(bytes) struct bytes bytes = {0};

    gguf_finish(writer, &bytes);
    return open_bytes(&bytes, out);
}

/* The smallest model of a kind, quick to open many thousand times. */
static const struct tiny_model_options smallest = {
    .seed = 1, .num_layers = 1, .hidden_size = 16, .intermediate_size = 16, .num_heads = 1,
    .num_kv_heads = 1, .head_dim = 16, .embedding_type = TYPE_BF16,
};

/* Reads all that the view promises to be readable. */
static uint64_t touch_all(const struct model_file *file)
{
    const struct vocabulary *vocabulary = model_file_vocabulary(file);
    uint64_t sum = model_file_fingerprint(file);

    for (int32_t i = 0; i < model_file_num_tensors(file); i++) {
        const struct tensor *tensor = model_file_tensor_at(file, i);
        int64_t bytes = tensor_row_bytes(tensor->type, tensor->num_columns) * tensor->num_rows;

        sum += XXH3_64bits(tensor->data, (size_t)bytes);
        assert_ptr_equal(model_file_tensor(file, tensor->name), tensor);
    }
    for (int32_t i = 0; i < vocabulary->num_tokens; i++)
        sum += XXH3_64bits(vocabulary->tokens[i].data, vocabulary->tokens[i].size);
    for (int32_t i = 0; i < vocabulary->num_merges; i++)
        sum += XXH3_64bits(vocabulary->merges[i].data, vocabulary->merges[i].size);
    return sum;
}

/* ---- what opens ------------------------------------------------------------------------------ */

static bool token_is(const struct text_view *token, const char *text)
{
    return token->size == strlen(text) && memcmp(token->data, text, token->size) == 0;
}

static void a_llama_shows_its_shape_its_tensors_and_its_vocabulary(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;
    struct tiny_model_options options = {.num_heads = 5, .num_kv_heads = 1, .max_position = 99,
                                         .ffn_type = TYPE_Q8_0, .chat_template = "{{ x }}"};

    tiny_model_build(&options, &bytes);
    expect_ok(open_bytes(&bytes, &file));
    assert_int_equal(model_file_bytes(file), bytes.size);

    const struct model_config *config = model_file_config(file);

    assert_string_equal(config->architecture, "llama");
    assert_string_equal(config->name, "tiny");
    assert_int_equal(config->num_layers, 2);
    assert_int_equal(config->hidden_size, 64);
    assert_int_equal(config->intermediate_size, 256);
    assert_int_equal(config->num_heads, 5);
    assert_int_equal(config->num_kv_heads, 1);
    assert_int_equal(config->head_dim, 32);
    assert_int_equal(config->rope_dim, 32);
    assert_int_equal(config->max_position, 99);
    assert_int_equal(config->vocab_size, 3 + 256 + 14);
    assert_true(config->rms_norm_eps == 1e-5f);
    assert_true(config->rope_theta == 10000 && config->rope_theta_local == 10000);
    assert_int_equal(config->rope_scaling, ROPE_SCALING_NONE);
    assert_int_equal(config->sliding_window, 0);

    const struct tensor *down = model_file_tensor(file, "blk.1.ffn_down.weight");

    assert_non_null(down);
    assert_int_equal(down->type, TYPE_Q8_0);
    assert_int_equal(down->num_dims, 2);
    assert_int_equal(down->num_columns, 256);
    assert_int_equal(down->num_rows, 64);
    assert_null(model_file_tensor(file, "blk.2.ffn_down.weight"));
    assert_null(model_file_tensor(file, "output.weight"));

    const struct vocabulary *vocabulary = model_file_vocabulary(file);

    assert_string_equal(vocabulary->model, "gpt2");
    assert_string_equal(vocabulary->pre, "smollm");
    assert_int_equal(vocabulary->num_tokens, config->vocab_size);
    assert_true(token_is(&vocabulary->tokens[2], "<|im_end|>"));
    assert_int_equal(vocabulary->types[2], TOKEN_CONTROL);
    assert_null(vocabulary->scores);
    assert_int_equal(vocabulary->num_merges, 14);
    assert_true(token_is(&vocabulary->merges[1], "h e"));
    assert_int_equal(vocabulary->bos_id, 1);
    assert_int_equal(vocabulary->eos_id, 2);
    assert_int_equal(vocabulary->eot_id, -1);
    assert_int_equal(vocabulary->unknown_id, -1);
    assert_false(vocabulary->add_bos || vocabulary->add_eos || vocabulary->add_space_prefix);
    assert_true(token_is(&vocabulary->chat_template, "{{ x }}"));
}

static void a_qwen3_has_norms_on_its_heads_and_a_vocabulary_of_bytes(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;

    tiny_model_build(&(struct tiny_model_options){.architecture = "qwen3", .head_dim = 64}, &bytes);
    expect_ok(open_bytes(&bytes, &file));

    const struct model_config *config = model_file_config(file);

    assert_string_equal(config->architecture, "qwen3");
    assert_int_equal(config->head_dim, 64); /* hidden_size / num_heads is 16 */
    assert_int_equal(config->rope_dim, 64);
    assert_int_equal(config->sliding_window, 0);
    assert_int_equal(model_file_tensor(file, "blk.1.attn_k_norm.weight")->num_columns, 64);
    assert_null(model_file_tensor(file, "output.weight"));
    assert_string_equal(model_file_vocabulary(file)->model, "gpt2");
}

static void a_gemma3_has_its_window_its_two_bases_and_its_scores(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;

    tiny_model_build(&(struct tiny_model_options){.architecture = "gemma3"}, &bytes);
    expect_ok(open_bytes(&bytes, &file));

    const struct model_config *config = model_file_config(file);
    const struct vocabulary *vocabulary = model_file_vocabulary(file);

    assert_true(config->rope_theta == 1000000 && config->rope_theta_local == 10000);
    assert_int_equal(config->sliding_window, 16);
    assert_int_equal(config->sliding_pattern, 2);
    assert_non_null(model_file_tensor(file, "blk.0.post_ffw_norm.weight"));
    assert_string_equal(vocabulary->model, "llama");
    assert_true(vocabulary->scores[4 + 256 + 1] == -1);
    assert_int_equal(vocabulary->types[4], TOKEN_BYTE);
    assert_int_equal(vocabulary->bos_id, 2);
    assert_true(vocabulary->add_bos);
    assert_int_equal(vocabulary->chat_template.size, 0);
}

static void tensors_of_every_type_are_found_with_sane_values(void **state)
{
    (void)state;
    for (int type = 0; type < NUM_TENSOR_TYPES; type++) {
        AUTO_CLOSE(bytes) struct bytes bytes = {0};
        AUTO_FREE(model_file) struct model_file *file = NULL;
        struct tiny_model_options options = {.hidden_size = 256, .num_heads = 8, .num_layers = 1,
                                             .attention_type = (enum tensor_type)type};
        float row[256];
        double sum = 0, sum_of_squares = 0;

        tiny_model_build(&options, &bytes);
        expect_ok(open_bytes(&bytes, &file));

        const struct tensor *q = model_file_tensor(file, "blk.0.attn_q.weight");

        assert_int_equal(q->type, type);
        for (int64_t i = 0; i < q->num_rows; i++) {
            const char *data = q->data;

            tensor_dequantize(q->type, data + i * tensor_row_bytes(q->type, 256), 0, 256, row);
            for (int j = 0; j < 256; j++) {
                sum += (double)row[j];
                sum_of_squares += (double)row[j] * (double)row[j];
            }
        }
        /* 65536 random weights of about the deviation 1 / 16 */
        assert_true(fabs(sum / 65536) < 0.01);
        assert_true(sqrt(sum_of_squares / 65536) > 0.04 && sqrt(sum_of_squares / 65536) < 0.09);
    }
}

static void the_fingerprint_is_of_the_model_and_not_of_its_file(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0}, other = {0};
    AUTO_FREE(model_file) struct model_file *a = NULL, *b = NULL, *c = NULL;
    AUTO_FREE(model_file) struct model_file *d = NULL;

    tiny_model_build(&smallest, &bytes);
    expect_ok(open_bytes(&bytes, &a));
    uint64_t fingerprint = model_file_fingerprint(a);
    expect_ok(open_bytes(&bytes, &b));
    assert_true(model_file_fingerprint(b) == fingerprint);

    bytes.data[bytes.size - 1] ^= 1; /* the last weight */
    expect_ok(open_bytes(&bytes, &c));
    assert_false(model_file_fingerprint(c) == fingerprint);

    struct tiny_model_options options = smallest;
    options.max_position = 77;
    tiny_model_build(&options, &other);
    expect_ok(open_bytes(&other, &d));
    assert_false(model_file_fingerprint(d) == fingerprint);
}

/* ---- a model of few keys, one of them changed ------------------------------------------------ */

struct change {
    const char *key; /* replaced by, or added with, what `type` says */
    enum { ABSENT, U32, F32, BOOLEAN, TEXT } type;
    uint32_t number;
    float real;
    const char *text;
    enum status status;
    const char *sentence;
};

static const struct change keys[] = {
    {"general.architecture", TEXT, .text = "llama"},
    {"llama.block_count", U32, 1},
    {"llama.context_length", U32, 64},
    {"llama.embedding_length", U32, 64},
    {"llama.feed_forward_length", U32, 64},
    {"llama.attention.head_count", U32, 4},
    {"llama.attention.head_count_kv", U32, 2},
    {"llama.attention.layer_norm_rms_epsilon", F32, .real = 1e-5f},
    {"tokenizer.ggml.model", TEXT, .text = "gpt2"},
};

static void add_key(struct gguf_writer *writer, const struct change *change)
{
    if (change->type == U32)
        gguf_add_u32(writer, change->key, change->number);
    else if (change->type == F32)
        gguf_add_f32(writer, change->key, change->real);
    else if (change->type == BOOLEAN)
        gguf_add_bool(writer, change->key, change->number != 0);
    else if (change->type == TEXT)
        gguf_add_string(writer, change->key, change->text);
}

static void write_keys(struct gguf_writer *writer, const struct change *change)
{
    static const char *const tokens[] = {"a", "b", "c"};

    for (size_t i = 0; i < COUNT_OF(keys); i++)
        if (!change || strcmp(keys[i].key, change->key) != 0)
            add_key(writer, &keys[i]);
    if (!change || strcmp(change->key, "tokenizer.ggml.tokens") != 0)
        gguf_add_strings(writer, "tokenizer.ggml.tokens", tokens, 3);
    if (change)
        add_key(writer, change);
}

static enum status open_changed(const struct change *change, struct model_file **out)
{
    AUTO_CLOSE(gguf_writer) struct gguf_writer writer = {0};

    write_keys(&writer, change);
    return open_writer(&writer, out);
}

static void what_the_metadata_leaves_out_follows_from_the_rest(void **state)
{
    (void)state;
    AUTO_FREE(model_file) struct model_file *file = NULL;

    expect_ok(open_changed(&(struct change){.key = "llama.attention.head_count_kv"}, &file));
    assert_int_equal(model_file_config(file)->num_kv_heads, 4);
    assert_int_equal(model_file_config(file)->head_dim, 16);
    assert_int_equal(model_file_config(file)->rope_dim, 16);
    assert_true(model_file_config(file)->rope_theta == 10000);
    assert_string_equal(model_file_config(file)->name, strrchr(memory_path, '/') + 1);
    assert_null(model_file_vocabulary(file)->types);
}

static void a_context_is_cut_to_a_window_that_every_layer_has(void **state)
{
    (void)state;
    AUTO_FREE(model_file) struct model_file *file = NULL;

    expect_ok(open_changed(&(struct change){"llama.attention.sliding_window", U32, 48}, &file));
    assert_int_equal(model_file_config(file)->max_position, 48);
    assert_int_equal(model_file_config(file)->sliding_window, 0);
}

static void nonsense_metadata_is_refused_by_key(void **state)
{
    (void)state;
    static const struct change refused[] = {
        {"general.architecture", ABSENT, .status = ERR_CORRUPT,
         .sentence = "the metadata lacks general.architecture"},
        {"general.architecture", TEXT, .text = "mamba", .status = ERR_UNSUPPORTED,
         .sentence = "architecture 'mamba' is not supported; these are: llama, qwen2, qwen3, gemma3"},
        {"general.architecture", U32, 5, .status = ERR_CORRUPT,
         .sentence = "general.architecture is UINT32, a STRING is needed"},
        {"general.alignment", U32, 24, .status = ERR_CORRUPT,
         .sentence = "general.alignment is 24, no power of two"},
        {"general.alignment", U32, 1, .status = ERR_CORRUPT,
         .sentence = "general.alignment is 1, 8 to 65536 is possible"},
        {"split.count", U32, 3, .status = ERR_UNSUPPORTED, .sentence = "is one of 3 parts"},
        {"llama.block_count", ABSENT, .status = ERR_CORRUPT,
         .sentence = "the metadata lacks llama.block_count"},
        {"llama.block_count", U32, 0, .status = ERR_CORRUPT,
         .sentence = "llama.block_count is 0, 1 to 1024 is possible"},
        {"llama.block_count", U32, 0xffffffff, .status = ERR_CORRUPT,
         .sentence = "llama.block_count is 4294967295, 1 to 1024 is possible"},
        {"llama.block_count", F32, .real = 2, .status = ERR_CORRUPT,
         .sentence = "llama.block_count is FLOAT32, an integer is needed"},
        {"llama.attention.head_count_kv", U32, 3, .status = ERR_CORRUPT,
         .sentence = "4 heads cannot share 3 KV heads evenly"},
        {"llama.attention.head_count", U32, 6, .status = ERR_CORRUPT,
         .sentence = "a width of 64 does not divide into 6 heads"},
        {"llama.attention.key_length", U32, 20, .status = ERR_UNSUPPORTED,
         .sentence = "a head has 20 dimensions"},
        {"llama.attention.key_length", U32, 512, .status = ERR_UNSUPPORTED,
         .sentence = "a head has 512 dimensions"},
        {"llama.attention.value_length", U32, 32, .status = ERR_UNSUPPORTED,
         .sentence = "llama.attention.value_length is 32 and keys have 16"},
        {"llama.rope.dimension_count", U32, 18, .status = ERR_CORRUPT,
         .sentence = "18 of the 16 dimensions"},
        {"llama.rope.dimension_count", U32, 7, .status = ERR_CORRUPT,
         .sentence = "7 of the 16 dimensions"},
        {"llama.attention.layer_norm_rms_epsilon", F32, .real = NAN, .status = ERR_CORRUPT,
         .sentence = "llama.attention.layer_norm_rms_epsilon is nan"},
        {"llama.attention.layer_norm_rms_epsilon", F32, .real = 0, .status = ERR_CORRUPT,
         .sentence = "llama.attention.layer_norm_rms_epsilon is 0"},
        {"llama.rope.freq_base", F32, .real = INFINITY, .status = ERR_CORRUPT,
         .sentence = "llama.rope.freq_base is inf"},
        {"llama.rope.scaling.type", TEXT, .text = "yarn", .status = ERR_UNSUPPORTED,
         .sentence = "llama.rope.scaling.type 'yarn' is not supported; these are: none, linear"},
        {"llama.expert_count", U32, 8, .status = ERR_UNSUPPORTED,
         .sentence = "llama.expert_count is 8"},
        {"llama.final_logit_softcapping", F32, .real = 30, .status = ERR_UNSUPPORTED,
         .sentence = "llama.final_logit_softcapping is 30"},
        {"llama.vocab_size", U32, 4, .status = ERR_CORRUPT,
         .sentence = "llama.vocab_size is 4, and there are 3 tokens"},
        {"tokenizer.ggml.model", ABSENT, .status = ERR_CORRUPT,
         .sentence = "the metadata lacks tokenizer.ggml.model"},
        {"tokenizer.ggml.tokens", ABSENT, .status = ERR_CORRUPT,
         .sentence = "the metadata lacks tokenizer.ggml.tokens"},
        {"tokenizer.ggml.tokens", TEXT, .text = "a", .status = ERR_CORRUPT,
         .sentence = "tokenizer.ggml.tokens is STRING, an array of STRING is needed"},
        {"tokenizer.ggml.eos_token_id", U32, 3, .status = ERR_CORRUPT,
         .sentence = "tokenizer.ggml.eos_token_id is 3, 0 to 2 is possible"},
        {"tokenizer.ggml.add_bos_token", U32, 1, .status = ERR_CORRUPT,
         .sentence = "tokenizer.ggml.add_bos_token is UINT32, a BOOL is needed"},
        {"a key\n", U32, 1, .status = ERR_CORRUPT, .sentence = "has the byte 0x20 in it"},
    };
    struct model_file *file = NULL;

    for (size_t i = 0; i < COUNT_OF(refused); i++)
        expect_fails(open_changed(&refused[i], &file), refused[i].status, refused[i].sentence);
    assert_null(file);
}

static void arrays_that_do_not_fit_the_tokens_are_refused(void **state)
{
    (void)state;
    static const float scores[] = {0, 1, NAN};
    static const int32_t types[] = {1, 7, 1};
    struct model_file *file = NULL;
    AUTO_CLOSE(gguf_writer) struct gguf_writer few = {0}, nan = {0}, type = {0}, kind = {0};

    write_keys(&few, NULL);
    gguf_add_f32s(&few, "tokenizer.ggml.scores", scores, 2);
    expect_fails(open_writer(&few, &file), ERR_CORRUPT, "scores has 2 values for 3 tokens");
    write_keys(&nan, NULL);
    gguf_add_f32s(&nan, "tokenizer.ggml.scores", scores, 3);
    expect_fails(open_writer(&nan, &file), ERR_CORRUPT, "the score of token 2 is not a number");
    write_keys(&type, NULL);
    gguf_add_i32s(&type, "tokenizer.ggml.token_type", types, 3);
    expect_fails(open_writer(&type, &file), ERR_CORRUPT, "token 1 has type 7, 1 to 6");
    write_keys(&kind, NULL);
    gguf_add_i32s(&kind, "tokenizer.ggml.scores", types, 3);
    expect_fails(open_writer(&kind, &file), ERR_CORRUPT,
                 "tokenizer.ggml.scores is an array of INT32, an array of FLOAT32 is needed");
}

static void what_is_there_twice_is_refused(void **state)
{
    (void)state;
    struct model_file *file = NULL;
    AUTO_CLOSE(gguf_writer) struct gguf_writer key = {0}, tensor = {0};

    write_keys(&key, NULL);
    gguf_add_u32(&key, "llama.block_count", 1);
    expect_fails(open_writer(&key, &file), ERR_CORRUPT, "llama.block_count is there twice");
    write_keys(&tensor, NULL);
    gguf_add_tensor(&tensor, "x", TYPE_F32, 3, 0, (float[3]){0});
    gguf_add_tensor(&tensor, "y", TYPE_F32, 3, 0, (float[3]){0});
    gguf_add_tensor(&tensor, "x", TYPE_F32, 3, 0, (float[3]){0});
    expect_fails(open_writer(&tensor, &file), ERR_CORRUPT, "tensor 'x' is there twice");
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* A file with tensor "x" of 64 x 2 F32 and "y" of 32; `at` is the byte of x's number of
 * dimensions: u32 dimensions, u64 columns, u64 rows, u32 type, u64 offset follow. */
static size_t build_two_tensors(struct bytes *out, uint32_t alignment)
{
    static const float zeros[128];
    AUTO_CLOSE(gguf_writer) struct gguf_writer writer = {.alignment = alignment};
    static const char marker[] = {1, 0, 0, 0, 0, 0, 0, 0, 'x'};

    write_keys(&writer, NULL);
    gguf_add_tensor(&writer, "x", TYPE_F32, 64, 2, zeros);
    gguf_add_tensor(&writer, "y", TYPE_F32, 32, 0, zeros);
    gguf_finish(&writer, out);

    const uint8_t *found = memmem(out->data, out->size, marker, sizeof marker);

    assert_non_null(found);
    return (size_t)(found - out->data) + sizeof marker;
}

enum { DIMS = 0, COLUMNS = 4, ROWS = 12, TYPE = 20, OFFSET = 24 };

static enum status open_patched(size_t field, uint64_t value, size_t bytes, struct model_file **out)
{
    AUTO_CLOSE(bytes) struct bytes file = {0};
    size_t at = build_two_tensors(&file, 0);

    memcpy(file.data + at + field, &value, bytes);
    return open_bytes(&file, out);
}

static void a_tensor_that_its_file_cannot_hold_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        size_t field;
        uint64_t value;
        size_t bytes;
        enum status status;
        const char *sentence;
    } patches[] = {
        {DIMS, 0, 4, ERR_CORRUPT, "tensor 'x' has 0 dimensions"},
        {DIMS, 5, 4, ERR_CORRUPT, "tensor 'x' has 5 dimensions"},
        {COLUMNS, 0, 8, ERR_CORRUPT, "dimension 0 of tensor 'x' is 0"},
        {COLUMNS, (uint64_t)1 << 63, 8, ERR_CORRUPT,
         "dimension 0 of tensor 'x' is 9223372036854775808"},
        {COLUMNS, INT32_MAX, 8, ERR_CORRUPT, "tensor 'x' needs 17179869176 bytes from offset 0"},
        {ROWS, 3, 8, ERR_CORRUPT,
         "tensor 'x' needs 768 bytes from offset 0, and the data section has 640"},
        {TYPE, 23, 4, ERR_UNSUPPORTED,
         "tensor 'x' has type IQ4_XS, which is not supported; these are: F32, F16"},
        {TYPE, 35, 4, ERR_UNSUPPORTED, "tensor 'x' has type TQ2_0"},
        {TYPE, 1000, 4, ERR_UNSUPPORTED, "tensor 'x' has type number 1000"},
        {TYPE, 14, 4, ERR_CORRUPT,
         "tensor 'x' has 64 columns, which blocks of 256 (Q6_K) do not fill"},
        {OFFSET, 4, 8, ERR_CORRUPT, "tensor 'x' is at offset 4, no multiple of 32"},
        {OFFSET, 160, 8, ERR_CORRUPT, "tensor 'x' needs 512 bytes from offset 160"},
        {OFFSET, UINT64_MAX - 31, 8, ERR_CORRUPT, "tensor 'x' needs 512 bytes from offset 1844"},
        {OFFSET, 128, 8, ERR_CORRUPT, "tensors 'x' and 'y' overlap at offset 512"},
    };
    struct model_file *file = NULL;

    for (size_t i = 0; i < COUNT_OF(patches); i++)
        expect_fails(open_patched(patches[i].field, patches[i].value, patches[i].bytes, &file),
                     patches[i].status, patches[i].sentence);
}

static void the_files_own_alignment_is_kept(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;

    build_two_tensors(&bytes, 1024);
    expect_ok(open_bytes(&bytes, &file));

    const char *x = model_file_tensor(file, "x")->data, *y = model_file_tensor(file, "y")->data;

    assert_int_equal(y - x, 1024);
    assert_int_equal((uintptr_t)x % 1024, 0);
}

static void rope_factors_make_it_llama3_scaling_and_must_fit(void **state)
{
    (void)state;
    AUTO_FREE(model_file) struct model_file *file = NULL;
    struct model_file *none = NULL;
    AUTO_CLOSE(gguf_writer) struct gguf_writer good = {0}, bad = {0};

    write_keys(&good, NULL);
    gguf_add_tensor(&good, "rope_freqs.weight", TYPE_F32, 8, 0, (float[8]){0});
    expect_ok(open_writer(&good, &file));
    assert_int_equal(model_file_config(file)->rope_scaling, ROPE_SCALING_LLAMA3);
    write_keys(&bad, NULL);
    gguf_add_tensor(&bad, "rope_freqs.weight", TYPE_F32, 9, 0, (float[9]){0});
    expect_fails(open_writer(&bad, &none), ERR_CORRUPT, "8 of F32 are needed");
}

/* ---- damaged files --------------------------------------------------------------------------- */

static void what_is_no_gguf_is_refused(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0}, junk = {0}, empty = {0};
    struct model_file *file = NULL;

    expect_fails(model_file_open("/nowhere/x.gguf", &file), ERR_NOT_FOUND,
                 "/nowhere/x.gguf: No such file");
    expect_fails(model_file_open("/dev/null", &file), ERR_UNSUPPORTED, "is not a regular file");
    expect_fails(open_bytes(&empty, &file), ERR_CORRUPT, "is empty");
    bytes_printf(&junk, "PK\3\4 something else");
    expect_fails(open_bytes(&junk, &file), ERR_UNSUPPORTED, "is not a GGUF file");

    build_two_tensors(&bytes, 0);
    memcpy(bytes.data + 4, (uint8_t[]){0, 0, 0, 3}, 4);
    expect_fails(open_bytes(&bytes, &file), ERR_UNSUPPORTED, "is a big-endian GGUF");
    bytes.data[7] = 0;
    bytes.data[4] = 1;
    expect_fails(open_bytes(&bytes, &file), ERR_UNSUPPORTED, "is GGUF version 1; 2 and 3");
    bytes.data[4] = 4;
    expect_fails(open_bytes(&bytes, &file), ERR_UNSUPPORTED, "is GGUF version 4; 2 and 3");
    bytes.data[4] = 2;
    expect_ok(open_bytes(&bytes, &file));
    model_file_free(file);
}

static void counts_beyond_the_file_are_refused_before_memory_is_taken(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        const char *sentence;
    } counts[] = {
        {8, "the number of tensors is 1152921504606846975, and the"},
        {16, "the number of metadata values is 1152921504606846975, and the"},
        {24, "a metadata key at byte 32 needs 1152921504606846975 bytes"},
    };
    const uint64_t huge = UINT64_MAX >> 4;
    struct model_file *file = NULL;

    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        AUTO_CLOSE(bytes) struct bytes bytes = {0};

        build_two_tensors(&bytes, 0);
        memcpy(bytes.data + counts[i].at, &huge, sizeof huge);
        expect_fails(open_bytes(&bytes, &file), ERR_CORRUPT, counts[i].sentence);
    }
}

/* 64 GiB of holes: every count fits, and the limits are what stands. */
static void a_huge_sparse_file_cannot_make_it_take_memory(void **state)
{
    (void)state;
    AUTO_CLOSE(gguf_writer) struct gguf_writer writer = {0};
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    struct model_file *file = NULL;
    const uint64_t strings = (uint64_t)1 << 32;

    write_keys(&writer, NULL);
    gguf_add_strings(&writer, "z", NULL, 0);
    gguf_finish(&writer, &bytes);

    static const char marker[] = {1, 0, 0, 0, 0, 0, 0, 0, 'z', 9, 0, 0, 0, 8, 0, 0, 0};
    uint8_t *found = memmem(bytes.data, bytes.size, marker, sizeof marker);

    assert_non_null(found);
    memcpy(found + sizeof marker, &strings, sizeof strings);
    gguf_save(&bytes, memory_path);
    assert_int_equal(ftruncate(memory_file, (off_t)1 << 36), 0);
    expect_fails(model_file_open(memory_path, &file), ERR_UNSUPPORTED,
                 "z has 4294967296 strings, the limit of a file is 16777216");
}

static void who_needs_no_words_gets_their_number(void **state)
{
    (void)state;
    static const char *const architectures[] = {"llama", "gemma3"};

    for (size_t i = 0; i < COUNT_OF(architectures); i++) {
        AUTO_CLOSE(bytes) struct bytes bytes = {0};
        AUTO_FREE(model_file) struct model_file *file = NULL, *whole = NULL;
        const struct vocabulary *vocabulary;
        struct tiny_model_options options = smallest;

        options.architecture = architectures[i];
        tiny_model_build(&options, &bytes);
        expect_ok(open_bytes(&bytes, &whole));
        expect_ok(model_file_open_parts(memory_path, MODEL_WITHOUT_WORDS, &file));
        vocabulary = model_file_vocabulary(file);
        assert_int_equal(vocabulary->num_tokens, model_file_vocabulary(whole)->num_tokens);
        assert_null(vocabulary->tokens);
        assert_null(vocabulary->scores);
        assert_null(vocabulary->types);
        assert_null(vocabulary->merges);
        assert_string_equal(model_file_config(file)->name, model_file_config(whole)->name);
        assert_true(model_file_fingerprint(file) == model_file_fingerprint(whole));
    }
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    struct model_file *file = NULL;

    tiny_model_build(&smallest, &bytes);
    gguf_save(&bytes, memory_path);
    expect_ok(model_file_open(memory_path, &file));
    model_file_free(file);
    for (size_t size = bytes.size - 1; size > 0; size--) {
        assert_int_equal(ftruncate(memory_file, (off_t)size), 0);
        if (model_file_open(memory_path, &file) == OK)
            fail_msg("opened with %zu of %zu bytes", size, bytes.size);
        assert_non_null(strstr(fail_text(), memory_path));
    }
}

static void a_flipped_bit_is_refused_or_does_no_harm(void **state)
{
    (void)state;
    static const char *const architectures[] = {"llama", "gemma3"};
    int refused = 0, opened = 0;

    for (size_t i = 0; i < COUNT_OF(architectures); i++) {
        AUTO_CLOSE(bytes) struct bytes bytes = {0};
        struct tiny_model_options options = smallest;

        options.architecture = architectures[i];
        tiny_model_build(&options, &bytes);
        gguf_save(&bytes, memory_path);
        for (size_t at = 0; at < MIN(bytes.size, (size_t)12000); at++) {
            uint8_t flipped = bytes.data[at] ^ (uint8_t)(1 << at % 8);
            struct model_file *file = NULL;

            assert_int_equal(pwrite(memory_file, &flipped, 1, (off_t)at), 1);
            if (model_file_open(memory_path, &file) == OK) {
                touch_all(file);
                opened++;
            } else {
                refused++;
            }
            model_file_free(file);
            assert_int_equal(pwrite(memory_file, &bytes.data[at], 1, (off_t)at), 1);
        }
    }
    assert_true(refused > 1000); /* lengths, types, keys */
    assert_true(opened > 1000);  /* letters of tokens, weights */
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_llama_shows_its_shape_its_tensors_and_its_vocabulary),
    cmocka_unit_test(a_qwen3_has_norms_on_its_heads_and_a_vocabulary_of_bytes),
    cmocka_unit_test(a_gemma3_has_its_window_its_two_bases_and_its_scores),
    cmocka_unit_test(tensors_of_every_type_are_found_with_sane_values),
    cmocka_unit_test(the_fingerprint_is_of_the_model_and_not_of_its_file),
    cmocka_unit_test(what_the_metadata_leaves_out_follows_from_the_rest),
    cmocka_unit_test(a_context_is_cut_to_a_window_that_every_layer_has),
    cmocka_unit_test(nonsense_metadata_is_refused_by_key),
    cmocka_unit_test(arrays_that_do_not_fit_the_tokens_are_refused),
    cmocka_unit_test(what_is_there_twice_is_refused),
    cmocka_unit_test(a_tensor_that_its_file_cannot_hold_is_refused_by_name),
    cmocka_unit_test(the_files_own_alignment_is_kept),
    cmocka_unit_test(rope_factors_make_it_llama3_scaling_and_must_fit),
    cmocka_unit_test(what_is_no_gguf_is_refused),
    cmocka_unit_test(counts_beyond_the_file_are_refused_before_memory_is_taken),
    cmocka_unit_test(a_huge_sparse_file_cannot_make_it_take_memory),
    cmocka_unit_test(who_needs_no_words_gets_their_number),
    cmocka_unit_test(a_file_cut_anywhere_is_refused),
    cmocka_unit_test(a_flipped_bit_is_refused_or_does_no_harm),
};

int main(void)
{
    return cmocka_run_group_tests(tests, open_memory_file, close_memory_file);
}
