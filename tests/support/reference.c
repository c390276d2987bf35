#include "tests/support/reference.h"

static int32_t append_ids(struct reference_ids *ids, const json_t *array)
{
    size_t i;
    json_t *id;

    ids->ids = mem_resize(ids->ids, (ids->num_ids + json_array_size(array)) * sizeof(*ids->ids));
    json_array_foreach(array, i, id) ids->ids[ids->num_ids++] = (int32_t)json_integer_value(id);
    return ids->num_ids;
}

static double *numbers(const json_t *array)
{
    double *out = mem_new_array(double, json_array_size(array));
    size_t i;
    json_t *number;

    json_array_foreach(array, i, number) out[i] = json_number_value(number);
    return out;
}

static void read_run(struct reference_run *run, const json_t *row)
{
    const json_t *margins = json_object_get(row, "margins");

    run->prompt_size = append_ids(&run->all, json_object_get(row, "prompt"));
    append_ids(&run->all, json_object_get(row, "generated"));
    run->margins = numbers(margins);
}

struct reference *reference_new(const char *name)
{
    struct reference *reference = mem_new(struct reference);
    AUTO_MEM char *path =
        mem_printf("%s/model/%s_reference.json", getenv("TANDEM_TEST_DATA"), name);
    json_error_t error;
    size_t i;
    json_t *row;

    reference->root = json_load_file(path, 0, &error);
    ASSERT(reference->root, "%s: %s", path, error.text);

    const json_t *runs = json_object_get(reference->root, "greedy");
    const json_t *text = json_object_get(reference->root, "text");
    const json_t *activations = json_object_get(reference->root, "activations");

    reference->num_runs = (int32_t)json_array_size(runs);
    reference->runs = mem_new_array(struct reference_run, reference->num_runs);
    json_array_foreach(runs, i, row) read_run(&reference->runs[i], row);
    append_ids(&reference->text, json_object_get(text, "ids"));
    reference->text_logprobs = numbers(json_object_get(text, "logprobs"));
    reference->text_perplexity = json_number_value(json_object_get(text, "perplexity"));
    append_ids(&reference->prompt, json_object_get(activations, "ids"));
    reference->stages = json_object_get(activations, "stages");
    reference->logits_top20 = json_object_get(activations, "logits_top20");
    return reference;
}

void reference_free(struct reference *reference)
{
    if (!reference)
        return;
    for (int32_t i = 0; i < reference->num_runs; i++) {
        mem_free(reference->runs[i].all.ids);
        mem_free(reference->runs[i].margins);
    }
    mem_free(reference->runs);
    mem_free(reference->text.ids);
    mem_free(reference->text_logprobs);
    mem_free(reference->prompt.ids);
    json_decref(reference->root);
    mem_free(reference);
}
