"""From annotations to questions and answers, their checks, the review by people, and a release.

Open ``project.py`` for a project and its settings, ``generate.py`` for the run that fills its store.
"""
