"""Weights outside the ONNX file: only those that the manifest lists are ever looked at."""

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_station import spec_of, write_bundle, write_model

from device_agents.engine.load import engine_from_bundle
from edge.bundle import INT8_FILE, Bundle, entries_of, write_manifest
from edge.errors import InputError
from edge.onnx_weights import model_path, weight_files_of

OUTSIDE = ["../secret", "/etc/passwd", "weights/../../secret", "./model.int8.onnx.data", "", "\n"]


def outside_tensor(location: str, name: str = "full") -> TensorProto:
    """A tensor whose values lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model_with(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def empty_graph(name: str = "g") -> onnx.GraphProto:
    return helper.make_graph([], name, [], [])


def in_initializer(tensor):
    graph = empty_graph()
    graph.initializer.append(tensor)
    return model_with(graph)


def in_constant_node(tensor):
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    return model_with(helper.make_graph([node], "g", [], []))


def in_branch_of_an_if(tensor):
    branch = empty_graph("branch")
    branch.initializer.append(tensor)
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=empty_graph("e"))
    return model_with(helper.make_graph([node], "g", [], []))


def in_sparse_initializer(tensor):
    graph = empty_graph()
    graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model_with(graph)


def in_function(tensor):
    model = model_with(empty_graph())
    function = model.functions.add()
    function.name, function.domain = "f", "d"
    function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return model


def in_training_info(tensor):
    model = model_with(empty_graph())
    model.training_info.add().algorithm.initializer.append(tensor)
    return model


PLACES = [
    *(in_initializer, in_constant_node, in_branch_of_an_if, in_sparse_initializer),
    *(in_function, in_training_info),
]


@pytest.mark.parametrize("place", PLACES)
def test_every_place_that_can_hold_a_tensor_is_looked_into(tmp_path, place):
    path = tmp_path / "m.onnx"
    path.write_bytes(place(outside_tensor("../../etc/shadow")).SerializeToString())
    assert weight_files_of(path) == ("../../etc/shadow",)


def test_model_whose_weights_lie_inside_has_none(tmp_path):
    write_model(tmp_path / "m.onnx", spec_of())
    assert weight_files_of(tmp_path / "m.onnx") == ()


def bundle_with(folder, location: str, *, listed: bool = False) -> Bundle:
    """A bundle, whole by its digests, whose INT8 model takes a constant from `location`."""
    bundle = write_bundle(folder)
    path = folder / INT8_FILE
    model = onnx.load(path)
    [full] = [tensor for tensor in model.graph.initializer if tensor.name == "full"]
    full.CopyFrom(outside_tensor(location))
    full.ClearField("dims")
    path.write_bytes(model.SerializeToString())
    if listed:
        (folder / location).write_bytes(np.float32(255).tobytes())
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=entries_of(folder)))
    return Bundle.open(folder)


@pytest.mark.parametrize("location", OUTSIDE)
def test_path_out_of_the_bundle_is_refused_before_any_parser_sees_the_file(tmp_path, location):
    (tmp_path / "secret").write_bytes(np.float32(255).tobytes())
    bundle = bundle_with(tmp_path / "bundle", location)
    with pytest.raises(InputError, match="weights in files that the manifest lists"):
        engine_from_bundle(bundle)
    with pytest.raises(InputError, match="weights in files that the manifest lists"):
        model_path(bundle, INT8_FILE)


def test_listed_weights_are_loaded_and_a_changed_byte_of_them_is_refused(tmp_path):
    bundle = bundle_with(tmp_path / "bundle", f"{INT8_FILE}.data", listed=True)
    with engine_from_bundle(bundle, threads=1) as engine:
        assert engine.spec == spec_of()
    (tmp_path / "bundle" / f"{INT8_FILE}.data").write_bytes(np.float32(254).tobytes())
    with pytest.raises(InputError, match="SHA-256"):
        engine_from_bundle(bundle)


def test_link_in_the_place_of_listed_weights_is_not_followed(tmp_path):
    bundle = bundle_with(tmp_path / "bundle", f"{INT8_FILE}.data", listed=True)
    weights = tmp_path / "bundle" / f"{INT8_FILE}.data"
    weights.rename(tmp_path / "secret")
    weights.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="a link"):
        engine_from_bundle(bundle)


def test_operator_that_runs_another_file_is_refused(tmp_path):
    node = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", embed_mode=0)
    path = tmp_path / "m.onnx"
    path.write_bytes(model_with(helper.make_graph([node], "g", [], [])).SerializeToString())
    with pytest.raises(InputError, match="EPContext, which runs another file"):
        weight_files_of(path)


def test_graphs_nested_without_end_are_refused(tmp_path):
    graph = empty_graph()
    for _ in range(25):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=empty_graph())
        graph = helper.make_graph([node], "g", [], [])
    (tmp_path / "m.onnx").write_bytes(model_with(graph).SerializeToString())
    with pytest.raises(InputError, match="nested deeper"):
        weight_files_of(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00", b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 20])
def test_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match="an ONNX file"):
        weight_files_of(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="No such file"):
        weight_files_of(tmp_path / "none.onnx")


@settings(max_examples=60)
@given(data=st.data())
def test_changed_bytes_give_names_or_an_error_and_never_more(tmp_path_factory, data):
    model = in_branch_of_an_if(outside_tensor("model.onnx.data")).SerializeToString()
    content = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    path.write_bytes(content)
    try:
        names = weight_files_of(path)
    except InputError:
        return
    # What protobuf itself makes of these bytes must be among what we found.
    try:
        read = onnx.ModelProto.FromString(bytes(content))
    except Exception:
        return
    found = [
        entry.value
        for node in read.graph.node
        for attribute in node.attribute
        for tensor in attribute.g.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    as_bytes = {name.encode("utf-8", "surrogateescape") for name in names}
    found = [value if isinstance(value, bytes) else value.encode() for value in found]
    assert set(found) <= as_bytes
