"""What a run will need, before it starts: parameters, memory of each GPU, arithmetic, hours."""

from aura.plan.activations import Workload
from aura.plan.architectures import describe
from aura.plan.estimate import GPUS, Gpu, Memory, Plan, make_plan

__all__ = ["GPUS", "Gpu", "Memory", "Plan", "Workload", "describe", "make_plan"]
