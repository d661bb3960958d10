"""The review web app: annotators log in, judge pairs over the picture with its masks, and decide disputes.

``access`` knows who is asking, ``desk`` what may be done with a pair, ``views`` what a page shows, ``layers`` draws
masks, ``member`` is what every page needs, ``routes`` and ``pictures`` hold the addresses, ``app`` puts all together
and serves it behind the guard of :mod:`aura.serving`.
"""
