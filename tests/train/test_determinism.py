"""``train.deterministic`` turns on what torch has for it, puts everything back, and explains what torch refuses."""

import os

import pytest
import torch
from torch.nn import functional as F

from aura.config import parse_config
from aura.losses import _as_shares
from aura.train.determinism import deterministic
from aura.train.logs import read_log
from aura.train.start import train


def state():
    cudnn = torch.backends.cudnn
    algorithms, products = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    return algorithms, products, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32


def test_everything_is_switched_and_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with deterministic(False):
        assert state() == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic(True):
        assert state() == (True, "highest", True, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert state() == before


def test_a_user_s_own_cublas_setting_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_what_has_no_deterministic_form_is_named_with_the_setting():
    with (
        pytest.raises(ValueError, match=r"^train\.deterministic: put_ does not have.* Set it to false"),
        deterministic(True),
    ):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
    with pytest.raises(RuntimeError, match="another"), deterministic(True):
        raise RuntimeError("another")


def test_classes_as_shares_have_the_same_spatial_loss():
    logits, classes = torch.randn(2, 3, 5, 4), torch.randint(0, 3, (2, 5, 4))
    expected = F.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(F.cross_entropy(logits, _as_shares(classes), reduction="none"), expected)


def test_a_run_with_the_switch_repeats_itself(tiny_run, tmp_path):
    losses = []
    for name in ("first", "second"):
        options = ["--train.deterministic=true", "--train.steps=2", "--train.checkpoint_every=0"]
        assert train(parse_config([f"--config={tiny_run}", *options, f"--train.output_dir={tmp_path / name}"])) == 0
        losses.append([record["total"] for record in read_log(tmp_path / name / "log.jsonl")])
    assert len(losses[0]) == 2 and losses[0] == losses[1]
