"""The loop that a good engineer writes in an afternoon: OpenCV, onnxruntime, paho, one thread.

    python -m tests.benchmarks.plain_loop JSON    started by `comparison`, as a process of its own

It uses nothing of this project. Its author reads the documentation: TCP_NODELAY is left as paho
has it, MQTT 5 and QoS 1 are asked for, `loop_start` sends in the background, onnxruntime gets as
many threads as the others. What it lacks is what nobody asks for until the first bad night.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import paho.mqtt.client as mqtt


def main(asked: dict) -> dict:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = asked["threads"]
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        asked["onnx"], options, providers=["CPUExecutionProvider"]
    )
    acknowledged_s: dict[int, float] = {}
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_publish = lambda c, u, mid, code, p: acknowledged_s.setdefault(
        mid, time.perf_counter()
    )
    client.connect("127.0.0.1", asked["port"])
    client.loop_start()
    files, parts = Path(asked["files"]), range(asked["frames"])
    frames = [cv2.imread(str(files / f"frame{which}.bmp")) for which in parts]
    windows = [np.load(files / f"window{which}.npy") for which in parts]
    resampling = getattr(cv2, asked["resampling"])
    present = np.ones((1, 2), np.float32)
    names = [output.name for output in session.get_outputs()]
    began_s: dict[int, float] = {}
    verdict_ms = []
    print("ready", flush=True)
    sys.stdin.readline()
    first_s = time.perf_counter()
    for number in range(asked["parts"]):
        due_s = first_s + number / asked["rate"]
        time.sleep(max(0.0, due_s - time.perf_counter()))
        which = number % asked["frames"]
        frame, window = frames[which], windows[which]
        in_memory_s = time.perf_counter()
        small = cv2.resize(frame, (asked["width"], asked["height"]), interpolation=resampling)
        image = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
        inputs = {"image": image[None], "sensor": window[None], "present": present}
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        score = float(outputs["anomaly_score"][0])
        message = {
            "id": str(uuid.uuid4()),
            "part": number,
            "at": time.time(),
            "decision": "fail" if score >= asked["threshold"] else "pass",
            "score": score,
            "class_scores": outputs["class_scores"][0].tolist(),
        }
        verdict_ms.append((time.perf_counter() - in_memory_s) * 1e3)
        info = client.publish("bench/plain", json.dumps(message), qos=1)
        began_s[info.mid] = in_memory_s
    took_s = time.perf_counter() - first_s
    deadline = time.monotonic() + 10
    while len(acknowledged_s) < len(began_s) and time.monotonic() < deadline:
        time.sleep(0.05)
    client.disconnect()
    safe_ms = [
        (acknowledged_s[mid] - began_s[mid]) * 1e3 for mid in began_s if mid in acknowledged_s
    ]
    return {"verdict_ms": verdict_ms, "safe_ms": safe_ms, "took_s": took_s}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    Path(asked["out"]).write_text(json.dumps(main(asked)))
