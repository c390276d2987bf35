/*
 * Both models against an independent float32 implementation. Ours quantises activations to 8 bits,
 * so single logits differ by up to 1; what must hold is the same choice wherever it was clear, and
 * the same perplexity.
 */
#include "tests/support/expect.h"
#include "tests/support/float_copy.h"
#include "tests/support/ranks.h"
#include "tests/support/reference.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

struct subject {
    const char *name, *file_name;
    struct model_file *file;
    struct reference *reference;
};

static struct subject smollm2 = {"smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"};
static struct subject gemma3 = {"gemma3", "gemma-3-270m-q4_k_m.gguf"};

static char *weights_path(const struct subject *subject)
{
    return mem_printf("%s/%s", getenv("TANDEM_TEST_MODELS"), subject->file_name);
}

static int open_subject(void **state)
{
    struct subject *subject = *state;
    AUTO_MEM char *path = weights_path(subject);

    expect_ok(model_file_open(path, &subject->file));
    subject->reference = reference_new(subject->name);
    return 0;
}

static int close_subject(void **state)
{
    struct subject *subject = *state;

    model_file_free(give(subject->file));
    reference_free(give(subject->reference));
    return 0;
}

static int32_t arg_max(const float *x, int32_t n)
{
    int32_t best = 0;

    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* ---- greedy -----------------------------------------------------------------------------------
 */

/* The margin under which 8-bit activations may choose another token. */
#define CLEAR_MARGIN 1.0

struct greedy {
    const struct subject *subject;
    int32_t num_clear, num_wrong;
};

/* Step 2 i feeds the prompt of run i but its last token, step 2 i + 1 the rest: row j chooses. */
static void check_choices(void *user, int32_t step, const float *logits)
{
    struct greedy *greedy = user;
    const struct reference_run *run = &greedy->subject->reference->runs[step / 2];
    int32_t vocab_size = model_file_config(greedy->subject->file)->vocab_size;

    for (int32_t i = 0; i < run->all.num_ids - run->prompt_size; i++) {
        int32_t chosen = arg_max(logits + (int64_t)i * vocab_size, vocab_size);

        if (run->margins[i] < CLEAR_MARGIN)
            continue;
        greedy->num_clear++;
        if (chosen != run->all.ids[run->prompt_size + i]) {
            greedy->num_wrong++;
            print_message("# run %d token %d: %d, the reference has %d by a margin of %.2f\n",
                          step / 2, i, chosen, run->all.ids[run->prompt_size + i], run->margins[i]);
        }
    }
}

static void expect_clear_choices(const struct subject *subject, const char *isa, int32_t num_runs)
{
    struct reference_run *runs = subject->reference->runs;
    AUTO_MEM struct ranks_request *requests = mem_new_array(struct ranks_request, num_runs);
    AUTO_MEM struct ranks_step *steps = mem_new_array(struct ranks_step, 2 * num_runs);
    struct greedy greedy = {subject};

    for (int32_t i = 0; i < num_runs; i++) {
        int32_t last = runs[i].prompt_size - 1, end = runs[i].all.num_ids - 1;

        requests[i] = (struct ranks_request){runs[i].all.ids, runs[i].all.num_ids};
        steps[2 * i] = (struct ranks_step){1, {{i, 0, last, 0}}};
        steps[2 * i + 1] = (struct ranks_step){1, {{i, last, end, end - last}}};
    }
    expect_ok(ranks_play(&(struct ranks_script){
        .file = subject->file,
        .isa = isa,
        .world = 1,
        .requests = requests,
        .num_requests = num_runs,
        .steps = steps,
        .num_steps = 2 * num_runs,
        .on_logits = check_choices,
        .user = &greedy,
    }));
    assert_true(greedy.num_clear > 10);
    assert_int_equal(greedy.num_wrong, 0);
}

/* All instruction sets compute the same bits (tests/kernels), so one run does for all but the
 * best. */
static void every_clear_choice_is_the_references(void **state)
{
    const struct subject *subject = *state;
    const char *const *isas = device_isas();

    expect_clear_choices(subject, isas[0], subject->reference->num_runs);
    for (int i = 1; isas[i]; i++)
        expect_clear_choices(subject, isas[i], 1);
}

/* ---- perplexity -------------------------------------------------------------------------------
 */

enum { TEXT_CHUNK = 64 };

struct perplexity {
    const struct subject *subject;
    double nll, reference_nll;
    int32_t num_scored;
};

static double log_probability(const float *logits, int32_t n, int32_t id)
{
    double max = logits[arg_max(logits, n)], sum = 0;

    for (int32_t i = 0; i < n; i++)
        sum += expf(logits[i] - (float)max);
    return logits[id] - max - log(sum);
}

static void score(void *user, int32_t step, const float *logits)
{
    struct perplexity *p = user;
    const struct reference *reference = p->subject->reference;
    int32_t vocab_size = model_file_config(p->subject->file)->vocab_size;
    int32_t first = step * TEXT_CHUNK, end = MIN(first + TEXT_CHUNK, reference->text.num_ids - 1);

    for (int32_t i = first; i < end; i++, logits += vocab_size) {
        p->nll -= log_probability(logits, vocab_size, reference->text.ids[i + 1]);
        p->reference_nll -= reference->text_logprobs[i];
        p->num_scored++;
    }
}

static struct perplexity measure_perplexity(const struct subject *subject, enum kv_type kv_type)
{
    const struct reference_ids *text = &subject->reference->text;
    struct ranks_step steps[64] = {0};
    int32_t num_steps = 0;
    struct perplexity p = {subject};

    for (int32_t from = 0; from < text->num_ids - 1; from += TEXT_CHUNK) {
        int32_t to = MIN(from + TEXT_CHUNK, text->num_ids - 1);

        steps[num_steps++] = (struct ranks_step){1, {{0, from, to, to - from}}};
    }
    expect_ok(ranks_play(&(struct ranks_script){
        .file = subject->file,
        .kv_type = kv_type,
        .world = 1,
        .requests = &(struct ranks_request){text->ids, text->num_ids},
        .num_requests = 1,
        .steps = steps,
        .num_steps = num_steps,
        .on_logits = score,
        .user = &p,
    }));
    assert_int_equal(p.num_scored, text->num_ids - 1);
    return p;
}

/* With a KV cache of every type. */
static void perplexity_is_near_the_references(void **state)
{
    static const double bounds[NUM_KV_TYPES] = {
        [KV_BFLOAT16] = 0.01, [KV_FLOAT16] = 0.01, [KV_FP8] = 0.015, [KV_INT8] = 0.01};
    const struct subject *subject = *state;

    for (enum kv_type type = 0; type < NUM_KV_TYPES; type++) {
        struct perplexity p = measure_perplexity(subject, type);
        double ours = exp(p.nll / p.num_scored), reference = exp(p.reference_nll / p.num_scored);

        print_message("# %s, KV cache as %s: perplexity %.4f, reference %.4f, %+.2f %%\n", subject->name,
                      kv_type_name(type), ours, reference, 100 * (ours / reference - 1));
        assert_true(fabs(reference / subject->reference->text_perplexity - 1) < 1e-4);
        assert_true(fabs(ours / reference - 1) < bounds[type]);
    }
}

/* ---- activations ------------------------------------------------------------------------------
 */

struct stages {
    const struct subject *subject;
    double worst_norm, worst_value, worst_logit; /* relative, relative, absolute */
};

static void compare_stage(void *user, int32_t layer, const float *residual)
{
    struct stages *stages = user;
    int32_t n = model_file_config(stages->subject->file)->hidden_size;
    const json_t *stage = json_array_get(stages->subject->reference->stages, layer + 1);

    for (int32_t row = 0; row < stages->subject->reference->prompt.num_ids; row++) {
        const float *x = residual + (int64_t)row * n;
        const json_t *first = json_array_get(json_object_get(stage, "first"), row);
        double wanted = json_number_value(json_array_get(json_object_get(stage, "l2"), row));
        double squares = 0;

        for (int32_t i = 0; i < n; i++)
            squares += (double)x[i] * x[i];
        stages->worst_norm = fmax(stages->worst_norm, fabs(sqrt(squares) / wanted - 1));
        for (size_t i = 0; i < json_array_size(first); i++)
            stages->worst_value =
                fmax(stages->worst_value,
                     fabs(x[i] - json_number_value(json_array_get(first, i))) / wanted * sqrt(n));
    }
}

static void compare_logits(void *user, int32_t step, const float *logits)
{
    struct stages *stages = user;
    const json_t *top = stages->subject->reference->logits_top20;
    int32_t n = model_file_config(stages->subject->file)->vocab_size;
    size_t i;
    json_t *pair;

    (void)step;
    logits += (int64_t)(stages->subject->reference->prompt.num_ids - 1) * n;
    json_array_foreach(top, i, pair) stages->worst_logit =
        fmax(stages->worst_logit, fabs(logits[json_integer_value(json_array_get(pair, 0))] -
                                       json_number_value(json_array_get(pair, 1))));
}

static struct stages compare_stages(const struct subject *subject, const struct model_file *file,
                                    enum kv_type kv_type)
{
    const struct reference_ids *prompt = &subject->reference->prompt;
    struct stages stages = {subject};

    expect_ok(ranks_play(&(struct ranks_script){
        .file = file,
        .kv_type = kv_type,
        .world = 1,
        .requests = &(struct ranks_request){prompt->ids, prompt->num_ids},
        .num_requests = 1,
        .steps = &(struct ranks_step){1, {{0, 0, prompt->num_ids, prompt->num_ids}}},
        .num_steps = 1,
        .on_logits = compare_logits,
        .observer = compare_stage,
        .user = &stages,
    }));
    print_message("# %s: worst norm %.1e, value %.1e, logit %.1e\n", subject->name, stages.worst_norm,
                  stages.worst_value, stages.worst_logit);
    return stages;
}

static void every_layer_is_near_the_reference(void **state)
{
    const struct subject *subject = *state;
    struct stages stages = compare_stages(subject, subject->file, KV_BFLOAT16);

    assert_true(stages.worst_norm < 0.1);
    assert_true(stages.worst_value < 1);
    assert_true(stages.worst_logit < 1);
}

/* Proves the graph itself: float weights are multiplied by float activations. What is left is the
 * rounding of the KV cache, here to half, which rounds the least. */
static void a_float_copy_is_the_reference(void **state)
{
    const struct subject *subject = *state;
    AUTO_FREE(model_file) struct model_file *copy = NULL;
    AUTO_MEM char *path = weights_path(subject);
    char copy_path[] = "/tmp/tandem-test-XXXXXX.gguf";

    close(mkstemps(copy_path, 5));
    float_copy_write(path, subject->file, copy_path);
    expect_ok(model_file_open(copy_path, &copy));
    unlink(copy_path);

    struct stages stages = compare_stages(subject, copy, KV_FLOAT16);

    assert_true(stages.worst_norm < 1e-3);
    assert_true(stages.worst_value < 5e-3);
    assert_true(stages.worst_logit < 2e-2);
}

#define WITH(test, subject)                                                                        \
    cmocka_unit_test_prestate_setup_teardown(test, open_subject, close_subject, &(subject))

static const struct CMUnitTest tests[] = {
    WITH(every_layer_is_near_the_reference, smollm2),
    WITH(every_layer_is_near_the_reference, gemma3),
    WITH(a_float_copy_is_the_reference, smollm2),
    WITH(a_float_copy_is_the_reference, gemma3),
    WITH(every_clear_choice_is_the_references, smollm2),
    WITH(every_clear_choice_is_the_references, gemma3),
    WITH(perplexity_is_near_the_references, smollm2),
    WITH(perplexity_is_near_the_references, gemma3),
};

TEST_MAIN_WITH_MODELS(tests)
