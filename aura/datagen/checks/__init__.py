"""The checks of a question-answer pair before a person sees it. Open ``rules.py`` first."""
