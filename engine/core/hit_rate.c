#include "engine/core/hit_rate.h"

void hit_rate_observe(struct hit_rate *rate, int32_t queries, int32_t hits)
{
    rate->queries += queries - rate->requests[rate->next].queries;
    rate->hits += hits - rate->requests[rate->next].hits;
    rate->requests[rate->next].queries = queries;
    rate->requests[rate->next].hits = hits;
    rate->next = (rate->next + 1) % HIT_RATE_REQUESTS;
}

void hit_rate_clear(struct hit_rate *rate)
{
    *rate = (struct hit_rate){0};
}
