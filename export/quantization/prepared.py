"""A student traced once, with an observer at each operand that may become int8.

Layers that read the same tensor (query, key and value of one attention) are one *unit*: they share
one scale and stand or fall together, for one float among three int8 products saves no kernel and
costs a second copy of the tensor. Units are switched between float and int8 in place, so that a
question about scores needs no second model; only `converted` makes one, which shares the weights.

Shapes: C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edge.errors import AnswerIsNo
from edge.model_spec import ModelSpec
from edge.scorer import ModelInputs, Scores, scores_from_outputs
from export.onnx_graph import example_inputs, quiet
from export.quantization.observers import Activation, PerChannelWeight, State
from export.quantization.quantizer import ANNOTATION, LayerQuantizer, layer_name, parameter_of
from export.quantization.ranges import Histogram, Method

with quiet():
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

_QUANTIZE_WEIGHT = torch.ops.quantized_decomposed.quantize_per_channel.default

_LARGE = 50_000_000  # parameters of a student whose calibration takes minutes


@dataclass(frozen=True)
class Unit:
    """Layers that become int8 together, and the observers of their operands."""

    layers: tuple[str, ...]
    nodes: tuple[str, ...]  # names of the products in the traced graph
    activations: tuple[Activation, ...]
    weights: tuple[PerChannelWeight, ...]

    @property
    def name(self) -> str:
        """The layers by name; several of one module as `module.{first,second}`."""
        if len(self.layers) == 1:
            return self.layers[0]
        parents = {layer.rpartition(".")[0] for layer in self.layers}
        if len(parents) > 1:
            return " + ".join(self.layers)
        names = ",".join(layer.rpartition(".")[2] for layer in self.layers)
        return f"{parents.pop()}.{{{names}}}"


@dataclass(frozen=True)
class QdqStudent:
    """A student whose quantisation is part of its graph."""

    module: GraphModule
    quantised: tuple[str, ...]  # the layers that are int8
    kept_float: tuple[str, ...]  # layers left as they were, because the student asks for it
    returned: tuple[str, ...] = ()  # layers that went back to float, because scores moved


class PreparedStudent:
    """The traced student. Make it with `prepared_student`."""

    def __init__(
        self, module: GraphModule, spec: ModelSpec, units: tuple[Unit, ...], kept: tuple[str, ...]
    ) -> None:
        self.module = module
        self._spec = spec
        self.units = units
        self.kept_float = kept
        self.method: Method = "max"
        large = sum(weight.numel() for weight in module.parameters()) >= _LARGE
        self.watched_in = "bfloat16" if large and multiplies_bfloat16() else "float32"

    @property
    def spec(self) -> ModelSpec:
        """The contract of the student."""
        return self._spec

    def score(self, inputs: ModelInputs) -> Scores:
        """Score one sample in the state that the units are in, as every `Scorer` does."""
        with torch.no_grad():
            outputs = self.module(*tensors_from(inputs, self.spec))
        names = [tensor.name for tensor in self.spec.outputs()]
        return scores_from_outputs(
            {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
        )

    def __enter__(self) -> PreparedStudent:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held that needs freeing."""

    def watch(self, samples: Iterable[ModelInputs]) -> None:
        """See the samples' ranges, one at a time, from nothing.

        Products of a large student are of bfloat16 where the CPU has it (`watched_in`): ranges are
        there in half the time, and move by about 1 % (entropy, whose optimum is flat, by more).
        """
        for unit in self.units:
            for one in (*unit.activations, *unit.weights):
                one.forget()
        products = torch.autocast("cpu", torch.bfloat16, enabled=self.watched_in == "bfloat16")
        with torch.no_grad(), products, self.playing("watch", self.units):
            for inputs in samples:
                self.module(*tensors_from(inputs, self.spec))
        self._refuse_overflow()
        self.settle(self.method)

    def settle(self, method: Method) -> None:
        """Take every scale by `method`, from what was watched."""
        self.method = method
        for one in self._activations():
            one.settle(method)
        for node in _products(self.module):
            observer = _observer(self.module, node.args[1])
            if isinstance(observer, PerChannelWeight):
                observer.scales_of(parameter_of(self.module, node))

    def memory(self) -> list[tuple[Histogram, Tensor | None]]:
        """Return what was watched, for `recall`."""
        return [(one.histogram, one.channels_C) for one in self._activations()]

    def recall(self, memory: list[tuple[Histogram, Tensor | None]]) -> None:
        """Go back to what was watched when `memory` was taken; the weights must be as then."""
        for one, (histogram, channels_C) in zip(self._activations(), memory, strict=True):
            one.histogram, one.channels_C = histogram, channels_C
        self.settle(self.method)

    def _activations(self) -> list[Activation]:
        return [one for unit in self.units for one in unit.activations]

    def playing(self, state: State, units: Iterable[Unit]) -> _Playing:
        """Put `units` into a state within a `with` block; the others are float there."""
        return _Playing(state, tuple(units))

    def converted(self, back_to_float: Iterable[Unit] = ()) -> QdqStudent:
        """Write the scales into a graph of their own; this student stays as it is."""
        returned = tuple(back_to_float)
        nodes = {name for unit in returned for name in unit.nodes}
        # The weights are shared with this student; only those that become int8 are made anew.
        with quiet():
            module = GraphModule(self.module, copy.deepcopy(self.module.graph))
        module.meta.update(self.module.meta)
        for node in _products(module):
            if node.name in nodes:
                _without_observers(module, node)
        module.graph.eliminate_dead_code()
        module.recompile()
        with quiet(), torch.no_grad():
            module = convert_pt2e(module, fold_quantize=False)
            _store_weights(module)
        names = {layer for unit in returned for layer in unit.layers}
        return QdqStudent(
            module,
            tuple(layer for unit in self.units for layer in unit.layers if layer not in names),
            self.kept_float,
            tuple(sorted(names)),
        )

    def _refuse_overflow(self) -> None:
        bad = [
            unit.name
            for unit in self.units
            if not all(np.isfinite(one.histogram.largest) for one in unit.activations)
        ]
        if bad:
            raise AnswerIsNo(
                where=f"student '{self.spec.name}'",
                expected="finite values at the input of every layer",
                found=f"infinity or no number at {', '.join(bad[:3])}",
                do="Distil again with a smaller train.learning_rate; these weights overflow.",
            )


class _Playing:
    """Sets the state of units, and sets them back to float."""

    def __init__(self, state: State, units: tuple[Unit, ...]) -> None:
        self._state = state
        self._units = units

    def __enter__(self) -> None:
        self._set(self._state)

    def __exit__(self, *_: object) -> None:
        self._set("float")

    def _set(self, state: State) -> None:
        for unit in self._units:
            for one in (*unit.activations, *unit.weights):
                one.state = state


def prepared_student(
    student: nn.Module,
    spec: ModelSpec,
    *,
    kept_float: Iterable[str] = (),
    convolutions: bool = False,
    attention: bool = False,
) -> PreparedStudent:
    """Trace the student, an observer at each operand that may become int8.

    `kept_float` names submodules (heads, embeddings) whose layers stay float. Weights are shared
    with the student. Raises AnswerIsNo where nothing can become int8.
    """
    quantizer = LayerQuantizer(kept_float, convolutions=convolutions, attention=attention)
    with quiet(), torch.no_grad():
        traced = torch.export.export(student.eval(), example_inputs(spec))
        module = prepare_pt2e(traced.module(check_guards=False), quantizer)
    _quantise_weights_where_read(module)
    units = _units_of(module)
    if not units:
        raise AnswerIsNo(
            where=f"student '{spec.name}'",
            expected="Linear layers to quantise",
            found="none",
            do="Choose a recipe with transformer blocks; this student has nothing that INT8 "
            "would make faster.",
        )
    return PreparedStudent(module, spec, units, tuple(quantizer.kept_float))


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; elsewhere bfloat16 is slower than float32."""
    # Newer than the oldest torch that we take.
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def tensors_from(inputs: ModelInputs, spec: ModelSpec) -> tuple[Tensor, ...]:
    """Return one sample's inputs as tensors, in the order of the spec, in each place of a batch."""
    # A copy, because pixels that came straight from a picture are read-only memory.
    return tuple(
        torch.tensor(inputs[tensor.name]).repeat_interleave(spec.batch, 0)
        for tensor in spec.inputs()
    )


def _quantise_weights_where_read(module: GraphModule) -> None:
    """Move each weight's observer to its product, so that one weight at a time is held in int8.

    Tracing reads all weights first; played there, they would all stand in memory a second time.
    """
    for node in _products(module):
        operand = node.args[1]
        assert isinstance(operand, Node)
        if isinstance(_observer(module, operand), PerChannelWeight) and len(operand.users) == 1:
            node.prepend(operand)
    module.recompile()


def _store_weights(module: GraphModule) -> None:
    """Put each weight into the graph as int8, in place of the operation that quantises it.

    torchao's own folding computes every weight back in float as well, and leaves memory in pieces:
    what is kept lies between what is freed. Here its place is taken first.
    """
    for node in list(module.graph.nodes):
        if node.target is not _QUANTIZE_WEIGHT:
            continue
        values = [_value(module, argument) for argument in node.args]
        codes = torch.empty(values[0].shape, dtype=torch.int8)
        codes.copy_(_QUANTIZE_WEIGHT(*values))
        name = f"{node.name}_int8"
        module.register_buffer(name, codes)
        with module.graph.inserting_before(node):
            stored = module.graph.get_attr(name)
        stored.meta.update(node.meta)
        node.replace_all_uses_with(stored)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _value(module: GraphModule, argument: object) -> Any:
    """Return what an argument stands for: a tensor of the module, or itself."""
    if not isinstance(argument, Node):
        return argument
    assert argument.op == "get_attr", "a weight is stored, not computed"
    owner, _, name = str(argument.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _units_of(module: GraphModule) -> tuple[Unit, ...]:
    """Group the products that share an observed tensor, in the order of the graph."""
    groups: list[list[Node]] = []
    places: dict[int, list[Node]] = {}  # an observer -> the group that reads it
    for node in _products(module):
        observers = [_observer(module, arg) for arg in node.args[:2]]
        known = [places[id(one)] for one in observers if id(one) in places]
        group = known[0] if known else []
        if not known:
            groups.append(group)
        group.append(node)
        places.update({id(one): group for one in observers})
    return tuple(_unit(module, group, _distinct(groups)) for group in groups)


def _distinct(groups: list[list[Node]]) -> Callable[[Node], str]:
    """Name layers so that two products of one module (attention's) are told apart by number."""
    names = [layer_name(node) for group in groups for node in group]
    seen: dict[str, list[Node]] = {}
    for group in groups:
        for node in group:
            seen.setdefault(layer_name(node), []).append(node)

    def name_of(node: Node) -> str:
        name = layer_name(node)
        return name if names.count(name) == 1 else f"{name}#{seen[name].index(node) + 1}"

    return name_of


def _unit(module: GraphModule, group: list[Node], name_of: Callable[[Node], str]) -> Unit:
    observers = {
        id(one): one for node in group for one in (_observer(module, a) for a in node.args[:2])
    }
    return Unit(
        tuple(name_of(node) for node in group),
        tuple(node.name for node in group),
        tuple(one for one in observers.values() if isinstance(one, Activation)),
        tuple(one for one in observers.values() if isinstance(one, PerChannelWeight)),
    )


def _products(module: GraphModule) -> Iterator[Node]:
    """Yield the annotated products that still have their observers."""
    for node in list(module.graph.nodes):
        if ANNOTATION in node.meta and _observer(module, node.args[0]) is not None:
            yield node


def _observer(module: GraphModule, operand: object) -> Activation | PerChannelWeight | None:
    if not isinstance(operand, Node) or operand.op != "call_module":
        return None
    found = module.get_submodule(str(operand.target))
    return found if isinstance(found, (Activation, PerChannelWeight)) else None


def _without_observers(module: GraphModule, node: Node) -> None:
    for operand in node.args[:2]:
        if _observer(module, operand) is not None:
            assert isinstance(operand, Node)
            source = operand.args[0]
            assert isinstance(source, Node)
            node.replace_input_with(operand, source)
