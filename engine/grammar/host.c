#include "engine/grammar/host.h"

#include "engine/grammar/region.h"
#include "proto/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Compilers recurse over the grammar: a chain of a few hundred "$ref" overflows 8 MiB. Address space only:
 * pages are taken as they are needed. */
static const size_t COMPILE_STACK_BYTES = (size_t)256 << 20;

enum {
    MAX_BACKENDS = 8,
    POLITE_AFTER_MS = 50, /* of CPU time: a compilation, or a mask, that takes longer makes way for the engine */
    BACKLOG = 16,         /* questions at once for which one more thread is started */
    MAX_THREADS = 8,
};

struct host {
    struct host_options options;
    struct grammar_vocabulary vocabulary; /* lies in the file, but for its tokens */
    struct backend *backends[MAX_BACKENDS]; /* as they are first needed */
    struct child_entry {
        pid_t pid;
        int64_t id;
    } *children; /* [num_children] */
    int32_t num_children, capacity;
};

/* ---- the vocabulary --------------------------------------------------------------------------- */

/* The file: a header, the stop tokens, a word for each token (its size; the top bit: control), bytes. */
struct vocabulary_header {
    int32_t num_tokens, num_stop_tokens;
};

enum { CONTROL_BIT = 1 << 30 };

static enum status write_all(int fd, const struct bytes *bytes)
{
    for (size_t at = 0; at < bytes->size;) {
        ssize_t n = write(fd, bytes->data + at, bytes->size - at);

        if (n < 0)
            return fail(ERR_IO, "the vocabulary can't be handed over: %m");
        at += (size_t)n;
    }
    return OK;
}

enum status vocabulary_write(const struct grammar_vocabulary *vocabulary, int *fd_out)
{
    struct vocabulary_header header = {vocabulary->num_tokens, vocabulary->num_stop_tokens};
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    int fd = memfd_create("tandem-vocabulary", MFD_CLOEXEC);

    if (fd < 0)
        return fail(ERR_IO, "no memory to hand the vocabulary over in: %m");
    bytes_append(&bytes, &header, sizeof header);
    bytes_append(&bytes, vocabulary->stop_tokens,
                 (size_t)header.num_stop_tokens * sizeof *vocabulary->stop_tokens);
    for (int32_t i = 0; i < header.num_tokens; i++) {
        int32_t word =
            vocabulary->tokens[i].size | (vocabulary->tokens[i].is_control ? CONTROL_BIT : 0);

        bytes_append(&bytes, &word, sizeof word);
    }
    for (int32_t i = 0; i < header.num_tokens; i++)
        bytes_append(&bytes, vocabulary->tokens[i].bytes, (size_t)vocabulary->tokens[i].size);

    enum status status = write_all(fd, &bytes);

    if (status != OK)
        close(fd);
    else
        *fd_out = fd;
    return status;
}

static enum status vocabulary_read(int fd, struct grammar_vocabulary *out)
{
    const struct vocabulary_header *header;
    const int32_t *words;
    const char *text;
    struct stat about;

    if (fstat(fd, &about) != 0)
        return fail(ERR_IO, "no vocabulary: %m");

    void *file = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, fd, 0);

    if (file == MAP_FAILED)
        return fail(ERR_IO, "no vocabulary: %m");
    header = file;
    words = (const int32_t *)(header + 1) + header->num_stop_tokens;
    text = (const char *)(words + header->num_tokens);

    struct grammar_token *tokens = mem_new_array(struct grammar_token, (size_t)header->num_tokens);

    for (int32_t i = 0; i < header->num_tokens; i++) {
        tokens[i] = (struct grammar_token){
            .bytes = text, .size = words[i] & ~CONTROL_BIT, .is_control = words[i] & CONTROL_BIT};
        text += tokens[i].size;
    }
    *out = (struct grammar_vocabulary){
        .tokens = tokens,
        .num_tokens = header->num_tokens,
        .stop_tokens = (const token_id *)(header + 1),
        .num_stop_tokens = header->num_stop_tokens,
    };
    return OK;
}

/* ---- a grammar process ------------------------------------------------------------------------ */

struct server {
    const struct host *host;
    const struct backend_ops *ops;
    struct backend *backend;
    struct region *region;
    struct compiled_grammar *compiled;
    struct matcher **matchers; /* [num_places] NULL: none yet */
    pthread_mutex_t lock;
    uint32_t num_taken; /* questions */
    int32_t num_threads, max_threads;
};

static void tell(int socket_fd, const struct host_news *news)
{
    while (send(socket_fd, news, sizeof *news, MSG_NOSIGNAL) < 0 && errno == EINTR)
        continue;
}

static enum status move_on(struct server *server, int32_t i, const struct region_place *place)
{
    struct region *region = server->region;

    if (place->token == START_ANEW) {
        if (server->matchers[i])
            server->ops->free_matcher(give(server->matchers[i]));
        TRY(server->ops->start(server->compiled, &server->matchers[i]));
    } else {
        TRY(server->ops->accept(server->matchers[i], place->token));
    }
    return server->ops->fill(server->matchers[i], region_mask(region, i), region->num_words);
}

static int64_t cpu_ns_of(pthread_t thread)
{
    struct timespec used = {0};
    clockid_t clock;

    if (pthread_getcpuclockid(thread, &clock) == 0)
        clock_gettime(clock, &used);
    return used.tv_sec * INT64_C(1000000000) + used.tv_nsec;
}

static void answer(struct server *server, int32_t i)
{
    struct region_place *place = region_place(server->region, i);
    int64_t cpu_ns = cpu_ns_of(pthread_self());

    place->begin_ns = clock_now_ns();
    place->status = (int32_t)move_on(server, i, place);
    if (place->status != OK)
        snprintf(place->sentence, sizeof place->sentence, "%s", fail_text());
    place->end_ns = clock_now_ns();
    if (cpu_ns_of(pthread_self()) - cpu_ns > POLITE_AFTER_MS * INT64_C(1000000))
        region_give_way(0); /* this thread, for good */
    atomic_fetch_add_explicit(&place->num_done, 1, memory_order_release);
}

static void ring_bell_if_awaited(const struct server *server)
{
    if (atomic_exchange(&server->region->engine_waits, false))
        eventfd_write(server->host->options.bell_fd, 1);
}

static void *serve(void *user);

/* Above a few outputs, beside each other. */
static void add_thread(struct server *server, uint32_t num_waiting)
{
    pthread_t thread;

    if (num_waiting < BACKLOG || server->num_threads >= server->max_threads ||
        pthread_create(&thread, NULL, serve, server) != 0)
        return;
    pthread_detach(thread);
    server->num_threads++;
}

/* The next question's place; -1: there is none, and num_posted_out is what to wait behind. */
static int32_t take_question(struct server *server, uint32_t *num_posted_out)
{
    struct region *region = server->region;
    int32_t place = -1;

    pthread_mutex_lock(&server->lock);
    *num_posted_out = atomic_load(&region->num_posted);
    if (*num_posted_out != server->num_taken) {
        place = atomic_load(&region_ring(region)[server->num_taken % (uint32_t)region->num_places]);
        server->num_taken++;
        add_thread(server, *num_posted_out - server->num_taken);
    }
    pthread_mutex_unlock(&server->lock);
    return place;
}

static void park(struct region *region, uint32_t num_posted)
{
    atomic_fetch_add(&region->num_sleepers, 1);
    syscall(SYS_futex, &region->num_posted, FUTEX_WAIT, num_posted, NULL, NULL, 0);
    atomic_fetch_sub(&region->num_sleepers, 1);
}

static void *serve(void *user)
{
    struct server *server = user;

    pthread_setname_np(pthread_self(), "masks");
    for (;;) {
        uint32_t num_posted;
        int32_t place = take_question(server, &num_posted);

        if (place >= 0 && place < server->region->num_places) {
            answer(server, place);
            continue;
        }
        ring_bell_if_awaited(server);
        park(server->region, num_posted);
    }
    return NULL;
}

struct compilation {
    struct server *server;
    pid_t thread_id;
    enum status status;
    char sentence[REGION_SENTENCE];
};

static void *run_compilation(void *user)
{
    struct compilation *compilation = user;
    struct server *server = compilation->server;
    struct region *region = server->region;
    struct grammar_spec spec = {
        .kind = region->kind,
        .text = region_text(region),
        .size = (size_t)region->text_size,
        .disable_any_whitespace = region->disable_any_whitespace,
        .disable_additional_properties = region->disable_additional_properties,
        .lenient = region->lenient,
        .whitespace_pattern = region->pattern_size >= 0 ? region_pattern(region) : NULL,
    };

    pthread_setname_np(pthread_self(), "compile");
    __atomic_store_n(&compilation->thread_id, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
    compilation->status = server->ops->compile(server->backend, &spec, &server->compiled);
    if (compilation->status != OK)
        snprintf(compilation->sentence, sizeof compilation->sentence, "%s", fail_text());
    return NULL;
}

static bool join_within(pthread_t thread, int32_t ms)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_nsec += ms * 1000000;
    deadline.tv_sec += deadline.tv_nsec / 1000000000;
    deadline.tv_nsec %= 1000000000;
    return pthread_timedjoin_np(thread, NULL, &deadline) == 0;
}

/* On a stack of its own; one that takes long gives way to whoever has a token to compute. */
static enum status compile(struct server *server)
{
    struct compilation compilation = {.server = server};
    pthread_attr_t attributes;
    pthread_t thread;
    int error;

    pthread_attr_init(&attributes);
    error = pthread_attr_setstacksize(&attributes, COMPILE_STACK_BYTES);
    if (error == 0)
        error = pthread_create(&thread, &attributes, run_compilation, &compilation);
    pthread_attr_destroy(&attributes);
    if (error)
        return fail(ERR_IO, "no thread to compile the grammar on: %s", strerror(error));
    while (!join_within(thread, POLITE_AFTER_MS))
        if (cpu_ns_of(thread) > POLITE_AFTER_MS * INT64_C(1000000))
            region_give_way(__atomic_load_n(&compilation.thread_id, __ATOMIC_ACQUIRE));
    return compilation.status == OK ? OK : fail(compilation.status, "%s", compilation.sentence);
}

static int64_t address_space_bytes(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    if (file && fscanf(file, "%ld", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return pages * (int64_t)sysconf(_SC_PAGESIZE);
}

/* Sanitizers take address space by the terabyte. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CAN_LIMIT_MEMORY = 0 };
#else
enum { CAN_LIMIT_MEMORY = 1 };
#endif

static void limit_resources(const struct host *host)
{
    rlim_t bytes = (rlim_t)(address_space_bytes() + host->options.memory_bytes) +
                   COMPILE_STACK_BYTES;
    struct rlimit memory = {bytes, bytes}, none = {0, 0};

    setrlimit(RLIMIT_CORE, &none);
    if (CAN_LIMIT_MEMORY)
        setrlimit(RLIMIT_AS, &memory);
}

/* Libraries print: text of requests, which has no business in our log. */
static void silence(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null >= 0) {
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
    }
}

static int32_t count_threads(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);

    return (int32_t)MAX(1, MIN(MAX_THREADS, cores / 2));
}

static void note_result(struct region *region, enum status status, int64_t begin_ns)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    region->compile_ns = clock_now_ns() - begin_ns;
    /* Since the fork, each page that it has of its own has cost a fault. */
    region->private_bytes = usage.ru_minflt * sysconf(_SC_PAGESIZE);
    region->status = (int32_t)status;
    if (status != OK)
        snprintf(region->sentence, sizeof region->sentence, "%s", fail_text());
}

_Noreturn static void run_process(const struct host *host, const struct host_order *order,
                                  struct region *region)
{
    struct server server = {
        .host = host,
        .ops = host->options.backends[order->backend],
        .backend = host->backends[order->backend],
        .region = region,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .num_threads = 1,
        .max_threads = count_threads(),
    };
    int64_t begin_ns = clock_now_ns();
    enum status status;

    prctl(PR_SET_NAME, "tandem-grammar");
    silence();
    limit_resources(host);
    server.matchers = mem_new_array(struct matcher *, (size_t)region->num_places);
    status = compile(&server);
    note_result(region, status, begin_ns);
    tell(host->options.socket_fd, &(struct host_news){.id = order->id, .kind = NEWS_COMPILED});
    if (status == OK)
        serve(&server);
    _exit(0);
}

/* ---- the host --------------------------------------------------------------------------------- */

static void remember(struct host *host, pid_t pid, int64_t id)
{
    if (host->num_children == host->capacity) {
        host->capacity = MAX(64, 2 * host->capacity);
        host->children = mem_resize(host->children,
                                    (size_t)host->capacity * sizeof *host->children);
    }
    host->children[host->num_children++] = (struct child_entry){pid, id};
}

static enum status map_region(int fd, struct region **out)
{
    struct stat about;
    void *region;

    if (fstat(fd, &about) != 0 || about.st_size < (off_t)sizeof(struct region))
        return fail(ERR_MISMATCH, "the region of a grammar has %ld bytes", (long)about.st_size);
    region = mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (region == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "the region of a grammar can't be mapped: %m");
    *out = region;
    return OK;
}

static enum status open_backend(struct host *host, int32_t i)
{
    if (!host->backends[i])
        TRY(host->options.backends[i]->open(host->options.folder, &host->vocabulary, &host->backends[i]));
    return OK;
}

/* The child has the host's signals blocked, and its memory; it never comes back. */
static enum status start_process(struct host *host, const struct host_order *order,
                                 struct region *region, pid_t *pid_out)
{
    pid_t parent = getpid(), pid = fork();

    if (pid < 0)
        return fail(ERR_IO, "no process for a grammar: %m");
    if (pid == 0) {
        sigset_t none;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        run_process(host, order, region);
    }
    *pid_out = pid;
    return OK;
}

static enum status begin(struct host *host, const struct host_order *order, int region_fd,
                         pid_t *pid_out)
{
    struct region *region;
    enum status status;

    TRY(open_backend(host, order->backend));
    TRY(map_region(region_fd, &region));
    status = start_process(host, order, region, pid_out);
    munmap(region, (size_t)region->bytes);
    return status;
}

static void obey(struct host *host, const struct host_order *order, int region_fd)
{
    struct host_news news = {.id = order->id, .kind = NEWS_STARTED};
    pid_t pid = 0;
    enum status status = begin(host, order, region_fd, &pid);

    if (status == OK) {
        remember(host, pid, order->id);
        news.value = pid;
    } else {
        news.kind = NEWS_REFUSED;
        news.status = (int32_t)status;
        snprintf(news.sentence, sizeof news.sentence, "%s", fail_text());
    }
    tell(host->options.socket_fd, &news);
}

/* false: the engine has hung up. */
static bool hear(struct host *host)
{
    struct host_order order;
    struct iovec part = {&order, sizeof order};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    ssize_t n = recvmsg(host->options.socket_fd, &message, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    int region_fd;

    if (n < 0)
        return errno == EINTR;
    if (n == 0)
        return false;
    ASSERT(n == sizeof order && header && header->cmsg_type == SCM_RIGHTS);
    memcpy(&region_fd, CMSG_DATA(header), sizeof region_fd);
    obey(host, &order, region_fd);
    close(region_fd);
    return true;
}

static void tell_end(struct host *host, pid_t pid, int status)
{
    for (int32_t i = 0; i < host->num_children; i++) {
        if (host->children[i].pid != pid)
            continue;
        tell(host->options.socket_fd,
             &(struct host_news){
                 .id = host->children[i].id, .kind = NEWS_ENDED, .value = status});
        host->children[i] = host->children[--host->num_children];
        return;
    }
}

static void reap(struct host *host, int signal_fd)
{
    struct signalfd_siginfo ignored;
    pid_t pid;
    int status;

    if (read(signal_fd, &ignored, sizeof ignored) < 0)
        return;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        tell_end(host, pid, status);
}

int host_main(const struct host_options *options)
{
    struct host host = {.options = *options};
    sigset_t signals;
    int signal_fd;

    if (vocabulary_read(options->vocabulary_fd, &host.vocabulary) != OK) {
        fprintf(stderr, "tandem grammar-host: %s\n", fail_text());
        return 1;
    }
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    ASSERT(signal_fd >= 0, "signalfd: %s", strerror(errno));

    for (bool goes_on = true; goes_on;) {
        struct pollfd fds[] = {{.fd = options->socket_fd, .events = POLLIN},
                               {.fd = signal_fd, .events = POLLIN}};

        if (poll(fds, COUNT_OF(fds), -1) < 0)
            continue;
        if (fds[1].revents)
            reap(&host, signal_fd);
        if (fds[0].revents)
            goes_on = hear(&host);
    }
    _exit(0); /* its children end with it; libraries need not be taken down */
}
