"""The facts about an annotated image, and the words for them. Open ``facts.py`` first."""
