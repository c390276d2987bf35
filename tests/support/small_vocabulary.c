#include "tests/support/small_vocabulary.h"

#include <stdio.h>
#include <string.h>

static struct text_view view(const char *text)
{
    return (struct text_view){text, strlen(text)};
}

static void write_letter(uint32_t code_point, char out[3])
{
    if (code_point < 0x80)
        snprintf(out, 3, "%c", (int)code_point);
    else
        snprintf(out, 3, "%c%c", (int)(0xc0 | code_point >> 6), (int)(0x80 | (code_point & 0x3f)));
}

static const char *byte_letter(int byte, char out[3])
{
    static const char plain[] = "!~\xa1\xac\xae\xff"; /* ranges that print as themselves */
    uint32_t moved = 256;

    for (int b = 0; b <= byte; b++) {
        bool is_plain = false;

        for (int r = 0; r < 6; r += 2)
            is_plain |= b >= (uint8_t)plain[r] && b <= (uint8_t)plain[r + 1];
        if (b == byte)
            write_letter(is_plain ? (uint32_t)b : moved, out);
        moved += !is_plain;
    }
    return out;
}

struct vocabulary small_bpe_vocabulary(void)
{
    static const char *const merged[] = {"he", "ll", "hell", "hello", "\xc4\xa0hello"};
    static const char *const merges[] = {"h e", "l l", "he ll", "hell o", "\xc4\xa0 hello"};
    static const char *const special[] = {"<s>", "</s>", "<tool>", "<tool><set>"};
    static char letters[256][3];
    static struct text_view tokens[SMALL_NUM_TOKENS], merge_views[COUNT_OF(merges)];
    static int32_t types[SMALL_NUM_TOKENS];

    for (int i = 0; i < SMALL_NUM_TOKENS; i++) {
        types[i] = i < SMALL_BOS    ? TOKEN_NORMAL
                   : i < SMALL_TOOL ? TOKEN_CONTROL
                                    : TOKEN_USER_DEFINED;
        tokens[i] = view(i < 256         ? byte_letter(i, letters[i])
                         : i < SMALL_BOS ? merged[i - 256]
                                         : special[i - SMALL_BOS]);
    }
    for (size_t i = 0; i < COUNT_OF(merges); i++)
        merge_views[i] = view(merges[i]);
    return (struct vocabulary){
        .model = "gpt2",
        .pre = "gpt-2",
        .num_tokens = SMALL_NUM_TOKENS,
        .tokens = tokens,
        .types = types,
        .num_merges = COUNT_OF(merges),
        .merges = merge_views,
        .bos_id = SMALL_BOS,
        .eos_id = SMALL_EOS,
        .eot_id = -1,
        .unknown_id = -1,
        .padding_id = -1,
        .add_bos = true,
    };
}

struct vocabulary small_spm_vocabulary(void)
{
    static const char *const first[] = {"<unk>", "<s>", "</s>"};
    static const char *const words[] = {
        "▁",  "h",    "e",     "l",      "o",  "b",  "ab",   "he",
        "ll", "hell", "hello", "▁hello", "aé", "▁▁", "▁▁▁▁",
    };
    enum { FIRST_WORD = 3 + 256, NUM_TOKENS = FIRST_WORD + COUNT_OF(words) };
    static char bytes[256][8];
    static struct text_view tokens[NUM_TOKENS];
    static int32_t types[NUM_TOKENS];
    static float scores[NUM_TOKENS];

    for (int i = 0; i < NUM_TOKENS; i++) {
        if (i < 3) {
            tokens[i] = view(first[i]);
            types[i] = i == 0 ? TOKEN_UNKNOWN : TOKEN_CONTROL;
        } else if (i < FIRST_WORD) {
            snprintf(bytes[i - 3], sizeof bytes[0], "<0x%02X>", (unsigned)(i - 3));
            tokens[i] = view(bytes[i - 3]);
            types[i] = TOKEN_BYTE;
        } else {
            tokens[i] = view(words[i - FIRST_WORD]);
            types[i] = i < NUM_TOKENS - 2 ? TOKEN_NORMAL : TOKEN_USER_DEFINED;
        }
        scores[i] = (float)-i;
    }
    return (struct vocabulary){
        .model = "llama",
        .num_tokens = NUM_TOKENS,
        .tokens = tokens,
        .types = types,
        .scores = scores,
        .bos_id = 1,
        .eos_id = 2,
        .eot_id = -1,
        .unknown_id = 0,
        .padding_id = -1,
        .add_bos = true,
    };
}
