#include "engine/simulation/simulation.h"

void simulation_run(const struct simulation_options *options, struct simulation_result *out)
{
    struct scenario scenario = {0};

    *out = (struct simulation_result){0};
    while (out->totals.num_steps < options->num_steps) {
        scenario_draw(options->seed + (uint64_t)out->num_scenarios++, &scenario);
        for (int32_t i = 0; i < scenario.num_setups; i++) {
            if (options->begin)
                options->begin(options->user, &scenario, i);
            if (run_setup(&scenario, &scenario.setups[i], &out->totals) == OK)
                continue;
            out->num_differences++;
            if (options->report)
                options->report(options->user, &scenario, i, fail_text());
        }
    }
    scenario_close(&scenario);
}
