import torch

from distill.teachers.normal_memory import (
    Candidates,
    CrossFittedMemory,
    calibration_of,
    memory_of,
)


def passed_by(*points: torch.Tensor, most: int = 100) -> Candidates:
    candidates = Candidates(most, seed=0, kept_as=torch.float32)
    for some in points:
        candidates.see(some)
    return candidates


def test_the_memory_is_bounded_and_covers_what_it_saw():
    points = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    few, many = (memory_of(points, size) for size in (20, 200))
    assert len(few.points_MF) == 20
    assert many.distances(points).max() < few.distances(points).max()


def test_greedy_choice_reaches_every_cluster():
    clusters = torch.eye(5).repeat_interleave(100, 0) * 100.0
    memory = memory_of(clusters + torch.randn(500, 5) * 0.1, 5)
    assert memory.distances(clusters).max() < 2.0


def test_candidates_are_bounded_however_many_points_pass_by():
    candidates = Candidates(50, seed=0)
    sizes = []
    for number in range(200):
        candidates.see(torch.full((37, 8), float(number)))
        sizes.append(candidates.size_bytes)
    assert max(sizes) == sizes[-1] == 50 * (8 * 2 + 8)


def test_candidates_are_drawn_evenly_from_all_that_passed_by():
    counts = torch.zeros(10)
    for seed in range(200):
        candidates = Candidates(20, seed=seed)
        for number in range(10):
            candidates.see(torch.full((30, 1), float(number)))
        numbers = Candidates.points_of([candidates])[:, 0].long()
        counts += torch.bincount(numbers, minlength=10)
    # 20 of 300, 200 times: 400 of each, with a deviation of about 18
    assert (counts - 400).abs().max() < 90


def test_several_samples_are_joined_to_one_of_the_same_size():
    several = [passed_by(torch.full((500, 1), float(number)), most=60) for number in range(2)]
    several[1]._keys_P = torch.rand(60, generator=torch.Generator().manual_seed(1)).double()
    points = Candidates.points_of(several)
    assert points.shape == (60, 1)


def test_a_part_is_not_measured_against_itself():
    parts = [torch.full((4, 3), float(i)) for i in range(4)]
    by_fold = {0: passed_by(parts[0], parts[1]), 1: passed_by(parts[2], parts[3])}
    memory = CrossFittedMemory(by_fold, size=100)
    assert memory.distances(parts[0], None).max() == 0.0
    assert memory.distances(parts[0], 0).min() > 3.0
    assert memory.points == 16
    assert memory.size_bytes == (16 + 8 + 8) * 3 * 4


def test_calibration_puts_the_normal_limit_at_one_half():
    distances = torch.linspace(0.0, 1.0, 1001)
    calibration = calibration_of(distances, 0.95)
    assert abs(float(torch.sigmoid(calibration.logits(torch.tensor(0.95)))) - 0.5) < 1e-3
    assert float(torch.sigmoid(calibration.logits(torch.tensor(0.5)))) < 0.02


def test_parts_that_are_all_the_same_do_not_divide_by_zero():
    calibration = calibration_of(torch.zeros(10), 0.95)
    assert calibration.logits(torch.tensor([0.0, 1.0])).isfinite().all()
