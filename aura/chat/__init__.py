"""Using a trained model: the :class:`Assistant` of the Python API, the chat in the terminal, the chat in the browser.

Open ``assistant.py`` first.
"""
