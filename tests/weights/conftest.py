"""What several tests of weights need."""

from __future__ import annotations

import pytest
import sentencepiece

PIECES = 400
TEXT = "The quick brown fox asks a human what hides the bus, and the assistant answers politely: a tree does. "


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory) -> bytes:
    """A tokenizer like Llama's, with 400 pieces (Llama's has 32000)."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text(TEXT * 3)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=PIECES, model_type="bpe",
        byte_fallback=True, pad_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return (folder / "tokenizer.model").read_bytes()
