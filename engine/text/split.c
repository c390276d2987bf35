#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/split.h"

#include <pcre2.h>
#include <string.h>

/*
 * The patterns as the models' tokenizer.json files and llama.cpp's llama-vocab.cpp give them,
 * with two words spelled out: \s means Unicode's White_Space there, while PCRE2 adds U+180E.
 * None nests one repetition in another, so a match takes time linear in what it looks at.
 */
#define SPACE     "\\p{White_Space}"
#define NOT_SPACE "\\P{White_Space}"

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
/* The last run of white space but one character, which the next word takes; else all of it. */
#define SPACES SPACE "+(?!" NOT_SPACE ")|" SPACE "+"
#define LINES  SPACE "*[\\r\\n]+"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|" SPACES
#define CL100K(digits)                                                                             \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits "| ?[^" SPACE                       \
                "\\p{L}\\p{N}]+[\\r\\n]*|" LINES "|" SPACES
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define BY_CASE(ending, digits)                                                                    \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" ending "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER  \
    "*" ending "|\\p{N}" digits "| ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n/]*|" LINES "|" SPACES

enum { MAX_PATTERNS = 4 };

/* Each pattern cuts what the ones before it left: a match is a piece, and so is a gap. */
static const struct split_row {
    const char *names[8];
    const char *patterns[MAX_PATTERNS];
    bool takes_whole_pieces;
} rows[] = {
    {.names = {"default", ""},
     .patterns = {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {.names = {"gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "trillion"}, .patterns = {GPT2}},
    {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
     .patterns = {"\\p{N}", GPT2}},
    {.names = {"falcon"}, .patterns = {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3"},
     .patterns = {CL100K("{1,3}")},
     .takes_whole_pieces = true},
    {.names = {"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"}, .patterns = {CL100K("{1,3}")}},
    {.names = {"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"},
     .patterns = {CL100K("")}},
    {.names = {"tekken"}, .patterns = {BY_CASE("", "")}, .takes_whole_pieces = true},
    {.names = {"gpt-4o", "llama4"}, .patterns = {BY_CASE(CONTRACTION "?", "{1,3}")}},
    {.names = {"deepseek-v3"},
     .patterns = {"\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                  "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINES
                  "|" SPACES}},
};

struct split {
    const struct split_row *row;
    pcre2_code *codes[MAX_PATTERNS];
    int num_codes;
    pcre2_match_context *limits;
};

static const struct split_row *find_row(const char *pre)
{
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (size_t k = 0; k < COUNT_OF(rows[i].names) && rows[i].names[k]; k++)
            if (strcmp(rows[i].names[k], pre) == 0)
                return &rows[i];
    return NULL;
}

static enum status fail_unknown(const char *pre)
{
    AUTO_CLOSE(bytes) struct bytes known = {0};

    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (size_t k = 0; k < COUNT_OF(rows[i].names) && rows[i].names[k]; k++)
            if (rows[i].names[k][0])
                bytes_printf(&known, "%s%s", known.size ? ", " : "", rows[i].names[k]);
    return fail(ERR_UNSUPPORTED, "pre-tokeniser '%.32s' is not known; known are %s", pre,
                bytes_text(&known));
}

enum status split_new(const char *pre, struct split **out)
{
    const struct split_row *row = find_row(pre);

    if (!row)
        return fail_unknown(pre);

    AUTO_FREE(split) struct split *split = mem_new(struct split);

    split->row = row;
    split->limits = pcre2_match_context_create(NULL);
    ASSERT(split->limits);
    /* The limits are there for patterns that explode; ours cannot, and a long text is legal. */
    pcre2_set_match_limit(split->limits, UINT32_MAX);
    pcre2_set_depth_limit(split->limits, UINT32_MAX);
    for (int i = 0; i < MAX_PATTERNS && row->patterns[i]; i++) {
        int error;
        PCRE2_SIZE at;
        pcre2_code *code = pcre2_compile((PCRE2_SPTR)row->patterns[i], PCRE2_ZERO_TERMINATED,
                                         PCRE2_UTF | PCRE2_UCP, &error, &at, NULL);

        ASSERT(code, "pattern %d of '%s': error %d at %zu", i, pre, error, at);
        /* Where the system forbids it (no writable code pages), the interpreter does the work. */
        (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
        split->codes[split->num_codes++] = code;
    }
    *out = give(split);
    return OK;
}

void split_free(struct split *split)
{
    if (!split)
        return;
    for (int i = 0; i < split->num_codes; i++)
        pcre2_code_free(split->codes[i]);
    pcre2_match_context_free(split->limits);
    mem_free(split);
}

bool split_takes_whole_pieces(const struct split *split)
{
    return split->row->takes_whole_pieces;
}

struct run {
    const struct split *split;
    pcre2_match_data *match; /* shared by all levels: read before the next level runs */
    split_piece *piece;
    void *context;
};

/* Finds the next match of pattern `level` from `*from`; on a match, where it starts and ends. */
static enum status next_match(const struct run *run, int level, const char *text, size_t size,
                              size_t from, bool *found_out, size_t *start_out, size_t *end_out)
{
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    const pcre2_code *code = run->split->codes[level];
    const pcre2_match_context *limits = run->split->limits;
    int n = pcre2_match(code, (PCRE2_SPTR)text, size, from, options, run->match,
                        (pcre2_match_context *)limits);

    if (n == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter takes its memory from the heap */
        n = pcre2_match(code, (PCRE2_SPTR)text, size, from, options | PCRE2_NO_JIT, run->match,
                        (pcre2_match_context *)limits);
    if (n < 0 && n != PCRE2_ERROR_NOMATCH)
        return fail(ERR_INTERNAL,
                    "pre-tokeniser '%s' failed on a text of %zu bytes: PCRE2 error %d",
                    run->split->row->names[0], size, n);
    *found_out = n > 0;
    if (n > 0) {
        *start_out = pcre2_get_ovector_pointer(run->match)[0];
        *end_out = pcre2_get_ovector_pointer(run->match)[1];
    }
    return OK;
}

static enum status cut(const struct run *run, int level, const char *text, size_t size)
{
    size_t from = 0, start = 0, end = 0;
    bool found = true;

    if (size == 0)
        return OK;
    if (level == run->split->num_codes) {
        run->piece(run->context, text, size);
        return OK;
    }
    while (from < size) {
        TRY(next_match(run, level, text, size, from, &found, &start, &end));
        if (!found)
            return cut(run, level + 1, text + from, size - from);
        TRY(cut(run, level + 1, text + from, start - from));
        TRY(cut(run, level + 1, text + start, end - start));
        from = end;
    }
    return OK;
}

enum status split_run(const struct split *split, const char *text, size_t size, split_piece *piece,
                      void *context)
{
    struct run run = {split, pcre2_match_data_create(1, NULL), piece, context};

    ASSERT(run.match);

    enum status status = cut(&run, 0, text, size);

    pcre2_match_data_free(run.match);
    return status;
}
