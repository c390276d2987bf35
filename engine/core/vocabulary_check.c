#include "engine/core/vocabulary_check.h"

#include "proto/base/trace.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

struct vocabulary_check {
    const struct vocabulary *running;
    char *path;
    pthread_t thread;
    _Atomic bool is_over;

    /* the thread's until it is over */
    enum status status;
    char text[1024];
};

/* ---- what is compared ------------------------------------------------------------------------ */

static const struct {
    const char *name;
    size_t place;
} numbers[] = {
#define NUMBER(member) {#member, offsetof(struct vocabulary, member)}
    NUMBER(num_tokens), NUMBER(num_merges), NUMBER(bos_id),     NUMBER(eos_id),
    NUMBER(eot_id),     NUMBER(unknown_id), NUMBER(padding_id), NUMBER(num_more_eos_ids),
#undef NUMBER
};

static const struct {
    const char *name;
    size_t place;
} switches[] = {
#define SWITCH(member) {#member, offsetof(struct vocabulary, member)}
    SWITCH(add_bos),
    SWITCH(add_eos),
    SWITCH(add_space_prefix),
    SWITCH(space_prefix_is_once),
    SWITCH(is_nfc),
#undef SWITCH
};

static enum status check_words(const struct vocabulary *a, const struct vocabulary *b)
{
    if (strcmp(a->model, b->model) != 0 || strcmp(a->pre, b->pre) != 0)
        return fail(ERR_MISMATCH, "the tokenizer is %s %s here, %s %s there", a->model, a->pre, b->model, b->pre);
    return OK;
}

static enum status check_numbers(const struct vocabulary *a, const struct vocabulary *b)
{
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        int32_t ours = *(const int32_t *)((const char *)a + numbers[i].place);
        int32_t theirs = *(const int32_t *)((const char *)b + numbers[i].place);

        if (ours != theirs)
            return fail(ERR_MISMATCH, "%s is %d here, %d there", numbers[i].name, ours, theirs);
    }
    for (int32_t i = 0; i < a->num_more_eos_ids; i++)
        if (a->more_eos_ids[i] != b->more_eos_ids[i])
            return fail(ERR_MISMATCH, "token %d ends an answer too here, token %d there", a->more_eos_ids[i],
                        b->more_eos_ids[i]);
    return OK;
}

static enum status check_switches(const struct vocabulary *a, const struct vocabulary *b)
{
    for (size_t i = 0; i < COUNT_OF(switches); i++) {
        bool ours = *(const bool *)((const char *)a + switches[i].place);
        bool theirs = *(const bool *)((const char *)b + switches[i].place);

        if (ours != theirs)
            return fail(ERR_MISMATCH, "%s is %s here, %s there", switches[i].name, ours ? "true" : "false",
                        theirs ? "true" : "false");
    }
    return OK;
}

static int32_t type_of(const struct vocabulary *vocabulary, int32_t i)
{
    return vocabulary->types ? vocabulary->types[i] : TOKEN_NORMAL;
}

/* What merges are chosen by, where there is no list of them. */
static enum status check_scores(const struct vocabulary *a, const struct vocabulary *b)
{
    if (!a->scores != !b->scores)
        return fail(ERR_MISMATCH, "tokens have %s here, %s there", a->scores ? "scores" : "no scores",
                    b->scores ? "scores" : "none");
    for (int32_t i = 0; a->scores && i < a->num_tokens; i++)
        if (a->scores[i] != b->scores[i])
            return fail(ERR_MISMATCH, "the score of token %d is %g here, %g there", i, (double)a->scores[i],
                        (double)b->scores[i]);
    return OK;
}

static enum status check_types(const struct vocabulary *a, const struct vocabulary *b)
{
    for (int32_t i = 0; i < a->num_tokens; i++)
        if (type_of(a, i) != type_of(b, i))
            return fail(ERR_MISMATCH, "token %d is of type %d here, %d there", i, type_of(a, i), type_of(b, i));
    return OK;
}

static bool is_normalized(const struct vocabulary *vocabulary, int32_t i)
{
    return vocabulary->is_normalized && vocabulary->is_normalized[i];
}

static enum status check_normalized(const struct vocabulary *a, const struct vocabulary *b)
{
    static const char *const places[] = {"text as it stands", "composed text"};

    for (int32_t i = 0; i < a->num_tokens; i++)
        if (is_normalized(a, i) != is_normalized(b, i))
            return fail(ERR_MISMATCH, "token %d is looked for in the %s here, in the %s there", i,
                        places[is_normalized(a, i)], places[is_normalized(b, i)]);
    return OK;
}

static bool is_equal(struct text_view a, struct text_view b)
{
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

static enum status check_texts(const char *what, const struct text_view *a, const struct text_view *b, int32_t n)
{
    enum { SHOWN = 64 };

    for (int32_t i = 0; i < n; i++)
        if (!is_equal(a[i], b[i]))
            return fail(ERR_MISMATCH, "%s %d is '%.*s' here, '%.*s' there", what, i,
                        (int)MIN(a[i].size, (size_t)SHOWN), a[i].data, (int)MIN(b[i].size, (size_t)SHOWN),
                        b[i].data);
    return OK;
}

enum status vocabulary_check_same(const struct vocabulary *running, const struct vocabulary *other)
{
    TRY(check_words(running, other));
    TRY(check_numbers(running, other));
    TRY(check_switches(running, other));
    TRY(check_types(running, other));
    TRY(check_normalized(running, other));
    TRY(check_scores(running, other));
    TRY(check_texts("token", running->tokens, other->tokens, running->num_tokens));
    return check_texts("merge", running->merges, other->merges, running->num_merges);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static enum status open_and_compare(const struct vocabulary_check *check)
{
    AUTO_FREE(model_file) struct model_file *file = NULL;

    TRY(model_file_open(check->path, &file)); /* its sentence has the path */
    return fail_in(check->path, vocabulary_check_same(check->running, model_file_vocabulary(file)));
}

static void *run(void *user)
{
    struct vocabulary_check *check = user;

    trace_name_thread("vocabulary");
    check->status = open_and_compare(check);
    if (check->status != OK)
        snprintf(check->text, sizeof check->text, "%s", fail_text());
    atomic_store(&check->is_over, true);
    return NULL;
}

static void check_free(struct vocabulary_check *check)
{
    mem_free(check->path);
    mem_free(check);
}

enum status vocabulary_check_start(const struct vocabulary *running, const char *path,
                                   struct vocabulary_check **out)
{
    struct vocabulary_check *check = mem_new(struct vocabulary_check);
    int error;

    check->running = running;
    check->path = mem_strdup(path);
    error = pthread_create(&check->thread, NULL, run, check);
    if (error) {
        check_free(check);
        return fail(ERR_IO, "no thread to compare vocabularies: %s", strerror(error));
    }
    *out = check;
    return OK;
}

bool vocabulary_check_is_over(const struct vocabulary_check *check)
{
    return atomic_load(&check->is_over);
}

enum status vocabulary_check_end(struct vocabulary_check *check)
{
    enum status status;

    pthread_join(check->thread, NULL);
    status = check->status == OK ? OK : fail(check->status, "%s", check->text);
    check_free(check);
    return status;
}
