"""Figures and tables: what a model or another method predicts, scored against a data set.

Open ``metrics.py`` for the definitions, ``evaluate.py`` for the model under its three protocols, ``report.py`` for what
is written.
"""
