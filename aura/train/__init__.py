"""The training run. Open ``start.py`` first, then ``trainer.py``; ``engine.py`` alone knows DeepSpeed."""
