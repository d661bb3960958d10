"""What the economies of AURA's network gain: the same work the plain way and ours, on the same weights.

:mod:`~aura.bench.sizes` has the models, :mod:`~aura.bench.work` the two ways, :mod:`~aura.bench.modules` single
modules, :mod:`~aura.bench.measure` seconds and memory, :mod:`~aura.bench.page` the pages. The commands are
``scripts/bench_train.py`` and ``scripts/bench_eval.py``; :mod:`~aura.bench.talk` and ``scripts/bench_chat.py`` do the
same for a conversation.
"""
