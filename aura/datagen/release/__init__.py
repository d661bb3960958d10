"""From reviewed pairs to a published data set: selection, statistics, files, data card. Open ``export.py`` first."""
