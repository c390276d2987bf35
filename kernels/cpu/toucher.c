#include "kernels/cpu/toucher.h"

#include "kernels/cpu/signals.h"

#include "proto/base/trace.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

/* A step that computes on every core is given way to; beside one that goes on for seconds, as prompts do, some pages
 * come. */
enum { NICENESS = 10 };

/* Who forgets memory waits for so much. */
enum { PIECE_BYTES = MEM_BIG_PAGE };

struct toucher {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char *next, *end;   /* what is left */
    char *now;          /* a piece that is being touched; NULL: none */
    bool is_closing;
    bool has_thread, has_failed;
    pthread_t thread;
    cpu_set_t cpus; /* none: anywhere */
};

/* Locked. */
static void touch_piece(struct toucher *toucher)
{
    char *piece = toucher->next;
    size_t bytes = (size_t)MIN(toucher->end - piece, PIECE_BYTES);

    toucher->now = piece;
    toucher->next += bytes;
    pthread_mutex_unlock(&toucher->lock);
    mem_touch_each(piece, bytes);
    pthread_mutex_lock(&toucher->lock);
    toucher->now = NULL;
    pthread_cond_broadcast(&toucher->changed);
}

static void *run(void *user)
{
    struct toucher *toucher = user;

    trace_name_thread("toucher");
    setpriority(PRIO_PROCESS, (id_t)gettid(), NICENESS);
    if (CPU_COUNT(&toucher->cpus) > 0)
        pthread_setaffinity_np(pthread_self(), sizeof toucher->cpus, &toucher->cpus);
    pthread_mutex_lock(&toucher->lock);
    while (!toucher->is_closing) {
        if (toucher->next < toucher->end)
            touch_piece(toucher);
        else
            pthread_cond_wait(&toucher->changed, &toucher->lock);
    }
    pthread_mutex_unlock(&toucher->lock);
    return NULL;
}

struct toucher *toucher_new(const cpu_set_t *cpus, int32_t num_cpus)
{
    struct toucher *toucher = mem_new(struct toucher);

    pthread_mutex_init(&toucher->lock, NULL);
    pthread_cond_init(&toucher->changed, NULL);
    for (int32_t i = 0; cpus && i < num_cpus; i++)
        CPU_OR(&toucher->cpus, &toucher->cpus, &cpus[i]);
    return toucher;
}

void toucher_free(struct toucher *toucher)
{
    if (!toucher)
        return;
    if (toucher->has_thread) {
        pthread_mutex_lock(&toucher->lock);
        toucher->is_closing = true;
        pthread_cond_broadcast(&toucher->changed);
        pthread_mutex_unlock(&toucher->lock);
        pthread_join(toucher->thread, NULL);
    }
    pthread_cond_destroy(&toucher->changed);
    pthread_mutex_destroy(&toucher->lock);
    mem_free(toucher);
}

static bool start(struct toucher *toucher)
{
    sigset_t before;

    if (toucher->has_thread || toucher->has_failed)
        return toucher->has_thread;
    signals_block(&before);
    toucher->has_thread = pthread_create(&toucher->thread, NULL, run, toucher) == 0;
    toucher->has_failed = !toucher->has_thread;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return toucher->has_thread;
}

void toucher_ask(struct toucher *toucher, void *p, int64_t bytes)
{
    if (!start(toucher))
        return;
    pthread_mutex_lock(&toucher->lock);
    toucher->next = p;
    toucher->end = (char *)p + bytes;
    pthread_cond_broadcast(&toucher->changed);
    pthread_mutex_unlock(&toucher->lock);
}

void toucher_forget(struct toucher *toucher, const void *p, int64_t bytes)
{
    const char *first = p, *end = first + bytes;

    pthread_mutex_lock(&toucher->lock);
    if (toucher->next < end && first < toucher->end)
        toucher->next = toucher->end = NULL;
    while (toucher->now && toucher->now < end && first < toucher->now + PIECE_BYTES)
        pthread_cond_wait(&toucher->changed, &toucher->lock);
    pthread_mutex_unlock(&toucher->lock);
}

int64_t toucher_bytes_left(struct toucher *toucher)
{
    int64_t left;

    pthread_mutex_lock(&toucher->lock);
    left = toucher->end - toucher->next + (toucher->now != NULL);
    pthread_mutex_unlock(&toucher->lock);
    return left;
}
