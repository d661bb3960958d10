"""E_SO with its channels last against itself."""

import pytest
import torch

from aura.model import occlusion
from aura.model.occlusion import SpatialOcclusionEncoder


@pytest.mark.parametrize("count", [1, 3])
def test_channels_last_changes_neither_values_nor_gradients(count, monkeypatch):
    encoder = SpatialOcclusionEncoder()
    torch.nn.init.normal_(encoder.conv_out.weight)
    found, layouts = [], []
    encoder.conv_mid.register_forward_pre_hook(lambda _, args: layouts.append(args[0].stride(1)))
    for least in (10**9, 1):
        monkeypatch.setattr(occlusion, "LEAST_PIXELS", least)
        maps = torch.randn(2, count, 24, 20, generator=torch.Generator().manual_seed(1), requires_grad=True)
        encoder.zero_grad()
        logits = encoder(*maps)
        (logits.softmax(1) * torch.linspace(-1, 1, 20)).sum().backward()
        found.append({"logits": logits, "maps": maps.grad} | {n: p.grad for n, p in encoder.named_parameters()})
    assert layouts == [24 * 20, 1]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-5, msg=name)
