/*
 * launch_probe: a program for `tandem launch` to start. Its words say what it does, one after the
 * other; those behind "rank=R" or "first" are for that rank, or for a process that was not started
 * before, up to the next "all".
 *
 *     launch_probe status='load 62 %' sleep=50 ready rank=1 first exit=3 all forever
 */
#include "proto/base/notify.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void pause_ms(const char *ms)
{
    long n = atol(ms);
    struct timespec left = {n / 1000, n % 1000 * 1000000};

    while (nanosleep(&left, &left) != 0)
        continue;
}

static void tell_status(const char *words)
{
    notify("STATUS=%s", words);
}

static void tell_ready(const char *unused)
{
    (void)unused;
    notify("READY=1");
}

static void tell_watchdog(const char *unused)
{
    (void)unused;
    notify("WATCHDOG=1");
}

static void print(const char *text)
{
    printf("%s\n", text);
    fflush(stdout);
}

static void print_error(const char *text)
{
    fprintf(stderr, "%s\n", text);
}

static void print_variable(const char *name)
{
    const char *value = getenv(name);

    printf("%s=%s\n", name, value ? value : "(none)");
    fflush(stdout);
}

static void print_many(const char *count)
{
    for (long i = atol(count); i > 0; i--)
        puts("a line that is printed again and again, until there are many of them");
    fflush(stdout);
}

static void end(const char *code)
{
    exit(atoi(code));
}

static void die(const char *number)
{
    signal(atoi(number), SIG_DFL);
    raise(atoi(number));
}

static void sleep_for_ever(const char *unused)
{
    (void)unused;
    for (;;)
        pause();
}

static void ignore(const char *number)
{
    signal(atoi(number), SIG_IGN);
}

static const char *drain_time;

static void drain(int number)
{
    (void)number;
    notify("STOPPING=1");
    pause_ms(drain_time);
    _exit(0);
}

/* SIGTERM: ends well, later. */
static void drain_for(const char *ms)
{
    drain_time = ms;
    signal(SIGTERM, drain);
    signal(SIGINT, drain);
}

static void tell_signal(int number)
{
    char text[] = "signal 00\n";

    text[7] = (char)('0' + number / 10);
    text[8] = (char)('0' + number % 10);
    if (write(STDOUT_FILENO, text, sizeof text - 1) < 0)
        _exit(1);
}

static void show_signal(const char *number)
{
    signal(atoi(number), tell_signal);
}

/* A process that leaves group, session and parent. */
static void leave_a_daemon(const char *unused)
{
    (void)unused;
    if (fork() == 0) {
        if (setsid() < 0 || fork() != 0)
            _exit(0);
        for (int fd = 0; fd < 3; fd++)
            close(fd);
        sleep_for_ever(NULL);
    }
}

static void tell_address(const char *address)
{
    const char *path = getenv("TANDEM_ADDRESS_FILE");
    char aside[4096];
    FILE *file;

    if (!path)
        exit(99);
    snprintf(aside, sizeof aside, "%s.aside", path);
    file = fopen(aside, "w");
    if (!file || fprintf(file, "%s\n", address) < 0 || fclose(file) != 0 ||
        rename(aside, path) != 0)
        exit(98);
}

/* The token is there, is what all have, and is nobody else's. */
static void print_token(const char *unused)
{
    const char *path = getenv("TANDEM_TOKEN");
    struct stat info;
    unsigned sum = 0;
    FILE *file;

    (void)unused;
    if (!path || stat(path, &info) != 0 || !(file = fopen(path, "r")))
        exit(97);
    for (int c; (c = fgetc(file)) != EOF;)
        sum = sum * 31 + (unsigned)c;
    fclose(file);
    printf("token %04o %u of %ld bytes\n", info.st_mode & 07777, sum, (long)info.st_size);
    fflush(stdout);
}

static void wait_for_address(const char *unused)
{
    const char *engine = getenv("TANDEM_ENGINE");
    char text[256] = "";
    FILE *file;

    (void)unused;
    if (!engine || strncmp(engine, "file:", 5) != 0)
        exit(99);
    while (!(file = fopen(engine + 5, "r")))
        pause_ms("5");
    if (!fgets(text, sizeof text, file))
        exit(98);
    fclose(file);
    text[strcspn(text, "\n")] = '\0';
    print(text);
}

static void read_all(const char *unused)
{
    char text[4096];

    (void)unused;
    while (fgets(text, sizeof text, stdin)) {
        printf("read %s", text);
        fflush(stdout);
    }
    print("end of input");
}

static const struct act {
    const char *name;
    void (*run)(const char *value);
} acts[] = {
    {"status", tell_status},
    {"ready", tell_ready},
    {"watchdog", tell_watchdog},
    {"sleep", pause_ms},
    {"print", print},
    {"error", print_error},
    {"many", print_many},
    {"variable", print_variable},
    {"exit", end},
    {"signal", die},
    {"forever", sleep_for_ever},
    {"ignore", ignore},
    {"drain", drain_for},
    {"show", show_signal},
    {"daemon", leave_a_daemon},
    {"listen", tell_address},
    {"token", print_token},
    {"address", wait_for_address},
    {"read", read_all},
};

static int run_word(const char *word)
{
    size_t size = strcspn(word, "=");
    const char *value = word[size] ? word + size + 1 : "";

    for (size_t i = 0; i < sizeof acts / sizeof acts[0]; i++)
        if (strlen(acts[i].name) == size && memcmp(acts[i].name, word, size) == 0) {
            acts[i].run(value);
            return 0;
        }
    fprintf(stderr, "launch_probe does not know %s\n", word);
    return 2;
}

int main(int argc, char **argv)
{
    const char *rank = getenv("TANDEM_RANK"), *restarts = getenv("TANDEM_RESTARTS");
    bool is_ours = true;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "all") == 0)
            is_ours = true;
        else if (strncmp(argv[i], "rank=", 5) == 0)
            is_ours = rank && strcmp(rank, argv[i] + 5) == 0;
        else if (strcmp(argv[i], "first") == 0)
            is_ours = is_ours && (!restarts || atoi(restarts) == 0);
        else if (is_ours && run_word(argv[i]) != 0)
            return 2;
    }
    return 0;
}
