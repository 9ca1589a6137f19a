"""lipaudit inside other tools: `art.py`, `pytest_plugin.py`, `training.py`. Each loads only when it is imported.

What other tools read of a finished audit is written by `results/`: `dataframe.py`, `leaderboards.py`.
"""
