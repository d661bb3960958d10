"""From records to tensors: prompts, tokens, pictures, packed batches, and the frozen encoders' features on disk.

Nothing here knows the model. Open ``processor.py`` first, then ``collate.py``.
"""
