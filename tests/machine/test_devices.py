"""What is said of GPUs that this machine does not have; their facts are set by hand."""

from __future__ import annotations

import pytest
import torch

from aura.machine.devices import check_bf16, check_build, has_bf16, inference_dtype

CUDA = torch.device("cuda", 0)
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
V100, T4, A100, ADA, H100, B200, NEWEST = (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 1)


@pytest.fixture
def gpu(monkeypatch):
    """``gpu((7, 0), CU130)``: a GPU of that capability, and a torch built for those."""

    def have(capability, built_for=CU126):
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built_for))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla")

    return have


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        (V100, CU126, True),
        (V100, CU130, False),
        (T4, CU130, True),
        (ADA, CU130, True),  # sm_86 code runs on 8.9
        (H100, CU126, True),
        (B200, CU126, False),
        (NEWEST, CU130, True),
        (H100, ["sm_80"], False),
        (H100, ["sm_80", "compute_80"], True),  # translated when it is loaded
        (H100, ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        (NEWEST, ["sm_120f"], True),
        (V100, [], True),  # a build that does not say
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_refused(gpu, capability, built_for, runs):
    gpu(capability, built_for)
    if runs:
        check_build(CUDA)
    else:
        with pytest.raises(ValueError, match="has no code for Tesla"):
            check_build(CUDA)


def test_the_remedy_fits_the_gpu(gpu):
    gpu(V100, CU130)
    with pytest.raises(ValueError, match=r"compute capability 7\.0.*built for sm_75.*cu126.*torch 2\.10\.0") as error:
        check_build(CUDA)
    assert "\n" not in str(error.value)
    gpu((6, 1), CU130)
    with pytest.raises(ValueError, match="cu126"):
        check_build(CUDA)
    gpu(B200, CU126)
    with pytest.raises(ValueError, match="newer"):
        check_build(CUDA)
    check_build(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "has"), [(V100, False), (T4, False), (A100, True), (H100, True)])
def test_emulated_bf16_does_not_count(gpu, monkeypatch, capability, has):
    gpu(capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert has_bf16(CUDA) is has and has_bf16(torch.device("cpu"))
    if has:
        check_bf16(CUDA, "say fp16")
    else:
        with pytest.raises(ValueError, match=r"Tesla .*has no bf16 units.*say fp16"):
            check_bf16(CUDA, "say fp16")


@pytest.mark.parametrize(
    ("saved", "on_v100", "on_a100"),
    [
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.float16, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
        (None, torch.float16, torch.bfloat16),
    ],
)
def test_answers_are_computed_as_the_run_was(gpu, saved, on_v100, on_a100):
    for capability, expected in ((V100, on_v100), (A100, on_a100)):
        gpu(capability)
        assert inference_dtype(saved, CUDA) == expected
        assert inference_dtype(saved, torch.device("cpu")) == torch.float32
