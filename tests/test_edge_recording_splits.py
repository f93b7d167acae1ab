"""Splits by part: what must hold for any parts, labels and copies."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.recording.splits import SHARES, Grouped, splits_of

samples_of_parts = st.lists(
    st.builds(
        Grouped,
        label=st.sampled_from(["ok", "ok", "dent", "rust"]),
        part_id=st.integers(0, 20).map(lambda number: f"p{number}"),
        image_digest=st.integers(0, 200).map(lambda number: f"d{number}"),
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(samples_of_parts, st.integers(0, 3))
def test_no_part_and_no_copy_stands_in_two_splits(samples, seed):
    splits = splits_of(samples, "ok", seed=seed)
    for key in ("part_id", "image_digest"):
        seen = {}
        for sample, split in zip(samples, splits, strict=True):
            assert seen.setdefault(getattr(sample, key), split) == split


@settings(max_examples=200, deadline=None)
@given(samples_of_parts, st.integers(0, 3))
def test_every_split_has_normal_samples_where_three_parts_do(samples, seed):
    distinct = [
        Grouped(sample.label, sample.part_id, f"{index}") for index, sample in enumerate(samples)
    ]
    normal_parts = {sample.part_id for sample in distinct if sample.label == "ok"}
    splits = splits_of(distinct, "ok", seed=seed)
    with_normals = {
        split for sample, split in zip(distinct, splits, strict=True) if sample.label == "ok"
    }
    assert len(with_normals) == min(3, len(normal_parts))


@settings(max_examples=50, deadline=None)
@given(samples_of_parts, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(samples, shuffler):
    order = list(range(len(samples)))
    shuffler.shuffle(order)
    splits = splits_of(samples, "ok")
    shuffled = splits_of([samples[index] for index in order], "ok")
    assert shuffled == [splits[index] for index in order]


def test_shares_are_about_60_15_25_in_every_label():
    shuffler = random.Random(0)
    labels = ["ok"] * 600 + ["dent"] * 100 + ["rust"] * 40
    shuffler.shuffle(labels)
    samples = [Grouped(label, f"p{index}", f"d{index}") for index, label in enumerate(labels)]
    splits = splits_of(samples, "ok")
    for label in ("ok", "dent", "rust"):
        chosen = [
            split for split, sample in zip(splits, samples, strict=True) if sample.label == label
        ]
        for split, share in SHARES.items():
            assert chosen.count(split) / len(chosen) == pytest.approx(share, abs=0.02)


def test_another_seed_gives_another_split():
    samples = [Grouped("ok", f"p{index}", f"d{index}") for index in range(50)]
    assert splits_of(samples, "ok", seed=0) != splits_of(samples, "ok", seed=1)


def test_three_parts_of_one_size_go_one_to_each_split():
    samples = [Grouped("ok", f"p{index % 3}", f"d{index}") for index in range(9)]
    assert set(splits_of(samples, "ok")) == set(SHARES)


@settings(max_examples=200, deadline=None)
@given(samples_of_parts, st.lists(st.integers(0, 79), max_size=30), st.integers(0, 3))
def test_what_shares_a_part_or_an_image_with_an_unlabelled_sample_is_for_training(
    samples, blank, seed
):
    samples = [
        Grouped("", sample.part_id, sample.image_digest) if index in blank else sample
        for index, sample in enumerate(samples)
    ]
    splits = splits_of(samples, "ok", seed=seed)
    for sample, split in zip(samples, splits, strict=True):
        assert sample.label or split == "train"
