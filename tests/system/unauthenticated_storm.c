/*
 * unauthenticated_storm: strangers hammer a tcp listener with random and half-valid frames of ZMTP and CURVE.
 *
 * By itself it starts an engine's side of a channel (a process that echoes), and a right peer that asks it all
 * the while. With --address it attacks what listens there, a control socket say, and --check is a command
 * that must go on succeeding. In the end the listener must be alive, the right peer answered, also one that
 * comes in the middle of it, and the listener's memory as it was.
 *
 * usage: unauthenticated_storm [--frames N] [--seed N] [--address tcp://HOST:PORT --pid PID [--key Z85]
 *                              [--check COMMAND]]
 */
#include "proto/base/clock.h"
#include "proto/base/memory.h"
#include "proto/wire/channel.h"
#include "proto/wire/tcp.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

enum {
    NUM_STRANGERS = 256,     /* at a time */
    MAX_BURST = 64,          /* frames that one of them sends */
    MAX_FRAME = 255,         /* bytes */
    GREETING = 64,
    LINGER_MS = 200,         /* for how long one waits to be cut off */
    KNOCK_MS = 4000,         /* the same, to be let in */
    ZMQ_EVERY = 97,          /* of so many strangers one is ZeroMQ itself, with a wrong key */
    PATIENCE_MS = 60000,     /* of a right peer */
    MAX_GROWTH_KB = 4096,
};

/* A sanitizer keeps what is freed, so there memory tells nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool judges_memory = false;
#else
static const bool judges_memory = true;
#endif

struct storm {
    int64_t num_frames, num_sent, num_connections, num_cut;
    uint64_t random;
    const char *address, *key, *check;
    pid_t pid;
    struct tcp_address target;
};

static _Noreturn void give_up(const char *format, ...) __attribute__((format(printf, 1, 2)));
static _Noreturn void give_up(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("unauthenticated_storm: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void must(enum status status)
{
    if (status != OK)
        give_up("%s", fail_text());
}

static uint64_t next_random(struct storm *storm) /* xorshift64* */
{
    storm->random ^= storm->random >> 12;
    storm->random ^= storm->random << 25;
    storm->random ^= storm->random >> 27;
    return storm->random * 0x2545f4914f6cdd1d;
}

static size_t random_below(struct storm *storm, size_t n)
{
    return (size_t)(next_random(storm) % n);
}

static void fill_randomly(struct storm *storm, uint8_t *out, size_t size)
{
    for (size_t i = 0; i < size; i++)
        out[i] = (uint8_t)(next_random(storm) >> 32);
}

/* ---- what strangers say ------------------------------------------------------------------------------ */

static void greet(struct storm *storm, struct bytes *out)
{
    static const char *const mechanisms[] = {"CURVE", "CURVE", "CURVE", "NULL", "PLAIN", "GSSAPI", ""};
    const char *mechanism = mechanisms[random_below(storm, COUNT_OF(mechanisms))];
    uint8_t greeting[GREETING] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0};

    memcpy(greeting + 12, mechanism, strlen(mechanism));
    if (random_below(storm, 8) == 0) /* one that is not quite right */
        greeting[random_below(storm, GREETING)] = (uint8_t)next_random(storm);
    bytes_append(out, greeting, sizeof greeting);
}

/* Flags, a length, a name with its length, the rest random. */
static void say_command(struct storm *storm, struct bytes *out)
{
    static const char *const names[] = {"HELLO", "INITIATE", "MESSAGE", "READY", "ERROR", "PING",
                                        "WELCOME", "SUBSCRIBE"};
    /* As CURVE has them: with the name 200 and 257 or more bytes. */
    static const size_t sizes[] = {200, 200, 200, 168, 255, 12, 0};
    const char *name = names[random_below(storm, COUNT_OF(names))];
    size_t size = sizes[random_below(storm, COUNT_OF(sizes))];
    uint8_t frame[2 + MAX_FRAME];

    fill_randomly(storm, frame, sizeof frame);
    frame[0] = random_below(storm, 8) ? 4 : 0;
    frame[1] = (uint8_t)size;
    frame[2] = (uint8_t)strlen(name);
    memcpy(frame + 3, name, strlen(name));
    if (size == 200 && random_below(storm, 2))
        memcpy(frame + 3 + strlen(name), (uint8_t[]){1, 0}, 2); /* CURVE's version */
    bytes_append(out, frame, 2 + MAX(size, strlen(name) + 1));
}

/* A length that nobody means. */
static void say_huge(struct storm *storm, struct bytes *out)
{
    uint8_t frame[9] = {random_below(storm, 2) ? 6 : 2};

    fill_randomly(storm, frame + 1 + random_below(storm, 6), 3);
    bytes_append(out, frame, sizeof frame);
}

static void say_noise(struct storm *storm, struct bytes *out)
{
    uint8_t frame[MAX_FRAME];
    size_t size = 1 + random_below(storm, sizeof frame);

    fill_randomly(storm, frame, size);
    bytes_append(out, frame, size);
}

static void say_http(struct storm *storm, struct bytes *out)
{
    (void)storm;
    bytes_printf(out, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
}

static void (*const says[])(struct storm *, struct bytes *) = {
    say_command, say_command, say_command, say_huge, say_noise, say_http,
};

/* ---- one stranger ------------------------------------------------------------------------------------- */

struct stranger {
    int fd; /* -1: not there */
    bool is_in;
    struct bytes words;
    size_t num_said;
    int num_frames;
    int64_t until_ns;
};

static void begin(struct storm *storm, struct stranger *stranger)
{
    stranger->fd = socket(storm->target.address.ss_family,
                          SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (stranger->fd < 0)
        give_up("no socket: %m");
    if (connect(stranger->fd, (struct sockaddr *)&storm->target.address, storm->target.size) != 0 &&
        errno != EINPROGRESS)
        give_up("%s: %m", storm->address);
    stranger->is_in = false;
    stranger->words.size = stranger->num_said = 0;
    stranger->num_frames = (int)(1 + random_below(storm, MAX_BURST));
    stranger->until_ns = clock_deadline_ns(KNOCK_MS);
    if (random_below(storm, 10) > 0)
        greet(storm, &stranger->words);
    for (int i = 0; i < stranger->num_frames; i++)
        says[random_below(storm, COUNT_OF(says))](storm, &stranger->words);
}

static void end(struct storm *storm, struct stranger *stranger, bool is_cut)
{
    static const struct linger at_once = {.l_onoff = 1}; /* leaves no port in TIME_WAIT behind */

    setsockopt(stranger->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(stranger->fd);
    stranger->fd = -1;
    if (!stranger->is_in)
        return;
    storm->num_connections++;
    storm->num_cut += is_cut;
    /* Who was cut off before all was said has not sent all. */
    storm->num_sent += stranger->num_frames * (int64_t)stranger->num_said /
                       (int64_t)stranger->words.size;
}

static void act(struct storm *storm, struct stranger *stranger, short events)
{
    char room[1024];
    ssize_t n;

    if (events & POLLOUT) {
        if (!stranger->is_in) {
            stranger->is_in = true;
            stranger->until_ns = clock_deadline_ns(LINGER_MS);
        }
        n = send(stranger->fd, stranger->words.data + stranger->num_said,
                 stranger->words.size - stranger->num_said, MSG_NOSIGNAL);
        stranger->num_said += (size_t)MAX(n, 0);
        if (n < 0 && errno != EAGAIN) {
            end(storm, stranger, true);
            return;
        }
    }
    if (events & (POLLIN | POLLHUP | POLLERR)) {
        n = read(stranger->fd, room, sizeof room);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            end(storm, stranger, true);
    }
}

static void step(struct storm *storm, struct stranger strangers[NUM_STRANGERS])
{
    struct pollfd fds[NUM_STRANGERS];
    int64_t now_ns;

    for (int i = 0; i < NUM_STRANGERS; i++) {
        struct stranger *stranger = &strangers[i];

        if (stranger->fd < 0)
            begin(storm, stranger);
        fds[i] = (struct pollfd){
            .fd = stranger->fd,
            .events = POLLIN | (stranger->num_said < stranger->words.size ? POLLOUT : 0)};
    }
    poll(fds, NUM_STRANGERS, 50);
    now_ns = clock_now_ns();
    for (int i = 0; i < NUM_STRANGERS; i++) {
        if (fds[i].revents)
            act(storm, &strangers[i], fds[i].revents);
        if (strangers[i].fd >= 0 && now_ns >= strangers[i].until_ns)
            end(storm, &strangers[i], false);
    }
}

/* A peer that can everything but has not the key: its handshake goes through to the last. */
static void knock_as_zmq(const struct storm *storm, void *context)
{
    static const int zero = 0, never = -1;
    void *socket = zmq_socket(context, ZMQ_DEALER);
    struct curve_pair pair;
    char endpoint[TCP_MAX_TEXT + 1];

    tcp_print(&storm->target, endpoint);
    must(curve_pair_new(&pair));
    zmq_setsockopt(socket, ZMQ_LINGER, &(int){300}, sizeof(int));
    zmq_setsockopt(socket, ZMQ_RECONNECT_IVL, &never, sizeof never);
    zmq_setsockopt(socket, ZMQ_IPV6, &(int){tcp_is_ipv6(&storm->target)}, sizeof(int));
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &zero, sizeof zero);
    must(curve_as_client(socket, &pair, storm->key));
    if (zmq_connect(socket, endpoint) == 0)
        zmq_send(socket, "let me in", 9, ZMQ_DONTWAIT);
    zmq_close(socket);
}

/* ---- the listener ------------------------------------------------------------------------------------- */

static int64_t rss_kb(pid_t pid)
{
    char path[64], line[256];
    long long kb = -1;
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/status", pid);
    file = fopen(path, "r");
    while (file && kb < 0 && fgets(line, sizeof line, file))
        if (sscanf(line, "VmRSS: %lld", &kb) != 1)
            kb = -1;
    if (file)
        fclose(file);
    return kb;
}

static void run_engine(const struct channel_keys *keys, int endpoint_fd)
{
    AUTO_FREE(channel) struct channel *channel = NULL;
    struct received received;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    must(channel_listen("tcp://127.0.0.1:0", keys, &channel));
    if (write(endpoint_fd, channel_endpoint(channel), strlen(channel_endpoint(channel)) + 1) < 0)
        give_up("the endpoint cannot be told: %m");
    for (;;) {
        AUTO_FREE(frame) struct frame *frame = frame_new();

        if (!channel_wait(channel, clock_deadline_ns(-1), &received))
            continue;
        bytes_append(&frame->bytes, received.data, received.size);
        if (channel_send(channel, received.peer, frame) != OK)
            fprintf(stderr, "engine: %s\n", fail_text());
        (void)channel_num_disconnects(channel);
    }
}

static pid_t start_engine(const struct channel_keys *keys, char endpoint_out[TCP_MAX_TEXT + 1])
{
    int ends[2];
    pid_t pid;

    if (pipe(ends) != 0 || (pid = fork()) < 0)
        give_up("no process: %m");
    if (pid == 0) {
        run_engine(keys, ends[1]);
        _exit(1);
    }
    close(ends[1]);
    memset(endpoint_out, 0, TCP_MAX_TEXT + 1);
    if (read(ends[0], endpoint_out, TCP_MAX_TEXT) <= 0)
        give_up("the engine does not start");
    close(ends[0]);
    return pid;
}

/* ---- right peers ---------------------------------------------------------------------------------------- */

struct right_peer {
    const struct channel_keys *keys;
    const char *endpoint;
    _Atomic bool is_in, stops;
    int64_t num_answers, worst_ns;
};

static void ask(struct channel *channel, int64_t number)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();
    struct received received;

    bytes_append(&frame->bytes, &number, sizeof number);
    must(channel_send(channel, NULL, frame));
    if (!channel_wait(channel, clock_deadline_ns(PATIENCE_MS), &received))
        give_up("a right peer has had no answer for %d s: %s", PATIENCE_MS / 1000,
                channel_end(channel));
    if (received.size != sizeof number || memcmp(received.data, &number, sizeof number) != 0)
        give_up("a right peer has had another answer");
}

static void *ask_all_the_while(void *argument)
{
    struct right_peer *peer = argument;
    AUTO_FREE(channel) struct channel *channel = NULL;

    must(channel_connect(peer->endpoint, "0:1", peer->keys, &channel));
    ask(channel, -1);
    atomic_store(&peer->is_in, true);
    while (!atomic_load(&peer->stops)) {
        int64_t start_ns = clock_now_ns();

        ask(channel, peer->num_answers++);
        peer->worst_ns = MAX(peer->worst_ns, clock_now_ns() - start_ns);
        usleep(5000);
    }
    if (channel_num_disconnects(channel) > 0)
        give_up("the right peer was cut off: %s", channel_end(channel));
    return NULL;
}

/* One that comes while the storm rages; it tries again, as a worker does. */
static void *come_late(void *argument)
{
    struct right_peer *peer = argument;
    int64_t start_ns = clock_now_ns(), deadline_ns = clock_deadline_ns(PATIENCE_MS);
    bool is_in = false;

    while (!is_in && clock_now_ns() < deadline_ns) {
        AUTO_FREE(channel) struct channel *channel = NULL;
        AUTO_FREE(frame) struct frame *frame = frame_new();
        struct received received;
        struct pollfd fds[CHANNEL_NUM_FDS];

        bytes_append(&frame->bytes, "late", 4);
        must(channel_connect(peer->endpoint, "1:1", peer->keys, &channel));
        if (channel_send(channel, NULL, frame) != OK)
            continue;
        while (!(is_in = channel_recv(channel, &received)) &&
               channel_num_disconnects(channel) == 0 && clock_now_ns() < deadline_ns)
            channel_poll(channel, fds, COUNT_OF(fds), deadline_ns);
    }
    if (!is_in)
        give_up("a right peer that came late was not let in for %d s", PATIENCE_MS / 1000);
    peer->worst_ns = clock_now_ns() - start_ns;
    atomic_store(&peer->is_in, true);
    return NULL;
}

/* ---- the storm ------------------------------------------------------------------------------------------ */

static void run_check(const struct storm *storm, const char *when)
{
    if (kill(storm->pid, 0) != 0)
        give_up("process %d, which listened, is gone %s", storm->pid, when);
    if (storm->check && system(storm->check) != 0)
        give_up("'%s' fails %s", storm->check, when);
}

/* Until so many frames are sent, and `late`, where it is not NULL, has come in. */
static void rage(struct storm *storm, struct stranger *strangers, void *context, int64_t num_frames,
                 struct right_peer *late)
{
    int64_t zmq_at = storm->num_connections + ZMQ_EVERY;

    while (storm->num_sent < num_frames || (late && !atomic_load(&late->is_in))) {
        step(storm, strangers);
        if (context && storm->num_connections >= zmq_at) {
            knock_as_zmq(storm, context);
            zmq_at = storm->num_connections + ZMQ_EVERY;
        }
    }
}

static void tell(const struct storm *storm, int64_t start_ns, int64_t before_kb,
                 int64_t half_kb)
{
    int64_t after_kb = rss_kb(storm->pid);
    double s = (double)(clock_now_ns() - start_ns) / 1e9;

    printf("%" PRId64 " frames from %" PRId64 " strangers in %.1f s, %" PRId64 " cut off; "
           "VmRSS %" PRId64 " kB before, %" PRId64 " kB half way, %" PRId64 " kB after\n",
           storm->num_sent, storm->num_connections, s, storm->num_cut, before_kb,
           half_kb, after_kb);
    if (after_kb < 0 || before_kb < 0)
        give_up("process %d, which listened, is gone", storm->pid);
    if (judges_memory && after_kb - before_kb > MAX_GROWTH_KB)
        give_up("its memory has grown by %" PRId64 " kB", after_kb - before_kb);
}

static void run_storm(struct storm *storm, struct right_peer *late)
{
    struct stranger *strangers = mem_new_array(struct stranger, NUM_STRANGERS);
    void *context = storm->key ? zmq_ctx_new() : NULL;
    int64_t start_ns = clock_now_ns(), before_kb, half_kb;
    pthread_t thread;

    for (int i = 0; i < NUM_STRANGERS; i++)
        strangers[i].fd = -1;
    run_check(storm, "before the storm");
    /* Memory is compared from when all places have once been taken. */
    rage(storm, strangers, context, storm->num_frames / 10, NULL);
    before_kb = rss_kb(storm->pid);
    if (late && pthread_create(&thread, NULL, come_late, late) != 0)
        give_up("no thread");
    rage(storm, strangers, context, storm->num_frames / 2, NULL);
    run_check(storm, "in the storm");
    half_kb = rss_kb(storm->pid);
    rage(storm, strangers, context, storm->num_frames, late);
    if (late)
        pthread_join(thread, NULL);
    for (int i = 0; i < NUM_STRANGERS; i++) {
        if (strangers[i].fd >= 0)
            end(storm, &strangers[i], false);
        bytes_close(&strangers[i].words);
    }
    mem_free(strangers);
    if (context)
        zmq_ctx_term(context);
    run_check(storm, "after the storm");
    tell(storm, start_ns, before_kb, half_kb);
}

static void attack_our_own(struct storm *storm)
{
    struct channel_keys engine_keys, worker_keys;
    struct right_peer peer = {.keys = &worker_keys}, late = {.keys = &worker_keys};
    char endpoint[TCP_MAX_TEXT + 1];
    struct token token;
    pthread_t thread;

    must(curve_pair_new(&token.engine));
    must(curve_pair_new(&token.worker));
    channel_keys_of_engine(&token, &engine_keys);
    channel_keys_of_worker(&token, &worker_keys);
    storm->pid = start_engine(&engine_keys, endpoint);
    storm->address = peer.endpoint = late.endpoint = endpoint;
    storm->key = token.engine.public_key;
    must(tcp_resolve(endpoint, false, &storm->target));
    if (pthread_create(&thread, NULL, ask_all_the_while, &peer) != 0)
        give_up("no thread");
    while (!atomic_load(&peer.is_in))
        usleep(1000);
    run_storm(storm, &late);
    atomic_store(&peer.stops, true);
    pthread_join(thread, NULL);
    printf("the right peer had %" PRId64 " answers, the slowest after %.1f ms; one that came late was in "
           "after %.1f ms\n",
           peer.num_answers, clock_ms(peer.worst_ns), clock_ms(late.worst_ns));
    kill(storm->pid, SIGKILL);
    waitpid(storm->pid, NULL, 0);
}

static void parse(int argc, char **argv, struct storm *storm)
{
    static const struct option known[] = {
        {"frames", required_argument, NULL, 'f'}, {"seed", required_argument, NULL, 's'},
        {"address", required_argument, NULL, 'a'}, {"pid", required_argument, NULL, 'p'},
        {"key", required_argument, NULL, 'k'},     {"check", required_argument, NULL, 'c'},
        {0},
    };
    int letter;

    while ((letter = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (letter) {
        case 'f': storm->num_frames = atoll(optarg); break;
        case 's': storm->random = strtoull(optarg, NULL, 0) | 1; break;
        case 'a': storm->address = optarg; break;
        case 'p': storm->pid = atoi(optarg); break;
        case 'k': storm->key = optarg; break;
        case 'c': storm->check = optarg; break;
        default: exit(2);
        }
    }
    if (optind < argc || storm->num_frames < 1 || (storm->address && storm->pid < 1)) {
        fputs("usage: unauthenticated_storm [--frames N] [--seed N]\n"
              "         [--address tcp://HOST:PORT --pid PID [--key Z85] [--check COMMAND]]\n", stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct storm storm = {.num_frames = 5000, .random = 0x9e3779b97f4a7c15};

    parse(argc, argv, &storm);
    signal(SIGPIPE, SIG_IGN);
    if (!storm.address) {
        attack_our_own(&storm);
        return 0;
    }
    must(tcp_resolve(storm.address, false, &storm.target));
    run_storm(&storm, NULL);
    return 0;
}
