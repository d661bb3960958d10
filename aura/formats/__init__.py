"""Annotation files: reading, checking, writing.

``amodal_reason_seg.py`` holds the project's own format. ``sources.py`` reads amodal sets of others; ``questions.py``
says what the sets of questions have in common (ReasonSeg, RefCOCO, category sets, label maps, LLaVA-Instruct).
``exports/`` writes ours as others read it, ``results/`` reads what others predict. What their files look like stands in
``docs/formats.md`` and at the top of each reader.
"""
