"""What is true of an annotated image, and how it is said. Open ``facts.py`` first."""
