#include "proto/base/stacks.h"

#include "proto/base/clock.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    READER_MS = 2000, /* the child that reads frames is ended by its own alarm then */
    STOP_MS = 200,    /* a thread that does not stop for so long is in the kernel */
    MAX_NAME = 100,   /* of a function or a file: more is cut off */
};

struct thread {
    int32_t tid;
    char name[17];
    char state;            /* as in /proc/PID/stat; 0: not known */
    char wait_channel[65]; /* where in the kernel it waits; "": it does not, or nobody tells */
    int32_t system_call;   /* -1: none */
};

struct process {
    int32_t pid;
    char name[17];
    struct thread *threads; /* [num_threads] */
    int32_t num_threads, num_left_out;
};

static void process_close(struct process *process)
{
    mem_free(process->threads);
}

/* ---- what /proc tells ------------------------------------------------------------------------- */

/* A file of a few words, without the end of its line; "" where there is none. */
static void read_words(char *out, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void read_words(char *out, size_t size, const char *format, ...)
{
    char path[128];
    va_list args;
    ssize_t n;
    int fd;

    va_start(args, format);
    vsnprintf(path, sizeof path, format, args);
    va_end(args);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? 0 : read(fd, out, size - 1);
    if (fd >= 0)
        close(fd);
    out[MAX(n, (ssize_t)0)] = '\0';
    out[strcspn(out, "\n")] = '\0';
    for (char *p = out; *p; p++)
        if (*p < ' ' || *p > '~')
            *p = '?'; /* a process names itself as it likes */
}

static char state_in(const char *stat)
{
    const char *end = strrchr(stat, ')');

    return end && end[1] == ' ' ? end[2] : 0;
}

char stacks_state_of_process(int32_t pid)
{
    char stat[512];

    read_words(stat, sizeof stat, "/proc/%d/stat", pid);
    return state_in(stat);
}

static void read_thread(int32_t pid, struct thread *thread)
{
    char stat[512], call[128];

    read_words(thread->name, sizeof thread->name, "/proc/%d/task/%d/comm", pid, thread->tid);
    read_words(stat, sizeof stat, "/proc/%d/task/%d/stat", pid, thread->tid);
    thread->state = state_in(stat);
    read_words(thread->wait_channel, sizeof thread->wait_channel, "/proc/%d/task/%d/wchan", pid,
               thread->tid);
    if (strcmp(thread->wait_channel, "0") == 0)
        thread->wait_channel[0] = '\0';
    read_words(call, sizeof call, "/proc/%d/task/%d/syscall", pid, thread->tid);
    if (sscanf(call, "%d", &thread->system_call) != 1)
        thread->system_call = -1;
}

static int compare_threads(const void *a, const void *b)
{
    return ((const struct thread *)a)->tid - ((const struct thread *)b)->tid;
}

static enum status find_threads(struct process *process)
{
    char path[64];
    DIR *folder;

    snprintf(path, sizeof path, "/proc/%d/task", process->pid);
    folder = process->pid > 0 ? opendir(path) : NULL;
    if (!folder)
        return fail(ERR_NOT_FOUND, "there is no process %d", process->pid);
    process->threads = mem_new_array(struct thread, STACKS_MAX_THREADS);
    for (const struct dirent *entry; (entry = readdir(folder));) {
        int32_t tid = atoi(entry->d_name);

        if (tid <= 0)
            continue;
        if (process->num_threads == STACKS_MAX_THREADS)
            process->num_left_out++;
        else
            process->threads[process->num_threads++].tid = tid;
    }
    closedir(folder);
    for (int32_t i = 0; i < process->num_threads; i++)
        read_thread(process->pid, &process->threads[i]);
    qsort(process->threads, (size_t)process->num_threads, sizeof *process->threads,
          compare_threads);
    read_words(process->name, sizeof process->name, "/proc/%d/comm", process->pid);
    /* One that has ended and was not waited for. */
    if (process->num_threads == 0 ||
        (process->num_threads == 1 && strchr("ZX", process->threads[0].state)))
        return fail(ERR_NOT_FOUND, "process %d has ended", process->pid);
    return OK;
}

/* ---- the child: reads frames ------------------------------------------------------------------ */

/* Of <elfutils/libdwfl.h>, whose library is opened only here. */
struct dwfl_callbacks {
    int (*find_elf)(void *, void **, const char *, uint64_t, char **, void **);
    int (*find_debuginfo)(void *, void **, const char *, uint64_t, const char *, const char *,
                          uint32_t, char **);
    int (*section_address)(void *, void **, const char *, uint64_t, const char *, uint32_t,
                           const void *, uint64_t *);
    char **debuginfo_path;
};
struct elf_symbol {
    uint32_t name;
    uint8_t info, other;
    uint16_t section;
    uint64_t value, size;
};
enum { DWARF_CB_OK, DWARF_CB_ABORT };

struct libdw {
    void *(*begin)(const struct dwfl_callbacks *);
    int (*linux_proc_report)(void *, pid_t);
    int (*report_end)(void *, void *, void *);
    int (*linux_proc_attach)(void *, pid_t, bool);
    int (*linux_proc_find_elf)(void *, void **, const char *, uint64_t, char **, void **);
    int (*getthread_frames)(void *, pid_t, int (*)(void *, void *), void *);
    bool (*frame_pc)(void *, uint64_t *, bool *);
    void *(*addrmodule)(void *, uint64_t);
    const char *(*module_addrinfo)(void *, uint64_t, uint64_t *, struct elf_symbol *, uint32_t *,
                                   void **, uint64_t *);
    const char *(*module_info)(void *, void ***, uint64_t *, uint64_t *, uint64_t *, uint64_t *,
                               const char **, const char **);
    const char *(*errmsg)(int);
};

static const struct {
    const char *name;
    size_t place;
} libdw_functions[] = {
    {"dwfl_begin", offsetof(struct libdw, begin)},
    {"dwfl_linux_proc_report", offsetof(struct libdw, linux_proc_report)},
    {"dwfl_report_end", offsetof(struct libdw, report_end)},
    {"dwfl_linux_proc_attach", offsetof(struct libdw, linux_proc_attach)},
    {"dwfl_linux_proc_find_elf", offsetof(struct libdw, linux_proc_find_elf)},
    {"dwfl_getthread_frames", offsetof(struct libdw, getthread_frames)},
    {"dwfl_frame_pc", offsetof(struct libdw, frame_pc)},
    {"dwfl_addrmodule", offsetof(struct libdw, addrmodule)},
    {"dwfl_module_addrinfo", offsetof(struct libdw, module_addrinfo)},
    {"dwfl_module_info", offsetof(struct libdw, module_info)},
    {"dwfl_errmsg", offsetof(struct libdw, errmsg)},
};

static enum status libdw_open(struct libdw *out)
{
    void *library = dlopen("libdw.so.1", RTLD_NOW | RTLD_LOCAL);

    if (!library)
        return fail(ERR_MISSING, "%s (Debian package libdw1)", dlerror());
    for (size_t i = 0; i < COUNT_OF(libdw_functions); i++) {
        void *function = dlsym(library, libdw_functions[i].name);

        if (!function)
            return fail(ERR_UNSUPPORTED, "libdw.so.1 has no %s", libdw_functions[i].name);
        memcpy((char *)out + libdw_functions[i].place, &function, sizeof function);
    }
    return OK;
}

/* Names of functions are in the programs themselves; what else there is would be looked for on the net. */
static int find_no_debuginfo(void *module, void **user, const char *name, uint64_t base,
                             const char *file, const char *link, uint32_t crc, char **out)
{
    (void)module, (void)user, (void)name, (void)base, (void)file, (void)link, (void)crc, (void)out;
    return -1;
}

struct reader {
    struct libdw dw;
    void *dwfl;
    int fd; /* what it finds goes here: "thread TID", then lines with two spaces in front; or "why REASON" */
    int32_t num_frames;
};

static void tell(const struct reader *reader, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void tell(const struct reader *reader, const char *format, ...)
{
    char line[512];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (write(reader->fd, line, MIN((size_t)n, sizeof line - 1)) < 0)
        _exit(1); /* nobody listens any more */
}

static const char *base_name(const char *path)
{
    const char *slash = path ? strrchr(path, '/') : NULL;

    return slash ? slash + 1 : path ? path : "?";
}

static int tell_frame(void *frame, void *user)
{
    struct reader *reader = user;
    const struct libdw *dw = &reader->dw;
    uint64_t pc, offset = 0, start = 0;
    struct elf_symbol symbol;
    bool is_activation;
    void *module;
    const char *function, *name, *file = NULL;

    if (reader->num_frames == STACKS_MAX_FRAMES) {
        tell(reader, "  ...\n");
        return DWARF_CB_ABORT;
    }
    if (!dw->frame_pc(frame, &pc, &is_activation))
        return DWARF_CB_ABORT;
    if (!is_activation)
        pc--; /* of a call, not of what follows it, which may be another function */
    module = dw->addrmodule(reader->dwfl, pc);
    if (!module) {
        tell(reader, "  #%d 0x%" PRIx64 "\n", reader->num_frames++, pc);
        return DWARF_CB_OK;
    }
    function = dw->module_addrinfo(module, pc, &offset, &symbol, NULL, NULL, NULL);
    name = dw->module_info(module, NULL, &start, NULL, NULL, NULL, &file, NULL);
    name = base_name(file ? file : name);
    if (function)
        tell(reader, "  #%d %.*s+0x%" PRIx64 " (%.*s)\n", reader->num_frames++, MAX_NAME, function,
             offset, MAX_NAME, name);
    else
        tell(reader, "  #%d %.*s+0x%" PRIx64 "\n", reader->num_frames++, MAX_NAME, name,
             pc - start);
    return DWARF_CB_OK;
}

/* Waits for a thread that was told to stop; 0: it does not. */
static int wait_stopped(int32_t tid)
{
    int status;

    for (int ms = 0; ms < STOP_MS; ms++) {
        if (waitpid(tid, &status, __WALL | WNOHANG) == tid)
            return status;
        usleep(1000);
    }
    return 0;
}

/* By PTRACE_SEIZE, which sends no signal: if we end now, the thread goes on as if nothing had been. */
static enum status stop_thread(int32_t tid, int *signal_out)
{
    int status;

    if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) != 0)
        return errno == EPERM ? fail(ERR_IO, "the system does not let us stop it: %m")
                              : fail(ERR_NOT_FOUND, "%m");
    if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) != 0)
        return fail(ERR_NOT_FOUND, "%m");
    status = wait_stopped(tid);
    if (!WIFSTOPPED(status))
        return fail(ERR_TIMEOUT, "it does not leave the kernel");
    /* It may have met a signal that was on its way, which is still to be delivered. */
    *signal_out = status >> 16 == PTRACE_EVENT_STOP ? 0 : WSTOPSIG(status);
    return OK;
}

static enum status open_process(struct reader *reader, int32_t pid)
{
    static struct dwfl_callbacks callbacks = {.find_debuginfo = find_no_debuginfo};
    const struct libdw *dw = &reader->dw;

    TRY(libdw_open(&reader->dw));
    callbacks.find_elf = dw->linux_proc_find_elf;
    reader->dwfl = dw->begin(&callbacks);
    if (!reader->dwfl || dw->linux_proc_report(reader->dwfl, pid) != 0 ||
        dw->report_end(reader->dwfl, NULL, NULL) != 0 ||
        dw->linux_proc_attach(reader->dwfl, pid, true) != 0)
        return fail(ERR_IO, "libdw: %s", dw->errmsg(-1));
    return OK;
}

static void read_frames(struct reader *reader, const struct thread *thread)
{
    int signal = 0;

    tell(reader, "thread %d\n", thread->tid);
    reader->num_frames = 0;
    if (stop_thread(thread->tid, &signal) != OK) {
        tell(reader, "  no frames: %s\n", fail_text());
        return;
    }
    if (reader->dw.getthread_frames(reader->dwfl, thread->tid, tell_frame, reader) < 0 &&
        reader->num_frames == 0)
        tell(reader, "  no frames: libdw: %s\n", reader->dw.errmsg(-1));
    ptrace(PTRACE_DETACH, thread->tid, NULL, (void *)(intptr_t)signal);
}

/* Everything of ours but what it writes to is closed: a socket must not live on in here. */
_Noreturn static void run_reader(const struct process *process, int fd, int go_fd)
{
    struct itimerval alarm = {.it_value = {.tv_sec = READER_MS / 1000}};
    struct reader reader = {.fd = 1};
    sigset_t none;
    char go;

    signal(SIGALRM, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setitimer(ITIMER_REAL, &alarm, NULL);
    if (read(go_fd, &go, 1) != 1 || dup2(fd, 1) != 1)
        _exit(1);
    close_range(3, ~0u, 0);
    if (open_process(&reader, process->pid) != OK) {
        tell(&reader, "why %s\n", fail_text());
        _exit(0);
    }
    for (int32_t i = 0; i < process->num_threads; i++)
        read_frames(&reader, &process->threads[i]);
    _exit(0);
}

/* ---- the parent ------------------------------------------------------------------------------- */

static int32_t allowed_pid; /* by stacks_allow; 0: nobody */

void stacks_allow(int32_t pid)
{
    allowed_pid = pid;
    prctl(PR_SET_PTRACER, pid, 0, 0, 0); /* fails where there is no Yama, and need not be asked */
}

/* Until the child has told all, or time is over. */
static void hear(int fd, struct bytes *out)
{
    int64_t deadline_ns = clock_deadline_ns(STACKS_MAX_MS - 100);
    struct pollfd readable = {.fd = fd, .events = POLLIN};

    while (out->size < STACKS_MAX_BYTES) {
        int n = poll(&readable, 1, clock_left_ms(deadline_ns));

        if (n < 0 && errno == EINTR)
            continue;
        ssize_t size = n > 0 ? read(fd, bytes_reserve(out, 65536), 65536) : 0;

        if (size <= 0)
            return;
        out->size += (size_t)size;
    }
}

static enum status ask_reader(const struct process *process, struct bytes *out)
{
    bool is_self = process->pid == getpid();
    int answer[2], go[2];
    pid_t child;

    if (pipe2(answer, O_CLOEXEC) != 0)
        return fail(ERR_IO, "no pipe: %m");
    if (pipe2(go, O_CLOEXEC) != 0) {
        close(answer[0]);
        close(answer[1]);
        return fail(ERR_IO, "no pipe: %m");
    }
    child = fork();
    if (child == 0)
        run_reader(process, answer[1], go[0]);
    close(answer[1]);
    close(go[0]);
    if (child > 0) {
        if (is_self)
            prctl(PR_SET_PTRACER, child, 0, 0, 0);
        if (write(go[1], "", 1) == 1)
            hear(answer[0], out);
        kill(child, SIGKILL);
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            continue;
        if (is_self)
            prctl(PR_SET_PTRACER, allowed_pid, 0, 0, 0);
    }
    close(go[1]);
    close(answer[0]);
    return child < 0 ? fail(ERR_IO, "no process to read them: %m") : OK;
}

static const char *state_words(char state)
{
    switch (state) {
    case 'R': return "running";
    case 'S': return "sleeping";
    case 'D': return "in the kernel, not to be interrupted";
    case 'T': return "stopped";
    case 't': return "traced";
    case 'I': return "idle";
    case 'Z':
    case 'X': return "ended";
    default:  return "in a state nobody tells";
    }
}

/* The lines about this thread in what the reader told: up to the next line without a space in front. */
static size_t find_frames(const char *told, int32_t tid, const char **out)
{
    char head[32];
    const char *p, *end;

    snprintf(head, sizeof head, "thread %d\n", tid);
    p = strstr(told, head);
    *out = p ? p += strlen(head) : told;
    if (!p)
        return 0;
    for (end = p; *end == ' ' && strchr(end, '\n'); end = strchr(end, '\n') + 1)
        continue;
    return (size_t)(end - p);
}

static void write_thread(const struct thread *thread, const char *told, struct bytes *out)
{
    const char *frames;
    size_t size = find_frames(told, thread->tid, &frames);

    bytes_printf(out, "thread %d %s, %s", thread->tid, thread->name, state_words(thread->state));
    if (thread->system_call >= 0)
        bytes_printf(out, ", system call %d", thread->system_call);
    if (thread->wait_channel[0])
        bytes_printf(out, ", %s", thread->wait_channel);
    bytes_printf(out, "\n");
    bytes_append(out, frames, size);
}

static void write_process(const struct process *process, const char *told, struct bytes *out)
{
    static const char cut[] = "...\n";
    size_t begin = out->size;

    bytes_printf(out, "process %d (%s), %d threads\n", process->pid, process->name,
                 process->num_threads + process->num_left_out);
    if (strncmp(told, "why ", 4) == 0)
        bytes_printf(out, "no frames: %.*s\n", (int)strcspn(told + 4, "\n"), told + 4);
    for (int32_t i = 0; i < process->num_threads; i++)
        write_thread(&process->threads[i], told, out);
    if (process->num_left_out > 0)
        bytes_printf(out, "and %d threads more\n", process->num_left_out);
    if (out->size - begin > STACKS_MAX_BYTES) {
        out->size = begin + STACKS_MAX_BYTES - strlen(cut);
        bytes_append(out, cut, strlen(cut));
    }
}

enum status stacks_of_process(int32_t pid, struct bytes *out)
{
    __attribute__((cleanup(process_close))) struct process process = {.pid = pid};
    AUTO_CLOSE(bytes) struct bytes told = {0};

    TRY(find_threads(&process));
    if (ask_reader(&process, &told) != OK)
        bytes_printf(&told, "why %s\n", fail_text());
    else if (told.size == 0)
        bytes_printf(&told, "why the process that was to read them said nothing in %d ms\n",
                     READER_MS);
    write_process(&process, bytes_text(&told), out);
    return OK;
}
