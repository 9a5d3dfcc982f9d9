"""The report that people look at: one HTML file without a network, and its plots as files.

    outcomes, routes, changes, examples, projection     what there is to see
    media, charts, tables                               how items, figures and numbers are shown
    contents -> page.html.jinja, style.css, script.js   everything gathered, then written as one file
    plots                                               the same charts as PNG and SVG

Whatever comes from data is escaped where it is written: the template has no way round it.
"""

from eval.page.rendering import require, write

__all__ = ["require", "write"]
