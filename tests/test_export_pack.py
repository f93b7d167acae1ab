"""A bundle is packed whole, with its golden samples, and says where it came from."""

import msgspec
import pytest
from export_stand_in import exported_models, small_recording, spec_of, write_small_bundle

from device_agents.engine.load import engine_from_bundle
from edge.bundle import Bundle, problems_of
from edge.errors import InputError
from edge.model_spec import ImageInput
from export.golden import GOLDEN_SAMPLES, _each, golden_problems
from export.pack import tool_versions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack") / "bundle"
    write_small_bundle(folder)
    return Bundle.open(folder)


def test_packed_bundle_is_whole(bundle):
    assert problems_of(bundle) == []
    files = set(bundle.manifest.files)
    assert {"model.fp32.onnx", "model.int8.onnx", "golden/01.npz"} <= files
    assert bundle.path_of("model.int8.onnx").read_bytes() == exported_models()[1].read_bytes()


def test_golden_samples_hold_both_decisions_and_score_as_recorded(bundle):
    golden = bundle.manifest.golden
    assert len(golden) == GOLDEN_SAMPLES
    assert {one.decision for one in golden} == {"pass", "fail"}
    with engine_from_bundle(bundle) as engine:
        assert golden_problems(bundle, engine) == []


@pytest.mark.parametrize(
    ("height", "width", "each"),
    [
        (64, 64, GOLDEN_SAMPLES // 2),
        (960, 1280, GOLDEN_SAMPLES // 2),
        (1200, 1920, 2),
        (3000, 4096, 1),
    ],
)
def test_of_large_frames_there_are_fewer_golden_samples(height, width, each):
    assert _each(msgspec.structs.replace(spec_of(), frame=ImageInput(height, width))) == each


def test_golden_samples_are_for_the_form_that_is_shipped(bundle):
    with engine_from_bundle(bundle, form="fp32") as engine:
        assert golden_problems(bundle, engine) == []  # FP32 lies within the tolerance here


def test_provenance_names_calibration_and_tools(bundle):
    provenance = bundle.manifest.provenance
    assert provenance.calibration_samples == 48
    assert provenance.training_digest == small_recording().digest()
    assert {"torch", "torchao", "onnxruntime", "tensorrt-rtx-cu13-bindings"} <= set(
        provenance.tools
    )
    assert tool_versions() == provenance.tools


def test_existing_bundle_is_kept(bundle):
    with pytest.raises(InputError, match="--force"):
        write_small_bundle(bundle.folder)
    assert problems_of(bundle) == []
