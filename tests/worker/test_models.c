/*
 * One answer: the logits of a request have the same bits for every world size, thread count, chunk
 * size, company and instruction set. Tiny random models; real ones are in
 * test_model_reference.c.
 */
#include "tests/support/expect.h"

#include "proto/base/rounding.h"
#include "proto/model/dummy.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_model.h"
#include "tests/support/under_tsan.h"

#include <stdio.h>
#include <unistd.h>

/* ---- models -----------------------------------------------------------------------------------
 */

static struct model_file *open_bytes(const struct bytes *bytes)
{
    char path[] = "/tmp/tandem-test-XXXXXX.gguf";
    struct model_file *file = NULL;

    close(mkstemps(path, 5));
    gguf_save(bytes, path);
    expect_ok(model_file_open(path, &file));
    unlink(path);
    return file;
}

static struct model_file *open_tiny(const struct tiny_model_options *options)
{
    AUTO_CLOSE(bytes) struct bytes bytes = {0};

    tiny_model_build(options, &bytes);
    return open_bytes(&bytes);
}

/* Heads, groups and vocabulary that no world divides evenly; KV heads that ranks share. */
static const struct tiny_model_options models[] = {
    {
        .architecture = "llama",
        .num_heads = 6,
        .num_kv_heads = 3,
        .untied = true,
    },
    {
        .architecture = "llama",
        .num_heads = 9,
        .num_kv_heads = 3,
        .intermediate_size = 352,
        .embedding_type = TYPE_Q8_0,
        .attention_type = TYPE_Q4_1,
        .ffn_type = TYPE_Q4_1,
    },
    {
        .architecture = "qwen3",
        .num_heads = 6,
        .num_kv_heads = 2,
        .untied = true,
        .embedding_type = TYPE_BF16,
        .attention_type = TYPE_BF16,
        .ffn_type = TYPE_Q8_0,
    },
    {
        .architecture = "qwen3",
        .num_heads = 5,
        .num_kv_heads = 1,
        .head_dim = 64,
    },
    {
        .architecture = "qwen2",
        .num_heads = 6,
        .num_kv_heads = 3,
        .embedding_type = TYPE_F16,
        .attention_type = TYPE_F16,
        .ffn_type = TYPE_BF16,
    },
    {
        .architecture = "gemma3",
        .num_heads = 5,
        .num_kv_heads = 1,
        .embedding_type = TYPE_Q8_0,
        .attention_type = TYPE_Q5_0,
        .ffn_type = TYPE_F16,
    },
    {
        .architecture = "gemma3",
        .hidden_size = 256,
        .num_heads = 8,
        .num_kv_heads = 2,
        .intermediate_size = 512,
        .embedding_type = TYPE_Q4_0,
        .attention_type = TYPE_Q6_K,
        .ffn_type = TYPE_Q4_K,
    },
};

/* ---- one answer -------------------------------------------------------------------------------
 */

enum { NUM_IDS = 90, NUM_COMPANIONS = 4 };

struct variant {
    int32_t world, num_threads;
    int32_t chunk;      /* tokens of the request in one step */
    int32_t companions; /* other requests in every step */
    bool are_apart;     /* ranks, as on hosts of their own */
    int32_t num_logits; /* of each chunk, the last; 0: all */
};

static const struct variant alone = {1, 1, NUM_IDS, 0}; /* the specification so: what all are compared with */
static const struct variant variants[] = {
    {1, 1, NUM_IDS, 0}, {2, 1, NUM_IDS, 0},
    {3, 1, NUM_IDS, 0}, {4, 1, NUM_IDS, 0},
    {5, 1, NUM_IDS, 0}, {1, 2, NUM_IDS, 0},
    {1, 1, 1, 0},
    {1, 1, 7, 0},       {1, 1, 16, 0},
    {1, 1, 64, 0},      {1, 1, NUM_IDS, 4},
    {1, 2, 7, 3},       {2, 1, 7, 4},
    {5, 1, 16, 2},      {3, 2, 64, NUM_COMPANIONS},
    {2, 1, 16, 4, true}, {3, 1, NUM_IDS, 0, true},
    {1, 2, NUM_IDS, 0, false, 1}, {1, 1, 64, 4, false, 19},
    {2, 1, 64, 4, false, 1}, {3, 1, NUM_IDS, 2, false, 40},
    {2, 1, 30, 0, true, 1}, {5, 1, 16, 3, false, 9},
};

struct answer {
    int32_t vocab_size;
    float *logits; /* [NUM_IDS, vocab_size] */
    bool is_known[NUM_IDS];
};

struct play {
    struct answer *answer;
    const struct ranks_step *steps;
};

static void keep_logits(void *user, int32_t step, const float *logits)
{
    struct play *play = user;
    struct answer *answer = play->answer;

    for (int32_t i = 0; i < play->steps[step].num_chunks; i++) {
        const struct ranks_chunk *chunk = &play->steps[step].chunks[i];

        for (int32_t p = chunk->to - chunk->num_logits; p < chunk->to; p++, logits += answer->vocab_size) {
            memcpy(answer->logits + (int64_t)p * answer->vocab_size, logits,
                   (size_t)answer->vocab_size * sizeof(float));
            answer->is_known[p] = true;
        }
    }
}

/* Of the request that is watched. */
static struct ranks_chunk watched_chunk(int32_t at, const struct variant *variant)
{
    int32_t from = at * variant->chunk, to = MIN(from + variant->chunk, (int32_t)NUM_IDS);

    return (struct ranks_chunk){0, from, to, variant->num_logits ? MIN(variant->num_logits, to - from) : to - from};
}

/* Request 0 is the one that is watched, in the middle of its companions. A companion brings its own
 * number of rows to each step, until it is out of tokens. */
static void plan_step(struct ranks_step *step, int32_t at, const struct variant *variant)
{
    for (int32_t i = 0; i <= variant->companions; i++) {
        int32_t request = i == variant->companions / 2  ? 0
                          : i < variant->companions / 2 ? i + 1
                                                        : i;
        int32_t each = 1 + 3 * (request - 1), first = at * each;
        struct ranks_chunk other = {request, first, first + each, 0};

        if (request == 0)
            step->chunks[step->num_chunks++] = watched_chunk(at, variant);
        else if (other.to <= NUM_IDS)
            step->chunks[step->num_chunks++] = other;
    }
}

static void fill_ids(int32_t *ids, int32_t seed, int32_t vocab_size)
{
    for (int32_t i = 0; i < NUM_IDS; i++)
        ids[i] = (seed * 131 + i * 37 + i * i) % vocab_size;
}

static struct answer answer_of(const struct model_file *file, const char *isa,
                               const struct variant *variant)
{
    int32_t vocab_size = model_file_config(file)->vocab_size;
    int32_t num_steps = divide_up(NUM_IDS, variant->chunk);
    AUTO_MEM struct ranks_step *steps = mem_new_array(struct ranks_step, num_steps);
    int32_t ids[1 + NUM_COMPANIONS][NUM_IDS];
    struct ranks_request requests[1 + NUM_COMPANIONS];
    struct answer answer = {vocab_size, mem_new_array(float, NUM_IDS *vocab_size), {false}};

    for (int32_t i = 0; i <= NUM_COMPANIONS; i++) {
        fill_ids(ids[i], i, vocab_size);
        requests[i] = (struct ranks_request){ids[i], NUM_IDS};
    }
    for (int32_t i = 0; i < num_steps; i++)
        plan_step(&steps[i], i, variant);
    expect_ok(ranks_play(&(struct ranks_script){
        .file = file,
        .isa = isa,
        .world = variant->world,
        .are_apart = variant->are_apart,
        .num_threads = variant->num_threads,
        .requests = requests,
        .num_requests = 1 + variant->companions,
        .steps = steps,
        .num_steps = num_steps,
        .on_logits = keep_logits,
        .user = &(struct play){&answer, steps},
    }));
    for (int32_t p = 0; p < NUM_IDS; p++) {
        struct ranks_chunk chunk = watched_chunk(p / variant->chunk, variant);

        assert_int_equal(answer.is_known[p], p >= chunk.to - chunk.num_logits);
    }
    return answer;
}

static void expect_same_bits(const struct answer *answer, const struct answer *wanted,
                             const struct variant *variant, const char *isa)
{
    for (int64_t i = 0; i < (int64_t)NUM_IDS * wanted->vocab_size; i++)
        if (answer->is_known[i / wanted->vocab_size] &&
            memcmp(&answer->logits[i], &wanted->logits[i], sizeof(float)) != 0)
            fail_msg("%s, world %d%s, threads %d, chunks of %d, %d companions, %d logits: position %d token %d "
                     "has %a instead of %a",
                     isa, variant->world, variant->are_apart ? " apart" : "", variant->num_threads,
                     variant->chunk, variant->companions, variant->num_logits,
                     (int)(i / wanted->vocab_size), (int)(i % wanted->vocab_size),
                     answer->logits[i], wanted->logits[i]);
}

/* Logits that are all alike, or not numbers, would be equal too easily. */
static void expect_sensible(const struct answer *answer)
{
    const float *last = answer->logits + (int64_t)(NUM_IDS - 1) * answer->vocab_size;
    float least = last[0], most = last[0];

    for (int32_t i = 0; i < answer->vocab_size; i++) {
        least = MIN(least, last[i]);
        most = MAX(most, last[i]);
    }
    assert_true(most - least > 0.1f && most - least < 1000);
}

/* The specification, which is slow, in chunks of 16 alone. */
static void a_request_has_one_answer(void **state)
{
    const struct tiny_model_options *options = *state;
    AUTO_FREE(model_file) struct model_file *file = open_tiny(options);
    struct answer wanted = answer_of(file, "ref", &alone);

    expect_sensible(&wanted);
    for (const char *const *isa = device_isas(); *isa && isa - device_isas() < MOST_ISAS; isa++)
        for (size_t i = 0; i < COUNT_OF(variants); i++) {
            if (variants[i].world * variants[i].num_threads < FEWEST_THREADS ||
                (strcmp(*isa, "ref") == 0 && variants[i].chunk != 16))
                continue;

            struct answer answer = answer_of(file, *isa, &variants[i]);

            expect_same_bits(&answer, &wanted, &variants[i], *isa);
            mem_free(answer.logits);
        }
    mem_free(wanted.logits);
}

/* ---- without weights --------------------------------------------------------------------------
 */

/* The tensors that proto/model/shape.c gives to an architecture are those that it reads. */
static void a_dummy_of_every_architecture_gives_sensible_answers(void **state)
{
    static const char *const architectures[] = {
        "\"LlamaForCausalLM\"],\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
        "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}",
        "\"Qwen2ForCausalLM\"]",
        "\"Qwen3ForCausalLM\"]",
        "\"Gemma3ForCausalLM\"],\"sliding_window\":16,\"query_pre_attn_scalar\":64",
    };
    char path[] = "/tmp/tandem-test-XXXXXX.json";

    (void)state;
    close(mkstemps(path, 5));
    for (size_t i = 0; i < COUNT_OF(architectures); i++) {
        AUTO_FREE(model_file) struct model_file *file = NULL;
        FILE *f = fopen(path, "w");

        assert_non_null(f);
        fprintf(f, "{\"architectures\":[%s,\"hidden_size\":256,\"intermediate_size\":512,"
                   "\"num_hidden_layers\":7,\"num_attention_heads\":4,\"head_dim\":64,\"vocab_size\":1000,"
                   "\"max_position_embeddings\":512}", architectures[i]);
        assert_int_equal(fclose(f), 0);
        expect_ok(dummy_open(path, &(struct dummy_options){TYPE_Q4_K, 0}, MODEL_WHOLE, &file));

        struct answer answer = answer_of(file, device_isas()[0], &alone);

        expect_sensible(&answer);
        mem_free(answer.logits);
    }
    unlink(path);
}

/* ---- what is refused --------------------------------------------------------------------------
 */

/* The one occurrence of `from` in the tiny model's file becomes `to`; both are `size` bytes. */
static struct model_file *open_changed(const char *from, const char *to, size_t size)
{
    AUTO_CLOSE(bytes) struct bytes bytes = {0};

    tiny_model_build(&models[0], &bytes);

    uint8_t *at = memmem(bytes.data, bytes.size, from, size);

    assert_non_null(at);
    memcpy(at, to, size);
    return open_bytes(&bytes);
}

static struct model_file *open_renamed(const char *from, const char *to)
{
    assert_int_equal(strlen(from), strlen(to));
    return open_changed(from, to, strlen(from));
}

static enum status load(const struct model_file *file, int32_t world)
{
    struct device *dev = NULL;
    AUTO_FREE(model) struct model *model = NULL;

    expect_ok(device_open(&(struct device_options){"cpu", NULL, 1}, &dev));

    enum status status = model_load(dev, file,
                                    &(struct model_options){
                                        .world = world,
                                        .max_batched_tokens = 8,
                                        .max_logit_rows = 1,
                                        .max_position = 64,
                                    },
                                    &model);

    model_free(give(model));
    device_close(dev);
    return status;
}

static void a_missing_tensor_is_named(void **state)
{
    AUTO_FREE(model_file)
    struct model_file *file = open_renamed("blk.1.ffn_up.weight", "blk.1.ffn_uq.weight");

    (void)state;
    expect_fails(load(file, 1), ERR_CORRUPT, "tensor blk.1.ffn_up.weight (256 x 64) is missing");
}

static void a_misshaped_tensor_is_named_with_both_shapes(void **state)
{
    /* A 32-bit number (type 4), 256, becomes 224. */
    static const char from[] = "llama.feed_forward_length\x04\0\0\0\0\x01\0\0";
    static const char to[] = "llama.feed_forward_length\x04\0\0\0\xe0\0\0\0";
    AUTO_FREE(model_file)
    struct model_file *file = open_changed(from, to, sizeof(from) - 1);

    (void)state;
    expect_fails(
        load(file, 1), ERR_CORRUPT,
        "tensor blk.0.ffn_gate.weight is 256 x 64 where the model's shape asks for 224 x 64");
}

static void an_unknown_tensor_is_ignored_but_not_a_bias(void **state)
{
    /* With the name's length, since "attn_output.weight" ends in the same words. */
    static const char from[] = "\x0d\0\0\0\0\0\0\0output.weight";
    AUTO_FREE(model_file)
    struct model_file *unknown =
        open_changed(from, "\x0d\0\0\0\0\0\0\0unused.weight", sizeof(from) - 1);
    AUTO_FREE(model_file)
    struct model_file *bias =
        open_changed(from, "\x0d\0\0\0\0\0\0\0outputsX.bias", sizeof(from) - 1);

    (void)state;
    expect_ok(load(unknown, 1));
    expect_fails(load(bias, 1), ERR_UNSUPPORTED, "tensor outputsX.bias");
}

static void more_ranks_than_the_model_has_are_refused(void **state)
{
    AUTO_FREE(model_file) struct model_file *file = open_tiny(&models[0]);

    (void)state;
    expect_fails(load(file, 7), ERR_INVALID, "at most 6 ranks");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_prestate(a_request_has_one_answer, (void *)&models[0]),
    cmocka_unit_test_prestate(a_request_has_one_answer, (void *)&models[1]),
    cmocka_unit_test_prestate(a_request_has_one_answer, (void *)&models[2]),
    cmocka_unit_test_prestate(a_request_has_one_answer, (void *)&models[3]),
    cmocka_unit_test_prestate(a_request_has_one_answer, (void *)&models[4]),
    cmocka_unit_test_prestate(a_request_has_one_answer, (void *)&models[5]),
    cmocka_unit_test_prestate(a_request_has_one_answer, (void *)&models[6]),
    cmocka_unit_test(a_dummy_of_every_architecture_gives_sensible_answers),
    cmocka_unit_test(a_missing_tensor_is_named),
    cmocka_unit_test(a_misshaped_tensor_is_named_with_both_shapes),
    cmocka_unit_test(an_unknown_tensor_is_ignored_but_not_a_bias),
    cmocka_unit_test(more_ranks_than_the_model_has_are_refused),
};

TEST_MAIN(tests)
