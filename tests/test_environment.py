"""What a process is told before torch is imported."""

import pytest

from aura import environment


@pytest.mark.parametrize(("driver", "visible", "kept"), [(False, None, 1), (True, None, 0), (True, "-1", 1)])
def test_freed_memory_is_kept_where_no_gpu_computes(monkeypatch, tmp_path, driver, visible, kept):
    calls = []
    monkeypatch.setattr(environment, "_keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(environment, "NVIDIA", tmp_path if driver else tmp_path / "none")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment.prepare()
    assert len(calls) == kept
