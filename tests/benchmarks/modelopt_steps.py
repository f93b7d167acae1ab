# ruff: noqa: PLC0415 - each step is a process of its own and imports what it needs
"""The steps of the benchmark `modelopt`, each a process of its own whose time and memory count.

    python -m tests.benchmarks.modelopt_steps prepare FOLDER RECIPE [SETTING ...]
    python -m tests.benchmarks.modelopt_steps ours FOLDER METHOD THREADS
    python -m tests.benchmarks.modelopt_steps scores FOLDER FILE THREADS

The last line on standard output is JSON: what the step has to tell.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

_BEGAN = time.monotonic()

RECORDING, RUN, BUNDLE, SAMPLES = "recording", "run", "bundle", "samples.npz"
PARTS = 120  # simulated; the calibration samples are drawn from its train split


def prepare(folder: Path, recipe_name: str, *overrides: str) -> dict:
    """Write a recording, a run with random weights, and the calibration samples for modelopt."""
    import msgspec
    import numpy as np
    import torch

    from distill.checkpoint import RunRecord, write_run
    from distill.dataset import spec_for
    from distill.recipe import load_recipe
    from distill.students.student import Student
    from edge.simulate.line import LineOrder, simulate
    from edge.verdict import DecisionRule, Threshold
    from export.calibration import MINIMUM_SAMPLES, calibration_set
    from tests.benchmarks.fresh_students import SIDE, parameters_m

    recording = simulate(LineOrder(parts=PARTS, size=(SIDE, SIDE)), folder / RECORDING)
    recipe = load_recipe(recipe_name, overrides)
    threshold = Threshold(0.5, 0.05, PARTS, supported=False)
    rule = DecisionRule(threshold, threshold)
    spec = msgspec.structs.replace(spec_for(recording, recipe), rule=rule)
    torch.manual_seed(0)
    student = Student(spec, recipe)
    record = RunRecord(
        spec=spec,
        recipe=recipe,
        recipe_digest="",
        recording=recording.header.name,
        recording_digest=recording.digest(),
        weights_digest="",
        parts_by_label={},
        losses_by_epoch=(),
        versions={},
        remarks=("random weights, for a benchmark",),
    )
    (folder / RUN).mkdir()
    write_run(folder / RUN, student, record)
    calibration = calibration_set(recording, spec, samples=MINIMUM_SAMPLES)
    inputs = list(calibration.inputs_from(calibration.rows))
    arrays = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
    np.savez(folder / SAMPLES, **arrays)
    return {"parameters_m": parameters_m(student), "inputs": len(inputs)}


def ours(folder: Path, method: str, threads: str) -> dict:
    """Go from the checkpoint to the packed bundle, as `edge export` does.

    Left out, because they are not compared: parity, the compile check, and what is measured with
    them (golden samples, the reference). Returns seconds and highest memory after each step.
    """
    import torch

    from distill.checkpoint import RECORD_FILE, read_record, student_from_run
    from distill.students.student import EMBEDDINGS, HEADS
    from edge.artefact import digest_of_file, new_folder
    from edge.bundle import FP32_FILE, INT8_FILE
    from edge.recording.format import Recording
    from export.calibration import MINIMUM_SAMPLES, calibration_set
    from export.onnx_graph import fp32_onnx_from_student
    from export.pack import Proof, bundle_from, provenance_of
    from export.quantization.prepared import prepared_student
    from export.quantize import int8_onnx_from_qdq

    torch.set_num_threads(int(threads))
    steps = {"imports": _so_far()}
    record, student = read_record(folder / RUN), student_from_run(folder / RUN)
    recording = Recording.open(folder / RECORDING)
    calibration = calibration_set(recording, record.spec, samples=MINIMUM_SAMPLES)
    steps["checkpoint read"] = _so_far()
    with new_folder(folder / BUNDLE) as bundle:
        fp32_onnx_from_student(student, record.spec, bundle / FP32_FILE)
        steps["FP32 ONNX"] = _so_far()
        prepared = prepared_student(student, record.spec, kept_float=(*HEADS, *EMBEDDINGS))
        steps["traced"] = _so_far()
        prepared.watch(calibration.inputs_from(calibration.rows))
        prepared.settle(method)
        steps["calibrated"] = _so_far()
        int8_onnx_from_qdq(prepared.converted(), record.spec, bundle / INT8_FILE)
        steps["INT8 ONNX"] = _so_far()
        provenance = provenance_of(
            checkpoint_digest=digest_of_file(folder / RUN / RECORD_FILE),
            training_digest=record.recording_digest,
            calibration=calibration,
        )
        bundle_from(bundle, record.spec, Proof((), (), ()), provenance)
    steps["packed"] = _so_far()
    return steps


def _so_far() -> dict[str, float]:
    """Return the seconds and CPU seconds of this process, and its highest memory until now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "at_s": time.monotonic() - _BEGAN,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_gb": (usage.ru_maxrss << 10) / 1e9,
    }


def scores(folder: Path, file: str, threads: str) -> dict:
    """Return the anomaly scores of an ONNX file on the calibration samples, by onnxruntime."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    samples = np.load(folder / SAMPLES)
    found = []
    for number in range(len(samples["image"])):
        feeds = {name: samples[name][number : number + 1] for name in samples.files}
        (score,) = session.run(["anomaly_score"], feeds)
        found.append(float(score[0]))
    return {"scores": found}


STEPS = {"prepare": prepare, "ours": ours, "scores": scores}

if __name__ == "__main__":
    step, place, *words = sys.argv[1:]
    print(json.dumps(STEPS[step](Path(place), *words)))
