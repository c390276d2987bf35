#include "proto/base/cpus.h"

#include "proto/base/file_read.h"

#include <hwloc.h>
#include <hwloc/glibc-sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_BYTES = 64 << 10 };

struct core {
    cpu_set_t set; /* its hardware threads that we may use */
    int32_t node;  /* from 0, among those with cores of ours */
};

struct cpus {
    struct core *cores; /* [num_cores], in order of nodes */
    int32_t num_cores, num_nodes;
    double quota; /* in cores; 0: none */
};

/* ---- quotas ---------------------------------------------------------------------------------- */

/* The file's text, or NULL: there is none, or none that is ours to read. */
static char *read_text(const char *folder, const char *name)
{
    AUTO_MEM char *path = mem_printf("%s/%s", folder, name);
    AUTO_CLOSE(bytes) struct bytes bytes = {0};

    return file_read(path, MAX_FILE_BYTES, &bytes) == OK ? mem_strdup(bytes_text(&bytes)) : NULL;
}

/* v2: "max 100000", "150000 100000". 0: no quota. */
static double quota_v2(const char *folder)
{
    AUTO_MEM char *text = read_text(folder, "cpu.max");
    double quota, period;

    return text && sscanf(text, "%lf %lf", &quota, &period) == 2 && period > 0 ? quota / period : 0;
}

/* v1: -1 is none. */
static double quota_v1(const char *folder)
{
    AUTO_MEM char *quota_text = read_text(folder, "cpu.cfs_quota_us");
    AUTO_MEM char *period_text = read_text(folder, "cpu.cfs_period_us");
    double quota = quota_text ? atof(quota_text) : 0, period = period_text ? atof(period_text) : 0;

    return quota > 0 && period > 0 ? quota / period : 0;
}

/* The least of a group and all above it. In a container the path may be one of the host's, which is
 * not there; the container's own group is the top then. */
static double least_quota(const char *top, const char *path, double (*quota_of)(const char *folder))
{
    AUTO_MEM char *folder = mem_printf("%s%s", top, path);
    size_t top_size = strlen(top);
    double least = 0;

    for (;;) {
        double quota = quota_of(folder);

        if (quota > 0 && (least == 0 || quota < least))
            least = quota;
        if (strlen(folder) <= top_size)
            return least;
        *strrchr(folder, '/') = '\0';
    }
}

static bool has_word(const char *words, const char *word)
{
    size_t size = strlen(word);

    for (; words; words = strchr(words, ',') ? strchr(words, ',') + 1 : NULL)
        if (strncmp(words, word, size) == 0 && (words[size] == ',' || words[size] == '\0'))
            return true;
    return false;
}

/* A line of /proc/self/cgroup: "0::/path" is v2's, "4:cpu,cpuacct:/path" one of v1's hierarchies. */
static double line_quota(const char *root, char *line)
{
    char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
    double least = 0;

    if (!path || path[1] != '/')
        return 0;
    *path++ = '\0';
    controllers++;

    const char *folders[] = {controllers, "cpu"}, *v2_folders[] = {"", "/unified"};
    bool is_v2 = *controllers == '\0';

    if (!is_v2 && !has_word(controllers, "cpu"))
        return 0;
    for (int i = 0; i < 2 && least == 0; i++) {
        AUTO_MEM char *top = is_v2 ? mem_printf("%s/sys/fs/cgroup%s", root, v2_folders[i])
                                   : mem_printf("%s/sys/fs/cgroup/%s", root, folders[i]);

        least = least_quota(top, path, is_v2 ? quota_v2 : quota_v1);
    }
    return least;
}

static double find_quota(const char *root)
{
    AUTO_MEM char *folder = mem_printf("%s/proc/self", root);
    AUTO_MEM char *text = read_text(folder, "cgroup");
    double least = 0;

    for (char *rest = text, *line; rest && (line = strsep(&rest, "\n"));) {
        double quota = line_quota(root, line);

        if (quota > 0 && (least == 0 || quota < least))
            least = quota;
    }
    return least;
}

/* ---- cores ----------------------------------------------------------------------------------- */

/* The place of the node among all: nodes are cut down to those with cores of ours later. */
static int32_t node_of(hwloc_topology_t topology, hwloc_const_cpuset_t cpuset)
{
    hwloc_obj_t node = NULL;

    while ((node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)))
        if (node->cpuset && hwloc_bitmap_intersects(node->cpuset, cpuset))
            return (int32_t)node->logical_index;
    return 0;
}

static void number_nodes(struct cpus *cpus)
{
    int32_t last = -1;

    /* Few cores, and already nearly in order; equal ones must stay so. */
    for (int32_t i = 1; i < cpus->num_cores; i++)
        for (int32_t j = i; j > 0 && cpus->cores[j - 1].node > cpus->cores[j].node; j--) {
            struct core core = cpus->cores[j];

            cpus->cores[j] = cpus->cores[j - 1];
            cpus->cores[j - 1] = core;
        }
    for (int32_t i = 0; i < cpus->num_cores; i++) {
        cpus->num_nodes += i == 0 || cpus->cores[i].node != last;
        last = cpus->cores[i].node;
        cpus->cores[i].node = cpus->num_nodes - 1;
    }
}

static void find_cores(hwloc_topology_t topology, hwloc_const_cpuset_t allowed, struct cpus *cpus)
{
    /* Machines that do not say what their cores are have hardware threads at least. */
    hwloc_obj_type_t type = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE
                                                                                   : HWLOC_OBJ_PU;
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    hwloc_obj_t object = NULL;

    cpus->cores = mem_new_array(struct core, (size_t)hwloc_get_nbobjs_by_type(topology, type));
    while ((object = hwloc_get_next_obj_by_type(topology, type, object))) {
        struct core *core = &cpus->cores[cpus->num_cores];

        hwloc_bitmap_and(set, object->cpuset, allowed);
        if (hwloc_bitmap_iszero(set))
            continue;
        hwloc_cpuset_to_glibc_sched_affinity(topology, set, &core->set, sizeof core->set);
        core->node = node_of(topology, set);
        cpus->num_cores++;
    }
    hwloc_bitmap_free(set);
    number_nodes(cpus);
}

/* The mask that threads of this process begin with. */
static void find_allowed(hwloc_topology_t topology, bool is_synthetic, hwloc_bitmap_t allowed)
{
    cpu_set_t mask;

    hwloc_bitmap_copy(allowed, hwloc_topology_get_allowed_cpuset(topology));
    if (!is_synthetic && sched_getaffinity(0, sizeof mask, &mask) == 0) {
        hwloc_bitmap_t ours = hwloc_bitmap_alloc();

        hwloc_cpuset_from_glibc_sched_affinity(topology, ours, &mask, sizeof mask);
        hwloc_bitmap_and(allowed, allowed, ours);
        hwloc_bitmap_free(ours);
    }
}

static enum status load(hwloc_topology_t topology, const char *synthetic, struct cpus *cpus)
{
    hwloc_bitmap_t allowed;

    if (synthetic && hwloc_topology_set_synthetic(topology, synthetic) != 0)
        return fail(ERR_INVALID, "no machine is '%s'", synthetic);
    hwloc_topology_set_cache_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    /* It would visit every CPU, and wait for those that others use; /sys says as much. */
    hwloc_topology_set_components(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
    if (hwloc_topology_load(topology) != 0)
        return fail(ERR_IO, "hwloc can't tell what cores there are: %m");
    allowed = hwloc_bitmap_alloc();
    find_allowed(topology, synthetic != NULL, allowed);
    find_cores(topology, allowed, cpus);
    hwloc_bitmap_free(allowed);
    return cpus->num_cores > 0 ? OK : fail(ERR_IO, "hwloc knows no core that we may use");
}

enum status cpus_open(const struct cpus_options *options, struct cpus **out)
{
    AUTO_FREE(cpus) struct cpus *cpus = mem_new(struct cpus);
    const char *root = options && options->root ? options->root : "";
    hwloc_topology_t topology;
    enum status status;

    if (hwloc_topology_init(&topology) != 0)
        return fail(ERR_NO_MEMORY, "hwloc: %m");
    status = load(topology, options ? options->synthetic : NULL, cpus);
    hwloc_topology_destroy(topology);
    TRY(status);
    cpus->quota = find_quota(root);
    *out = give(cpus);
    return OK;
}

void cpus_free(struct cpus *cpus)
{
    if (!cpus)
        return;
    mem_free(cpus->cores);
    mem_free(cpus);
}

int32_t cpus_num_nodes(const struct cpus *cpus)
{
    return cpus->num_nodes;
}

double cpus_quota(const struct cpus *cpus)
{
    return cpus->quota;
}

int32_t cpus_num_cores(const struct cpus *cpus)
{
    int32_t most = cpus->num_cores;

    return cpus->quota > 0 && cpus->quota < most ? MAX((int32_t)cpus->quota, 1) : most;
}

/* ---- places ---------------------------------------------------------------------------------- */

/* All cores of a node. */
static int32_t node_set(const struct cpus *cpus, int32_t node, cpu_set_t *out)
{
    int32_t count = 0;

    CPU_ZERO(out);
    for (int32_t i = 0; i < cpus->num_cores; i++)
        if (cpus->cores[i].node == node) {
            CPU_OR(out, out, &cpus->cores[i].set);
            count++;
        }
    return count;
}

/* Does every node have the cores that its ranks' threads want? */
static bool fit_in_nodes(const struct cpus *cpus, int32_t world, int32_t num_threads)
{
    for (int32_t node = 0; node < cpus->num_nodes; node++) {
        int32_t ranks = (world + cpus->num_nodes - 1 - node) / cpus->num_nodes;
        cpu_set_t set;

        if (node_set(cpus, node, &set) < ranks * num_threads)
            return false;
    }
    return true;
}

bool cpus_place(const struct cpus *cpus, int32_t rank, int32_t world, int32_t num_threads,
                cpu_set_t *sets_out)
{
    int64_t wanted = (int64_t)world * num_threads;

    if (cpus_num_cores(cpus) < cpus->num_cores) /* a quota */
        return false;
    if (wanted == cpus->num_cores) {
        for (int32_t i = 0; i < num_threads; i++)
            sets_out[i] = cpus->cores[rank * num_threads + i].set;
        return true;
    }
    if (wanted > cpus->num_cores || cpus->num_nodes == 1 || !fit_in_nodes(cpus, world, num_threads))
        return false;
    for (int32_t i = 0; i < num_threads; i++)
        node_set(cpus, rank % cpus->num_nodes, &sets_out[i]);
    return true;
}
