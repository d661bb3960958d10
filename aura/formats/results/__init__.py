"""What other methods predict, read from their files: every mask with what the file says it is of.

``found.py`` holds the one record of all of them and the list of readers; ``coco.py`` reads COCO results, ``folders.py``
masks in files of their own, ``answers.py`` GLaMM, Sa2VA and PSALM. Which object a mask belongs to is decided in
:mod:`aura.evaluation.matching`. What the files look like stands in ``docs/formats.md``.
"""
