/*
 * told: what the process writes to stderr for a while, our messages and those of libraries and children.
 *
 * Thread: one at a time; what others write there is heard too.
 */
#ifndef TESTS_SUPPORT_TOLD_H
#define TESTS_SUPPORT_TOLD_H

#include "tests/support/expect.h"

#include "proto/base/memory.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct told {
    int file, stderr_before;
};

static inline struct told told_begin(void)
{
    char path[] = "/tmp/told.XXXXXX";
    struct told told = {.file = mkstemp(path), .stderr_before = dup(STDERR_FILENO)};

    assert_true(told.file >= 0 && told.stderr_before >= 0);
    unlink(path);
    dup2(told.file, STDERR_FILENO);
    return told;
}

/* Ends it; what was written, for mem_free. */
static inline char *told_text(struct told told)
{
    struct stat stat;
    char *text;

    dup2(told.stderr_before, STDERR_FILENO);
    close(told.stderr_before);
    assert_int_equal(fstat(told.file, &stat), 0);
    text = mem_new_array(char, stat.st_size + 1);
    assert_true(pread(told.file, text, (size_t)stat.st_size, 0) == stat.st_size);
    close(told.file);
    return text;
}

/* Ends it; how often what was written has `part`. */
static inline int told_end(struct told told, const char *part)
{
    AUTO_MEM char *text = told_text(told);
    int count = 0;

    for (const char *at = text; (at = strstr(at, part)); at++)
        count++;
    return count;
}

#endif
