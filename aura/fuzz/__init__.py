"""Bad inputs for everything that AURA reads: ``scripts/fuzz.py``.

Open :mod:`aura.fuzz.damage` first: it has the rule that every reader keeps. What is read stands in
:mod:`aura.fuzz.data` (files of data, pictures, answers of services) and :mod:`aura.fuzz.models` (weights, checkpoints,
prompts).
"""
