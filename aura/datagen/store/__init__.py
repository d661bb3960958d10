"""A project's SQLite store: images, jobs, answers, pairs, annotators, queues, reviews. Open ``store.py`` first."""
