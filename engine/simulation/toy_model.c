#include "engine/simulation/toy_model.h"

#include "engine/simulation/random.h"

uint64_t toy_model_kv(uint64_t context, int32_t token, int32_t position)
{
    return mix(context ^ (uint64_t)token << 32 ^ (uint64_t)position);
}

static bool is_stop_token(const struct sampling_params *params, int32_t token)
{
    for (int32_t i = 0; i < params->num_all_stop_token_ids; i++)
        if (params->all_stop_token_ids[i] == token)
            return true;
    return false;
}

static bool may_come(const struct toy_row *row, int32_t token)
{
    if (row->bitmask) /* which knows of min_tokens */
        return row->bitmask[token / 32] >> (token % 32) & 1;
    return row->num_output >= row->params->min_tokens || !is_stop_token(row->params, token);
}

int32_t toy_model_sample(const struct toy_row *row, int32_t vocab_size)
{
    uint64_t noise = mix((uint64_t)row->params->seed ^ (uint64_t)row->position << 40);
    int32_t first = (int32_t)(mix(row->context ^ noise) % (uint64_t)vocab_size);

    for (int32_t i = 0; i < vocab_size; i++)
        if (may_come(row, (first + i) % vocab_size))
            return (first + i) % vocab_size;
    return -1;
}

float toy_model_logprob(int32_t token, int32_t i)
{
    return -(float)(token * 32 + i) / 64;
}
