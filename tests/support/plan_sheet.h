/*
 * plan_sheet: a scheduler_output written by hand, row by row, for who tests what takes one.
 *
 * Its columns are as wide as tests need; spoil them at will between the calls.
 */
#ifndef TESTS_SUPPORT_PLAN_SHEET_H
#define TESTS_SUPPORT_PLAN_SHEET_H

#include "proto/wire/messages.h"

enum { SHEET_ROWS = 8, SHEET_BLOCKS = 32 };

struct plan_sheet {
    struct scheduler_output plan; /* its columns are those below */
    int32_t finished[SHEET_ROWS];
    struct new_request new_requests[SHEET_ROWS];
    int32_t slots[SHEET_ROWS], num_computed[SHEET_ROWS], num_scheduled[SHEET_ROWS];
    uint8_t samples[SHEET_ROWS], needs_bitmask[SHEET_ROWS];
    int32_t block_counts[SHEET_ROWS];
    int32_t block_ids[SHEET_BLOCKS];
    int32_t prompt_rows[SHEET_ROWS], prompt_lengths[SHEET_ROWS];
};

/* An empty plan. The sheet must stay where it is from now on. */
void plan_sheet_begin(struct plan_sheet *sheet);
void plan_sheet_finish(struct plan_sheet *sheet, int32_t slot);
/* A row of a slot that is known; num_blocks new blocks from `first_block` up. */
void plan_sheet_row(struct plan_sheet *sheet, int32_t slot, int32_t num_computed,
                    int32_t num_scheduled, bool samples, int32_t first_block, int32_t num_blocks);
/* A new request and its row; `request` says all but the sampling params, which are vLLM's defaults
 * if params is NULL. Arrays are borrowed. */
void plan_sheet_new(struct plan_sheet *sheet, const struct new_request *request,
                    const struct sampling_params *params, int32_t num_scheduled, bool samples);
/* The logprobs of so many tokens behind the row's first are wanted. */
void plan_sheet_prompt_logprobs(struct plan_sheet *sheet, int32_t row, int32_t length);

#endif
