#include "engine/server/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct job_queue { /* first in, first out */
    struct job *first, *last;
};

struct jobs {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct job_queue waiting, ran;
    bool stopping;
    int fd; /* eventfd: `ran` may hold something */
    int num_threads;
    pthread_t threads[];
};

static void queue_add(struct job_queue *queue, struct job *job)
{
    job->next = NULL;
    if (queue->last)
        queue->last->next = job;
    else
        queue->first = job;
    queue->last = job;
}

static struct job *queue_take(struct job_queue *queue)
{
    struct job *job = queue->first;

    if (job)
        queue->first = job->next;
    if (!queue->first)
        queue->last = NULL;
    return job;
}

static void *run_jobs(void *user)
{
    struct jobs *jobs = user;

    pthread_mutex_lock(&jobs->mutex);
    while (!jobs->stopping) {
        struct job *job = queue_take(&jobs->waiting);
        if (!job) {
            pthread_cond_wait(&jobs->wake, &jobs->mutex);
            continue;
        }
        pthread_mutex_unlock(&jobs->mutex);
        job->run(job);
        pthread_mutex_lock(&jobs->mutex);
        queue_add(&jobs->ran, job);
        eventfd_write(jobs->fd, 1);
    }
    pthread_mutex_unlock(&jobs->mutex);
    return NULL;
}

enum status jobs_new(int num_threads, struct jobs **out)
{
    AUTO_FREE(jobs)
    struct jobs *jobs = mem_alloc(sizeof(*jobs) + (size_t)num_threads * sizeof(pthread_t));

    pthread_mutex_init(&jobs->mutex, NULL);
    pthread_cond_init(&jobs->wake, NULL);
    jobs->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (jobs->fd < 0)
        return fail(ERR_IO, "no eventfd for the jobs threads: %s", strerror(errno));
    for (; jobs->num_threads < num_threads; jobs->num_threads++) {
        int error = pthread_create(&jobs->threads[jobs->num_threads], NULL, run_jobs, jobs);
        if (error)
            return fail(ERR_IO, "jobs thread %d can't start: %s", jobs->num_threads,
                        strerror(error));
    }
    *out = give(jobs);
    return OK;
}

static void stop_threads(struct jobs *jobs)
{
    pthread_mutex_lock(&jobs->mutex);
    jobs->stopping = true;
    pthread_cond_broadcast(&jobs->wake);
    pthread_mutex_unlock(&jobs->mutex);
    for (int i = 0; i < jobs->num_threads; i++)
        pthread_join(jobs->threads[i], NULL);
}

void jobs_free(struct jobs *jobs)
{
    struct job *job;

    if (!jobs)
        return;
    stop_threads(jobs);
    while ((job = queue_take(&jobs->ran)) || (job = queue_take(&jobs->waiting)))
        job->done(job);
    if (jobs->fd >= 0)
        close(jobs->fd);
    pthread_cond_destroy(&jobs->wake);
    pthread_mutex_destroy(&jobs->mutex);
    mem_free(jobs);
}

void jobs_add(struct jobs *jobs, struct job *job)
{
    pthread_mutex_lock(&jobs->mutex);
    queue_add(&jobs->waiting, job);
    pthread_cond_signal(&jobs->wake);
    pthread_mutex_unlock(&jobs->mutex);
}

int jobs_fd(const struct jobs *jobs)
{
    return jobs->fd;
}

void jobs_poll(struct jobs *jobs)
{
    eventfd_t count;

    /* Cleared before looking: a job that ends meanwhile makes it readable again. */
    if (eventfd_read(jobs->fd, &count) != 0)
        return;
    for (;;) {
        pthread_mutex_lock(&jobs->mutex);
        struct job *job = queue_take(&jobs->ran);
        pthread_mutex_unlock(&jobs->mutex);
        if (!job)
            break;
        job->done(job);
    }
}
