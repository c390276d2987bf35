#include "engine/simulation/oracle.h"

#include "engine/simulation/toy_model.h"

#include <string.h>

/* The model, reading one sequence. */
struct reader {
    uint64_t context;
    int32_t position;
};

static void read_token(struct reader *reader, token_id token)
{
    uint64_t kv = toy_model_kv(reader->context, token, reader->position);

    reader->context += toy_model_read(kv, reader->position);
    reader->position++;
}

/* What the engine is to make of the parameters: the ids that end the output. */
static struct sampling_params settle(struct scenario *scenario, const struct client *client)
{
    struct sampling_params params = client->params;
    token_id *all =
        arena_alloc(&scenario->arena, sizeof *all * (size_t)(params.num_stop_token_ids + 1));
    int32_t n = 0;

    if (!params.ignore_eos)
        all[n++] = client->eos;
    for (int32_t i = 0; i < params.num_stop_token_ids; i++)
        all[n++] = params.stop_token_ids[i];
    params.all_stop_token_ids = all;
    params.num_all_stop_token_ids = n;
    return params;
}

static bool stops(const struct sampling_params *params, token_id token)
{
    for (int32_t i = 0; i < params->num_all_stop_token_ids; i++)
        if (params->all_stop_token_ids[i] == token)
            return true;
    return false;
}

/* No stop token before min_tokens, unless the grammar is at its end and allows nothing else. */
static void forbid_stops(const struct sampling_params *params, uint32_t *bitmask,
                         int32_t vocab_size)
{
    bool has_others = false;

    for (token_id token = 0; token < vocab_size; token++)
        has_others |= bitmask[token / 32] >> (token % 32) & 1 && !stops(params, token);
    for (int32_t i = 0; has_others && i < params->num_all_stop_token_ids; i++)
        bitmask[params->all_stop_token_ids[i] / 32] &=
            ~((uint32_t)1 << (params->all_stop_token_ids[i] % 32));
}

void oracle_answer(struct scenario *scenario, struct client *client)
{
    struct toy_grammar_options language = client->language;

    language.late_percent = 0; /* which changes no token */
    AUTO_FREE(grammar)
    struct grammar *grammar = client->has_grammar ? toy_grammar_new(&language) : NULL;
    struct sampling_params params = settle(scenario, client);
    int32_t room = scenario->max_model_len - client->num_prompt;
    int32_t max_tokens = params.max_tokens < 1 ? room : MIN(params.max_tokens, room);
    int32_t num_words = grammar_num_words(scenario->vocab_size);
    uint32_t *bitmask = arena_alloc(&scenario->arena, sizeof *bitmask * (size_t)num_words);
    token_id *tokens = arena_alloc(&scenario->arena, sizeof *tokens * (size_t)max_tokens);
    struct reader reader = {0};

    for (int32_t i = 0; i < client->num_prompt; i++)
        read_token(&reader, client->prompt[i]);
    client->tokens = tokens;
    client->stop_token = -1;
    client->finish = FINISH_LENGTH;
    while (client->num_tokens < max_tokens) {
        if (grammar && grammar_fill_bitmask(grammar, bitmask, num_words) != OK)
            ASSERT(false, "%s", fail_text());
        if (grammar && client->num_tokens < params.min_tokens)
            forbid_stops(&params, bitmask, scenario->vocab_size);

        token_id token = toy_model_sample(&(struct toy_row){.context = reader.context,
                                                            .position = reader.position,
                                                            .num_output = client->num_tokens,
                                                            .params = &params,
                                                            .bitmask = grammar ? bitmask : NULL},
                                          scenario->vocab_size);

        if (token < 0) {
            client->finish = FINISH_ERROR;
            return;
        }
        tokens[client->num_tokens++] = token;
        if (grammar)
            ASSERT(grammar_accept(grammar, token));
        if (stops(&params, token) || (grammar && grammar_is_terminated(grammar))) {
            client->finish = FINISH_STOP;
            client->stop_token = token;
            return;
        }
        read_token(&reader, token);
    }
}
