"""An existing product beside ours: Node-RED, what line integrators wire such a station with.

Node-RED (Apache-2.0) with onnxruntime-node (MIT) and sharp (Apache-2.0) in function nodes and its
own MQTT node. Installed by npm on demand into a cache outside of the repository; never a
dependency of anything here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.benchmarks.work import HEIGHT, WIDTH, cache

PACKAGES = ("node-red@4", "onnxruntime-node@1", "sharp@0.35")
_INSTALL_TIMEOUT_S = 600

_SETTINGS = """\
const asked = JSON.parse(require('fs').readFileSync(__dirname + '/asked.json'));
module.exports = {
  uiPort: 0, httpAdminRoot: false, httpNodeRoot: false, flowFile: 'flows.json',
  credentialSecret: false, logging: { console: { level: 'warn' } },
  functionGlobalContext: {
    asked, fs: require('fs'), ort: require('onnxruntime-node'), sharp: require('sharp'),
    performance: require('perf_hooks').performance,
    // Function nodes run in a realm of their own, whose arrays onnxruntime does not take.
    Uint8Array, Float32Array,
  },
};
"""
# The camera: a frame is sent on at its due time, as a camera node does.
_CAMERA = """\
const { asked, fs, performance } = { asked: global.get('asked'), fs: global.get('fs'),
                                     performance: global.get('performance') };
const Floats = global.get('Float32Array'), frames = [], windows = [];
for (let which = 0; which < asked.frames; which++) {
  frames.push(fs.readFileSync(`${asked.files}/frame${which}.rgb`));
  const raw = fs.readFileSync(`${asked.files}/window${which}.f32`);
  windows.push(new Floats(raw.buffer, raw.byteOffset, raw.length / 4));
}
let number = 0; const first = performance.now();
function tick() {
  const which = number % asked.frames;
  node.send({ payload: frames[which], window: windows[which], part: number,
              began: performance.now() });
  number += 1;
  if (number < asked.parts)
    setTimeout(tick, Math.max(0, first + number * 1000 / asked.rate - performance.now()));
}
setTimeout(tick, 0);
return null;
"""
_INFER_START = """\
const ort = global.get('ort'), asked = global.get('asked');
context.set('session', await ort.InferenceSession.create(asked.onnx, {
  intraOpNumThreads: asked.threads, interOpNumThreads: 1 }));
global.get('fs').writeFileSync(asked.ready, 'ready');
"""
_INFER = """\
const ort = global.get('ort'), asked = global.get('asked'), sharp = global.get('sharp');
const Bytes = global.get('Uint8Array'), Floats = global.get('Float32Array');
const image = await sharp(msg.payload, { raw: asked.frame })
  .resize(asked.width, asked.height, { fit: 'fill', kernel: 'linear' }).raw().toBuffer();
const out = await context.get('session').run({
  image: new ort.Tensor('uint8', new Bytes(image), [1, asked.height, asked.width, 3]),
  sensor: new ort.Tensor('float32', msg.window, [1, 2, msg.window.length / 2]),
  present: new ort.Tensor('float32', new Floats([1, 1]), [1, 2]) });
const score = out.anomaly_score.data[0];
const payload = JSON.stringify({ id: RED.util.generateId(), part: msg.part, at: Date.now() / 1000,
  decision: score >= asked.threshold ? 'fail' : 'pass', score,
  class_scores: Array.from(out.class_scores.data) });
const verdict = global.get('performance').now() - msg.began;
return { payload, topic: 'bench/node-red', qos: 1, began: msg.began, verdict };
"""
# Reached when the MQTT node calls a message complete: at its PUBACK.
_CLOCK = """\
const asked = global.get('asked'), now = global.get('performance').now();
const seen = context.get('seen') || { verdict_ms: [], safe_ms: [], first: msg.began };
seen.verdict_ms.push(msg.verdict); seen.safe_ms.push(now - msg.began); context.set('seen', seen);
if (seen.safe_ms.length === asked.parts)
  global.get('fs').writeFileSync(asked.out, JSON.stringify({ ...seen,
    took_s: (now - seen.first) / 1000 }));
return null;
"""


def installed() -> tuple[Path | None, str]:
    """Install what is not there; return the folder with node_modules, or why there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None, "node and npm are not installed (apt-get install nodejs npm)"
    folder = cache() / "node-red"
    folder.mkdir(exist_ok=True)
    if (folder / "node_modules" / "node-red" / "red.js").is_file() and (folder / ".whole").exists():
        return folder, ""
    print(f"installing {', '.join(PACKAGES)} into {folder} (about a minute, once)", flush=True)
    # The package carries its CPU library; the script would fetch GPU ones.
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None, f"npm took over {_INSTALL_TIMEOUT_S} s"
    if done.returncode:
        return None, f"npm could not install it: {done.stderr.strip().splitlines()[-1][:200]}"
    (folder / ".whole").touch()
    return folder, ""


def version(folder: Path) -> str:
    """Say which versions are installed."""
    names = ("node-red", "onnxruntime-node")
    packages = [folder / "node_modules" / name / "package.json" for name in names]
    return ", ".join(
        f"{name} {json.loads(path.read_text())['version']}"
        for name, path in zip(names, packages, strict=True)
    )


def write_station(folder: Path, asked: dict) -> None:
    """Write settings and flow: camera -> infer -> MQTT out, and a clock on its completion."""
    folder.mkdir()
    asked = {**asked, "frame": {"width": WIDTH, "height": HEIGHT, "channels": 3}}
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "settings.js").write_text(_SETTINGS)
    broker = {"id": "broker", "type": "mqtt-broker", "broker": "127.0.0.1", "port": asked["port"]}
    broker |= {"protocolVersion": "5", "cleansession": True, "keepalive": 60, "autoConnect": True}
    tab = {"id": "tab", "type": "tab", "label": "station"}
    place = {"z": "tab", "x": 0, "y": 0}
    nodes = [
        {"id": "wait", "type": "function", "func": "return msg;", "wires": [["camera"]]},
        {"id": "camera", "type": "function", "func": _CAMERA, "wires": [["infer"]]},
        {"id": "infer", "type": "function", "func": _INFER, "wires": [["out"]]},
        {"id": "out", "type": "mqtt out", "broker": "broker", "topic": "", "qos": "", "wires": []},
        {"id": "done", "type": "complete", "scope": ["out"], "wires": [["clock"]]},
        {"id": "clock", "type": "function", "func": _CLOCK, "wires": [[]]},
    ]
    by_id = {node["id"]: node for node in nodes}
    by_id["infer"]["initialize"] = _INFER_START
    by_id["wait"]["initialize"] = (
        "const timer = setInterval(() => { if (global.get('fs').existsSync("
        "global.get('asked').go)) { clearInterval(timer); node.send({}); } }, 50);"
    )
    for node in nodes:
        node |= {**place, "outputs": len(node.get("wires", [])), "noerr": 0, "libs": []}
    (folder / "flows.json").write_text(json.dumps([tab, broker, *nodes]))


def start(installed_in: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start Node-RED on the station in `folder`."""
    program = installed_in / "node_modules" / "node-red" / "red.js"
    command = [shutil.which("node") or "node", str(program), "--userDir", str(folder)]
    environment = {**os.environ, "NODE_PATH": str(installed_in / "node_modules")}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=installed_in)
