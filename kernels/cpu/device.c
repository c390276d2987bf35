#include "kernels/cpu/device.h"

#include "kernels/cpu/attention_tasks.h"

#include "proto/base/memory.h"

#include <inttypes.h>
#include <stdio.h>

static void cpu_close(struct device *dev)
{
    struct cpu_device *cpu = cpu_device_of(dev);

    if (cpu->scratch)
        mem_unmap(cpu->scratch, (size_t)team_num_threads(cpu->team) * SCRATCH_BYTES);
    if (cpu->attention)
        mem_unmap(cpu->attention, sizeof(*cpu->attention));
    toucher_free(cpu->toucher);
    team_free(cpu->team);
    mem_free(cpu);
}

static enum status cpu_alloc(struct device *dev, int64_t bytes, const char *what, void **out)
{
    (void)dev;
    return mem_map((size_t)bytes, what, out);
}

static void cpu_free(struct device *dev, void *p, int64_t bytes)
{
    toucher_forget(cpu_device_of(dev)->toucher, p, bytes);
    mem_unmap(p, (size_t)bytes);
}

static void cpu_expect_full(struct device *dev, void *p, int64_t bytes)
{
    (void)dev;
    mem_expect_full(p, (size_t)bytes);
}

static void cpu_expect_soon(struct device *dev, void *p, int64_t bytes)
{
    toucher_ask(cpu_device_of(dev)->toucher, p, bytes);
}

/* Of the whole machine: ranks share it. */
static struct device_memory cpu_memory(const struct device *dev)
{
    int64_t total_kib = 0, left_kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");

    (void)dev;
    while (f && fgets(line, sizeof line, f)) {
        sscanf(line, "MemTotal: %" SCNd64, &total_kib);
        sscanf(line, "MemAvailable: %" SCNd64, &left_kib);
    }
    if (f)
        fclose(f);
    return (struct device_memory){total_kib * 1024, left_kib * 1024, left_kib * 1024};
}

static int32_t cpu_num_threads(const struct device *dev)
{
    return team_num_threads(cpu_device_of((struct device *)dev)->team);
}

struct host_work {
    void (*part)(void *args, int64_t first, int64_t end, int32_t thread);
    void *args;
};

static void do_host_work(const void *arg, struct span piece, struct span share, int32_t thread)
{
    const struct host_work *work = arg;

    (void)share;
    work->part(work->args, piece.first, piece.end, thread);
}

static void cpu_share_out(struct device *dev, int64_t count,
                          void (*part)(void *args, int64_t first, int64_t end, int32_t thread), void *args)
{
    team_share(cpu_device_of(dev)->team, count, 1, do_host_work, &(struct host_work){part, args});
}

struct memory {
    char *p;
    int64_t bytes;
};

static void touch_pieces(void *args, int64_t first, int64_t end, int32_t thread)
{
    const struct memory *memory = args;
    int64_t at = first * MEM_BIG_PAGE;

    (void)thread;
    mem_touch(memory->p + at, (size_t)(MIN(end * MEM_BIG_PAGE, memory->bytes) - at));
}

static void cpu_touch(struct device *dev, void *p, int64_t bytes)
{
    cpu_share_out(dev, divide_up(bytes, MEM_BIG_PAGE), touch_pieces, &(struct memory){p, bytes});
}

static const struct device_ops cpu_ops = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .expect_full = cpu_expect_full,
    .touch = cpu_touch,
    .expect_soon = cpu_expect_soon,
    .memory = cpu_memory,
    .num_threads = cpu_num_threads,
    .share_out = cpu_share_out,
};

static enum status cpu_init(struct cpu_device *cpu, int32_t num_threads, const cpu_set_t *cpus)
{
    void *scratch, *attention;

    cpu->toucher = toucher_new(cpus, num_threads);
    TRY(team_new(num_threads, &cpu->team));
    if (cpus)
        TRY(team_bind(cpu->team, cpus));
    TRY(mem_map((size_t)num_threads * SCRATCH_BYTES, "scratch of kernels", &scratch));
    cpu->scratch = scratch;
    TRY(mem_map(sizeof(*cpu->attention), "shared tiles of attention", &attention));
    cpu->attention = attention;
    return OK;
}

enum status cpu_device_new(const struct kernels *kernels, int32_t num_threads,
                           const cpu_set_t *cpus, struct device **out)
{
    struct cpu_device *cpu = mem_new(struct cpu_device);
    enum status status;

    cpu->device = (struct device){.ops = &cpu_ops, .kernels = kernels};
    status = cpu_init(cpu, num_threads, cpus);
    if (status != OK) {
        cpu_close(&cpu->device);
        return status;
    }
    *out = &cpu->device;
    return OK;
}

/* ---- kernels: each thread has memory of its own --------------------------------------------------- */

static void *scratch_of(const struct cpu_device *cpu, int32_t thread)
{
    return cpu->scratch + (int64_t)thread * SCRATCH_BYTES;
}

struct run {
    const struct cpu_device *cpu;
    void (*part)(const void *args, int64_t first, int64_t end, void *scratch);
    const void *args;
};

static void run_part(const void *arg, struct span piece, struct span share, int32_t thread)
{
    const struct run *run = arg;

    (void)share;
    run->part(run->args, piece.first, piece.end, scratch_of(run->cpu, thread));
}

void device_run(struct device *dev, int64_t count, int64_t grain,
                void (*part)(const void *args, int64_t first, int64_t end, void *scratch),
                const void *args)
{
    struct cpu_device *cpu = cpu_device_of(dev);

    team_share(cpu->team, count, grain, run_part, &(struct run){cpu, part, args});
}

struct sharing {
    const struct cpu_device *cpu;
    void (*part)(const void *args, struct span piece, struct span share, void *scratch);
    const void *args;
};

static void share_part(const void *arg, struct span piece, struct span share, int32_t thread)
{
    const struct sharing *sharing = arg;

    sharing->part(sharing->args, piece, share, scratch_of(sharing->cpu, thread));
}

void device_share(struct device *dev, int64_t count, int64_t grain,
                  void (*part)(const void *args, struct span piece, struct span share, void *scratch),
                  const void *args)
{
    struct cpu_device *cpu = cpu_device_of(dev);

    team_share(cpu->team, count, grain, share_part, &(struct sharing){cpu, part, args});
}
