"""Model FLOPs utilisation of a training step in bf16: what part of a GPU's arithmetic it uses.

MFU is the arithmetic that the model's own step needs, forwards once and backwards twice, over what
the GPU could have done in that time (Chowdhery et al., arXiv 2204.02311, appendix B). What is
computed again to save memory does not count. The GPU's peak is what NVIDIA's data sheet says,
dense; for a GPU that is not listed it is the best that one large product reaches here, and the
output says so.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.recipe import Recipe, load_recipe
from tests.benchmarks.fresh_students import inputs_for, student_for

MODELS = ("base", "600m")
GOAL = 0.5
BATCHES = (32, 64, 128)
_STEPS, _WARM = 12, 4
_NO_RECOMPUTE = ("train.recompute=false",)
# Dense bf16 TFLOP/s by the data sheets, by a word of the device's name.
PEAKS_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "4090": 165.0,
}


def utilisation() -> dict:
    """Print and return MFU by model and batch; says so where there is no GPU."""
    print("\nmodel FLOPs utilisation in bf16, one training step (forward, backward, AdamW)")
    if not torch.cuda.is_available():
        print("  not measured: no GPU")
        return {"measured": False, "reason": "no GPU"}
    device = torch.device("cuda")
    peak_flops, source = _peak_of(device)
    print(f"  {torch.cuda.get_device_name()}, {peak_flops / 1e12:.0f} TFLOP/s ({source})")
    figures: dict = {"measured": True, "peak_tflops": peak_flops / 1e12, "peak_from": source}
    for name in MODELS:
        figures[name] = {}
        for batch in BATCHES:
            try:
                one = step_figures(load_recipe(name, _NO_RECOMPUTE), batch, device)
            except torch.OutOfMemoryError:
                print(f"  {name:6} batch {batch:4}: does not fit")
                break
            one["mfu"] = one["flops_per_s"] / peak_flops
            figures[name][str(batch)] = one
            print(
                f"  {name:6} batch {batch:4}: {one['mfu']:6.1%}, {one['step_ms']:8.1f} ms a step, "
                f"{batch / one['step_ms'] * 1e3:8.0f} parts/s"
            )
        best = max((one["mfu"] for one in figures[name].values()), default=0.0)
        print(f"  {name:6} best {best:.1%}: the goal of {GOAL:.0%} is {_met(best)}")
    return figures


def step_figures(recipe: Recipe, batch: int, device: torch.device, steps: int = _STEPS) -> dict:
    """Time whole steps; the loss is made of what the student answers, for its arithmetic."""
    student = student_for(recipe).to(device).train()
    image, sensor, present = (tensor.to(device) for tensor in inputs_for(batch=batch))
    learning = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=device.type == "cuda")
    with torch.no_grad():
        stem = student.stem_features(image)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, torch.autocast(device.type, torch.bfloat16):
        student.read(stem, sensor, present)
    spent = []
    for _ in range(_WARM + steps):
        started = _now_s(device)
        with torch.autocast(device.type, torch.bfloat16):
            reading = student.read(stem, sensor, present)
        parts = (reading.class_logits_BK, reading.score_logit_B, reading.map_logits_Bhw)
        torch.stack([part.float().square().mean() for part in parts]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(_now_s(device) - started)
    step_s = statistics.median(spent[_WARM:])
    return {"flops_per_s": 3 * counter.get_total_flops() / step_s, "step_ms": step_s * 1e3}


def _peak_of(device: torch.device) -> tuple[float, str]:
    name = torch.cuda.get_device_name(device)
    for word, tflops in PEAKS_TFLOPS.items():
        if word in name:
            return tflops * 1e12, "data sheet, dense"
    size, spent = 8192, []
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(20):
        started = _now_s(device)
        left @ right
        spent.append(_now_s(device) - started)
    return 2 * size**3 / min(spent), f"not listed here; the best of a {size} x {size} product"


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _met(best: float) -> str:
    return "met" if best >= GOAL else "missed"
