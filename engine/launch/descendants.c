#include "engine/launch/descendants.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct process {
    pid_t pid, parent;
    bool is_ours;
};

void descendants_adopt(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
}

/* /proc/PID/stat: "PID (name) S PARENT ...", and the name may hold anything. 0: it is gone. */
static pid_t parent_of(pid_t pid)
{
    char path[64], text[512];

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return 0;
    text[size] = '\0';
    const char *name_end = strrchr(text, ')');
    int parent = 0;
    return name_end && sscanf(name_end + 1, " %*c %d", &parent) == 1 ? parent : 0;
}

static struct process *list_all(size_t *count_out)
{
    struct process *list = NULL;
    size_t count = 0, capacity = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;

    while (proc && (entry = readdir(proc))) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

        if (pid <= 0)
            continue;
        if (count == capacity) {
            capacity = MAX(2 * capacity, (size_t)256);
            list = mem_resize(list, capacity * sizeof *list);
        }
        list[count++] = (struct process){.pid = pid, .parent = parent_of(pid)};
    }
    if (proc)
        closedir(proc);
    *count_out = count;
    return list;
}

/* Kills those below us that there are now. */
static void kill_all(void)
{
    size_t count;
    AUTO_MEM struct process *list = list_all(&count);
    pid_t self = getpid();

    for (bool is_more = true; is_more;) {
        is_more = false;
        for (size_t i = 0; i < count; i++) {
            bool is_below = list[i].parent == self;

            if (list[i].is_ours)
                continue;
            for (size_t k = 0; k < count && !is_below; k++)
                is_below = list[k].is_ours && list[k].pid == list[i].parent;
            if (is_below) {
                list[i].is_ours = is_more = true;
                kill(list[i].pid, SIGKILL);
            }
        }
    }
}

void descendants_kill(int64_t deadline_ns)
{
    for (;;) {
        pid_t reaped;

        while ((reaped = waitpid(-1, NULL, WNOHANG)) > 0)
            continue;
        if (reaped < 0 || clock_now_ns() >= deadline_ns)
            return; /* there is no child, so nothing below them */
        kill_all();
        usleep(2000);
    }
}
