#include "tests/support/expect.h"

#include "proto/model/hf_config.h"
#include "proto/model/model_file.h"

#include <dirent.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

/* ---- a folder -------------------------------------------------------------------------------- */

static void write_file(const char *name, const void *data, size_t size)
{
    AUTO_MEM char *path = mem_printf("%s/%s", folder, name);
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void write_text(const char *name, const char *text)
{
    write_file(name, text, strlen(text));
}

static void empty_folder(void)
{
    DIR *entries = opendir(folder);
    struct dirent *entry;

    assert_non_null(entries);
    while ((entry = readdir(entries))) {
        AUTO_MEM char *path = mem_printf("%s/%s", folder, entry->d_name);

        if (entry->d_name[0] != '.')
            assert_int_equal(unlink(path), 0);
    }
    closedir(entries);
}

/* All values of a tensor are its number in the list. */
static void write_tensors(const char *file, const char *const *names, int num_names, int first)
{
    AUTO_CLOSE(bytes) struct bytes header = {0}, out = {0};
    uint64_t length;

    bytes_printf(&header, "{");
    for (int i = 0; i < num_names; i++)
        bytes_printf(&header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[32],\"data_offsets\":[%d,%d]}", i ? "," : "",
                     names[i], i * 128, (i + 1) * 128);
    bytes_printf(&header, "}");
    length = header.size;
    bytes_append(&out, &length, sizeof length);
    bytes_append(&out, header.data, header.size);
    for (int i = 0; i < num_names * 32; i++)
        bytes_append(&out, &(float){(float)(first + i / 32)}, sizeof(float));
    write_file(file, out.data, out.size);
}

#define SHAPE                                                                                      \
    "\"hidden_size\":64,\"intermediate_size\":64,\"num_hidden_layers\":1,\"num_attention_heads\":2," \
    "\"num_key_value_heads\":1,\"head_dim\":32,\"vocab_size\":300,\"max_position_embeddings\":64"
#define LLAMA  "{\"architectures\":[\"LlamaForCausalLM\"]," SHAPE "}"
#define TIED   "{\"architectures\":[\"LlamaForCausalLM\"],\"tie_word_embeddings\":true," SHAPE "}"
#define GEMMA3                                                                                     \
    "{\"architectures\":[\"Gemma3ForCausalLM\"],\"sliding_window\":16,\"query_pre_attn_scalar\":32," SHAPE "}"
#define LLAMA3                                                                                     \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"tie_word_embeddings\":true,\"rope_scaling\":{"    \
    "\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"          \
    "\"original_max_position_embeddings\":64}," SHAPE "}"
#define TOKENIZER                                                                                  \
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}"

static void write_folder(const char *config)
{
    empty_folder();
    write_text("config.json", config);
    write_text("tokenizer.json", TOKENIZER);
}

static struct model_file *open_folder(void)
{
    struct model_file *file = NULL;

    expect_ok(model_file_open(folder, &file));
    return file;
}

static void expect_refusal(enum status status, const char *sentence)
{
    struct model_file *file = NULL;

    expect_fails(model_file_open(folder, &file), status, sentence);
    assert_memory_equal(fail_text(), folder, strlen(folder));
}

static void expect_first(const struct model_file *file, const char *name, float value)
{
    const struct tensor *tensor = model_file_tensor(file, name);
    float first;

    if (!tensor)
        fail_msg("%s is missing", name);
    memcpy(&first, tensor->data, sizeof first);
    if (first != value)
        fail_msg("%s is %g, not %g", name, (double)first, (double)value);
}

/* ---- names ------------------------------------------------------------------------------------- */

static const char *const of_llama[] = {
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.10.self_attn.q_proj.weight",
    "model.layers.0.self_attn.o_proj.bias",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.x.mlp.up_proj.weight",
};

static void tensors_have_the_names_of_gguf(void **state)
{
    (void)state;
    write_folder(LLAMA);
    write_tensors("model.safetensors", of_llama, COUNT_OF(of_llama), 0);

    AUTO_FREE(model_file) struct model_file *file = open_folder();
    const struct model_config *config = model_file_config(file);

    assert_string_equal(config->name, strrchr(folder, '/') + 1);
    assert_false(config->rope_is_adjacent);
    assert_int_equal(model_file_num_tensors(file), COUNT_OF(of_llama));
    expect_first(file, "token_embd.weight", 0);
    expect_first(file, "output_norm.weight", 1);
    expect_first(file, "output.weight", 2);
    expect_first(file, "blk.0.attn_norm.weight", 3);
    expect_first(file, "blk.0.ffn_norm.weight", 4);
    expect_first(file, "blk.10.attn_q.weight", 5);
    expect_first(file, "blk.0.attn_output.bias", 6);
    expect_first(file, "blk.0.ffn_down.weight", 7);
    expect_first(file, "model.layers.0.self_attn.rotary_emb.inv_freq", 8); /* unknown: as they are */
    expect_first(file, "model.layers.x.mlp.up_proj.weight", 9);
    assert_int_equal(model_file_vocabulary(file)->num_tokens, 300);
}

static void norms_of_gemma3_are_whole(void **state)
{
    static const char *const names[] = {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.pre_feedforward_layernorm.weight",
        "model.layers.0.post_feedforward_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
    };

    (void)state;
    write_folder(GEMMA3);
    write_tensors("model.safetensors", names, COUNT_OF(names), 0);

    AUTO_FREE(model_file) struct model_file *file = open_folder();

    expect_first(file, "token_embd.weight", 0);
    expect_first(file, "output_norm.weight", 1 + 1);
    expect_first(file, "blk.0.post_attention_norm.weight", 2 + 1);
    expect_first(file, "blk.0.ffn_norm.weight", 3 + 1);
    expect_first(file, "blk.0.post_ffw_norm.weight", 4 + 1);
    expect_first(file, "blk.0.attn_q_norm.weight", 5 + 1);
}

static void a_tied_model_has_no_output_matrix(void **state)
{
    (void)state;
    write_folder(TIED);
    write_tensors("model.safetensors", of_llama, 3, 0);

    AUTO_FREE(model_file) struct model_file *file = open_folder();

    assert_null(model_file_tensor(file, "output.weight"));
    write_folder(LLAMA);
    write_tensors("model.safetensors", of_llama, 2, 0);
    expect_refusal(ERR_CORRUPT, "lm_head.weight is missing, and tie_word_embeddings is false");
}

static void factors_of_llama3_are_a_tensor(void **state)
{
    json_auto_t *root = NULL;
    struct hf_config config;

    (void)state;
    expect_ok(hf_config_parse(LLAMA3, strlen(LLAMA3), &root));
    expect_ok(hf_config_read(root, &config));
    write_folder(LLAMA3);
    write_tensors("model.safetensors", of_llama, 2, 0);

    AUTO_FREE(model_file) struct model_file *file = open_folder();
    const struct tensor *factors = model_file_tensor(file, "rope_freqs.weight");

    assert_non_null(factors);
    assert_true(factors->type == TYPE_F32 && factors->num_rows == 1 && factors->num_columns == 16);
    for (int32_t i = 0; i < 16; i++)
        assert_true(((const float *)factors->data)[i] == hf_config_llama3_factor(&config, i));
}

/* ---- shards ------------------------------------------------------------------------------------ */

#define INDEX(map) "{\"metadata\":{\"total_size\":1},\"weight_map\":{" map "}}"

static void shards_are_one_model(void **state)
{
    AUTO_FREE(model_file) struct model_file *whole = NULL, *sharded = NULL;

    (void)state;
    write_folder(TIED);
    write_tensors("model.safetensors", of_llama, 2, 0);
    whole = open_folder();
    write_folder(TIED);
    /* The second shard has the first tensor too, and one that the index does not name. */
    write_tensors("a.safetensors", of_llama, 1, 0);
    write_tensors("b.safetensors", (const char *[]){of_llama[1], of_llama[0], "other"}, 3, 1);
    write_text("model.safetensors.index.json", INDEX("\"model.embed_tokens.weight\":\"a.safetensors\","
                                                     "\"model.norm.weight\":\"b.safetensors\""));
    sharded = open_folder();
    assert_int_equal(model_file_num_tensors(sharded), 2);
    expect_first(sharded, "token_embd.weight", 0);
    expect_first(sharded, "output_norm.weight", 1);
    assert_int_equal(model_file_fingerprint(sharded), model_file_fingerprint(whole));
    assert_true(model_file_bytes(sharded) > model_file_bytes(whole));
    model_file_drop_pages(sharded, 0, model_file_bytes(sharded));
    model_file_drop_pages(sharded, 100, model_file_bytes(sharded) + 100);
    expect_first(sharded, "output_norm.weight", 1);
}

static void an_index_names_files_of_its_folder(void **state)
{
    static const struct {
        const char *index;
        const char *sentence;
    } rows[] = {
        {"{}", "weight_map, the file of each tensor, is missing"},
        {"[1]", "weight_map, the file of each tensor, is missing"},
        {INDEX(""), "weight_map, the file of each tensor, is missing"},
        {INDEX("\"x\":\"../a.safetensors\""),
         "model.safetensors.index.json: x is \"../a.safetensors\"; the name of a file beside this one is needed"},
        {INDEX("\"x\":\"/etc/passwd\""), "the name of a file beside this one is needed"},
        {INDEX("\"x\":\"..\""), "the name of a file beside this one is needed"},
        {INDEX("\"x\":\"\""), "the name of a file beside this one is needed"},
        {INDEX("\"x\":7"), "the name of a file beside this one is needed"},
        {INDEX("\"x\":\"a.safetensors\",\"y\":\"a.safetensors\""),
         "model.safetensors.index.json: tensor 'y' is not in a.safetensors"},
    };

    (void)state;
    write_folder(TIED);
    write_tensors("a.safetensors", (const char *[]){"x"}, 1, 0);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        write_text("model.safetensors.index.json", rows[i].index);
        expect_refusal(ERR_CORRUPT, rows[i].sentence);
    }
    write_text("model.safetensors.index.json", INDEX("\"x\":\"b.safetensors\""));
    expect_refusal(ERR_NOT_FOUND, "b.safetensors: No such file");
}

/* ---- refusals ---------------------------------------------------------------------------------- */

static void a_sentence_names_the_file(void **state)
{
    struct model_file *file = NULL;

    (void)state;
    empty_folder();
    expect_refusal(ERR_NOT_FOUND, ": config.json: No such file");
    write_folder("{}");
    expect_refusal(ERR_CORRUPT, ": config.json: architectures is missing");
    write_folder(TIED);
    expect_refusal(ERR_NOT_FOUND, ": has no model.safetensors and no model.safetensors.index.json");
    write_text("model.safetensors", "PK");
    expect_refusal(ERR_CORRUPT, ": model.safetensors: is no file of safetensors");
    write_tensors("model.safetensors", (const char *[]){"model.norm.weight", "output_norm.weight"}, 2, 0);
    expect_refusal(ERR_CORRUPT, ": tensor 'output_norm.weight' is there twice");
    write_tensors("model.safetensors", of_llama, 2, 0);
    write_text("tokenizer.json", "{}");
    expect_refusal(ERR_CORRUPT, ": tokenizer.json: model.vocab, an object, is missing");
    write_text("tokenizer.json", TOKENIZER);
    write_text("tokenizer_config.json", "{\"add_bos_token\":1}");
    expect_refusal(ERR_CORRUPT, ": tokenizer_config.json: add_bos_token is 1");

    AUTO_MEM char *path = mem_printf("%s/model.safetensors", folder);

    expect_fails(model_file_open(path, &file), ERR_UNSUPPORTED,
                 "is a file of safetensors; a model is the folder around it");
}

static int count_opens(const char *told, ssize_t size, const char *name)
{
    int n = 0;

    for (ssize_t at = 0; at < size;) {
        const struct inotify_event *event = (const struct inotify_event *)(told + at);

        n += event->mask & IN_OPEN && event->len > 0 && strcmp(event->name, name) == 0;
        at += (ssize_t)(sizeof *event + event->len);
    }
    return n;
}

static void each_file_is_opened_once(void **state)
{
    static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.json"};
    char told[4096] __attribute__((aligned(8)));
    AUTO_FREE(model_file) struct model_file *file = NULL;
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    ssize_t size;

    (void)state;
    write_folder(TIED);
    write_tensors("model.safetensors", of_llama, 2, 0);
    /* With closes between them: two opens in a row would be told as one. */
    assert_true(inotify_add_watch(watch, folder, IN_OPEN | IN_CLOSE) >= 0);
    file = open_folder();
    size = read(watch, told, sizeof told);
    for (size_t i = 0; i < COUNT_OF(files); i++)
        assert_int_equal(count_opens(told, size, files[i]), 1);
    close(watch);
}

/* config.json says how many tokens there are: more than tokenizer.json has, where the embedding is padded. */
static void who_needs_no_words_reads_no_tokenizer(void **state)
{
    AUTO_FREE(model_file) struct model_file *file = NULL, *whole = NULL;
    AUTO_MEM char *tokenizer = mem_printf("%s/tokenizer.json", folder);

    (void)state;
    write_folder(TIED);
    write_tensors("model.safetensors", of_llama, 2, 0);
    expect_ok(model_file_open(folder, &whole));
    write_text("tokenizer.json", "{}");
    expect_refusal(ERR_CORRUPT, "model.vocab");
    assert_int_equal(unlink(tokenizer), 0);
    expect_ok(model_file_open_parts(folder, MODEL_WITHOUT_WORDS, &file));
    assert_int_equal(model_file_vocabulary(file)->num_tokens, 300);
    assert_int_equal(model_file_vocabulary(file)->num_tokens, model_file_vocabulary(whole)->num_tokens);
    assert_null(model_file_vocabulary(file)->tokens);
    assert_true(model_file_fingerprint(file) == model_file_fingerprint(whole));
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/tandem-test-folder-%d", (int)getpid());
    return mkdir(folder, 0700);
}

static int remove_folder(void **state)
{
    (void)state;
    empty_folder();
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_have_the_names_of_gguf),
        cmocka_unit_test(norms_of_gemma3_are_whole),
        cmocka_unit_test(a_tied_model_has_no_output_matrix),
        cmocka_unit_test(factors_of_llama3_are_a_tensor),
        cmocka_unit_test(shards_are_one_model),
        cmocka_unit_test(an_index_names_files_of_its_folder),
        cmocka_unit_test(a_sentence_names_the_file),
        cmocka_unit_test(who_needs_no_words_reads_no_tokenizer),
        cmocka_unit_test(each_file_is_opened_once),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
