#include "engine/grammar/token_set.h"

#include "engine/grammar/grammar.h"

static void set_bit(uint32_t *words, token_id token, bool value)
{
    uint32_t bit = 1u << (token % 32);

    words[token / 32] = value ? words[token / 32] | bit : words[token / 32] & ~bit;
}

static bool has_bit(const struct token_set *set, const uint32_t *words, token_id token)
{
    return token >= 0 && token < set->num_tokens && (words[token / 32] >> (token % 32) & 1);
}

enum status token_set_init(const struct grammar_vocabulary *vocabulary, struct token_set *out)
{
    if (vocabulary->num_tokens < 1 || vocabulary->num_stop_tokens < 1)
        return fail(ERR_INVALID,
                    "grammars need a token and one that stops; the vocabulary has %d and %d",
                    vocabulary->num_tokens, vocabulary->num_stop_tokens);
    for (int32_t i = 0; i < vocabulary->num_stop_tokens; i++)
        if (vocabulary->stop_tokens[i] < 0 || vocabulary->stop_tokens[i] >= vocabulary->num_tokens)
            return fail(ERR_INVALID, "stop token %d is outside of the vocabulary of %d tokens",
                        vocabulary->stop_tokens[i], vocabulary->num_tokens);

    *out = (struct token_set){.num_tokens = vocabulary->num_tokens,
                              .num_words = grammar_num_words(vocabulary->num_tokens)};
    out->text = mem_new_array(uint32_t, (size_t)out->num_words);
    out->stop = mem_new_array(uint32_t, (size_t)out->num_words);
    for (token_id t = 0; t < vocabulary->num_tokens; t++)
        set_bit(out->text, t, !vocabulary->tokens[t].is_control && vocabulary->tokens[t].size > 0);
    for (int32_t i = 0; i < vocabulary->num_stop_tokens; i++) {
        set_bit(out->text, vocabulary->stop_tokens[i], false);
        set_bit(out->stop, vocabulary->stop_tokens[i], true);
    }
    return OK;
}

void token_set_close(struct token_set *set)
{
    mem_free(set->text);
    mem_free(set->stop);
    *set = (struct token_set){0};
}

bool token_set_is_text(const struct token_set *set, token_id token)
{
    return has_bit(set, set->text, token);
}

bool token_set_is_stop(const struct token_set *set, token_id token)
{
    return has_bit(set, set->stop, token);
}

void token_set_apply(const struct token_set *set, uint32_t *words, bool is_complete)
{
    for (int32_t i = 0; i < set->num_words; i++)
        words[i] = (words[i] & set->text[i]) | (is_complete ? set->stop[i] : 0);
}
