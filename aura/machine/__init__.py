"""What AURA runs on: what a device can compute, several processes that share one work, work in parts that fit.

Each file stands by itself. ``aura/environment.py`` comes before all of them: it is read before torch is.
"""
