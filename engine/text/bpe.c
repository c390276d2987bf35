/*
 * bpe: byte-level BPE. A vocabulary of this kind is written in an alphabet of 256 printable
 * characters, one for each byte (GPT-2's bytes_to_unicode); a list of merges in order of rank
 * says which two tokens become one.
 */
#include "engine/text/split.h"
#include "engine/text/token_model.h"
#include "engine/text/utf8.h"

#include <string.h>

enum { ALPHABET_END = 256 + 68 }; /* 188 bytes print as themselves, 68 from U+0100 on */

struct pair {
    uint64_t key; /* left id << 32 | right id */
    uint32_t rank;
    token_id merged_plus_one; /* 0: empty slot */
};

struct bpe {
    struct token_model model;
    const struct token_map *tokens;
    struct split *split;
    struct pair *pairs; /* [pair_mask + 1] hash table, owns */
    uint64_t pair_mask;
    token_id byte_ids[256];               /* -1: the vocabulary lacks this byte */
    char letters[256][2];                 /* the alphabet in UTF-8 */
    uint8_t letter_bytes[256];            /* how many bytes of letters[i] count */
    int16_t byte_of_letter[ALPHABET_END]; /* code point to byte, or -1 */
};

static struct bpe *bpe_of(const struct token_model *model)
{
    return CONTAINER_OF(model, struct bpe, model);
}

/* ---- the alphabet ------------------------------------------------------------------------- */

static bool prints_as_itself(int byte)
{
    return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

static void init_alphabet(struct bpe *bpe)
{
    uint32_t next_code_point = 256;

    memset(bpe->byte_of_letter, 0xff, sizeof bpe->byte_of_letter);
    for (int byte = 0; byte < 256; byte++) {
        uint32_t code_point = prints_as_itself(byte) ? (uint32_t)byte : next_code_point++;

        bpe->byte_of_letter[code_point] = (int16_t)byte;
        bpe->letter_bytes[byte] = (uint8_t)utf8_put_small(code_point, bpe->letters[byte]);
        bpe->byte_ids[byte] =
            token_map_find(bpe->tokens, bpe->letters[byte], bpe->letter_bytes[byte]);
    }
}

/* Which byte the letter at `text` is, or -1; its size goes to *size_out. */
static int read_letter(const struct bpe *bpe, const char *text, size_t size, size_t *size_out)
{
    const uint8_t *bytes = (const uint8_t *)text;
    uint32_t code_point = bytes[0];

    *size_out = 1;
    if (code_point >= 0x80) {
        if (size < 2 || (bytes[0] & 0xe0) != 0xc0 || (bytes[1] & 0xc0) != 0x80)
            return -1;
        code_point = (bytes[0] & 0x1fu) << 6 | (bytes[1] & 0x3fu);
        *size_out = 2;
    }
    return code_point < ALPHABET_END ? bpe->byte_of_letter[code_point] : -1;
}

static void piece(const struct token_model *model, token_id id, struct bytes *out)
{
    const struct bpe *bpe = bpe_of(model);
    const char *text = token_map_text(bpe->tokens, id);
    size_t size = token_map_bytes(bpe->tokens, id), before = out->size, letter;
    bool is_plain = token_map_type(bpe->tokens, id) == TOKEN_USER_DEFINED;

    for (size_t i = 0; i < size && !is_plain; i += letter) {
        int byte = read_letter(bpe, text + i, size - i, &letter);

        if (byte < 0)
            is_plain = true; /* not in the alphabet: no token of that kind */
        else
            bytes_append(out, &(uint8_t){(uint8_t)byte}, 1);
    }
    if (is_plain) {
        out->size = before;
        bytes_append(out, text, size);
    }
}

/* ---- merges ------------------------------------------------------------------------------- */

static uint64_t pair_key(token_id left, token_id right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* Where the pair is, or the empty slot where it would be. */
static struct pair *find_pair(const struct bpe *bpe, token_id left, token_id right)
{
    uint64_t key = pair_key(left, right);
    uint64_t hash = key * 0x9e3779b97f4a7c15; /* Fibonacci hashing: high bits are the good ones */

    for (uint64_t i = hash >> 32 & bpe->pair_mask;; i = (i + 1) & bpe->pair_mask) {
        struct pair *pair = &bpe->pairs[i];

        if (pair->key == key || !pair->merged_plus_one)
            return pair;
    }
}

static bool find_merge(const void *context, const struct merge_symbol *left,
                       const struct merge_symbol *right, uint32_t *priority_out, token_id *id_out)
{
    const struct pair *pair = find_pair(context, left->id, right->id);

    *priority_out = pair->rank;
    *id_out = pair->merged_plus_one - 1;
    return pair->merged_plus_one != 0;
}

/* Is it the one token with this text? */
static bool is_joined(const struct token_map *tokens, token_id id, struct text_view left, struct text_view right)
{
    const char *text;

    if (tokens->has_twins || id >= tokens->num_tokens || token_map_bytes(tokens, id) != left.size + right.size)
        return false;
    text = token_map_text(tokens, id);
    return memcmp(text, left.data, left.size) == 0 && memcmp(text + left.size, right.data, right.size) == 0;
}

/* What a merge makes is mostly the token after that of the merge before, whose id is *last. */
static token_id find_joined(const struct bpe *bpe, struct text_view left, struct text_view right, token_id *last,
                            struct bytes *joined)
{
    if (is_joined(bpe->tokens, *last + 1, left, right))
        return ++*last;
    joined->size = 0;
    bytes_append(joined, left.data, left.size);
    bytes_append(joined, right.data, right.size);
    return *last = token_map_find(bpe->tokens, (const char *)joined->data, joined->size);
}

static enum status add_merge(struct bpe *bpe, int32_t rank, struct text_view merge, token_id *last,
                             struct bytes *joined)
{
    /* A token is never empty, so the first character is no separator, even if it is a space. */
    const char *space = merge.size > 1 ? memchr(merge.data + 1, ' ', merge.size - 1) : NULL;

    if (!space)
        return fail(ERR_CORRUPT, "merge %d has no space between two tokens", rank);

    struct text_view left_text = {merge.data, (size_t)(space - merge.data)};
    struct text_view right_text = {space + 1, merge.size - left_text.size - 1};
    token_id left = token_map_find(bpe->tokens, left_text.data, left_text.size);
    token_id right = token_map_find(bpe->tokens, right_text.data, right_text.size);
    token_id merged = find_joined(bpe, left_text, right_text, last, joined);

    if (left < 0 || right < 0 || merged < 0)
        return fail(ERR_CORRUPT, "merge %d, '%.*s', names a token that the vocabulary lacks", rank,
                    (int)MIN(merge.size, (size_t)64), merge.data);

    struct pair *pair = find_pair(bpe, left, right);

    if (!pair->merged_plus_one)
        *pair = (struct pair){pair_key(left, right), (uint32_t)rank, merged + 1};
    return OK;
}

static enum status read_merges(struct bpe *bpe, const struct vocabulary *vocabulary)
{
    AUTO_CLOSE(bytes) struct bytes joined = {0};
    uint64_t num_pairs = 16;
    token_id last = -1;

    while (num_pairs / 2 < (uint64_t)MAX(vocabulary->num_merges, 0))
        num_pairs *= 2;
    bpe->pair_mask = num_pairs - 1;
    bpe->pairs = mem_new_array(struct pair, num_pairs);
    mem_touch(bpe->pairs, num_pairs * sizeof *bpe->pairs); /* likewise: token_map.c */
    for (int32_t i = 0; i < vocabulary->num_merges; i++)
        TRY(add_merge(bpe, i, vocabulary->merges[i], &last, &joined));
    return OK;
}

/* ---- encode ------------------------------------------------------------------------------- */

struct encoding {
    const struct bpe *bpe;
    struct merge *merge;
    struct bytes written; /* a piece in the vocabulary's alphabet */
    struct token_list *out;
};

static token_id whole_piece(struct encoding *e, const char *text, size_t size)
{
    e->written.size = 0;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)text[i];

        bytes_append(&e->written, e->bpe->letters[byte], e->bpe->letter_bytes[byte]);
    }
    return token_map_find(e->bpe->tokens, (const char *)e->written.data, e->written.size);
}

static void encode_piece(void *context, const char *text, size_t size)
{
    struct encoding *e = context;

    if (split_takes_whole_pieces(e->bpe->split)) {
        token_id id = whole_piece(e, text, size);

        if (id >= 0) {
            token_list_add(e->out, id);
            return;
        }
    }
    merge_reset(e->merge);
    for (size_t i = 0; i < size; i++) {
        token_id id = e->bpe->byte_ids[(uint8_t)text[i]];

        if (id >= 0) /* a byte that the vocabulary lacks is dropped, as Hugging Face does */
            merge_add(e->merge, (uint32_t)i, 1, id);
    }
    if (e->merge->num_symbols == 0)
        return;
    merge_run(e->merge, find_merge, e->bpe);
    for (int32_t i = 0; i >= 0; i = e->merge->symbols[i].next)
        token_list_add(e->out, e->merge->symbols[i].id);
}

static enum status encode(const struct token_model *model, const char *text, size_t size, bool is_start,
                          struct merge *scratch, struct token_list *out)
{
    (void)is_start;

    struct encoding e = {bpe_of(model), scratch, {0}, out};
    enum status status = split_run(e.bpe->split, text, size, encode_piece, &e);

    bytes_close(&e.written);
    return status;
}

/* ---- life --------------------------------------------------------------------------------- */

static void bpe_free(struct bpe *bpe)
{
    if (!bpe)
        return;
    split_free(bpe->split);
    mem_free(bpe->pairs);
    mem_free(bpe);
}
DEFINE_AUTO_FREE(bpe)

static enum status create(const struct vocabulary *vocabulary, const struct token_map *tokens,
                          struct token_model **out)
{
    AUTO_FREE(bpe) struct bpe *bpe = mem_new(struct bpe);

    bpe->model.ops = &bpe_ops;
    bpe->tokens = tokens;
    TRY(split_new(vocabulary->pre, &bpe->split));
    init_alphabet(bpe);
    TRY(read_merges(bpe, vocabulary));
    *out = &give(bpe)->model;
    return OK;
}

static void free_model(struct token_model *model)
{
    bpe_free(bpe_of(model));
}

const struct token_model_ops bpe_ops = {
    .name = "gpt2",
    .create = create,
    .free = free_model,
    .encode = encode,
    .piece = piece,
};
