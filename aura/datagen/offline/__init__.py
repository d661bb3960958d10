"""Questions and answers from annotations alone, without any service. Open ``generator.py`` first."""
