"""`Audit` in; JSON, a page, Markdown or terminal text out. Never imports torch.

    json.py        Audit <-> the result file
    measures.py    what the figures need to know, computed from an Audit
    formatting.py  numbers and foreign strings as a reader sees them
    scales.py      data to pixels: scales and ticks
    charts.py      marks of a figure, axes, labels that do not collide
    curves.py, scatter.py, waterfall.py, ladder.py    Fig. 1, 2, 3 and the layer table
    sections.py, evidence.py, closing.py              the view models of the page, top to bottom
    html.py        view models -> templates/report.html.j2
    text.py        terminal summary and Markdown

Python computes, templates hold all markup: no HTML in these files, no arithmetic in the templates.
"""
