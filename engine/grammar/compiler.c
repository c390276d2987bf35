#include "engine/grammar/compiler.h"

#include "engine/grammar/host.h"
#include "engine/grammar/region.h"
#include "proto/base/clock.h"
#include "proto/base/list.h"
#include "proto/base/log.h"
#include "proto/base/mailbox.h"
#include "proto/base/spawn.h"
#include "proto/base/trace.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MAX_WAITING = 4096, /* compilations asked for */
    WATCH_MS = 20,      /* between two looks at what takes too long */
    LONG_MASK_MS = 250,
    START_TIMEOUT_MS = 20000, /* for the host to start a process: it may have to open a library first */
};

/* Whoever waits for a grammar. */
struct listener {
    grammar_listener *call;
    void *user;
    struct listener *next;
};

/* What they are about to be told. */
struct telling {
    struct listener *listeners;
    struct grammar_process *process; /* taken */
    enum status status;
    char *text;
    struct telling *next;
};

enum entry_state { ENTRY_WAITING, ENTRY_STARTING, ENTRY_COMPILING, ENTRY_READY };

/* A grammar, and its process. */
struct entry {
    struct list_node link; /* in entries: the one that was used last is the last */
    int64_t id;
    enum entry_state state;
    struct grammar_process *process;
    struct listener *listeners; /* until it is ready */
    int64_t begin_ns;
    int32_t backend;
};

struct grammar_compiler {
    struct grammar_compiler_options options;
    char *folder;
    const token_id *stop_tokens;
    int32_t num_stop_tokens;
    pthread_t thread;
    bool has_thread;
    int wake_fd; /* an eventfd: something was asked for */

    pthread_mutex_t lock; /* of what follows */
    struct list_node entries;
    int32_t num_waiting, num_compiling;
    int64_t last_id;
    bool is_stopping;
    struct grammar_compiler_stats stats;

    /* the compiler thread's */
    struct telling *tellings;
    struct child host;
    int socket_fd; /* -1: there is no host */
};

/* ---- entries; under the lock ------------------------------------------------------------------ */

static struct entry *find_id(struct grammar_compiler *compiler, int64_t id)
{
    struct entry *entry;

    LIST_FOR_EACH (entry, &compiler->entries, link)
        if (entry->id == id)
            return entry;
    return NULL;
}

static struct entry *find_spec(struct grammar_compiler *compiler, const struct grammar_spec *spec,
                               int32_t backend)
{
    struct entry *entry;

    LIST_FOR_EACH (entry, &compiler->entries, link)
        if (!grammar_process_has_failed(entry->process) &&
            grammar_process_is_of(entry->process, spec, backend))
            return entry;
    return NULL;
}

/* Out of the list; its listeners have been told. */
static void drop_entry(struct entry *entry)
{
    ASSERT(!entry->listeners);
    list_remove(&entry->link);
    grammar_process_drop(entry->process);
    mem_free(entry);
}

/* The least recently used ones go until what nobody uses takes no more than it may. */
static void evict(struct grammar_compiler *compiler)
{
    struct entry *entry;
    int64_t bytes = 0;

    LIST_FOR_EACH (entry, &compiler->entries, link)
        if (entry->state == ENTRY_READY && grammar_process_is_idle(entry->process))
            bytes += grammar_process_bytes(entry->process);
    LIST_FOR_EACH (entry, &compiler->entries, link) {
        if (bytes <= compiler->options.cache_bytes)
            return;
        if (entry->state != ENTRY_READY || !grammar_process_is_idle(entry->process))
            continue;
        bytes -= grammar_process_bytes(entry->process);
        drop_entry(entry);
    }
}

static enum status choose(const struct grammar_compiler *compiler, const struct grammar_spec *spec,
                          int32_t *out)
{
    struct grammar_spec chosen = *spec;

    if (!chosen.backend)
        chosen.backend = compiler->options.backend;
    return backend_choose(compiler->options.backends, &chosen, out);
}

/* ---- asking ------------------------------------------------------------------------------------ */

struct grammar_process *grammar_compiler_find(struct grammar_compiler *compiler,
                                              const struct grammar_spec *spec)
{
    struct grammar_process *process = NULL;
    struct entry *entry;
    int32_t backend;

    if (choose(compiler, spec, &backend) != OK)
        return NULL;
    pthread_mutex_lock(&compiler->lock);
    entry = find_spec(compiler, spec, backend);
    if (entry && entry->state == ENTRY_READY) {
        process = grammar_process_take(entry->process);
        list_remove(&entry->link);
        list_push_back(&compiler->entries, &entry->link);
        compiler->stats.num_hits++;
    }
    pthread_mutex_unlock(&compiler->lock);
    return process;
}

static enum status add_entry(struct grammar_compiler *compiler, const struct grammar_spec *spec,
                             int32_t backend, struct entry **out)
{
    struct grammar_process_options options = {
        .id = compiler->last_id + 1,
        .num_places = compiler->options.num_places,
        .vocab_size = tokenizer_vocab_size(compiler->options.tokenizer),
        .stop_tokens = compiler->stop_tokens,
        .num_stop_tokens = compiler->num_stop_tokens,
        .bell_fd = compiler->options.bell_fd,
    };
    struct grammar_process *process;
    struct entry *entry;

    if (compiler->num_waiting >= MAX_WAITING)
        return fail(ERR_FULL, "%d grammars wait to be compiled", MAX_WAITING);
    TRY(grammar_process_new(spec, backend, &options, &process));
    entry = mem_new(struct entry);
    *entry = (struct entry){.id = ++compiler->last_id, .process = process, .backend = backend};
    list_push_back(&compiler->entries, &entry->link);
    compiler->num_waiting++;
    *out = entry;
    return OK;
}

static void add_listener(struct entry *entry, grammar_listener *call, void *user)
{
    struct listener *listener = mem_new(struct listener);

    *listener = (struct listener){call, user, entry->listeners};
    entry->listeners = listener;
}

enum status grammar_compiler_compile(struct grammar_compiler *compiler,
                                     const struct grammar_spec *spec, grammar_listener *listener,
                                     void *user)
{
    enum status status = OK;
    struct entry *entry;
    int32_t backend;

    TRY(choose(compiler, spec, &backend));
    pthread_mutex_lock(&compiler->lock);
    entry = find_spec(compiler, spec, backend);
    if (!entry)
        status = add_entry(compiler, spec, backend, &entry);
    if (status == OK)
        add_listener(entry, listener, user); /* one that is ready since is told at the next look */
    pthread_mutex_unlock(&compiler->lock);
    eventfd_write(compiler->wake_fd, 1);
    return status;
}

/* What a listener that waits was told. */
struct told {
    struct mail mail;
    struct mailbox box;
    struct grammar_process *process;
    enum status status;
    char sentence[REGION_SENTENCE];
};

static void take_told(void *user, struct grammar_process *process, enum status status,
                      const char *text)
{
    struct told *told = user;

    told->process = process ? grammar_process_take(process) : NULL;
    told->status = status;
    snprintf(told->sentence, sizeof told->sentence, "%s", text);
    if (mailbox_push(&told->box, &told->mail) != OK)
        ASSERT(false, "%s", fail_text()); /* it holds one */
}

enum status grammar_compiler_wait(struct grammar_compiler *compiler,
                                  const struct grammar_spec *spec, struct grammar_process **out)
{
    struct told told = {0};
    enum status status;

    TRY(mailbox_open(&told.box, 1));
    status = grammar_compiler_compile(compiler, spec, take_told, &told);
    if (status == OK) {
        (void)mailbox_wait(&told.box, clock_deadline_ns(-1));
        status = told.status == OK ? OK : fail(told.status, "%s", told.sentence);
        *out = told.process;
    }
    mailbox_close(&told.box);
    return status;
}

void grammar_compiler_get_stats(struct grammar_compiler *compiler,
                                struct grammar_compiler_stats *out)
{
    struct entry *entry;

    pthread_mutex_lock(&compiler->lock);
    *out = compiler->stats;
    LIST_FOR_EACH (entry, &compiler->entries, link) {
        if (entry->state != ENTRY_READY)
            continue;
        out->num_processes++;
        out->bytes += grammar_process_bytes(entry->process);
    }
    pthread_mutex_unlock(&compiler->lock);
}

/* ---- the host ----------------------------------------------------------------------------------- */

static int32_t piece_size(const struct tokenizer *tokenizer, token_id id, struct bytes *pieces)
{
    size_t before = pieces->size;

    tokenizer_piece(tokenizer, id, false, pieces);
    return (int32_t)(pieces->size - before);
}

static enum status hand_vocabulary_over(const struct grammar_compiler *compiler, int *fd_out)
{
    const struct tokenizer *tokenizer = compiler->options.tokenizer;
    int32_t n = tokenizer_vocab_size(tokenizer);
    AUTO_MEM struct grammar_token *tokens = mem_new_array(struct grammar_token, (size_t)n);
    AUTO_CLOSE(bytes) struct bytes pieces = {0};

    for (int32_t id = 0; id < n; id++) {
        tokens[id].size = piece_size(tokenizer, id, &pieces);
        tokens[id].is_control = tokens[id].size == 0;
        if (tokens[id].is_control) { /* its name, for sentences of the library */
            size_t size;
            const char *text = tokenizer_token_text(tokenizer, id, &size);

            bytes_append(&pieces, text, size);
            tokens[id].size = (int32_t)size;
        }
    }
    for (int32_t id = 0, at = 0; id < n; at += tokens[id++].size)
        tokens[id].bytes = (const char *)pieces.data + at;
    return vocabulary_write(
        &(struct grammar_vocabulary){
            .tokens = tokens,
            .num_tokens = n,
            .stop_tokens = compiler->stop_tokens,
            .num_stop_tokens = compiler->num_stop_tokens,
        },
        fd_out);
}

static enum status spawn_host(struct grammar_compiler *compiler, int socket_fd, int vocabulary_fd)
{
    const struct grammar_compiler_options *options = &compiler->options;
    const char *program = options->program ? options->program : "/proc/self/exe";
    AUTO_MEM char *socket_text = mem_printf("%d", socket_fd);
    AUTO_MEM char *vocabulary_text = mem_printf("%d", vocabulary_fd);
    AUTO_MEM char *bell_text = mem_printf("%d", options->bell_fd);
    AUTO_MEM char *memory_text = mem_printf("%ld", (long)options->memory_bytes);
    const char *argv[] = {program,     "grammar-host", "--socket", socket_text, "--vocabulary",
                          vocabulary_text, "--bell",   bell_text,  "--memory",  memory_text,
                          "--folder",  compiler->folder, NULL};
    int fds[] = {socket_fd, vocabulary_fd, options->bell_fd};

    return spawn(&(struct spawn_options){.argv = argv, .fds = fds, .num_fds = COUNT_OF(fds)},
                 &compiler->host);
}

static enum status start_host(struct grammar_compiler *compiler)
{
    int sockets[2], vocabulary_fd;
    enum status status;

    if (compiler->socket_fd >= 0)
        return OK;
    TRY(hand_vocabulary_over(compiler, &vocabulary_fd));
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) {
        close(vocabulary_fd);
        return fail(ERR_IO, "no socket for the grammar host: %m");
    }
    status = spawn_host(compiler, sockets[1], vocabulary_fd);
    close(sockets[1]);
    close(vocabulary_fd);
    if (status != OK)
        close(sockets[0]);
    else
        compiler->socket_fd = sockets[0];
    return status;
}

static enum status send_order(struct grammar_compiler *compiler, const struct entry *entry)
{
    struct host_order order = {.id = entry->id, .backend = entry->backend};
    int fd = grammar_process_region_fd(entry->process);
    struct iovec part = {&order, sizeof order};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = {{0}};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    *header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    while (sendmsg(compiler->socket_fd, &message, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return fail(ERR_CLOSED, "the grammar host does not listen: %m");
    return OK;
}

/* ---- the compiler thread -------------------------------------------------------------------------- */

/* To the entry's listeners, as soon as the lock is free: they call the engine. */
static void tell_listeners(struct grammar_compiler *compiler, struct entry *entry,
                           enum status status, const char *text)
{
    struct telling *telling = mem_new(struct telling);

    *telling = (struct telling){
        .listeners = give(entry->listeners),
        .process = grammar_process_take(entry->process),
        .status = status,
        .text = mem_strdup(text),
        .next = compiler->tellings,
    };
    compiler->tellings = telling;
}

static void tell(const struct telling *telling)
{
    struct listener *listener = telling->listeners;

    while (listener) {
        struct listener *next = listener->next;

        listener->call(listener->user, telling->status == OK ? telling->process : NULL,
                       telling->status, telling->text);
        mem_free(listener);
        listener = next;
    }
}

/* Without the lock. */
static void tell_all(struct telling *telling)
{
    while (telling) {
        struct telling *next = telling->next;

        tell(telling);
        grammar_process_drop(telling->process);
        mem_free(telling->text);
        mem_free(telling);
        telling = next;
    }
}

static void leave_state(struct grammar_compiler *compiler, const struct entry *entry)
{
    compiler->num_waiting -= entry->state == ENTRY_WAITING;
    compiler->num_compiling -= entry->state == ENTRY_STARTING || entry->state == ENTRY_COMPILING;
}

/* It will not be had: not compiled, or not any more. */
static void end_entry(struct grammar_compiler *compiler, struct entry *entry, enum status status,
                      const char *text)
{
    compiler->stats.num_refused += entry->state != ENTRY_READY;
    leave_state(compiler, entry);
    entry->state = ENTRY_READY;
    grammar_process_fail(entry->process, status, text);
    tell_listeners(compiler, entry, status, text);
    drop_entry(entry);
}

static void begin_entry(struct grammar_compiler *compiler, struct entry *entry)
{
    AUTO_MEM char *sentence = NULL;
    enum status status = start_host(compiler);

    if (status == OK)
        status = send_order(compiler, entry);
    if (status != OK) {
        sentence = mem_strdup(fail_text());
        end_entry(compiler, entry, status, sentence);
        return;
    }
    leave_state(compiler, entry);
    entry->state = ENTRY_STARTING;
    entry->begin_ns = clock_now_ns();
    compiler->num_compiling++;
}

static void note_start(struct entry *entry, pid_t pid)
{
    grammar_process_started(entry->process, pid);
    if (entry->state == ENTRY_STARTING) { /* else it was quick, and has told already what it came to */
        entry->state = ENTRY_COMPILING;
        entry->begin_ns = clock_now_ns();
    }
}

static void begin_waiting(struct grammar_compiler *compiler)
{
    struct entry *entry;

    LIST_FOR_EACH (entry, &compiler->entries, link)
        if (entry->state == ENTRY_WAITING &&
            compiler->num_compiling < compiler->options.max_compiling)
            begin_entry(compiler, entry);
}

/* Those who asked for a grammar that had become ready a moment before. */
static void tell_late_listeners(struct grammar_compiler *compiler)
{
    struct entry *entry;

    LIST_FOR_EACH (entry, &compiler->entries, link)
        if (entry->state == ENTRY_READY && entry->listeners)
            tell_listeners(compiler, entry, OK, "");
}

static void finish_entry(struct grammar_compiler *compiler, struct entry *entry)
{
    enum status status = grammar_process_result(entry->process);

    trace_add("compile_grammar", entry->begin_ns, clock_now_ns(), -1);
    if (status != OK) {
        AUTO_MEM char *sentence = mem_strdup(fail_text());

        end_entry(compiler, entry, status, sentence);
        return;
    }
    compiler->stats.num_compiled++;
    leave_state(compiler, entry);
    entry->state = ENTRY_READY;
    tell_listeners(compiler, entry, OK, "");
}

static void end_died(struct grammar_compiler *compiler, struct entry *entry, int wait_status)
{
    char how[64];
    AUTO_MEM char *sentence = NULL;
    bool was_compiling = entry->state != ENTRY_READY;

    child_status_text(wait_status, how);
    sentence = was_compiling
                   ? mem_printf("the grammar can't be compiled: its process ended with %s; it may "
                                "take %ld MiB",
                                how, (long)(compiler->options.memory_bytes >> 20))
                   : mem_printf("the grammar can't be followed any more: its process ended with %s",
                                how);
    log_warn("grammar %ld: %s", (long)entry->id, sentence);
    end_entry(compiler, entry, ERR_INVALID, sentence);
}

static void take_news(struct grammar_compiler *compiler, const struct host_news *news)
{
    struct entry *entry = find_id(compiler, news->id);

    if (!entry)
        return; /* evicted, or killed: what became of it is known */
    switch (news->kind) {
    case NEWS_REFUSED: /* a library that is not there, or not the one that is known */
        end_entry(compiler, entry,
                  news->status == ERR_NOT_FOUND || news->status == ERR_UNSUPPORTED
                      ? ERR_MISSING
                      : (enum status)news->status,
                  news->sentence);
        break;
    case NEWS_STARTED:
        note_start(entry, news->value);
        break;
    case NEWS_COMPILED:
        if (entry->state == ENTRY_STARTING || entry->state == ENTRY_COMPILING)
            finish_entry(compiler, entry);
        break;
    case NEWS_ENDED:
        end_died(compiler, entry, news->value);
        break;
    }
}

static void lose_host(struct grammar_compiler *compiler)
{
    struct entry *entry;

    log_warn("the grammar host has ended; the next grammar starts another");
    close(compiler->socket_fd);
    compiler->socket_fd = -1;
    child_close(&compiler->host);
    LIST_FOR_EACH (entry, &compiler->entries, link)
        if (entry->state != ENTRY_WAITING)
            end_entry(compiler, entry, ERR_INTERNAL, "the process that compiles grammars has ended");
}

static void hear_host(struct grammar_compiler *compiler)
{
    struct host_news news;

    for (;;) {
        ssize_t n = recv(compiler->socket_fd, &news, sizeof news, MSG_DONTWAIT);

        if (n == sizeof news) {
            news.sentence[sizeof news.sentence - 1] = '\0';
            take_news(compiler, &news);
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return;
        } else {
            lose_host(compiler);
            return;
        }
    }
}

/* Kills what takes too long; what takes long gives way before. */
static void watch(struct grammar_compiler *compiler)
{
    const struct grammar_compiler_options *options = &compiler->options;
    int64_t now_ns = clock_now_ns();
    struct entry *entry;

    LIST_FOR_EACH (entry, &compiler->entries, link) {
        AUTO_MEM char *sentence = NULL;
        int64_t hang_ns = 0;

        if (entry->state == ENTRY_STARTING &&
            now_ns - entry->begin_ns > START_TIMEOUT_MS * INT64_C(1000000))
            child_signal(&compiler->host, SIGKILL); /* its end is heard, and told, as any other */
        if (entry->state == ENTRY_COMPILING &&
            now_ns - entry->begin_ns > options->compile_timeout_ms * INT64_C(1000000))
            sentence = mem_printf("the grammar takes longer than %d ms to compile",
                                  options->compile_timeout_ms);
        if (entry->state == ENTRY_READY && !grammar_process_is_idle(entry->process))
            hang_ns = grammar_process_hang_ns(entry->process);
        if (hang_ns > LONG_MASK_MS * INT64_C(1000000))
            grammar_process_demote(entry->process);
        if (hang_ns > options->mask_timeout_ms * INT64_C(1000000))
            sentence = mem_printf("the grammar takes longer than %d ms for one mask",
                                  options->mask_timeout_ms);
        if (!sentence)
            continue;
        compiler->stats.num_killed++;
        end_entry(compiler, entry, ERR_INVALID, sentence);
    }
}

/* Somebody may have to be told that something took too long. */
static bool has_to_watch(struct grammar_compiler *compiler)
{
    struct entry *entry;

    LIST_FOR_EACH (entry, &compiler->entries, link)
        if (entry->state == ENTRY_STARTING || entry->state == ENTRY_COMPILING ||
            (entry->state == ENTRY_READY && !grammar_process_is_idle(entry->process)))
            return true;
    return false;
}

/* Tells what there is to tell and parks, with the lock free. */
static void park(struct grammar_compiler *compiler, int timeout_ms)
{
    struct pollfd fds[] = {{.fd = compiler->wake_fd, .events = POLLIN},
                           {.fd = compiler->socket_fd, .events = POLLIN}};
    struct telling *tellings = give(compiler->tellings);
    eventfd_t ignored;

    pthread_mutex_unlock(&compiler->lock);
    tell_all(tellings);
    if (poll(fds, COUNT_OF(fds), timeout_ms) > 0 && fds[0].revents)
        eventfd_read(compiler->wake_fd, &ignored);
    pthread_mutex_lock(&compiler->lock);
}

static void *compiler_loop(void *user)
{
    struct grammar_compiler *compiler = user;

    trace_name_thread("grammar");
    pthread_mutex_lock(&compiler->lock);
    while (!compiler->is_stopping) {
        if (compiler->socket_fd >= 0)
            hear_host(compiler);
        watch(compiler);
        tell_late_listeners(compiler);
        begin_waiting(compiler);
        /* Before evict: what is idle by then is looked at, and what becomes so later is watched. */
        int timeout_ms = has_to_watch(compiler) ? WATCH_MS : -1;

        evict(compiler);
        park(compiler, timeout_ms);
    }
    pthread_mutex_unlock(&compiler->lock);
    tell_all(give(compiler->tellings));
    if (compiler->socket_fd >= 0) {
        close(compiler->socket_fd);
        child_close(&compiler->host);
    }
    return NULL;
}

/* ---- life --------------------------------------------------------------------------------------- */

/* "grammar" beside the program that runs. */
static char *folder_of_program(void)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    char *slash;

    path[MAX(n, 0)] = '\0';
    slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    return mem_printf("%s/grammar", slash ? path : ".");
}

enum status grammar_compiler_new(const struct grammar_compiler_options *options,
                                 struct grammar_compiler **out)
{
    AUTO_FREE(grammar_compiler) struct grammar_compiler *compiler =
        mem_new(struct grammar_compiler);

    compiler->options = *options;
    compiler->folder = options->folder ? mem_strdup(options->folder) : folder_of_program();
    compiler->stop_tokens = tokenizer_stop_ids(options->tokenizer, &compiler->num_stop_tokens);
    compiler->socket_fd = -1;
    list_init(&compiler->entries);
    pthread_mutex_init(&compiler->lock, NULL);
    compiler->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (compiler->wake_fd < 0)
        return fail(ERR_IO, "no descriptor for the grammar compiler: %m");
    if (pthread_create(&compiler->thread, NULL, compiler_loop, compiler) != 0)
        return fail(ERR_IO, "no thread for the grammar compiler: %m");
    compiler->has_thread = true;
    *out = give(compiler);
    return OK;
}

void grammar_compiler_free(struct grammar_compiler *compiler)
{
    struct entry *entry;

    if (!compiler)
        return;
    if (compiler->has_thread) {
        pthread_mutex_lock(&compiler->lock);
        compiler->is_stopping = true;
        pthread_mutex_unlock(&compiler->lock);
        eventfd_write(compiler->wake_fd, 1);
        pthread_join(compiler->thread, NULL);
    }
    LIST_FOR_EACH (entry, &compiler->entries, link) {
        grammar_process_fail(entry->process, ERR_CLOSED, "the engine stops");
        tell_listeners(compiler, entry, ERR_CLOSED, "the engine stops");
        drop_entry(entry);
    }
    tell_all(give(compiler->tellings));
    if (compiler->wake_fd >= 0)
        close(compiler->wake_fd);
    pthread_mutex_destroy(&compiler->lock);
    mem_free(compiler->folder);
    mem_free(compiler);
}
