"""The paper's tables: their numbers, the runs that reproduce them, and both side by side. Open ``paper.py`` first."""
