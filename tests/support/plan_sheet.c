#include "tests/support/plan_sheet.h"

void plan_sheet_begin(struct plan_sheet *sheet)
{
    *sheet = (struct plan_sheet){0};
    sheet->plan = (struct scheduler_output){
        .finished_slots = sheet->finished,
        .new_requests = sheet->new_requests,
        .slots = sheet->slots,
        .num_computed_tokens = sheet->num_computed,
        .num_scheduled_tokens = sheet->num_scheduled,
        .samples = sheet->samples,
        .needs_bitmask = sheet->needs_bitmask,
        .new_block_counts = sheet->block_counts,
        .new_block_ids = sheet->block_ids,
        .prompt_logprob_rows = sheet->prompt_rows,
        .prompt_logprob_lengths = sheet->prompt_lengths,
    };
}

void plan_sheet_finish(struct plan_sheet *sheet, int32_t slot)
{
    sheet->finished[sheet->plan.num_finished_slots++] = slot;
}

void plan_sheet_row(struct plan_sheet *sheet, int32_t slot, int32_t num_computed,
                    int32_t num_scheduled, bool samples, int32_t first_block, int32_t num_blocks)
{
    int32_t row = sheet->plan.num_rows++;

    ASSERT(row < SHEET_ROWS && sheet->plan.num_new_block_ids + num_blocks <= SHEET_BLOCKS);
    sheet->slots[row] = slot;
    sheet->num_computed[row] = num_computed;
    sheet->num_scheduled[row] = num_scheduled;
    sheet->samples[row] = samples;
    sheet->block_counts[row] = num_blocks;
    for (int32_t i = 0; i < num_blocks; i++)
        sheet->block_ids[sheet->plan.num_new_block_ids++] = first_block + i;
    sheet->plan.total_num_scheduled_tokens += num_scheduled;
}

void plan_sheet_new(struct plan_sheet *sheet, const struct new_request *request,
                    const struct sampling_params *params, int32_t num_scheduled, bool samples)
{
    struct new_request *copy = &sheet->new_requests[sheet->plan.num_new_requests++];

    *copy = *request;
    copy->id = "sheet";
    if (params)
        copy->sampling_params = *params;
    else
        sampling_params_init(&copy->sampling_params);
    plan_sheet_row(sheet, request->slot, 0, num_scheduled, samples, 0, 0);
}

void plan_sheet_prompt_logprobs(struct plan_sheet *sheet, int32_t row, int32_t length)
{
    int32_t i = sheet->plan.num_prompt_logprob_rows++;

    ASSERT(i < SHEET_ROWS);
    sheet->prompt_rows[i] = row;
    sheet->prompt_lengths[i] = length;
}
