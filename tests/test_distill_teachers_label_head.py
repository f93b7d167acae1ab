import numpy as np

from distill.teachers.label_head import held_out_probabilities, probabilities_by_labelled


def two_heaps(parts: int, *, seed: int = 0):
    random = np.random.default_rng(seed)
    labels = np.arange(parts) % 2
    features = random.normal(0, 0.5, (parts, 4)).astype(np.float32) + 3.0 * labels[:, None]
    return features.astype(np.float32), labels, [f"part-{i // 2}" for i in range(parts)]


def test_a_part_is_judged_by_heads_that_never_saw_it():
    features, labels, groups = two_heaps(40)
    wrong = labels.copy()
    wrong[:2] = 1 - wrong[:2]  # a part that somebody mislabelled
    soft = held_out_probabilities(features, wrong, groups, 2)
    assert soft[:2].argmax(1).tolist() == labels[:2].tolist()
    np.testing.assert_allclose(soft.sum(1), 1.0, atol=1e-5)


def test_the_one_part_of_its_class_keeps_its_label():
    features, labels, groups = two_heaps(20)
    labels = labels.copy()
    labels[7] = 2
    soft = held_out_probabilities(features, labels, groups, 3)
    assert soft[7].tolist() == [0.0, 0.0, 1.0]


def test_with_one_class_the_labels_stand():
    features, _, groups = two_heaps(10)
    soft = held_out_probabilities(features, np.zeros(10, np.int64), groups, 2)
    assert soft[:, 0].tolist() == [1.0] * 10


def test_unlabelled_parts_are_judged_by_the_labelled_ones():
    features, labels, _ = two_heaps(40)
    soft = probabilities_by_labelled(features[:10], features[10:], labels[10:], 3)
    assert soft[:, :2].argmax(1).tolist() == labels[:10].tolist()
    assert (soft[:, 2] == 0).all()
    assert probabilities_by_labelled(features[:0], features, labels, 3).shape == (0, 3)
    alone = probabilities_by_labelled(features[:10], features[10:], np.zeros(30, np.int64), 3)
    assert np.isnan(alone).all()
