"""Questions and answers from a vision-language model behind an OpenAI-style API.

Open ``prompt.py`` for what the model is told, ``client.py`` for live requests, ``batch.py`` for the batch endpoint.
"""
