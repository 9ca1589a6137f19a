"""`Audit` in; JSON, a page, Markdown or terminal text out. Never imports torch.

    json.py          Audit <-> the result file      json_schema.py     its JSON Schema, from the types
    embedding.py         the copy of the result inside the page
    metrics.py      what the figures need to know, computed from an Audit
    formatting.py    numbers and foreign strings as a reader sees them
    scales.py        data to pixels: scales and ticks
    charts.py        marks of a figure, axes, labels that do not collide
    curves.py        Fig. 1       scatter.py    Fig. 2       layer_groups.py, waterfall.py    Fig. 3
    margins.py       Fig. 4       classes.py    Fig. 5
    page.py      the view model of the page; its parts: lamps.py, header.py, crosscheck_section.py, bound_section.py, images_section.py,
                     limits_section.py
    html.py          view model -> templates/report.html.j2
    terminal.py          terminal summary and Markdown
    dataframe.py         a row per image, for pandas        leaderboards.py     for the lists of RobustBench and Hugging Face

Python computes, templates hold all markup: no HTML in these files, no arithmetic in the templates.
"""
