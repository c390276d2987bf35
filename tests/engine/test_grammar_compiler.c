/*
 * The compiler, the host and its processes, with a library of our own that misbehaves on command. This
 * program is its own host.
 */
#include "tests/support/expect.h"

#include "engine/grammar/compiler.h"
#include "engine/grammar/host.h"
#include "proto/base/clock.h"
#include "proto/model/model_file.h"
#include "tests/support/tiny_model.h"

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a library -------------------------------------------------------------------------------- */

/*
 * The text is a word and a number. "count N": N tokens, at place i those whose id is i modulo 3, then a
 * stop token. The other words do something to the process.
 */
struct backend {
    struct grammar_vocabulary vocabulary;
    token_id stop_token;
};

struct compiled_grammar {
    const struct backend *backend;
    char word[16];
    int32_t num_tokens;
};

struct matcher {
    const struct compiled_grammar *compiled;
    int32_t num_accepted, num_filled;
};

static void hang(void)
{
    for (volatile int forever = 1; forever;)
        continue;
}

static void grow(void)
{
    for (size_t i = 0; i < 4096; i++) {
        char *p = malloc(1 << 20);

        if (!p)
            abort();
        memset(p, 1, 1 << 20);
        __asm__ volatile("" : : "r"(p) : "memory");
    }
}

static enum status toy_open(const char *folder, const struct grammar_vocabulary *vocabulary,
                            struct backend **out)
{
    struct backend *backend = mem_new(struct backend);

    if (strcmp(folder, "/nowhere") == 0) {
        mem_free(backend);
        return fail(ERR_NOT_FOUND, "libtoy.so is not in %s", folder);
    }
    backend->vocabulary.num_tokens = vocabulary->num_tokens;
    backend->stop_token = vocabulary->stop_tokens[0];
    *out = backend;
    return OK;
}

static enum status toy_compile(struct backend *backend, const struct grammar_spec *spec,
                               struct compiled_grammar **out)
{
    struct compiled_grammar compiled = {.backend = backend};

    if (sscanf(spec->text, "%15s %d", compiled.word, &compiled.num_tokens) != 2)
        return fail(ERR_INVALID, "'%.*s' is no word and a number", (int)spec->size, spec->text);
    if (strcmp(compiled.word, "crash") == 0)
        abort();
    if (strcmp(compiled.word, "hang") == 0)
        hang();
    if (strcmp(compiled.word, "grow") == 0)
        grow();
    if (strcmp(compiled.word, "large") == 0)
        return fail(ERR_FULL, "%d states, at most 10 are allowed", compiled.num_tokens);
    *out = mem_new(struct compiled_grammar);
    **out = compiled;
    return OK;
}

static enum status toy_start(struct compiled_grammar *compiled, struct matcher **out)
{
    *out = mem_new(struct matcher);
    (*out)->compiled = compiled;
    return OK;
}

static void toy_free_matcher(struct matcher *matcher)
{
    mem_free(matcher);
}

static bool toy_allows(const struct matcher *matcher, token_id token)
{
    const struct compiled_grammar *compiled = matcher->compiled;

    if (matcher->num_accepted == compiled->num_tokens)
        return token == compiled->backend->stop_token;
    return token % 3 == matcher->num_accepted % 3 && token != compiled->backend->stop_token;
}

static enum status toy_accept(struct matcher *matcher, token_id token)
{
    if (!toy_allows(matcher, token))
        return fail(ERR_MISMATCH, "token %d is not allowed", token);
    matcher->num_accepted++;
    return OK;
}

static enum status toy_fill(struct matcher *matcher, uint32_t *words, int32_t num_words)
{
    const char *word = matcher->compiled->word;

    if (strcmp(word, "hang-mask") == 0 && matcher->num_accepted == 2)
        hang();
    if (strcmp(word, "crash-mask") == 0 && matcher->num_accepted == 2)
        abort();
    if (strcmp(word, "fail-mask") == 0 && matcher->num_accepted == 2)
        return fail(ERR_FULL, "too many items");
    if (strcmp(word, "slow-mask") == 0)
        usleep(15000);
    if (strcmp(word, "crawl-mask") == 0)
        usleep(400000);
    memset(words, 0, (size_t)num_words * sizeof *words);
    for (token_id t = 0; t < matcher->compiled->backend->vocabulary.num_tokens; t++)
        if (toy_allows(matcher, t))
            words[t / 32] |= (uint32_t)1 << (t % 32);
    return OK;
}

static const struct backend_ops backend_toy = {
    .name = "toy",
    .kinds = 1 << GRAMMAR_REGEX,
    .open = toy_open,
    .compile = toy_compile,
    .start = toy_start,
    .free_matcher = toy_free_matcher,
    .accept = toy_accept,
    .fill = toy_fill,
};

static const struct backend_ops *const rows[] = {&backend_toy, NULL};

/* ---- a compiler ------------------------------------------------------------------------------- */

static char model_path[64];
static struct model_file *file;
static struct tokenizer *tokenizer;

static int make_tokenizer(void **state)
{
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/tandem-test-compiler-%d.gguf", (int)getpid());
    tiny_model_write(model_path, NULL);
    expect_ok(model_file_open(model_path, &file));
    expect_ok(tokenizer_new(model_file_vocabulary(file), &tokenizer));
    return 0;
}

static int free_tokenizer(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    model_file_free(file);
    return unlink(model_path);
}

struct bench {
    struct grammar_compiler *compiler;
    int bell_fd;
};

/* Times are such that a process which does no harm has them, also where it shares its core with several. */
enum { NUM_PLACES = 4, COMPILE_TIMEOUT_MS = 1500, MASK_TIMEOUT_MS = 900, CACHE_BYTES = 8 << 20 };

static void open_compiler(struct bench *b, const char *folder)
{
    b->bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    expect_ok(grammar_compiler_new(
        &(struct grammar_compiler_options){
            .backends = rows,
            .folder = folder,
            .tokenizer = tokenizer,
            .num_places = NUM_PLACES,
            .bell_fd = b->bell_fd,
            .memory_bytes = 64 << 20,
            .cache_bytes = CACHE_BYTES,
            .max_compiling = 2,
            .compile_timeout_ms = COMPILE_TIMEOUT_MS,
            .mask_timeout_ms = MASK_TIMEOUT_MS,
        },
        &b->compiler));
}

static void close_compiler(struct bench *b)
{
    grammar_compiler_free(b->compiler);
    close(b->bell_fd);
}

/* What a listener was told. */
struct told {
    pthread_mutex_t lock;
    pthread_cond_t is_told;
    bool has_come;
    struct grammar *grammar;
    enum status status;
    char text[256];
};

static void listen(void *user, struct grammar_process *process, enum status status,
                   const char *text)
{
    struct told *told = user;

    pthread_mutex_lock(&told->lock);
    told->grammar = process ? grammar_process_start(process) : NULL;
    told->status = status;
    snprintf(told->text, sizeof told->text, "%s", text);
    told->has_come = true;
    pthread_cond_signal(&told->is_told);
    pthread_mutex_unlock(&told->lock);
}

static struct grammar_spec regex(const char *text)
{
    return (struct grammar_spec){.kind = GRAMMAR_REGEX, .text = text, .size = strlen(text)};
}

static void ask(struct bench *b, const char *text, struct told *told)
{
    struct grammar_spec spec = regex(text);

    *told = (struct told){.lock = PTHREAD_MUTEX_INITIALIZER, .is_told = PTHREAD_COND_INITIALIZER};
    expect_ok(grammar_compiler_compile(b->compiler, &spec, listen, told));
}

static void await(struct told *told)
{
    pthread_mutex_lock(&told->lock);
    while (!told->has_come)
        pthread_cond_wait(&told->is_told, &told->lock);
    pthread_mutex_unlock(&told->lock);
}

static struct grammar *compile(struct bench *b, const char *text)
{
    struct grammar_spec spec = regex(text);
    struct grammar_process *process;
    struct grammar *grammar;

    if (grammar_compiler_wait(b->compiler, &spec, &process) != OK)
        fail_msg("%s: %s", text, fail_text());
    grammar = grammar_process_start(process);
    grammar_process_drop(process);
    return grammar;
}

static void refuse(struct bench *b, const char *text, enum status status, const char *sentence)
{
    struct told told;

    ask(b, text, &told);
    await(&told);
    assert_null(told.grammar);
    if (!strstr(told.text, sentence))
        fail_msg("%s: '%s' lacks '%s'", text, told.text, sentence);
    assert_int_equal(told.status, status);
}

/* As core does it; how long it took in ms. */
static int64_t wait_ready(const struct bench *b, struct grammar *grammar)
{
    int64_t begin_ns = clock_now_ns();
    struct pollfd fd = {.fd = b->bell_fd, .events = POLLIN};
    eventfd_t ignored;

    grammar_begin_mask(grammar);
    while (!grammar_is_ready(grammar)) {
        if (poll(&fd, 1, 10000) == 0)
            fail_msg("the bell did not ring");
        eventfd_read(b->bell_fd, &ignored);
    }
    return (clock_now_ns() - begin_ns) / 1000000;
}

enum { MAX_WORDS = 64 };

static int32_t num_words(void)
{
    int32_t n = grammar_num_words(tokenizer_vocab_size(tokenizer));

    assert_true(n <= MAX_WORDS);
    return n;
}

/* Goes to the end of "count N". */
static void follow(const struct bench *b, struct grammar *grammar, int32_t n)
{
    int32_t num_stops;
    token_id stop = tokenizer_stop_ids(tokenizer, &num_stops)[0];
    uint32_t words[MAX_WORDS];

    for (int32_t i = 0; i <= n; i++) {
        wait_ready(b, grammar);
        expect_ok(grammar_fill_bitmask(grammar, words, num_words()));
        for (token_id t = 0; t < tokenizer_vocab_size(tokenizer); t++) {
            bool is_allowed = i == n ? t == stop : t % 3 == i % 3 && t != stop;

            assert_int_equal(words[t / 32] >> (t % 32) & 1, is_allowed);
        }
        assert_false(grammar_accept(grammar, i == n ? 3 : 30 + (i + 1) % 3));
        assert_false(grammar_accept(grammar, -1));
        assert_false(grammar_accept(grammar, tokenizer_vocab_size(tokenizer)));
        assert_false(grammar_is_terminated(grammar));
        assert_true(grammar_accept(grammar, i == n ? stop : 30 + i % 3));
    }
    assert_true(grammar_is_terminated(grammar));
    assert_false(grammar_accept(grammar, stop));
}

/* ---- tests ------------------------------------------------------------------------------------ */

static void an_output_is_followed_to_its_end(void **state)
{
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    for (int32_t n = 0; n < 5; n++) {
        char text[32];
        struct grammar *grammar;

        snprintf(text, sizeof text, "count %d", n);
        grammar = compile(&b, text);
        follow(&b, grammar, n);
        grammar_free(grammar);
    }
    close_compiler(&b);
}

static void a_grammar_that_comes_again_is_there(void **state)
{
    struct grammar_spec spec = regex("count 3"), other = spec;
    struct grammar_compiler_stats stats;
    struct grammar_process *process;
    struct grammar *grammar;
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    assert_null(grammar_compiler_find(b.compiler, &spec));
    grammar_free(compile(&b, "count 3"));
    process = grammar_compiler_find(b.compiler, &spec);
    assert_non_null(process);
    grammar = grammar_process_start(process);
    grammar_process_drop(process);
    follow(&b, grammar, 3);
    grammar_free(grammar);
    other.lenient = true;
    assert_null(grammar_compiler_find(b.compiler, &other));
    other = spec;
    other.whitespace_pattern = "";
    assert_null(grammar_compiler_find(b.compiler, &other));
    other = spec;
    other.backend = "toy";
    process = grammar_compiler_find(b.compiler, &other);
    assert_non_null(process);
    grammar_process_drop(process);
    other.backend = "unknown";
    expect_fails(grammar_compiler_compile(b.compiler, &other, listen, NULL), ERR_UNSUPPORTED,
                 "there is no grammar backend 'unknown'; there are toy");
    grammar_compiler_get_stats(b.compiler, &stats);
    assert_int_equal(stats.num_compiled, 1);
    assert_int_equal(stats.num_hits, 2);
    close_compiler(&b);
}

static void more_outputs_than_places_take_turns(void **state)
{
    struct grammar *grammars[NUM_PLACES + 1];
    uint32_t words[MAX_WORDS];
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    for (int32_t i = 0; i <= NUM_PLACES; i++)
        grammars[i] = compile(&b, "count 3");
    for (int32_t i = 0; i < NUM_PLACES; i++) {
        wait_ready(&b, grammars[i]);
        expect_ok(grammar_fill_bitmask(grammars[i], words, num_words()));
    }
    grammar_begin_mask(grammars[NUM_PLACES]);
    assert_false(grammar_is_ready(grammars[NUM_PLACES]));
    /* One that goes with its question unanswered leaves its place all the same. */
    assert_true(grammar_accept(grammars[1], 30));
    grammar_free(grammars[1]);
    follow(&b, grammars[NUM_PLACES], 3);
    for (int32_t i = 0; i <= NUM_PLACES; i++)
        if (i != 1)
            grammar_free(grammars[i]);
    close_compiler(&b);
}

static void a_grammar_that_does_harm_harms_itself(void **state)
{
    struct grammar *grammar;
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    grammar = compile(&b, "count 4");
    refuse(&b, "nothing", ERR_INVALID, "'nothing' is no word and a number");
    refuse(&b, "large 12", ERR_INVALID, "12 states, at most 10 are allowed");
    refuse(&b, "crash 1", ERR_INVALID, "its process ended with signal 6");
    refuse(&b, "hang 1", ERR_INVALID, "takes longer than 1500 ms to compile");
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    refuse(&b, "grow 1", ERR_INVALID, "its process ended with signal 6 (Aborted); it may take 64 MiB");
#endif
    follow(&b, grammar, 4);
    grammar_free(grammar);
    close_compiler(&b);
}

/* Two tokens in, it does what it does: the sentence of the third mask. */
static void expect_fall(struct bench *b, const char *text, const char *sentence)
{
    struct grammar *grammar = compile(b, text);
    uint32_t words[MAX_WORDS];
    enum status status;

    for (int32_t i = 0; i < 2; i++) {
        wait_ready(b, grammar);
        expect_ok(grammar_fill_bitmask(grammar, words, num_words()));
        assert_true(grammar_accept(grammar, 30 + i));
    }
    wait_ready(b, grammar);
    status = grammar_fill_bitmask(grammar, words, num_words());
    if (status == OK || !strstr(fail_text(), sentence))
        fail_msg("%s: status %d, '%s' lacks '%s'", text, status, fail_text(), sentence);
    assert_int_equal(status, ERR_INVALID);
    grammar_free(grammar);
}

static void a_mask_that_does_harm_harms_its_own_outputs(void **state)
{
    struct grammar *grammar;
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    grammar = compile(&b, "count 4");
    expect_fall(&b, "crash-mask 5", "can't be followed any more: its process ended with signal 6");
    expect_fall(&b, "hang-mask 5", "takes longer than 900 ms for one mask");
    expect_fall(&b, "fail-mask 5", "the grammar: too many items");
    expect_fall(&b, "crawl-mask 5", "the grammar takes too long: 12");
    follow(&b, grammar, 4);
    grammar_free(grammar);
    /* It is not in the cache, but compiled anew. */
    expect_fall(&b, "crash-mask 5", "can't be followed any more");
    close_compiler(&b);
}

static void a_slow_mask_is_told_to_be_slow(void **state)
{
    uint32_t words[MAX_WORDS];
    struct grammar *grammar;
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    grammar = compile(&b, "slow-mask 5");
    assert_true(wait_ready(&b, grammar) >= 10);
    assert_false(grammar_is_slow(grammar));
    expect_ok(grammar_fill_bitmask(grammar, words, num_words()));
    assert_true(grammar_is_slow(grammar));
    grammar_free(grammar);
    grammar = compile(&b, "count 5");
    wait_ready(&b, grammar);
    expect_ok(grammar_fill_bitmask(grammar, words, num_words()));
    assert_false(grammar_is_slow(grammar));
    grammar_free(grammar);
    close_compiler(&b);
}

/* Many at once, of which some are the same, and some never come back. */
static void many_are_compiled_beside_each_other(void **state)
{
    enum { MANY = 60 };
    struct told told[MANY];
    struct grammar_compiler_stats stats;
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    for (int32_t i = 0; i < MANY; i++) {
        char text[32];

        snprintf(text, sizeof text, i % 20 == 7 ? "hang %d" : "count %d", i % 30);
        ask(&b, text, &told[i]);
    }
    for (int32_t i = 0; i < MANY; i++) {
        await(&told[i]);
        assert_int_equal(told[i].status == OK, i % 20 != 7);
        if (i % 7 == 0 && told[i].grammar)
            follow(&b, told[i].grammar, i % 30);
        grammar_free(told[i].grammar);
    }
    grammar_compiler_get_stats(b.compiler, &stats);
    assert_int_equal(stats.num_killed, 3);
    /* Nobody uses any of them: few stay. */
    for (int32_t i = 0; i < 200 && stats.bytes > CACHE_BYTES; i++) {
        usleep(20000);
        grammar_compiler_get_stats(b.compiler, &stats);
    }
    if (stats.bytes > CACHE_BYTES && stats.num_processes > 1)
        fail_msg("%d processes of %ld bytes", stats.num_processes, (long)stats.bytes);
    close_compiler(&b);
}

static void a_library_that_is_missing_is_named(void **state)
{
    struct bench b;

    (void)state;
    open_compiler(&b, "/nowhere");
    refuse(&b, "count 3", ERR_MISSING, "libtoy.so is not in /nowhere");
    refuse(&b, "count 3", ERR_MISSING, "libtoy.so is not in /nowhere");
    close_compiler(&b);
}

static bool is_our_host(int pid)
{
    AUTO_MEM char *stat_path = mem_printf("/proc/%d/stat", pid);
    AUTO_MEM char *cmdline_path = mem_printf("/proc/%d/cmdline", pid);
    FILE *stat = fopen(stat_path, "r"), *cmdline = fopen(cmdline_path, "r");
    char text[4096] = "";
    int parent = 0;
    size_t n = 0;

    if (stat && fscanf(stat, "%*d %*s %*c %d", &parent) != 1)
        parent = 0;
    if (cmdline)
        n = fread(text, 1, sizeof text, cmdline);
    if (stat)
        fclose(stat);
    if (cmdline)
        fclose(cmdline);
    return parent == getpid() && memmem(text, n, "grammar-host", 12);
}

static pid_t host_pid(void)
{
    DIR *folder = opendir("/proc");
    const struct dirent *entry;
    pid_t found = 0;

    assert_non_null(folder);
    while ((entry = readdir(folder)))
        if (is_our_host(atoi(entry->d_name)))
            found = atoi(entry->d_name);
    closedir(folder);
    assert_int_not_equal(found, 0);
    return found;
}

static void a_host_that_dies_is_replaced(void **state)
{
    uint32_t words[MAX_WORDS];
    struct grammar *grammar;
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    grammar = compile(&b, "count 4");
    wait_ready(&b, grammar);
    expect_ok(grammar_fill_bitmask(grammar, words, num_words()));
    kill(host_pid(), SIGKILL);
    /* It may be asked before the death is noticed; it ends all the same. */
    assert_true(grammar_accept(grammar, 30));
    wait_ready(&b, grammar);
    for (int32_t i = 0; i < 200 && grammar_fill_bitmask(grammar, words, num_words()) == OK; i++)
        usleep(10000);
    assert_int_not_equal(grammar_fill_bitmask(grammar, words, num_words()), OK);
    grammar_free(grammar);
    grammar = compile(&b, "count 4");
    follow(&b, grammar, 4);
    grammar_free(grammar);
    close_compiler(&b);
}

static void a_compiler_that_is_freed_tells_those_who_wait(void **state)
{
    struct told told[3];
    struct grammar *grammar;
    uint32_t words[MAX_WORDS];
    struct bench b;

    (void)state;
    open_compiler(&b, "/tmp");
    grammar = compile(&b, "count 4");
    for (int32_t i = 0; i < 3; i++) {
        char text[32];

        snprintf(text, sizeof text, "hang %d", i);
        ask(&b, text, &told[i]);
    }
    grammar_compiler_free(b.compiler);
    for (int32_t i = 0; i < 3; i++) {
        assert_true(told[i].has_come);
        assert_int_equal(told[i].status, ERR_CLOSED);
    }
    assert_true(grammar_is_ready(grammar));
    assert_int_equal(grammar_fill_bitmask(grammar, words, num_words()), ERR_CLOSED);
    grammar_free(grammar);
    close(b.bell_fd);
}

static int run_host(char **argv)
{
    return host_main(&(struct host_options){
        .backends = rows,
        .socket_fd = atoi(argv[3]),
        .vocabulary_fd = atoi(argv[5]),
        .bell_fd = atoi(argv[7]),
        .memory_bytes = atoll(argv[9]),
        .folder = argv[11],
    });
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_output_is_followed_to_its_end),
        cmocka_unit_test(a_grammar_that_comes_again_is_there),
        cmocka_unit_test(more_outputs_than_places_take_turns),
        cmocka_unit_test(a_grammar_that_does_harm_harms_itself),
        cmocka_unit_test(a_mask_that_does_harm_harms_its_own_outputs),
        cmocka_unit_test(a_slow_mask_is_told_to_be_slow),
        cmocka_unit_test(many_are_compiled_beside_each_other),
        cmocka_unit_test(a_library_that_is_missing_is_named),
        cmocka_unit_test(a_host_that_dies_is_replaced),
        cmocka_unit_test(a_compiler_that_is_freed_tells_those_who_wait),
    };

    if (argc == 12 && strcmp(argv[1], "grammar-host") == 0)
        return run_host(argv);
    return cmocka_run_group_tests(tests, make_tokenizer, free_tokenizer);
}
