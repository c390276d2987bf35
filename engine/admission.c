#include "engine/admission.h"

#include "proto/base/clock.h"

#include <math.h>

enum { STRETCH_S = 5, MAX_RETRY_AFTER_S = 600 };

/* ---- how fast it drains ------------------------------------------------------------------------ */

static void count_time(struct admission_queue *queue, int64_t now_ns)
{
    queue->seconds[0] += (double)(now_ns - queue->since_ns) / 1e9;
    queue->since_ns = now_ns;
    if (queue->seconds[0] < STRETCH_S)
        return;
    queue->seconds[1] = queue->seconds[0];
    queue->left[1] = queue->left[0];
    queue->seconds[0] = queue->left[0] = 0;
}

/* Until so much has left. While nothing has, our best guess is as long again as it has been. */
static double seconds_until_left(const struct admission_queue *queue, int64_t amount, int64_t now_ns)
{
    double left = queue->left[0] + queue->left[1];
    double seconds = queue->seconds[0] + queue->seconds[1] + (double)(now_ns - queue->since_ns) / 1e9;

    return left > 0 ? (double)amount * seconds / left : seconds;
}

/* The place after the one that was promised last; but after all that is inside has left there is room. */
static int32_t promise(struct admission_queue *queue, int64_t amount)
{
    int64_t now_ns = clock_now_ns();
    double from_s = (double)MAX(queue->promised_ns - now_ns, 0) / 1e9;
    double wait_s = MIN(from_s + seconds_until_left(queue, amount, now_ns),
                        seconds_until_left(queue, queue->inside, now_ns));

    queue->promised_ns = now_ns + (int64_t)(MIN(wait_s, MAX_RETRY_AFTER_S) * 1e9);
    return (int32_t)ceil(MIN(MAX(wait_s, 1), MAX_RETRY_AFTER_S));
}

/* ---- in and out -------------------------------------------------------------------------------- */

static enum status reject(struct admission *admission, enum admission_limit limit, int64_t amount)
{
    struct admission_queue *queue = &admission->queues[limit];

    atomic_fetch_add(&admission->num_rejections[limit], 1);
    admission->retry_after_s = promise(queue, amount);
    return limit == LIMIT_QUEUED_REQS
               ? fail(ERR_FULL,
                      "The server is busy: %lld requests are unfinished, --max-num-queued-reqs is "
                      "%lld; try again later",
                      (long long)queue->inside, (long long)queue->most)
               : fail(ERR_FULL,
                      "The server has a backlog: prompts of %lld tokens wait, "
                      "--max-num-queued-tokens is %lld; try again later",
                      (long long)queue->inside, (long long)queue->most);
}

/* What would have to leave before so many can come in. */
static int64_t num_requests_over(const struct admission *admission, int32_t n)
{
    const struct admission_queue *queue = &admission->queues[LIMIT_QUEUED_REQS];

    return queue->most > 0 ? MAX(queue->inside + n - queue->most, 0) : 0;
}

/* One more may come in while there is less than the limit, be it as long as it may. */
static int64_t num_tokens_over(const struct admission *admission)
{
    const struct admission_queue *queue = &admission->queues[LIMIT_QUEUED_TOKENS];

    return queue->most > 0 ? MAX(queue->inside + 1 - queue->most, 0) : 0;
}

enum status admission_check(struct admission *admission, int32_t n)
{
    int64_t most = admission->queues[LIMIT_QUEUED_REQS].most;

    if (most > 0 && n > most)
        return fail(ERR_INVALID, "%d sequences are asked for, --max-num-queued-reqs is %lld", n,
                    (long long)most);
    if (num_requests_over(admission, n) > 0)
        return reject(admission, LIMIT_QUEUED_REQS, num_requests_over(admission, n));
    if (num_tokens_over(admission) > 0)
        return reject(admission, LIMIT_QUEUED_TOKENS, num_tokens_over(admission));
    return OK;
}

bool admission_has_room(const struct admission *admission)
{
    return num_requests_over(admission, 1) == 0 && num_tokens_over(admission) == 0;
}

static void enter(struct admission_queue *queue, int32_t amount, int64_t now_ns)
{
    if (queue->inside == 0)
        queue->since_ns = now_ns;
    queue->inside += amount;
}

void admission_enter(struct admission *admission, int32_t num_prompt_tokens)
{
    int64_t now_ns = clock_now_ns();

    enter(&admission->queues[LIMIT_QUEUED_REQS], 1, now_ns);
    enter(&admission->queues[LIMIT_QUEUED_TOKENS], num_prompt_tokens, now_ns);
}

void admission_leave(struct admission *admission, enum admission_limit limit, int32_t amount)
{
    struct admission_queue *queue = &admission->queues[limit];

    queue->inside -= amount;
    queue->left[0] += amount;
    count_time(queue, clock_now_ns());
}
