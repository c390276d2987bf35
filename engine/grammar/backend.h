/*
 * backend: a library that compiles grammars and fills masks, behind one table of functions.
 *
 * Backends live in the grammar processes alone (host.h), never in the engine: a library that
 * crashes, hangs or grows takes its own process with it. So a backend bounds what it can (limits.h),
 * and need not be able to stop what it has begun.
 *
 * Failures: ERR_INVALID (the text is no such grammar, or asks what can't be enforced; the sentence
 * names it, and is fit for the client), ERR_FULL (a limit of size, depth or work),
 * ERR_UNSUPPORTED (not this backend's), ERR_NOT_FOUND (its library is not there),
 * ERR_INTERNAL (the library broke a promise). Sentences are one line without control characters.
 *
 * Thread: a backend and what it compiled may be used by several threads at once; a matcher by one at
 * a time. compile may recurse as deep as the text is long: call it on a big stack.
 */
#ifndef ENGINE_GRAMMAR_BACKEND_H
#define ENGINE_GRAMMAR_BACKEND_H

#include "engine/engine.h"
#include "engine/grammar/spec.h"

/* The tokens that masks are about. */
struct grammar_token {
    const char *bytes; /* what it adds to the output, not its spelling in the vocabulary */
    int32_t size;
    bool is_control; /* no text: no grammar produces it */
};

struct grammar_vocabulary {
    const struct grammar_token *tokens; /* [num_tokens] */
    int32_t num_tokens;
    const token_id *stop_tokens; /* any of these may end the output once it is complete; at least one */
    int32_t num_stop_tokens;
};

struct backend;          /* a library with a vocabulary */
struct compiled_grammar; /* never changes */
struct matcher;          /* where one output stands in a grammar */

struct backend_ops {
    const char *name;
    uint32_t kinds; /* bit k: it compiles enum grammar_kind k */

    /* folder: where the libraries are. The vocabulary is read during the call only. */
    enum status (*open)(const char *folder, const struct grammar_vocabulary *vocabulary,
                        struct backend **out);
    void (*close)(struct backend *backend); /* after what it compiled; NULL is fine */

    enum status (*compile)(struct backend *backend, const struct grammar_spec *spec,
                           struct compiled_grammar **out);
    void (*free_compiled)(struct compiled_grammar *compiled); /* after its matchers; NULL is fine */

    enum status (*start)(struct compiled_grammar *compiled, struct matcher **out);
    void (*free_matcher)(struct matcher *matcher);
    /* Moves on by a token. ERR_MISMATCH: the grammar does not allow it here, the matcher is as it was.
     * ERR_FULL: a limit of work, the matcher is of no more use. A stop token is taken where the output is
     * complete, and nothing after it. */
    enum status (*accept)(struct matcher *matcher, token_id token);
    /* Writes all bits of words[num_words], num_words = ceil(num_tokens / 32), 32-bit aligned: bit t % 32
     * of word t / 32 is 1 if token t is allowed. Stop tokens are allowed where the output is complete, bits
     * beyond the vocabulary are 0. All of them 0: a dead end, the grammar has no way out of here.
     * ERR_FULL: a limit of work or memory. Not after a stop token. */
    enum status (*fill)(struct matcher *matcher, uint32_t *words, int32_t num_words);
    /* The output so far is a whole one: a stop token may follow. */
    bool (*is_complete)(struct matcher *matcher);
};

extern const struct backend_ops backend_llguidance, backend_xgrammar;

/* The rows, NULL at the end; the first that has a kind is the best for it. */
extern const struct backend_ops *const backends[];
/* The row of spec->backend, or the best for its kind, by its number. ERR_UNSUPPORTED: there is no such
 * backend, or it has not this kind; the sentence names those that have. */
enum status backend_choose(const struct backend_ops *const *rows, const struct grammar_spec *spec,
                           int32_t *out);
/* "json_object", "json", "regex", "choice", "grammar" (EBNF and Lark), "structural_tag" */
const char *grammar_kind_name(enum grammar_kind kind);

#endif
