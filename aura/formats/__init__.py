"""Annotation files: reading, checking, writing.

``amodal_reason_seg.py`` holds the project's own format. ``sources.py`` reads those of others; what their files look
like stands in ``docs/formats.md``.
"""
