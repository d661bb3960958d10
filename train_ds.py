"""Train AURA: ``deepspeed train_ds.py --config configs/mini.yaml`` (or ``python train_ds.py``, one process)."""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if something that the config names does not fit, or 128 + the signal that stopped the run."""
    with environment.ctrl_c_in_one_line("train_ds.py"):
        from aura.config import parse_config

        config = parse_config(argv, prog="train_ds.py")
        environment.prepare()
        # After prepare(): torch's threads read the environment once, when torch is imported.
        from aura.train.start import train

        try:
            return train(config)
        except (ValueError, FloatingPointError) as error:
            print(f"train_ds.py: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
