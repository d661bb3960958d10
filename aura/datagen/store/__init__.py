"""A project's SQLite store: images, jobs, answers, pairs, reviews. Open ``store.py`` first."""
