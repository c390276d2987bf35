#include "engine/front/bad_words.h"

#include <string.h>

/* The lists while they grow. */
struct lists {
    const struct tokenizer *tokenizer;
    struct token_list ids; /* one list behind the other */
    int32_t counts[MAX_BAD_WORDS + 2]; /* a word adds two at most, and then they are counted */
    int32_t num_lists;
};

/* Appends the tokens of `text` as one more list. */
static enum status add_list(struct lists *lists, const char *text)
{
    int32_t before = lists->ids.count;

    TRY(tokenizer_encode(lists->tokenizer, text, strlen(text), true, false, &lists->ids));
    lists->counts[lists->num_lists++] = lists->ids.count - before;
    return OK;
}

/* Does the last list say something else than the one before it? */
static bool last_list_differs(const struct lists *lists)
{
    int32_t last = lists->counts[lists->num_lists - 1];
    int32_t before = lists->counts[lists->num_lists - 2];
    const token_id *end = lists->ids.ids + lists->ids.count;

    return last == before && end[-last] != end[-last - before];
}

static void drop_last_list(struct lists *lists)
{
    lists->ids.count -= lists->counts[--lists->num_lists];
}

static enum status add_word(struct lists *lists, const char *word)
{
    const char *bare = word + strspn(word, " \t\n\v\f\r");
    AUTO_MEM char *spaced = mem_printf(" %s", bare);

    if (!*bare)
        return fail(ERR_INVALID, "bad_words cannot contain a text of nothing but space.");
    TRY(add_list(lists, bare));
    if (lists->counts[lists->num_lists - 1] == 0) { /* no token of the vocabulary makes this text */
        drop_last_list(lists);
        return OK;
    }
    TRY(add_list(lists, spaced));
    if (!last_list_differs(lists))
        drop_last_list(lists);
    if (lists->num_lists > MAX_BAD_WORDS || lists->ids.count > MAX_BAD_WORDS_TOKENS)
        return fail(ERR_INVALID, "bad_words become %d lists of %d tokens; %d of %d are the most.",
                    lists->num_lists, lists->ids.count, MAX_BAD_WORDS, MAX_BAD_WORDS_TOKENS);
    return OK;
}

static const int32_t *copy_ids(struct arena *arena, const int32_t *ids, int32_t count)
{
    int32_t *copy = arena_alloc(arena, (size_t)count * sizeof *copy);

    if (count > 0)
        memcpy(copy, ids, (size_t)count * sizeof *copy);
    return copy;
}

enum status bad_words_tokenize(const struct tokenizer *tokenizer, struct arena *arena,
                               struct sampling_params *params)
{
    struct lists lists = {.tokenizer = tokenizer};
    enum status status = OK;

    for (int32_t i = 0; i < params->num_bad_words && status == OK; i++)
        status = add_word(&lists, params->bad_words[i]);
    if (status == OK) {
        params->bad_words_token_ids = copy_ids(arena, lists.ids.ids, lists.ids.count);
        params->num_bad_words_token_ids = lists.ids.count;
        params->bad_words_counts = copy_ids(arena, lists.counts, lists.num_lists);
        params->num_bad_words_counts = lists.num_lists;
    }
    token_list_close(&lists.ids);
    return status;
}
