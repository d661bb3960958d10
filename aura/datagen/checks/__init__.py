"""What a question-answer pair must satisfy before a person sees it. Open ``rules.py`` first."""
