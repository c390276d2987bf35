#include "proto/wire/rendezvous.h"

#include "proto/base/build_id.h"
#include "proto/base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the run directory ----------------------------------------------------------------------- */

static const char dir_prefix[] = "tandem.";

/* Files only: we never make a directory in there. */
static void remove_dir(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;

    while (dir && (entry = readdir(dir)))
        unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(path);
}

/* Ours, and locked by us now: its owner is gone, or has not come to lock it, and will find that it is gone. The
 * descriptor holds the lock; -1: it is somebody's. */
static int lock_stale(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat info;

    if (fd < 0)
        return -1;
    if (fstat(fd, &info) == 0 && info.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    close(fd);
    return -1;
}

static void remove_stale(void *user, const char *path)
{
    (void)user;

    int fd = lock_stale(path);

    if (fd < 0)
        return;
    remove_dir(path);
    close(fd);
}

static void each_in(const char *parent, void (*tell)(void *user, const char *path), void *user)
{
    DIR *dir = opendir(parent);
    struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        if (strncmp(entry->d_name, dir_prefix, strlen(dir_prefix)) != 0)
            continue;
        AUTO_MEM char *path = mem_printf("%s/%s", parent, entry->d_name);
        tell(user, path);
    }
    if (dir)
        closedir(dir);
}

/* In /tmp the name could be somebody's trap: it must be a directory, ours, closed to others. */
static enum status make_private(const char *path)
{
    struct stat info;

    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return fail(ERR_IO, "%s cannot be made: %m", path);
    if (lstat(path, &info) != 0)
        return fail(ERR_IO, "%s cannot be looked at: %m", path);
    if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 077))
        return fail(ERR_MISMATCH, "%s is not a directory of user %u with mode 0700 (user %u, mode "
                    "%04o)", path, geteuid(), info.st_uid, info.st_mode & 07777);
    return OK;
}

static enum status find_parent(const char *parent, char **out)
{
    const char *runtime_dir = getenv("XDG_RUNTIME_DIR");
    struct stat info;

    if (parent) {
        *out = mem_strdup(parent);
        return OK;
    }
    if (runtime_dir && stat(runtime_dir, &info) == 0 && S_ISDIR(info.st_mode) &&
        info.st_uid == geteuid()) {
        *out = mem_strdup(runtime_dir);
        return OK;
    }
    AUTO_MEM char *path = mem_printf("/tmp/tandem-%u", geteuid());
    TRY(make_private(path));
    *out = give(path);
    return OK;
}

/* Another's sweep may come between: gone_out. */
static enum status make_dir(const char *place, struct run_dir *out, bool *gone_out)
{
    AUTO_MEM char *path = mem_printf("%s/%s%d.XXXXXX", place, dir_prefix, getpid());
    struct stat info;

    if (!mkdtemp(path))
        return fail(ERR_IO, "no run directory in %s: %m", place);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool is_locked = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;

    *gone_out = fd < 0 ? errno == ENOENT
                       : !is_locked ? errno == EWOULDBLOCK
                                    : lstat(path, &info) != 0;
    if (is_locked && !*gone_out) {
        *out = (struct run_dir){.path = give(path), .lock_fd = fd};
        return OK;
    }
    enum status status = fail(ERR_IO, "run directory %s cannot be locked: %m", path);
    if (fd >= 0)
        close(fd);
    rmdir(path);
    return status;
}

enum status run_dir_open(const char *parent, struct run_dir *out)
{
    enum { TRIES = 100 };
    AUTO_MEM char *place = NULL;
    enum status status = OK;
    bool is_gone = true;

    TRY(find_parent(parent, &place));
    each_in(place, remove_stale, NULL);
    for (int i = 0; i < TRIES && is_gone; i++)
        status = make_dir(place, out, &is_gone);
    return status;
}

enum status run_dir_each(const char *parent, void (*tell)(void *user, const char *path), void *user)
{
    AUTO_MEM char *place = NULL;

    TRY(find_parent(parent, &place));
    each_in(place, tell, user);
    return OK;
}

void run_dir_close(struct run_dir *dir)
{
    if (!dir->path)
        return;
    remove_dir(dir->path);
    close(dir->lock_fd);
    mem_free(dir->path);
    *dir = (struct run_dir){.lock_fd = -1};
}

/* ---- the engine's side ----------------------------------------------------------------------- */

void rendezvous_init(struct rendezvous *rendezvous, int32_t world, uint32_t epoch)
{
    *rendezvous = (struct rendezvous){
        .world = world, .epoch = epoch, .ranks = mem_new_array(struct rank_info, (size_t)world)};
}

static void forget(struct rank_info *rank)
{
    mem_free(rank->host);
    mem_free(rank->boot_id);
    *rank = (struct rank_info){0};
}

void rendezvous_close(struct rendezvous *rendezvous)
{
    for (int32_t i = 0; i < rendezvous->world; i++)
        forget(&rendezvous->ranks[i]);
    mem_free(rendezvous->ranks);
    mem_free(rendezvous->fingerprint);
    *rendezvous = (struct rendezvous){0};
}

void rendezvous_name(int32_t rank, uint32_t nonce, char name_out[static CHANNEL_MAX_NAME + 1])
{
    snprintf(name_out, CHANNEL_MAX_NAME + 1, "%d:%u", rank, nonce);
}

bool rendezvous_name_fits(const char *peer, int32_t rank)
{
    char name[16];
    int length = snprintf(name, sizeof name, "%d:", rank);

    return strncmp(peer, name, (size_t)length) == 0;
}

/* The peer's name on the channel is a promise about its rank: it must be kept. */
static enum status check_name(const char *peer, int32_t rank)
{
    if (!rendezvous_name_fits(peer, rank))
        return fail(ERR_MISMATCH, "rank %d connected as '%s', its name begins with '%d:'", rank, peer,
                    rank);
    return OK;
}

static enum status check_rank(const struct rendezvous *rendezvous, const char *peer, int32_t rank)
{
    if (rank < 0 || rank >= rendezvous->world)
        return fail(ERR_MISMATCH, "rank %d is not one of the %d ranks of this engine", rank,
                    rendezvous->world);
    return check_name(peer, rank);
}

int32_t rendezvous_find(const struct rendezvous *rendezvous, const char *peer)
{
    for (int32_t rank = 0; rank < rendezvous->world; rank++)
        if (rendezvous->ranks[rank].is_joined && strcmp(rendezvous->ranks[rank].peer, peer) == 0)
            return rank;
    return -1;
}

void rendezvous_begin(struct rendezvous *rendezvous, uint32_t epoch)
{
    rendezvous->epoch = epoch;
    rendezvous->num_ready = 0;
    for (int32_t rank = 0; rank < rendezvous->world; rank++)
        rendezvous->ranks[rank].is_ready = false;
}

void rendezvous_forget_model(struct rendezvous *rendezvous)
{
    mem_free(give(rendezvous->fingerprint));
}

void rendezvous_lose(struct rendezvous *rendezvous, int32_t rank)
{
    rendezvous->num_joined -= rendezvous->ranks[rank].is_joined;
    rendezvous->num_ready -= rendezvous->ranks[rank].is_ready;
    forget(&rendezvous->ranks[rank]);
}

static enum status check_hello(const struct rendezvous *rendezvous, const char *peer,
                               const struct message *message)
{
    const struct hello *hello = message->body;

    if (strcmp(hello->build_id, build_id_text()) != 0)
        return fail(ERR_MISMATCH, "rank %d is build %.40s, the engine is build %s", hello->rank,
                    hello->build_id, build_id_text());
    if (message_check_place(message, message->header.epoch) != OK) /* it has none yet: the build */
        return fail(ERR_MISMATCH, "rank %d: %s", hello->rank, fail_text());
    if (hello->world != rendezvous->world)
        return fail(ERR_MISMATCH, "rank %d was started for %d ranks, the engine has %d",
                    hello->rank, hello->world, rendezvous->world);
    TRY(check_rank(rendezvous, peer, hello->rank));
    const struct rank_info *known = &rendezvous->ranks[hello->rank];
    if (known->is_joined)
        return fail(ERR_MISMATCH, "rank %d came twice: process %d on %s, and process %d on %s",
                    hello->rank, known->pid, known->host, hello->pid, hello->host);
    return OK;
}

enum status rendezvous_hello(struct rendezvous *rendezvous, const char *peer,
                             const struct message *message)
{
    const struct hello *hello = message->body;

    if (message->type != &hello_type)
        return fail(ERR_MISMATCH, "%s says %s before hello", peer, message->type->name);
    TRY(check_hello(rendezvous, peer, message));

    struct rank_info *rank = &rendezvous->ranks[hello->rank];

    rank->is_joined = true;
    rank->pid = hello->pid;
    rank->host = mem_strdup(hello->host);
    rank->boot_id = mem_strdup(hello->boot_id);
    snprintf(rank->peer, sizeof rank->peer, "%s", peer);
    rendezvous->num_joined++;
    return OK;
}

enum status rendezvous_welcome(const struct rendezvous *rendezvous, struct channel *channel,
                               const char *peer, const char *config, const char *refusal)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();
    struct welcome welcome = {.config = refusal ? "" : config, .refusal = refusal};

    TRY(message_encode(&welcome_type, rendezvous->epoch, -1, &welcome, &frame->bytes));
    return channel_send(channel, peer, frame);
}

enum status rendezvous_ready(struct rendezvous *rendezvous, const char *peer,
                             const struct message *message)
{
    const struct ready *ready = message->body;

    if (message->type != &ready_type)
        return fail(ERR_MISMATCH, "%s says %s before ready", peer, message->type->name);
    TRY(message_check_place(message, rendezvous->epoch));
    TRY(check_rank(rendezvous, peer, ready->rank));

    struct rank_info *rank = &rendezvous->ranks[ready->rank];

    if (!rank->is_joined || strcmp(rank->peer, peer) != 0 || rank->is_ready)
        return fail(ERR_MISMATCH, "rank %d is ready %s", ready->rank,
                    rank->is_ready ? "twice" : "without a hello");
    if (rendezvous->fingerprint && strcmp(ready->fingerprint, rendezvous->fingerprint) != 0)
        return fail(ERR_MISMATCH, "rank %d has loaded model %.80s, rank %d model %.80s",
                    ready->rank, ready->fingerprint, rendezvous->fingerprint_rank,
                    rendezvous->fingerprint);
    if (!rendezvous->fingerprint) {
        rendezvous->fingerprint = mem_strdup(ready->fingerprint);
        rendezvous->fingerprint_rank = ready->rank;
    }
    rank->is_ready = true;
    rank->ready = *ready;
    rank->ready.fingerprint = NULL;
    rendezvous->num_ready++;
    return OK;
}

enum status rendezvous_publish(const char *path, const char *endpoint)
{
    AUTO_MEM char *aside = mem_printf("%s.%d", path, getpid());
    int fd = open(aside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool is_written = fd >= 0 && dprintf(fd, "%s\n", endpoint) > 0 && fsync(fd) == 0;
    enum status status = is_written && rename(aside, path) == 0
                             ? OK
                             : fail(ERR_IO, "%s can't be written: %m", path);

    if (fd >= 0)
        close(fd);
    if (status != OK)
        unlink(aside);
    return status;
}

static enum status check_address_file(const char *path, int fd)
{
    struct stat info;

    if (fstat(fd, &info) != 0)
        return fail(ERR_IO, "%s: %m", path);
    if (!S_ISREG(info.st_mode))
        return fail(ERR_INVALID, "%s is no file", path);
    if ((info.st_uid != geteuid() && info.st_uid != 0) || (info.st_mode & 022))
        return fail(ERR_INVALID, "%s is not only ours to write: it is user %u's, with mode %04o", path,
                    info.st_uid, info.st_mode & 07777);
    return OK;
}

/* One line: what is no endpoint's character makes it something else. */
static enum status take_endpoint(const char *path, const char *text, ssize_t size, char *out)
{
    const char *end = size > 0 ? memchr(text, '\n', (size_t)size) : NULL;
    size_t length = end ? (size_t)(end - text) : (size_t)MAX(size, 0);

    if (size < 0)
        return fail(ERR_IO, "%s: %m", path);
    for (size_t i = 0; i < length; i++)
        if (text[i] <= ' ' || text[i] >= 127)
            return fail(ERR_CORRUPT, "%s: byte %zu is 0x%02x, an address is expected", path, i,
                        (uint8_t)text[i]);
    if (length == 0 || length > RENDEZVOUS_MAX_ENDPOINT || length + 1 < (size_t)size)
        return fail(ERR_CORRUPT, "%s: one line of 1 to %d characters, an address, is expected", path,
                    RENDEZVOUS_MAX_ENDPOINT);
    memcpy(out, text, length);
    out[length] = '\0';
    return OK;
}

enum status rendezvous_look_up(const char *path,
                               char endpoint_out[static RENDEZVOUS_MAX_ENDPOINT + 1])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char text[RENDEZVOUS_MAX_ENDPOINT + 2];
    enum status status;

    if (fd < 0)
        return fail(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %m", path);
    status = check_address_file(path, fd);
    if (status == OK)
        status = take_endpoint(path, text, read(fd, text, sizeof text), endpoint_out);
    close(fd);
    return status;
}

void rendezvous_read_boot_id(char out[static 64])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, out, 63) : 0;

    out[MAX(n, 0)] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (fd >= 0)
        close(fd);
}

/* ---- the worker's side ----------------------------------------------------------------------- */

static enum status send_hello(struct channel *channel, int32_t rank, int32_t world)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();
    char host[256] = "", boot_id[64];
    struct hello hello = {.rank = rank,
                          .world = world,
                          .pid = getpid(),
                          .host = host,
                          .boot_id = boot_id,
                          .build_id = build_id_text()};

    gethostname(host, sizeof host - 1);
    rendezvous_read_boot_id(boot_id);
    TRY(message_encode(&hello_type, 0, -1, &hello, &frame->bytes)); /* of no epoch yet */
    return channel_send(channel, NULL, frame);
}

/* Parks until a frame has come; a broken connection ends the wait. */
static enum status wait_for_frame(struct channel *channel, int64_t deadline_ns,
                                  struct received *out)
{
    struct pollfd fds[CHANNEL_NUM_FDS];

    while (!channel_recv(channel, out)) {
        if (channel_num_disconnects(channel) > 0)
            return fail(ERR_CLOSED, "the engine has closed the connection");
        if (clock_now_ns() >= deadline_ns)
            return fail(ERR_TIMEOUT, "the engine has not answered hello in time");
        channel_poll(channel, fds, COUNT_OF(fds), deadline_ns);
    }
    return OK;
}

enum status rendezvous_join(struct channel *channel, int32_t rank, int32_t world,
                            int64_t deadline_ns, struct arena *arena, const struct welcome **out,
                            uint32_t *epoch_out)
{
    struct received received;
    struct message message;

    TRY(send_hello(channel, rank, world));
    TRY(wait_for_frame(channel, deadline_ns, &received));
    TRY(message_decode(received.data, received.size, arena, &message));
    if (message.type != &welcome_type)
        return fail(ERR_MISMATCH, "the engine answers hello with %s", message.type->name);
    const struct welcome *welcome = message.body;
    if (*welcome->refusal)
        return fail(ERR_MISMATCH, "the engine refuses rank %d: %s", rank, welcome->refusal);
    TRY(message_check_place(&message, message.header.epoch)); /* the build */
    *out = welcome;
    *epoch_out = message.header.epoch;
    return OK;
}
