#include "worker/logit_edits.h"

#include "worker/wide.h"

#include <math.h>
#include <string.h>

struct logit_edits {
    int32_t first_token, num_tokens;
    float *edited;   /* [num_tokens] */
    int32_t *counts; /* [num_tokens] zero between calls: occurrences in the output */
    uint8_t *seen;   /* [num_tokens] zero between calls: occurs in prompt or output */
};

struct logit_edits *logit_edits_new(int32_t first_token, int32_t num_tokens)
{
    struct logit_edits *edits = mem_new(struct logit_edits);
    size_t n = (size_t)num_tokens;

    edits->first_token = first_token;
    edits->num_tokens = num_tokens;
    edits->edited = mem_new_array(float, n);
    edits->counts = mem_new_array(int32_t, n);
    edits->seen = mem_new_array(uint8_t, n);
    return edits;
}

void logit_edits_free(struct logit_edits *edits)
{
    if (!edits)
        return;
    mem_free(edits->edited);
    mem_free(edits->counts);
    mem_free(edits->seen);
    mem_free(edits);
}

/* Where the token is in this slice; -1: in another's. */
static int32_t place_of(const struct logit_edits *edits, int32_t token)
{
    int32_t at = token - edits->first_token;

    return at >= 0 && at < edits->num_tokens ? at : -1;
}

static void forbid(struct logit_edits *edits, int32_t token)
{
    int32_t at = place_of(edits, token);

    if (at >= 0)
        edits->edited[at] = -INFINITY;
}

/* x: [32] */
WIDE static void mask_word(float *x, uint32_t word)
{
    for (int bit = 0; bit < 32; bit++)
        x[bit] = word >> bit & 1 ? x[bit] : -INFINITY;
}

static void apply_bitmask(struct logit_edits *edits, const uint32_t *bitmask)
{
    int32_t first = edits->first_token / 32 * 32, end = edits->first_token + edits->num_tokens;

    for (int32_t word = 0; first + word * 32 < end; word++) {
        int32_t token = first + word * 32;

        if (token >= edits->first_token && token + 32 <= end)
            mask_word(edits->edited + (token - edits->first_token), bitmask[word]);
        else
            for (int32_t bit = 0; bit < 32; bit++)
                if (!(bitmask[word] >> bit & 1))
                    forbid(edits, token + bit);
    }
}

static void apply_allowed(struct logit_edits *edits, const struct sampling_params *params)
{
    for (int32_t i = 0; i < params->num_allowed_token_ids; i++) {
        int32_t at = place_of(edits, params->allowed_token_ids[i]);

        if (at >= 0)
            edits->seen[at] = 1;
    }
    for (int32_t i = 0; i < edits->num_tokens; i++) {
        edits->edited[i] = edits->seen[i] ? edits->edited[i] : -INFINITY;
        edits->seen[i] = 0;
    }
}

/* A word's last token, when those before it are what was generated last. */
static void apply_bad_words(struct logit_edits *edits, const struct sampler_row *row)
{
    const int32_t *word = row->params->bad_words_token_ids;

    for (int32_t i = 0; i < row->params->num_bad_words_counts; i++) {
        int32_t n = row->params->bad_words_counts[i], before = n - 1;

        if (before <= row->num_output && memcmp(word, row->output + row->num_output - before,
                                                sizeof *word * (size_t)before) == 0)
            forbid(edits, word[before]);
        word += n;
    }
}

static bool forbids_stops(const struct sampler_row *row)
{
    return !row->bitmask && row->num_output < row->params->min_tokens;
}

static void apply_bias(struct logit_edits *edits, const struct sampling_params *params)
{
    for (int32_t i = 0; i < params->num_logit_bias; i++) {
        int32_t at = place_of(edits, params->logit_bias_ids[i]);

        if (at >= 0)
            edits->edited[at] += params->logit_bias_values[i];
    }
}

static bool has_penalties(const struct sampling_params *params)
{
    return params->repetition_penalty != 1 || params->frequency_penalty != 0 ||
           params->presence_penalty != 0;
}

static void count(struct logit_edits *edits, const int32_t *tokens, int32_t n, int32_t each)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t at = place_of(edits, tokens[i]);

        if (at < 0)
            continue;
        edits->seen[at] = 1;
        edits->counts[at] += each;
    }
}

/* Once for each token, however often it comes. */
static void penalise(struct logit_edits *edits, const int32_t *tokens, int32_t n,
                     const struct sampling_params *params)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t at = place_of(edits, tokens[i]);

        if (at < 0 || !edits->seen[at])
            continue;
        float *logit = &edits->edited[at];

        *logit =
            *logit > 0 ? *logit / params->repetition_penalty : *logit * params->repetition_penalty;
        *logit -= params->frequency_penalty * (float)edits->counts[at];
        if (edits->counts[at] > 0)
            *logit -= params->presence_penalty;
        edits->seen[at] = 0;
        edits->counts[at] = 0;
    }
}

static void apply_penalties(struct logit_edits *edits, const struct sampler_row *row)
{
    count(edits, row->prompt, row->num_prompt, 0);
    count(edits, row->output, row->num_output, 1);
    penalise(edits, row->prompt, row->num_prompt, row->params);
    penalise(edits, row->output, row->num_output, row->params);
}

bool logit_edits_are_more_than_a_mask(const struct sampler_row *row)
{
    const struct sampling_params *params = row->params;

    return params->num_allowed_token_ids > 0 || params->num_bad_words_counts > 0 || forbids_stops(row) ||
           params->num_logit_bias > 0 || has_penalties(params);
}

const float *logit_edits_apply(struct logit_edits *edits, const float *logits,
                               const struct sampler_row *row)
{
    const struct sampling_params *params = row->params;

    if (!row->bitmask && !logit_edits_are_more_than_a_mask(row))
        return logits;
    memcpy(edits->edited, logits, sizeof *logits * (size_t)edits->num_tokens);
    if (row->bitmask)
        apply_bitmask(edits, row->bitmask);
    if (params->num_allowed_token_ids > 0)
        apply_allowed(edits, params);
    apply_bad_words(edits, row);
    if (forbids_stops(row))
        for (int32_t i = 0; i < params->num_all_stop_token_ids; i++)
            forbid(edits, params->all_stop_token_ids[i]);
    apply_bias(edits, params);
    if (has_penalties(params))
        apply_penalties(edits, row);
    return edits->edited;
}
