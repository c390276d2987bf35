#include "kernels/cpu/device.h"
#include "kernels/cpu/table.h"
#include "kernels/cuda/cuda.h"
#include "kernels/ref/ref.h"
#include "kernels/sim/sim.h"

#include "proto/base/memory.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { AVX_VNNI = 1 << 4, AVX512_BF16 = 1 << 5 }; /* of leaf 7, 1: eax */
enum { AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };  /* of leaf 7, 0: edx */
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
/* A name that clang's __builtin_cpu_supports does not know. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;

    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avxvnni(void)
{
    unsigned eax, ebx, ecx, edx;

    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & AVX_VNNI);
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

static bool has_avx512bf16(void)
{
    unsigned eax, ebx, ecx, edx;

    return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & AVX512_BF16);
}

/* The system gives a process the state of tiles, for all of its threads, when it asks for it. */
static bool has_amx(void)
{
    unsigned eax, ebx, ecx, edx;

    return has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & AMX_TILE) && (edx & AMX_INT8) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* An Intel core begins one product of pairs every other cycle and two fused multiply-adds of floats in each, which have
 * the same bits: on an Emerald Rapids attention of prompts takes 1.47 times as long with pairs. */
static bool has_fast_avx512bf16(void)
{
    return has_avx512bf16() && !__builtin_cpu_is("intel");
}

static bool has_slow_avx512bf16(void)
{
    return has_avx512bf16() && __builtin_cpu_is("intel");
}
#endif

/* Best first. */
static const struct isa_row {
    const struct kernels *kernels;
    bool (*is_here)(void); /* this CPU runs them */
} isas[] = {
#if defined(__x86_64__)
    {&kernels_amx, has_amx},
    {&kernels_avx512bf16, has_fast_avx512bf16},
    {&kernels_avx512, has_avx512},
    {&kernels_avx512bf16, has_slow_avx512bf16},
    {&kernels_avxvnni, has_avxvnni},
    {&kernels_avx2, has_avx2},
    {&kernels_sse2, always},
#else
    {&kernels_generic, always},
#endif
    {&kernels_ref, always},
};

const char *const *device_isas(void)
{
    static const char *names[COUNT_OF(isas) + 1];
    size_t n = 0;

    for (size_t i = 0; i < COUNT_OF(isas); i++)
        if (isas[i].is_here())
            names[n++] = isas[i].kernels->name;
    return names;
}

/* The best that this CPU runs for `name` NULL, else the one of that name; NULL: none. */
static const struct kernels *find_kernels(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(isas); i++)
        if ((!name || strcmp(name, isas[i].kernels->name) == 0) && isas[i].is_here())
            return isas[i].kernels;
    return NULL;
}

static enum status fail_isa(const char *name)
{
    AUTO_CLOSE(bytes) struct bytes choices = {0};

    for (const char *const *isa = device_isas(); *isa; isa++)
        bytes_printf(&choices, " %s", *isa);
    return fail(ERR_UNSUPPORTED, "this CPU has no \"%s\"; it has%s", name, bytes_text(&choices));
}

static enum status open_cpu(const struct device_options *options, struct device **out)
{
    const struct kernels *kernels = find_kernels(options->isa);

    if (!kernels)
        return fail_isa(options->isa);
    if (options->num_threads < 1)
        return fail(ERR_INVALID, "%d threads: at least 1", options->num_threads);
    return cpu_device_new(kernels, options->num_threads, options->cpus, out);
}

static enum status open_sim(const struct device_options *options, struct device **out)
{
    ASSERT(options->sim);
    return sim_device_new(options->sim, out);
}

static const struct {
    const char *name;
    enum status (*open)(const struct device_options *options, struct device **out);
} kinds[] = {
    {"cpu", open_cpu},
    {"cuda", cuda_device_new},
    {"sim", open_sim},
};

enum status device_open(const struct device_options *options, struct device **out)
{
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (strcmp(kinds[i].name, options->name) == 0)
            return kinds[i].open(options, out);
    return fail(ERR_UNSUPPORTED, "no device \"%s\" in this build: there are cpu and cuda", options->name);
}
