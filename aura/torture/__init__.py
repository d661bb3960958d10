"""What AURA endures: ``scripts/torture.py`` kills what it does at random moments, and starts it again until it ends.

Open :mod:`aura.torture.endure` first: it kills, starts again and compares. Each kind of work has a module of its own:
:mod:`~aura.torture.training`, :mod:`~aura.torture.cache`, :mod:`~aura.torture.generation` (which asks
:mod:`~aura.torture.service`, a stand-in on this machine) and :mod:`~aura.torture.review`.
"""
