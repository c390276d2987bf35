#include "engine/server/jobs.h"

#include "proto/base/trace.h"

#include <string.h>

struct jobs {
    pthread_mutex_t lock; /* of what the threads share: waiting, stopping */
    pthread_cond_t wake;
    struct mail *first, **last; /* waiting, first in, first out */
    bool stopping;
    struct mailbox ran;
    int num_threads;
    pthread_t threads[];
};

/* Parks until there is a job; NULL: stop. */
static struct job *take_job(struct jobs *jobs)
{
    struct mail *mail = NULL;

    pthread_mutex_lock(&jobs->lock);
    while (!jobs->first && !jobs->stopping)
        pthread_cond_wait(&jobs->wake, &jobs->lock);
    if (!jobs->stopping) {
        mail = jobs->first;
        jobs->first = mail->next;
        if (!jobs->first)
            jobs->last = &jobs->first;
    }
    pthread_mutex_unlock(&jobs->lock);
    return mail ? MAIL_ITEM(mail, struct job, mail) : NULL;
}

static void *run_jobs(void *user)
{
    struct jobs *jobs = user;
    struct job *job;

    trace_name_thread("jobs");
    while ((job = take_job(jobs))) {
        int64_t begin_ns = trace_begin();

        job->run(job);
        trace_end("read_request", begin_ns, -1);
        ASSERT(mailbox_push(&jobs->ran, &job->mail) == OK);
    }
    return NULL;
}

enum status jobs_new(int num_threads, struct jobs **out)
{
    struct jobs *jobs = mem_alloc(sizeof(*jobs) + (size_t)num_threads * sizeof(pthread_t));
    enum status status = mailbox_open(&jobs->ran, INT32_MAX);

    if (status != OK) {
        mem_free(jobs);
        return status;
    }
    pthread_mutex_init(&jobs->lock, NULL);
    pthread_cond_init(&jobs->wake, NULL);
    jobs->last = &jobs->first;
    for (; jobs->num_threads < num_threads; jobs->num_threads++) {
        int error = pthread_create(&jobs->threads[jobs->num_threads], NULL, run_jobs, jobs);
        if (error) {
            jobs_free(jobs);
            return fail(ERR_IO, "a jobs thread can't start: %s", strerror(error));
        }
    }
    *out = jobs;
    return OK;
}

static void stop_threads(struct jobs *jobs)
{
    pthread_mutex_lock(&jobs->lock);
    jobs->stopping = true;
    pthread_cond_broadcast(&jobs->wake);
    pthread_mutex_unlock(&jobs->lock);
    for (int i = 0; i < jobs->num_threads; i++)
        pthread_join(jobs->threads[i], NULL);
}

static void job_done(struct mail *mail)
{
    struct job *job = MAIL_ITEM(mail, struct job, mail);
    job->done(job);
}

void jobs_free(struct jobs *jobs)
{
    if (!jobs)
        return;
    stop_threads(jobs);
    jobs_poll(jobs);
    for (struct mail *mail = jobs->first, *next; mail; mail = next) {
        next = mail->next;
        job_done(mail);
    }
    mailbox_close(&jobs->ran);
    pthread_cond_destroy(&jobs->wake);
    pthread_mutex_destroy(&jobs->lock);
    mem_free(jobs);
}

void jobs_add(struct jobs *jobs, struct job *job)
{
    pthread_mutex_lock(&jobs->lock);
    job->mail.next = NULL;
    *jobs->last = &job->mail;
    jobs->last = &job->mail.next;
    pthread_cond_signal(&jobs->wake);
    pthread_mutex_unlock(&jobs->lock);
}

int jobs_fd(const struct jobs *jobs)
{
    return mailbox_fd(&jobs->ran);
}

void jobs_poll(struct jobs *jobs)
{
    struct mail *mail;

    while ((mail = mailbox_pop(&jobs->ran)))
        job_done(mail);
}
