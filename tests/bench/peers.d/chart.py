"""Tokens per second by the number of streams, as an SVG."""
COLOURS = {"tandem": "#2469b3", "llama_cpp": "#c77800", "vllm": "#a33"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 340, 60, 90, 34, 46


def nice_ceiling(value):
    scale = 10 ** (len(str(int(value))) - 1)
    return next(step * scale for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * scale >= value)


def svg(batches, series, names, machine):
    """`series`: of each contestant, for each batch a (median, least, most) or None."""
    most = nice_ceiling(max(point[2] for points in series.values() for point in points if point))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(index):
        return LEFT + index * width / (len(batches) - 1)

    def y(value):
        return TOP + (1 - value / most) * height

    def text(at_x, at_y, words, more=""):
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" {more}>{words}</text>'

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
             text(LEFT, 18, "Decoding, tokens/s by the number of streams", 'font-size="14"'),
             text(LEFT + width / 2, HEIGHT - 8, f"streams ({machine})", 'text-anchor="middle"')]
    for part in range(5):
        value = most * part / 4
        lines.append(f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y(value):.1f}" '
                     f'y2="{y(value):.1f}" stroke="#ddd"/>')
        lines.append(text(LEFT - 6, y(value) + 4, f"{value:,.0f}", 'text-anchor="end"'))
    for index, batch in enumerate(batches):
        lines.append(text(x(index), HEIGHT - 28, batch, 'text-anchor="middle"'))
    for who, points in series.items():
        there = [(index, *point) for index, point in enumerate(points) if point]
        if not there:
            continue
        colour = COLOURS[who]
        path = " ".join(f"{x(index):.1f},{y(median):.1f}" for index, median, _, _ in there)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for index, median, least, highest in there:
            lines.append(f'<line x1="{x(index):.1f}" x2="{x(index):.1f}" y1="{y(least):.1f}" '
                         f'y2="{y(highest):.1f}" stroke="{colour}"/>'
                         f'<circle cx="{x(index):.1f}" cy="{y(median):.1f}" r="3.5" '
                         f'fill="{colour}"/>')
        lines.append(text(x(there[-1][0]) + 8, y(there[-1][1]) + 4, names[who], f'fill="{colour}"'))
    return "\n".join(lines + ["</svg>"]) + "\n"
