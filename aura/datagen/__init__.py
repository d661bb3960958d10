"""From annotations to question-answer pairs."""
