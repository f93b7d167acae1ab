"""Untrained students as their recipes make them, inputs of their shape, and their arithmetic."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.dataset import STRIDE
from distill.recipe import Recipe
from distill.students.student import Student
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.sample import Channel

SIDE, READINGS = 256, 2048
CHANNELS = (Channel("drive_end", "g", 12000.0), Channel("fan_end", "g", 12000.0))
CLASSES = ("ok", "pitting", "subsurface")
_LEAST_TIMES = 5


def spec_for(recipe: Recipe, side: int = SIDE) -> ModelSpec:
    return ModelSpec(
        name=recipe.name,
        image=ImageInput(side, side),
        sensor=SensorInput(CHANNELS, READINGS),
        classes=CLASSES,
        map_height=side // STRIDE,
        map_width=side // STRIDE,
        embedding_size=recipe.student.width,
    )


def student_for(recipe: Recipe, side: int = SIDE) -> Student:
    torch.manual_seed(0)
    return Student(spec_for(recipe, side), recipe).eval()


def inputs_for(side: int = SIDE, batch: int = 1) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    return image, torch.randn(batch, len(CHANNELS), READINGS), torch.ones(batch, 2)


def parameters_m(student: Student) -> float:
    return sum(weight.numel() for weight in student.parameters()) / 1e6


@torch.no_grad()
def gflop(student: Student, inputs: tuple[torch.Tensor, ...]) -> float:
    """Count the products and sums of one forward pass: two for each multiplication."""
    counter = FlopCounterMode(display=False)
    with counter:
        student(*inputs)
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def p50_ms(
    students: Mapping[str, Student], inputs: tuple[torch.Tensor, ...], seconds: float
) -> dict[str, float]:
    """Time forward passes of all in turn for about so long, so that none has the quiet minute."""
    spent: dict[str, list[float]] = {name: [] for name in students}
    for student in students.values():
        student(*inputs)
    began, rounds = time.perf_counter(), 0
    while rounds < _LEAST_TIMES or time.perf_counter() - began < seconds:
        rounds += 1
        for name, student in students.items():
            started = time.perf_counter()
            student(*inputs)
            spent[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}
