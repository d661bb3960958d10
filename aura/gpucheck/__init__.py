"""What can be proved about AURA on one GPU within minutes: ``scripts/check_gpu.py``, section by section.

Open :mod:`aura.gpucheck.sections` first: it lists them. :mod:`aura.gpucheck.runner` runs them in a process of their
own, :mod:`aura.gpucheck.lab` has what they share, :mod:`aura.gpucheck.models` makes models and batches.
"""
