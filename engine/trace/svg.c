#include "engine/trace/svg.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Lengths are in pixels of the picture. */
enum {
    WIDTH = 1200,
    LEFT = 128, /* of the lanes; their names stand before it */
    RIGHT = WIDTH - 24,
    LANE = 24,
    LANE_STEP = LANE + 6,
    PROCESS_GAP = 10,
    MAX_LABEL = 120,
};

/* A letter of the 11 px font is hardly wider. */
static const double LETTER = 6.3;
static const double MIN_SPAN = 1.5;

static const struct colour {
    const char *name, *fill, *ink;
} colours[] = {
    {"schedule", "#eab308", "#1f2937"},
    {"prepare_inputs", "#0d9488", "#ffffff"},
    {"execute_model", "#4f6bed", "#ffffff"},
    {"grammar_bitmask", "#a855f7", "#ffffff"},
    {"sample", "#f97316", "#ffffff"},
    {"collect", "#e2e8f0", "#64748b"},
    {"update_from_output", "#e11d48", "#ffffff"},
    {"decode", "#0ea5e9", "#ffffff"},
    {"reply", "#78716c", "#ffffff"},
    {"other", "#a1a1aa", "#1f2937"}, /* last: whatever is not named above */
};

struct picture {
    const struct timeline *timeline; /* with the lanes that are drawn, and no others */
    size_t num_hidden;               /* ranks that are not */
    struct bytes *out;
    struct timeline_step *steps;   /* of the first device */
    size_t num_steps, first, last; /* of the steps that are drawn */
    bool drawn[COUNT_OF(colours)];
};

/* A stretch of time as wide as the lanes. */
struct panel {
    int64_t begin_ns, end_ns;
    int64_t zero_ns; /* where its axis counts from */
    double unit_ns;
    const char *unit;
    double top;        /* of the first lane */
    bool labels_aside; /* short spans have their names behind them */
};

/* ---- text -------------------------------------------------------------------------------------
 */

static void put_text(struct bytes *out, const char *text)
{
    for (; *text; text++) {
        const char *entity = *text == '&'   ? "&amp;"
                             : *text == '<' ? "&lt;"
                             : *text == '>' ? "&gt;"
                             : *text == '"' ? "&quot;"
                                            : NULL;
        bytes_append(out, entity ? entity : text, entity ? strlen(entity) : 1);
    }
}

/* `style` is a class of the style sheet in put_head. */
static void put_label(struct bytes *out, double x, double y, const char *style, const char *fill,
                      const char *text)
{
    bytes_printf(out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" fill=\"%s\">", x, y, style, fill);
    put_text(out, text);
    bytes_printf(out, "</text>\n");
}

static double width_of(const char *text)
{
    return LETTER * (double)strlen(text);
}

/* ---- places -----------------------------------------------------------------------------------
 */

static double x_of(const struct panel *panel, int64_t at_ns)
{
    double share = (double)(at_ns - panel->begin_ns) / (double)(panel->end_ns - panel->begin_ns);

    return LEFT + fmin(fmax(share, 0), 1) * (RIGHT - LEFT);
}

static bool begins_process(const struct timeline *timeline, size_t lane)
{
    return lane > 0 && timeline->threads[lane].pid != timeline->threads[lane - 1].pid;
}

/* The top of a lane, or with num_threads the bottom of all. */
static double y_of(const struct timeline *timeline, const struct panel *panel, size_t lane)
{
    double y = panel->top;

    for (size_t i = 1; i <= lane; i++)
        y += LANE_STEP +
             (i < timeline->num_threads && begins_process(timeline, i) ? PROCESS_GAP : 0);
    return y;
}

static size_t colour_of(const char *name)
{
    size_t i = 0;

    while (i < COUNT_OF(colours) - 1 && strcmp(colours[i].name, name) != 0)
        i++;
    return i;
}

/* ---- a lane -----------------------------------------------------------------------------------
 */

static bool is_seen(const struct panel *panel, const struct timeline_span *span)
{
    return span->begin_ns < panel->end_ns && span->end_ns > panel->begin_ns;
}

/* Waiting leaves room for the names of short spans. */
static bool is_wait(const struct picture *picture, const struct timeline_span *span)
{
    return timeline_is(picture->timeline, span, "collect");
}

static void draw_span(struct picture *picture, const struct panel *panel, double y,
                      const struct timeline_span *span)
{
    const char *name = picture->timeline->names[span->name];
    size_t colour = colour_of(name);
    double x = x_of(panel, span->begin_ns);
    double width = fmax(x_of(panel, span->end_ns) - x, MIN_SPAN);

    picture->drawn[colour] = true;
    bytes_printf(picture->out,
                 "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" rx=\"%.1f\" "
                 "fill=\"%s\"%s><title>",
                 x, y, width, LANE, width > 8 ? 3.0 : 0.0, colours[colour].fill,
                 width > 8 ? " stroke=\"#ffffff\"" : "");
    put_text(picture->out, name);
    if (span->step >= 0)
        bytes_printf(picture->out, " of step %" PRId64, span->step);
    bytes_printf(picture->out, ", %.1f us</title></rect>\n",
                 (double)(span->end_ns - span->begin_ns) / 1e3);
}

/* The longest form of the span's name that fits, or "". */
static void fit_label(const struct picture *picture, const struct timeline_span *span, double width,
                      char *out)
{
    const char *name = picture->timeline->names[span->name];

    snprintf(out, MAX_LABEL, "%s %" PRId64, name, span->step);
    if (span->step < 0 || width_of(out) + 8 > width)
        snprintf(out, MAX_LABEL, "%s", name);
    if (width_of(out) + 8 > width)
        *out = '\0';
}

/* Names of short spans that wait for room behind them. */
struct aside {
    char text[MAX_LABEL];
    int64_t step;
    const struct timeline_span *last;
};

static void aside_add(const struct picture *picture, struct aside *aside,
                      const struct timeline_span *span)
{
    const char *name = picture->timeline->names[span->name];
    size_t size = strlen(aside->text);

    if (!aside->last || aside->last->name != span->name)
        snprintf(aside->text + size, sizeof aside->text - size, "%s%s", size ? ", " : "", name);
    aside->step = span->step;
    aside->last = span;
}

/* Writes the names if they fit before `end`. Returns where the room behind them begins. */
static double aside_put(struct picture *picture, const struct panel *panel, struct aside *aside,
                        double y, double end)
{
    double x = aside->last ? fmax(x_of(panel, aside->last->end_ns), LEFT) + 5 : LEFT;
    size_t size = strlen(aside->text);
    bool is_written;

    if (!aside->last)
        return x;
    if (aside->step >= 0)
        snprintf(aside->text + size, sizeof aside->text - size, " %" PRId64, aside->step);
    is_written = x + width_of(aside->text) <= end;
    if (is_written) {
        put_label(picture->out, x, y + 16, "s", "#334155", aside->text);
        x += width_of(aside->text) + 5;
    }
    *aside = (struct aside){.step = -1};
    return x;
}

static double begin_of_next_work(const struct picture *picture, const struct panel *panel,
                                 const struct timeline_thread *thread, size_t at)
{
    while (at < thread->num_spans && is_wait(picture, &thread->spans[at]))
        at++;
    return at < thread->num_spans ? x_of(panel, thread->spans[at].begin_ns) : RIGHT;
}

static void label_span(struct picture *picture, const struct panel *panel,
                       const struct timeline_thread *thread, size_t at, double y,
                       struct aside *aside)
{
    const struct timeline_span *span = &thread->spans[at];
    double begin = x_of(panel, span->begin_ns), end = x_of(panel, span->end_ns);
    char label[MAX_LABEL];

    if (is_wait(picture, span)) /* the names of what was before stand in it */
        begin = fmax(begin, aside_put(picture, panel, aside, y, end));
    fit_label(picture, span, end - begin, label);
    if (*label) {
        put_label(picture->out, (begin + end) / 2, y + 16, "s m",
                  colours[colour_of(picture->timeline->names[span->name])].ink, label);
        *aside = (struct aside){.step = -1};
    } else if (panel->labels_aside && !is_wait(picture, span)) {
        aside_add(picture, aside, span);
        double room = begin_of_next_work(picture, panel, thread, at + 1);
        bool waits_next = at + 1 < thread->num_spans && is_wait(picture, &thread->spans[at + 1]);
        if (!waits_next && room - end > width_of(aside->text) + 4 * LETTER)
            aside_put(picture, panel, aside, y, room);
    }
}

static void draw_lane(struct picture *picture, const struct panel *panel, size_t lane)
{
    const struct timeline_thread *thread = &picture->timeline->threads[lane];
    struct aside aside = {.step = -1};
    double y = y_of(picture->timeline, panel, lane);

    bytes_printf(picture->out,
                 "<rect x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%d\" fill=\"#f8fafc\"/>\n", LEFT,
                 y, RIGHT - LEFT, LANE);
    bytes_printf(picture->out, "<text x=\"%d\" y=\"%.1f\" class=\"e\"><tspan fill=\"#94a3b8\">",
                 LEFT - 10, y + 16);
    put_text(picture->out, thread->process);
    bytes_printf(picture->out, "</tspan> <tspan fill=\"#0f172a\">");
    put_text(picture->out, thread->name);
    bytes_printf(picture->out, "</tspan></text>\n");
    for (size_t i = 0; i < thread->num_spans; i++)
        if (is_seen(panel, &thread->spans[i]))
            draw_span(picture, panel, y, &thread->spans[i]);
    for (size_t i = 0; i < thread->num_spans; i++)
        if (is_seen(panel, &thread->spans[i]))
            label_span(picture, panel, thread, i, y, &aside);
}

/* ---- axes -------------------------------------------------------------------------------------
 */

/* 1, 2 or 5 times a power of ten, so that there are ten marks or a few more. */
static double mark_distance(double length)
{
    double power = pow(10, floor(log10(length / 10)));
    double digit = length / 10 / power;

    return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

static void draw_axis(struct picture *picture, const struct panel *panel)
{
    double bottom = y_of(picture->timeline, panel, picture->timeline->num_threads);
    double first = (double)(panel->begin_ns - panel->zero_ns) / panel->unit_ns;
    double last = (double)(panel->end_ns - panel->zero_ns) / panel->unit_ns;
    double distance = mark_distance(last - first);

    for (double k = ceil(first / distance); k * distance <= last; k++) {
        double x = x_of(panel, panel->zero_ns + (int64_t)llround(k * distance * panel->unit_ns));
        char text[48];

        bytes_printf(picture->out,
                     "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#e2e8f0\" stroke-width=\"1\"/>\n", x,
                     panel->top - 4, bottom);
        snprintf(text, sizeof text, "%.6g", k * distance + 0.0);
        if (x < RIGHT - 30)
            put_label(picture->out, x, bottom + 12, "t m", "#64748b", text);
    }
    put_label(picture->out, RIGHT, bottom + 12, "t e", "#64748b", panel->unit);
}

/* Where the first device begins a step. */
static void draw_steps(struct picture *picture, const struct panel *panel)
{
    double bottom = y_of(picture->timeline, panel, picture->timeline->num_threads);
    double free_from = LEFT;

    for (size_t i = picture->first; i <= picture->last + 1 && i < picture->num_steps; i++) {
        const struct timeline_step *step = &picture->steps[i];
        double x = x_of(panel, step->begin_ns);
        char text[48];

        if (step->begin_ns < panel->begin_ns || step->begin_ns > panel->end_ns)
            continue;
        bytes_printf(picture->out,
                     "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#475569\" stroke-dasharray=\"3 3\"/>\n",
                     x, panel->top - 20, bottom);
        snprintf(text, sizeof text, "step %" PRId64, step->step);
        if (x < free_from || x + 5 + width_of(text) > RIGHT)
            continue;
        put_label(picture->out, x + 5, panel->top - 10, "b", "#0f172a", text);
        free_from = x + 10 + width_of(text);
    }
}

static void draw_panel(struct picture *picture, const struct panel *panel)
{
    draw_axis(picture, panel);
    for (size_t lane = 0; lane < picture->timeline->num_threads; lane++)
        draw_lane(picture, panel, lane);
    draw_steps(picture, panel);
}

/* ---- windows ----------------------------------------------------------------------------------
 */

/* The steps that are drawn whole, and a little before and behind them. */
static struct panel whole_panel(const struct picture *picture)
{
    int64_t begin_ns = picture->steps[picture->first].begin_ns;
    int64_t end_ns = MAX(picture->steps[picture->last].end_ns, begin_ns + 1000);
    int64_t margin_ns = (end_ns - begin_ns) / 50;

    return (struct panel){begin_ns - margin_ns, end_ns + margin_ns, begin_ns, 1e6, "ms", 96, false};
}

/* Around the end of a step: from a little before to where the engine and the ranks have done what
 * it made them do, or for half a step. */
static struct panel zoom_panel(const struct picture *picture, double top)
{
    size_t middle = (picture->first + picture->last) / 2;
    const struct timeline_step *step = &picture->steps[middle];
    int64_t half_ns = MAX((step->end_ns - step->begin_ns) / 2, (int64_t)1000);
    int64_t end_ns = step->end_ns;

    for (size_t t = 0; t < picture->timeline->num_threads; t++)
        for (size_t i = 0; i < picture->timeline->threads[t].num_spans; i++) {
            const struct timeline_span *span = &picture->timeline->threads[t].spans[i];

            if (span->begin_ns >= step->end_ns && span->begin_ns < step->end_ns + half_ns)
                end_ns = MAX(end_ns, MIN(span->end_ns, span->begin_ns + 50000));
        }

    int64_t length_ns = MAX(MIN(end_ns - step->end_ns, half_ns), half_ns / 100 + 1);
    return (struct panel){step->end_ns - length_ns / 3,
                          step->end_ns + length_ns + length_ns / 3,
                          step->end_ns,
                          1e3,
                          "\xc2\xb5s",
                          top,
                          true};
}

/* ---- the document -----------------------------------------------------------------------------
 */

static void put_head(struct picture *picture, double height)
{
    bytes_printf(
        picture->out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" "
        "viewBox=\"0 0 %d %.0f\" font-family=\"'Liberation Sans',Arial,Helvetica,sans-serif\">\n"
        "<style>text{font-size:11px}.t{font-size:10px}.b{font-weight:bold}.h{font-size:15px;"
        "font-weight:bold}.m{text-anchor:middle}.e{text-anchor:end}</style>\n"
        "<rect width=\"%d\" height=\"%.0f\" rx=\"8\" fill=\"#ffffff\"/>\n",
        WIDTH, height, WIDTH, height, WIDTH, height);
}

static void put_heading(struct picture *picture)
{
    char text[160];

    snprintf(text, sizeof text, "Steps %" PRId64 " to %" PRId64 " of %" PRId64 " to %" PRId64,
             picture->steps[picture->first].step, picture->steps[picture->last].step,
             picture->steps[0].step, picture->steps[picture->num_steps - 1].step);
    put_label(picture->out, 24, 30, "h", "#0f172a", text);
    if (picture->num_hidden > 0) {
        snprintf(text, sizeof text, "%zu more ranks are not drawn", picture->num_hidden);
        put_label(picture->out, RIGHT, 30, "e", "#64748b", text);
    }
    put_label(picture->out, 24, 48, "s", "#64748b",
              "a lane is a thread; dashed: the first rank's device begins a step; spans too short "
              "to be seen are drawn 1.5 px wide");
}

/* From the stretch of the upper panel down to the lower one. */
static void draw_magnifier(struct picture *picture, const struct panel *whole,
                           const struct panel *zoom)
{
    double top = y_of(picture->timeline, whole, 0) - 4;
    double bottom = y_of(picture->timeline, whole, picture->timeline->num_threads);
    double left = x_of(whole, zoom->begin_ns), right = x_of(whole, zoom->end_ns);
    double factor =
        (double)(whole->end_ns - whole->begin_ns) / (double)(zoom->end_ns - zoom->begin_ns);
    char text[160];

    bytes_printf(picture->out,
                 "<path d=\"M%.1f %.1fH%.1fV%.1fL%d %.1fH%dL%.1f %.1fZ\" fill=\"#f59e0b\" "
                 "fill-opacity=\"0.13\" stroke=\"#d97706\" stroke-opacity=\"0.5\"/>\n",
                 left, top, right, bottom + 18, RIGHT, zoom->top - 40, LEFT, left, bottom + 18);
    snprintf(text, sizeof text, "The end of step %" PRId64 ", %.0f times as wide",
             picture->steps[(picture->first + picture->last) / 2].step, factor);
    put_label(picture->out, LEFT, zoom->top - 25, "b", "#92400e", text);
}

static void draw_legend(struct picture *picture, double y)
{
    double x = LEFT;

    for (size_t i = 0; i < COUNT_OF(colours); i++) {
        const char *text =
            strcmp(colours[i].name, "collect") == 0 ? "collect (waits)" : colours[i].name;
        if (!picture->drawn[i])
            continue;
        bytes_printf(picture->out,
                     "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" rx=\"2\" "
                     "fill=\"%s\"/>\n",
                     x, y, colours[i].fill);
        put_label(picture->out, x + 17, y + 10, "s", "#334155", text);
        x += 17 + width_of(text) + 18;
    }
}

static enum status check_size(const struct timeline *timeline, const struct panel *panel)
{
    size_t num_spans = 0;

    if (timeline->num_threads > SVG_MAX_LANES)
        return fail(ERR_INVALID, "the trace has %zu threads, a picture %d lanes at most",
                    timeline->num_threads, SVG_MAX_LANES);
    for (size_t i = 0; i < timeline->num_spans; i++)
        num_spans += is_seen(panel, &timeline->spans[i]);
    if (num_spans > SVG_MAX_SPANS)
        return fail(ERR_INVALID, "these steps have %zu spans, a picture %d at most: draw fewer",
                    num_spans, SVG_MAX_SPANS);
    return OK;
}

static enum status choose_steps(struct picture *picture, const struct svg_options *options)
{
    size_t wanted = MIN((size_t)options->num_steps, picture->num_steps);

    picture->first = (picture->num_steps - wanted) / 2;
    if (options->from_step >= 0) {
        picture->first = 0;
        while (picture->first < picture->num_steps &&
               picture->steps[picture->first].step != options->from_step)
            picture->first++;
        if (picture->first == picture->num_steps)
            return fail(ERR_INVALID,
                        "the trace has steps %" PRId64 " to %" PRId64 ", and no step %" PRId64,
                        picture->steps[0].step, picture->steps[picture->num_steps - 1].step,
                        options->from_step);
    }
    picture->last = MIN(picture->first + wanted, picture->num_steps) - 1;
    return OK;
}

static enum status draw(struct picture *picture, const struct svg_options *options)
{
    struct panel whole, zoom;
    double bottom;

    TRY(choose_steps(picture, options));
    whole = whole_panel(picture);
    TRY(check_size(picture->timeline, &whole));
    bottom = y_of(picture->timeline, &whole, picture->timeline->num_threads);
    zoom = zoom_panel(picture, bottom + 96);
    bottom = y_of(picture->timeline, &zoom, picture->timeline->num_threads);
    put_head(picture, bottom + 60);
    put_heading(picture);
    draw_panel(picture, &whole);
    draw_magnifier(picture, &whole, &zoom);
    draw_panel(picture, &zoom);
    draw_legend(picture, bottom + 30);
    bytes_printf(picture->out, "</svg>\n");
    return OK;
}

/* Leaves the lanes of the first ranks, and of processes without a device; says how many were left
 * out. */
static size_t leave_out_ranks(struct timeline *timeline, int32_t num_ranks,
                              struct timeline_thread *threads)
{
    size_t num_kept = 0, num_devices = 0, num_hidden = 0;
    int64_t hidden_pid = -1;

    /* Backwards is no use: a process's device is its last lane, so look ahead for it. */
    for (size_t i = 0; i < timeline->num_threads; i++) {
        const struct timeline_thread *thread = &timeline->threads[i];

        if (i == 0 || thread->pid != timeline->threads[i - 1].pid) {
            size_t last = i;

            while (last + 1 < timeline->num_threads &&
                   timeline->threads[last + 1].pid == thread->pid)
                last++;
            if (timeline_is_device(timeline, &timeline->threads[last]) &&
                num_devices++ >= (size_t)num_ranks) {
                hidden_pid = thread->pid;
                num_hidden++;
            }
        }
        if (thread->pid != hidden_pid)
            threads[num_kept++] = *thread;
    }
    timeline->threads = threads;
    timeline->num_threads = num_kept;
    return num_hidden;
}

static enum status draw_from(struct picture *picture, const struct svg_options *options)
{
    const struct timeline *timeline = picture->timeline;
    const struct timeline_thread *device = timeline->threads;
    const struct timeline_thread *end = timeline->threads + timeline->num_threads;
    enum status status;

    while (device < end && !timeline_is_device(timeline, device))
        device++;
    if (device == end)
        return fail(ERR_INVALID, "no device of this trace has worked: there is nothing to draw");
    picture->steps = timeline_steps(timeline, device, &picture->num_steps);
    status = draw(picture, options);
    mem_free(picture->steps);
    return status;
}

enum status svg_draw(const struct timeline *timeline, const struct svg_options *options,
                     struct bytes *out)
{
    struct timeline drawn = *timeline; /* borrows */
    AUTO_MEM struct timeline_thread *threads =
        mem_new_array(struct timeline_thread, timeline->num_threads);
    struct picture picture = {.timeline = &drawn, .out = out};

    ASSERT(options->num_steps >= 1 && options->num_steps <= SVG_MAX_STEPS);
    picture.num_hidden = leave_out_ranks(&drawn, options->num_ranks, threads);
    return draw_from(&picture, options);
}
