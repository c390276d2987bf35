/*
 * option: a row is a flag, an environment variable, a key of the settings file, and its help.
 *
 *     OPTION(struct config, max_num_seqs, OPTION_I32, "256", "requests in one step at most")
 *
 * is --max-num-seqs 256, --max-num-seqs=256, TANDEM_MAX_NUM_SEQS=256 and {"max_num_seqs": 256}.
 * A boolean is --trace-kv, --no-trace-kv, TANDEM_TRACE_KV=1 and {"trace_kv": true}. The command
 * line beats the environment, which beats the file, which beats the default. TANDEM_TP= is as if
 * it were unset; only a text may be empty. A word that is not understood is refused with the
 * nearest one that is.
 *
 * Thread: any; an option_table is constant, a struct belongs to its owner.
 */
#ifndef PROTO_CONFIG_OPTION_H
#define PROTO_CONFIG_OPTION_H

#include "proto/base/memory.h"

#include <jansson.h>

enum option_kind {
    OPTION_BOOL,  /* bool */
    OPTION_I32,   /* int32_t, within least..most */
    OPTION_I64,   /* int64_t, within least..most */
    OPTION_F64,   /* double, within least..most */
    OPTION_BYTES, /* int64_t; 512, 64KiB, 1.5GiB, 2G (GiB) */
    OPTION_TEXT,  /* char *, owned by the struct; NULL where the default is NULL */
    OPTION_WORD,  /* char *, one of `words` */
};

struct option {
    const char *key;          /* "max_num_seqs" */
    enum option_kind kind;
    size_t offset;
    const char *default_text; /* NULL: zero, or no text */
    const char *help;
    double least, most;       /* both 0: any */
    const char *words;        /* OPTION_WORD: "uniproc multiproc" */
    const char *alias;        /* another flag without dashes: "tensor-parallel-size" */
    const char *group;        /* heading in the help; NULL: as the row above */
    bool is_live;             /* may be set while the program runs (tandem ctl config set) */
    bool is_secret;           /* is not told to anybody */
    const char *value;        /* what the help calls it: "FILE"; NULL: by kind */
};

#define OPTION(s, member, option_kind, default_value, help_text, ...)                              \
    {.key = #member,                                                                               \
     .kind = (option_kind),                                                                        \
     .offset = offsetof(s, member),                                                                \
     .default_text = (default_value),                                                              \
     .help = (help_text),                                                                          \
     __VA_ARGS__}

/* Rows and the struct that they fill. A parser may be given several: the engine's, the program's. */
struct option_set {
    const struct option *options;
    size_t num_options;
    void *target;
};

/* Fills the struct with the defaults; it is zeroed memory or has been closed. */
void options_init(const struct option_set *set);
/* Frees the texts. */
void options_close(const struct option_set *set);

/* The row of this key, with dashes or underscores; NULL: there is none. */
const struct option *option_find(const struct option_set *set, const char *key);

/* One setting, as text or JSON. ERR_INVALID: the sentence names the row, the value and what fits;
 * the struct stays as it was. `origin` is how the user said it: "--port", "TANDEM_PORT". */
MUST_USE enum status option_set_text(const struct option_set *set, const struct option *option,
                                     const char *origin, const char *text);

/*
 * Environment, then argv[1..]. Words that are no flags go to words_out, which has room for argc
 * (NULL: there may be none); all after "--" are words. ERR_INVALID: an unknown flag is named with
 * the nearest known one. An unknown TANDEM_ variable may be for another program: logged at debug.
 */
MUST_USE enum status options_parse(const struct option_set *sets, size_t num_sets, int argc,
                                   char *const *argv, const char **words_out, int *num_words_out);

/* {"key": value}; an unknown key is refused. The counterpart writes every row. */
MUST_USE enum status options_from_json(const struct option_set *set, const json_t *json);
json_t *options_to_json(const struct option_set *set);

/* "  --max-num-seqs N     requests in one step at most (256)", in groups. */
void options_help(const struct option_set *sets, size_t num_sets, struct bytes *out);

/* The word of `words` (NULL at the end) that is most like `word`, or NULL when none is near. */
const char *nearest_word(const char *word, const char *const *words);

#endif
