"""The part of a page that is written by the command, between two comments."""

BEGIN, END = '<!-- benchmarks: begin -->', '<!-- benchmarks: end -->'


def between(page: str, text: str, name: str) -> str:
    """The page with `text` in place of what stands between its markers.

    ValueError: the page, called `name`, has not each marker once and in order.
    """
    counts = page.count(BEGIN), page.count(END)
    if counts != (1, 1) or page.index(END) < page.index(BEGIN):
        raise ValueError(f'{name}: has {BEGIN} {counts[0]} times and {END} {counts[1]} times; it '
                         'needs each once, in this order, each on a line of its own')
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f'{before}{BEGIN}\n\n{text}\n\n{END}{after}'
