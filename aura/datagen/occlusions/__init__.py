"""Amodal truth from any instance masks: objects cut from photographs are laid over objects of other photographs.

Open ``compose.py`` for one scene, ``write.py`` for the data set.
"""
