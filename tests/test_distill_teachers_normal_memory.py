import torch

from distill.teachers.normal_memory import CrossFittedMemory, calibration_of, memory_of


def test_the_memory_is_bounded_and_covers_what_it_saw():
    points = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    few, many = (memory_of(points, size, 3000, seed=0) for size in (20, 200))
    assert len(few.points_MF) == 20
    assert many.distances(points).max() < few.distances(points).max()


def test_greedy_choice_reaches_every_cluster():
    clusters = torch.eye(5).repeat_interleave(100, 0) * 100.0
    memory = memory_of(clusters + torch.randn(500, 5) * 0.1, 5, 500, seed=0)
    assert memory.distances(clusters).max() < 2.0


def test_a_part_is_not_measured_against_itself():
    parts = [torch.full((4, 3), float(i)) for i in range(4)]
    memory = CrossFittedMemory(parts, [0, 0, 1, 1], size=100, candidates=100, seed=0)
    assert memory.distances(parts[0], None).max() == 0.0
    assert memory.distances(parts[0], 0).min() > 3.0


def test_calibration_puts_the_normal_limit_at_one_half():
    distances = torch.linspace(0.0, 1.0, 1001)
    calibration = calibration_of(distances, 0.95)
    assert abs(float(torch.sigmoid(calibration.logits(torch.tensor(0.95)))) - 0.5) < 1e-3
    assert float(torch.sigmoid(calibration.logits(torch.tensor(0.5)))) < 0.02


def test_parts_that_are_all_the_same_do_not_divide_by_zero():
    calibration = calibration_of(torch.zeros(10), 0.95)
    assert calibration.logits(torch.tensor([0.0, 1.0])).isfinite().all()
