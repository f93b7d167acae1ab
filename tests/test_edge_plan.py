"""A plan's stamp: what does not fit is refused, and says what and the next step."""

import msgspec
import pytest
from gpu_stand_in import IDENTITY, VERSION, stamp_of, write_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from small_station import spec_of

from edge.errors import InputError
from edge.plan import HEADER_BYTES, MAGIC, MachineIdentity, Plan

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path):
    return write_plan(tmp_path / "model.plan", CONTENT, stamp_of(spec_of()))


def refuse_misfit(plan, **changes):
    here = msgspec.structs.replace(IDENTITY, **changes)
    plan.refuse_misfit(flavour="tensorrt", tensorrt=VERSION, here=here)


def test_plan_gives_its_stamp_and_tensorrts_own_bytes_back(path):
    plan = Plan.open(path)
    assert plan.stamp.spec == spec_of()
    assert plan.stamp.plan_bytes == len(CONTENT)
    with plan.bytes() as content:
        assert bytes(content) == CONTENT
    assert path.read_bytes()[HEADER_BYTES:] == CONTENT
    refuse_misfit(plan)
    plan.refuse_other_bundle("b" * 64, "int8")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("gpu", "Orin (nvgpu)", r"GPU Orin where this is Orin \(nvgpu\)"),
        ("compute_capability", "8.6", "compute capability 8.7 where this is 8.6"),
        ("driver", "595.71.05", "driver L4T 36.4.3 where this is 595.71.05"),
        ("cuda", "13.2", "CUDA 12.6 where this is 13.2"),
        ("module", "NVIDIA Jetson Orin Nano", "Developer Kit where this is NVIDIA Jetson Orin Na"),
        ("power_mode", "MAXN", "power mode MODE_50W where this is MAXN"),
        ("power_mode", None, "power mode MODE_50W where this is unknown"),
    ],
)
def test_plan_from_another_machine_is_refused_by_what_differs(path, field, value, said):
    with pytest.raises(InputError, match=f"{said}.*Rebuild it on this machine: edge build"):
        refuse_misfit(Plan.open(path), **{field: value})


def test_plan_of_another_tensorrt_names_both_and_all_that_differs(path):
    plan = Plan.open(path)
    with pytest.raises(InputError, match=r"TensorRT 10.3.0 where this is 10.16.2; driver L4T"):
        plan.refuse_misfit(
            flavour="tensorrt",
            tensorrt="10.16.2",
            here=msgspec.structs.replace(IDENTITY, driver="595.71.05"),
        )
    with pytest.raises(InputError, match="flavour tensorrt where this is tensorrt_rtx"):
        plan.refuse_misfit(flavour="tensorrt_rtx", tensorrt=VERSION, here=IDENTITY)


def test_plan_built_ahead_of_time_is_bound_to_a_kind_of_gpu_only(tmp_path):
    ahead = stamp_of(spec_of(), built_for=MachineIdentity(compute_capability="8.6"))
    plan = Plan.open(write_plan(tmp_path / "ahead.plan", CONTENT, ahead))
    refuse_misfit(plan, compute_capability="8.6", driver="1", module=None)
    with pytest.raises(InputError, match=r"compute capability 8.6 where this is 8.7"):
        refuse_misfit(plan)


@pytest.mark.parametrize(("digest", "form"), [("a" * 64, "int8"), ("b" * 64, "fp16")])
def test_plan_of_another_bundle_or_form_is_refused(path, digest, form):
    with pytest.raises(InputError, match="Rebuild it"):
        Plan.open(path).refuse_other_bundle(digest, form)


@settings(max_examples=60)
@given(place=st.floats(0, 1), byte=st.integers(1, 255))
def test_no_changed_byte_of_the_plan_or_its_stamp_goes_unnoticed(tmp_path_factory, place, byte):
    path = write_plan(tmp_path_factory.mktemp("plan") / "model.plan", CONTENT, stamp_of(spec_of()))
    whole = bytearray(path.read_bytes())
    used = [*range(whole.index(b"\0")), *range(HEADER_BYTES, len(whole))]
    whole[used[int(place * (len(used) - 1))]] ^= byte
    path.write_bytes(whole)
    with pytest.raises(InputError):
        Plan.open(path)


@pytest.mark.parametrize(
    "cut", [0, 1, len(MAGIC), len(MAGIC) + 3, 900, HEADER_BYTES - 1, HEADER_BYTES, -1]
)
def test_plan_that_is_cut_off_is_refused(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="edge build"):
        Plan.open(path)


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_any_other_file_is_refused_and_nothing_else_happens(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("plan") / "x"
    line = b"250 " + b"0" * 64 + b"\n"
    for whole in (content, MAGIC + content, MAGIC + line + content.ljust(HEADER_BYTES)):
        path.write_bytes(whole)
        with pytest.raises(InputError):
            Plan.open(path)


def test_no_file_and_a_later_schema_say_so(path, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        Plan.open(tmp_path / "none.plan")
    write_plan(path, CONTENT, stamp_of(spec_of(), schema=2))
    with pytest.raises(InputError, match="plan schema 1, found schema 2"):
        Plan.open(path)


def test_spec_too_large_for_the_stamp_is_refused_when_built(tmp_path):
    classes = tuple(f"{'class' * 20}{number}" for number in range(700))
    huge = msgspec.structs.replace(spec_of(), classes=classes)
    with pytest.raises(InputError, match="shorter names"):
        write_plan(tmp_path / "model.plan", CONTENT, stamp_of(huge))
