"""Real small models of each family, built from their configuration and saved, start a student."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_distillation import edge, here, quick_recipe, quick_words, small_recording
from test_distill_students_student import inputs_of, spec_of

from distill.students.init_from import refuse_unfit, resized_kernel, source_block, start_from
from distill.students.student import Student
from distill.students.trunk import Experts
from edge.errors import InputError

FUSED = (
    "student.stem=patch",
    "student.width=32",
    "student.heads=2",
    "student.hidden=64",
    "student.image_depth=0",
    "student.sensor_depth=0",
    "student.joint_depth=2",
)
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
}


def student_of(*overrides: str) -> Student:
    torch.manual_seed(0)
    return Student(spec_of(), quick_recipe(*FUSED, *overrides)).eval()


def model_of(family: str, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers as hf  # noqa: PLC0415 (seconds to import)

        shape = {**SHAPE, **changes}
        torch.manual_seed(1)
        if family == "dinov2":
            del shape["intermediate_size"]
            return hf.Dinov2Model(hf.Dinov2Config(**shape, mlp_ratio=2, image_size=64))
        if family == "siglip2":
            return hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**shape, num_patches=16))
        config, model = {
            "vit": (hf.ViTConfig, hf.ViTModel),
            "mae": (hf.ViTMAEConfig, hf.ViTMAEModel),
            "dinov3": (hf.DINOv3ViTConfig, hf.DINOv3ViTModel),
            "clip": (hf.CLIPVisionConfig, hf.CLIPVisionModel),
            "siglip": (hf.SiglipVisionConfig, hf.SiglipVisionModel),
        }[family]
        return model(config(**{"image_size": 64, **shape}))


@pytest.mark.parametrize("family", ["vit", "mae", "dinov2", "dinov3", "clip", "siglip", "siglip2"])
def test_a_saved_model_of_each_family_starts_the_student(tmp_path, family: str):
    model_of(family).save_pretrained(tmp_path / family)
    student = student_of()
    fresh = {name: value.clone() for name, value in student.state_dict().items()}
    told = start_from(student, tmp_path / family)
    blocks = {name for name in fresh if name.startswith("joint_blocks.")}
    started = {name for name in blocks if not torch.equal(fresh[name], student.state_dict()[name])}
    # Norms and biases that are 1 and 0 on both sides look alike; every matrix must be new.
    assert {name for name in blocks if fresh[name].ndim == 2} <= started
    assert len(told.taken) >= 2 * 12
    assert "tensors taken" in told.text()
    with torch.inference_mode():
        assert all(output.isfinite().all() for output in student(*vars(inputs_of()).values()))


def test_the_patch_projection_gives_the_models_own_tokens(tmp_path):
    model = model_of("vit")
    model.save_pretrained(tmp_path / "vit")
    student = student_of()
    with torch.no_grad():  # any standardisation must be folded away
        student.image_tokens.mean_S.uniform_(-1, 1)
        student.image_tokens.scale_S.uniform_(0.5, 2)
    start_from(student, tmp_path / "vit")
    image = inputs_of().image
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((image / 255 - mean) / deviation).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = model.embeddings.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
        tokens = student.image_tokens(student.stem_features(image)) - student.image_tokens.place
    torch.testing.assert_close(tokens, wanted, rtol=1e-3, atol=1e-4)


def test_a_whole_trunk_computes_what_the_model_computes(tmp_path):
    model = model_of("vit").eval()
    model.save_pretrained(tmp_path / "vit")
    student = student_of()
    start_from(student, tmp_path / "vit")
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = x
        for layer in model.layers:
            wanted = layer(wanted)
            wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        got = x
        for block in student.joint_blocks.blocks:
            got = block(got)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_dense_model_is_upcycled_into_experts_and_more_blocks(tmp_path):
    model_of("dinov2").save_pretrained(tmp_path / "m")
    student = student_of("student.experts=4", "student.joint_depth=3")
    told = start_from(student, tmp_path / "m")
    assert [source_block(n, 3, 2) for n in range(3)] == [0, 0, 1]
    for block in student.joint_blocks.blocks:
        assert isinstance(block.mlp, Experts)
        assert torch.equal(block.mlp.up_EDU[0], block.mlp.up_EDU[3])
    assert "2 blocks were spread over the student's 3" in told.text()


def test_other_patch_sizes_and_positions_are_resized_and_said(tmp_path):
    model_of("vit", patch_size=8).save_pretrained(tmp_path / "m")
    told = start_from(student_of(), tmp_path / "m")
    assert len(told.resized) == 2
    # A resized patch projects to what the patch itself projected to.
    kernel = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    patch = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    larger = torch.nn.functional.interpolate(patch, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(
        (resized_kernel(kernel, 16) * larger).sum((1, 2, 3)),
        (kernel * patch).sum((1, 2, 3)),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"hidden_size": 48}, "48 wide"),
        ({"intermediate_size": 96}, "MLP 96"),
        ({"num_attention_heads": 4}, "4 heads"),
    ],
)
def test_weights_of_another_geometry_are_refused_and_change_nothing(tmp_path, changes, found):
    model_of("vit", **changes).save_pretrained(tmp_path / "m")
    student = student_of()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(InputError, match=found):
        start_from(student, tmp_path / "m")
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def with_positions(folder, patches: int, classes: int):
    """A saved ViT with as many positions as that; without a class token where there is none."""
    folder.mkdir()
    tensors = dict(model_of("vit").state_dict())
    tensors["embeddings.position_embeddings"] = torch.randn(1, patches + classes, 32)
    if not classes:
        del tensors["embeddings.cls_token"]
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("patches", "classes", "found"),
    [
        (16 * 32, 1, "513 positions"),  # 22 x 22 and 29 more, if rows were taken for a square's
        (16 * 32, 0, "512 positions"),
        (36, 10, "46 positions"),  # more than a class token and eight registers
        (4 * 4 + 1, 0, "17 positions"),  # one that nothing in the file is for
    ],
)
def test_positions_of_an_oblong_grid_are_refused_and_change_nothing(
    tmp_path, patches, classes, found
):
    path = with_positions(tmp_path / "m", patches, classes)
    student = student_of()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for refused in (start_from, refuse_unfit):
        with pytest.raises(InputError, match=found) as caught:
            refused(student, path)
        assert "square" in caught.value.expected
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_an_oblong_grid_whose_count_is_a_square_is_refused_by_the_models_configuration(tmp_path):
    model = model_of(
        "vit", image_size=[48, 64], patch_size=8
    )  # 6 x 8 cells and a class token: 7 x 7
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match=r"49 positions for image_size \[48, 64\]"):
        start_from(student_of(), tmp_path / "m")


@pytest.mark.parametrize("classes", [0, 1, 9])
def test_positions_of_a_square_are_taken_after_those_of_class_and_registers(tmp_path, classes):
    path = with_positions(tmp_path / "m", 36, classes)
    tensors = load_file(path / "model.safetensors")
    tensors["embeddings.position_embeddings"] = torch.ones(1, 36 + classes, 32)
    tensors["embeddings.position_embeddings"][:, :classes] = 1000.0
    save_file(tensors, path / "model.safetensors")
    student = student_of()
    told = start_from(student, path)
    assert "embeddings.position_embeddings" in told.taken
    place = student.image_tokens.place.detach()
    torch.testing.assert_close(place, torch.ones_like(place))


def test_what_is_no_such_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a Hugging Face model folder"):
        start_from(student_of(), tmp_path / "nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="expected a safetensors file"):
        start_from(student_of(), tmp_path / "broken.safetensors")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "cnn.safetensors")
    with pytest.raises(InputError, match="no blocks that this reads"):
        start_from(student_of(), tmp_path / "cnn.safetensors")


def test_a_run_starts_from_public_weights_and_says_so(tmp_path):
    recording = small_recording(tmp_path / "rec")
    model_of("vit").save_pretrained(tmp_path / "vit")
    out = tmp_path / "run"
    words = ("distill", recording.folder, "--recipe", "tiny", *quick_words(FUSED), "--out", out)
    done = edge(*words, "--init-from", tmp_path / "vit", env=here())
    assert done.returncode == 0, done.stderr
    assert "note: started from vit: 38 tensors taken, 0 of them resized" in done.stdout


def test_weights_that_do_not_fit_stop_a_run_before_it_begins(tmp_path):
    recording = small_recording(tmp_path / "rec")
    model_of("vit", hidden_size=48).save_pretrained(tmp_path / "vit")
    out = tmp_path / "run"
    words = ("distill", recording.folder, "--recipe", "tiny", *quick_words(FUSED), "--out", out)
    done = edge(*words, "--init-from", tmp_path / "vit", env=here())
    assert done.returncode == 2
    assert "48 wide" in done.stderr
    assert not out.with_name("run.unfinished").exists()
