"""How the mini benchmark's backbones were made: SAM's encoder and decoder, the CLIP-like tower, the language model.

Open ``run.py`` first; ``scripts/pretrain_mini.py`` calls it stage by stage.
"""
