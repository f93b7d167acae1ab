"""What NVIDIA's builder made of an onnx_graph, read from its own list of compiled layers.

With a DETAILED profile the builder names each compiled layer, its type, the data types it reads
and writes, and the ONNX nodes that it came from. Nodes carry the names of the student's modules
(`export.onnx_graph`), so the list says how many kernels each block became, whether a product that
was meant to be INT8 is an Int8 gemm, whether each attention is one kernel, and what stayed FP32.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from onnx import ModelProto, NodeProto, TensorProto

from edge.bundle import CompileCheck, CompiledLayers
from export.half_precision import FLOAT_MODULES

MOST_KERNELS_A_BLOCK = 10
"""The goal for dense students: qkv, attention, project, up, down and what lies between them."""

_NAMED = 4
_GENERATED = "kgen"  # the builder's own code for what it fused: it moves, converts and reduces
_FUSED_ATTENTION = "_gemm_mha"
_ATTENTION_PASSES = ("QuantizeLinear", "DequantizeLinear", "Cast")  # between softmax and product
_BLOCK = re.compile(r"(.*\.\d+)(?=[./])")


class Kernel(msgspec.Struct, frozen=True):
    """One compiled layer."""

    name: str
    kind: str  # kgen, gemm, runtime_fusion, ...
    reads: tuple[str, ...]  # data types, constants apart: Float, Half, Int8, ...
    writes: tuple[str, ...]
    nodes: tuple[str, ...]  # of the onnx_graph that it came from

    @property
    def computes_int8(self) -> bool:
        """Whether it is a product on int8; what is generated merely reads and converts it."""
        product = self.kind != _GENERATED or self.name.startswith(_FUSED_ATTENTION)
        return product and "Int8" in self.reads

    @property
    def text(self) -> str:
        """Say what it is, for people."""
        return f"{self.kind} on {'/'.join(dict.fromkeys(self.reads)) or 'constants'}"


def kernels_in(report: str) -> list[Kernel]:
    """Read the builder's list; empty where another version writes it in another way."""
    lines = report.partition("I/O Tensors")[0].splitlines()
    return [_kernel(line) for line in lines if "LayerType: " in line]


def _kernel(line: str) -> Kernel:
    inputs, _, rest = line.partition("Constants: [")
    name = re.search(r"Name: (.*?), LayerType: (\w+)", inputs)
    types = re.compile(r"Datatype: (\w+)")
    return Kernel(
        name=name.group(1) if name else "",
        kind=name.group(2) if name else "",
        reads=tuple(types.findall(inputs)),
        writes=tuple(types.findall(rest.partition("Outputs: [")[2])),
        nodes=tuple(re.findall(r"\[ONNX Layer: ([^]]+)\]", line)),
    )


def compiled_layers(
    model: ModelProto, kernels: Sequence[Kernel], meant_int8: Iterable[str] = ()
) -> CompiledLayers:
    """Hold the compiled layers against the graph and what it was meant to be.

    `meant_int8` names nodes; weights of `model` are not looked at and may be absent.
    """
    softmaxes = list(attention_softmaxes(model))
    fused = [node for node in softmaxes if _fusing(kernels, node)]
    wanted = sorted(set(meant_int8))
    int8 = [node for node in wanted if any(k.computes_int8 for k in _from(kernels, node))]
    return CompiledLayers(
        kernels=len(kernels),
        kernels_by_block=_kernels_by_block(model, kernels, _blocks_of(softmaxes)),
        int8=tuple(int8),
        not_int8={node: _in_words(_from(kernels, node)) for node in wanted if node not in int8},
        fused_attentions=tuple(fused),
        not_fused={
            node: _in_words(_from(kernels, node)) for node in softmaxes if node not in fused
        },
        float_kernels=_float_kernels(model, kernels),
    )


def report_lines(check: CompileCheck) -> list[str]:
    """Say in a line what became of the graph, and in another what falls short of the goal."""
    made = check.compiled
    if made is None:
        return []
    quantised = len(made.int8) + len(made.not_int8)
    attentions = len(made.fused_attentions) + len(made.not_fused)
    most = max(made.kernels_by_block.values(), default=0)
    facts = [
        f"{len(made.int8)} of {quantised} quantised products are Int8 gemms" if quantised else "",
        f"{len(made.fused_attentions)} of {attentions} attentions fused" if attentions else "",
        f"at most {most} kernels a block, {made.kernels} in all"
        if most
        else f"{made.kernels} kernels",
    ]
    lines = [f"{check.file}: {', '.join(filter(None, facts))}"]
    short = [*_named(made.not_int8), *_named(made.not_fused)]
    if most > MOST_KERNELS_A_BLOCK:
        over = sum(count > MOST_KERNELS_A_BLOCK for count in made.kernels_by_block.values())
        short.append(f"{over} blocks of more than {MOST_KERNELS_A_BLOCK} kernels")
    return [*lines, f"  short of the goal: {', '.join(short)}"] if short else lines


def _named(found: dict[str, str]) -> list[str]:
    """Name the first few; all of them stand in the manifest."""
    named = [f"{node} ({became})" for node, became in found.items()][:_NAMED]
    more = len(found) - len(named)
    return [*named, f"{more} more of the kind"] if more else named


def attention_softmaxes(model: ModelProto) -> Iterator[str]:
    """Name each softmax that weighs the values of an attention: a product reads it first."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for tensor in node.input[:1]:
            readers.setdefault(tensor, []).append(node)
    for node in model.graph.node:
        if node.op_type == "Softmax" and _meets_product(node.output[0], readers):
            yield node.name


def _meets_product(tensor: str, readers: dict[str, list[NodeProto]]) -> bool:
    return any(
        node.op_type == "MatMul"
        or (node.op_type in _ATTENTION_PASSES and _meets_product(node.output[0], readers))
        for node in readers.get(tensor, ())
    )


def _blocks_of(softmaxes: Sequence[str]) -> list[str]:
    """Return the blocks that the attentions are in, in the order of the graph."""
    found = (_BLOCK.match(node) for node in softmaxes)
    return list(dict.fromkeys(match.group(1) for match in found if match))


def _kernels_by_block(
    model: ModelProto, kernels: Sequence[Kernel], blocks: Sequence[str]
) -> dict[str, int]:
    """Count kernels where they begin: one that ends a block and begins the next is the first's.

    So is one that ends the embedding and begins the first block: it is no block's.
    """
    place = {node: number for number, node in enumerate(_computed(model))}
    counts: Counter[str] = Counter()
    for kernel in kernels:
        computed = [node for node in kernel.nodes if node in place]
        begins = min(computed or kernel.nodes, key=lambda node: place.get(node, 0), default="")
        counts[_block_of(begins, blocks)] += 1
    return {block: counts[block] for block in blocks}


def _computed(model: ModelProto) -> Iterator[str]:
    """Name the nodes that compute on what comes in, in order; not what makes other constants."""
    known = {value.name for value in model.graph.input}
    known -= {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if known.intersection(node.input):
            known.update(node.output)
            yield node.name


def _block_of(node: str, blocks: Sequence[str]) -> str:
    found = (block for block in blocks if node.startswith((f"{block}.", f"{block}/")))
    return next(found, "")


def _from(kernels: Sequence[Kernel], node: str) -> list[Kernel]:
    return [kernel for kernel in kernels if node in kernel.nodes]


def _fusing(kernels: Sequence[Kernel], softmax: str) -> bool:
    return any(k.name.startswith(_FUSED_ATTENTION) for k in _from(kernels, softmax))


def _in_words(kernels: Sequence[Kernel]) -> str:
    return " and ".join(dict.fromkeys(kernel.text for kernel in kernels)) or "no kernel names it"


def _float_kernels(model: ModelProto, kernels: Sequence[Kernel]) -> dict[str, str]:
    """Name the modules whose kernels read or write FP32, with their number and the reason."""
    floats = [kernel for kernel in kernels if "Float" in (*kernel.reads, *kernel.writes)]
    if not any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        return {"student": f"{len(floats)}: the file is FP32"}
    counts = Counter(_part_of(kernel.nodes[0] if kernel.nodes else "") for kernel in floats)
    routed = {_part_of(node.name) for node in model.graph.node if ".router/" in node.name}
    return {
        part: f"{count}: {_why_float('router' if part in routed else part)}"
        for part, count in counts.items()
    }


def _part_of(node: str) -> str:
    """Return the block that a node is in, or its module where it is in none."""
    block = _BLOCK.match(node)
    return block.group(1) if block else node.rpartition("/")[0]


def _why_float(module: str) -> str:
    for part in module.split("."):
        if part in FLOAT_MODULES:
            return FLOAT_MODULES[part]
    return "scaling of inputs, last norms and scores"
