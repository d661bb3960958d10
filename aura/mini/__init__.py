"""The mini benchmark of the laptop: composed scenes with exact amodal truth, and the pretraining of its backbones.

Open ``benchmark.py`` first. Nothing else in ``aura`` imports this folder.
"""
