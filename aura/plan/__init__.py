"""What a run will need, before it starts: parameters, memory of each GPU, arithmetic, hours."""

from aura.plan.activations import Workload
from aura.plan.architectures import describe
from aura.plan.estimate import Memory, Plan, make_plan, settled
from aura.plan.gpus import GPUS, Gpu

__all__ = ["GPUS", "Gpu", "Memory", "Plan", "Workload", "describe", "make_plan", "settled"]
