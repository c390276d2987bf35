/*
 * hear: what a child process says until it ends, for tests of what ends one.
 */
#ifndef TESTS_CUDA_HEAR_H
#define TESTS_CUDA_HEAR_H

#include <sys/wait.h>
#include <unistd.h>

struct heard {
    char said[4096]; /* the beginning, and a zero */
    int status;      /* waitpid's */
};

/* ends: of a pipe, whose second one is the child's too; both are closed. */
static inline void hear(pid_t child, const int ends[2], struct heard *out)
{
    size_t length = 0;

    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], out->said + length, sizeof out->said - 1 - length)) > 0;)
        length += (size_t)n;
    out->said[length] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(child, &out->status, 0), child);
}

#endif
