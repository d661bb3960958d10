"""Our data sets as other projects read them.

``reason_seg.py`` writes for LISA, ``coco.py`` for detectors, ``gcg.py`` for GLaMM; ``common.py`` holds what they share.
What the files look like stands in ``docs/formats.md``.
"""
