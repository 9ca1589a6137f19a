"""`Audit` in; a page, Markdown or terminal text out. Never imports torch.

    page.py         the view model of the page; its parts: header.py, crosscheck_section.py, bound_section.py,
                    images_section.py, limits_section.py
    figures/        marks of a figure, axes, labels: charts.py, scales.py; Fig. 1: curves.py; Fig. 2: scatter.py;
                    Fig. 3: layer_groups.py, waterfall.py; Fig. 4: margins.py; Fig. 5: classes.py
    html.py         view model -> templates/report.html.j2
    terminal.py     the summary in a terminal      markdown.py     the one in a pull request
    comparison.py   two results, image by image

Python computes, templates hold all markup: no HTML in these files, no arithmetic in the templates.
"""
