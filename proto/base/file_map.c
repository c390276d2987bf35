#include "proto/base/file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- files that are cut short ------------------------------------------------------------------ */

enum { NUM_GUARDS = 64 }; /* of more maps than these, the last go without */

/* A signal handler may take no lock: `start` tells it which rows are whole. */
static struct guard {
    _Atomic(const uint8_t *) start; /* NULL: free */
    size_t bytes;
    char sentence[512];
} guards[NUM_GUARDS];

static pthread_mutex_t guards_lock = PTHREAD_MUTEX_INITIALIZER;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    const uint8_t *address = info->si_addr;

    (void)context;
    for (struct guard *guard = guards; guard < guards + NUM_GUARDS; guard++) {
        const uint8_t *start = guard->start;

        if (!start || address < start || address >= start + guard->bytes)
            continue;
        (void)!write(STDERR_FILENO, guard->sentence, strlen(guard->sentence));
        _exit(1);
    }
    signal(number, SIG_DFL); /* not ours: it comes again, and takes its usual course */
}

static void catch_bus_errors(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};

    sigaction(SIGBUS, &action, NULL);
}

static void guard_add(const struct file_map *map, const char *path)
{
    catch_bus_errors();
    pthread_mutex_lock(&guards_lock);
    for (struct guard *guard = guards; guard < guards + NUM_GUARDS; guard++) {
        if (guard->start)
            continue;
        guard->bytes = map->bytes;
        snprintf(guard->sentence, sizeof guard->sentence,
                 "tandem: %.450s was cut short while it was open\n", path);
        guard->start = map->data;
        break;
    }
    pthread_mutex_unlock(&guards_lock);
}

static void guard_remove(const struct file_map *map)
{
    pthread_mutex_lock(&guards_lock);
    for (struct guard *guard = guards; guard < guards + NUM_GUARDS; guard++)
        if (guard->start == map->data)
            guard->start = NULL;
    pthread_mutex_unlock(&guards_lock);
}

/* ---- a map ------------------------------------------------------------------------------------- */

static enum status map_descriptor(int fd, struct file_map *out)
{
    struct stat stat;
    void *data;

    if (fstat(fd, &stat) < 0)
        return fail(ERR_IO, "%m");
    if (!S_ISREG(stat.st_mode))
        return fail(ERR_UNSUPPORTED, "is not a regular file");
    if (stat.st_size == 0)
        return fail(ERR_CORRUPT, "is empty");
    data = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        return fail(ERR_IO, "cannot map %lld bytes: %m", (long long)stat.st_size);
    *out = (struct file_map){.data = data, .bytes = (size_t)stat.st_size};
    return OK;
}

enum status file_map_open(const char *path, struct file_map *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    enum status status;

    if (fd < 0)
        return fail(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%m");
    status = map_descriptor(fd, out);
    close(fd);
    TRY(status);
    guard_add(out, path);
    return OK;
}

void file_map_close(struct file_map *map)
{
    if (!map->data)
        return;
    guard_remove(map);
    munmap((void *)map->data, map->bytes);
    *map = (struct file_map){0};
}

void file_map_drop_pages(const struct file_map *map, size_t first, size_t end)
{
    ASSERT(first <= end && end <= map->bytes, "bytes %zu to %zu of %zu", first, end, map->bytes);
    first &= ~(size_t)4095;
    if (map->data)
        madvise((void *)(map->data + first), end - first, MADV_DONTNEED);
}
