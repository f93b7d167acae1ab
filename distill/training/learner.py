"""The student in training: one forward pass from a batch to its losses.

It is one module, so that whatever shards or wraps a model sees one forward pass. In mixed precision
the student computes in half, but its losses are taken in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from distill.recipe import LossRecipe
from distill.students.float32 import in_float32
from distill.students.student import Reading, Student, TeacherHeads
from distill.training.batches import Batch
from distill.training.losses import losses_of, weighted_sum


class Learner(nn.Module):
    """A student in one stage. What the stage does not teach is frozen, in place."""

    def __init__(self, student: Student, stage: int, loss: LossRecipe) -> None:
        super().__init__()
        self.student = student
        self.stage = stage
        self.loss = loss
        for number, heads in enumerate(student.teacher_heads):
            if number != stage:
                heads.requires_grad_(False)
        for weight in _untaught(student, stage, loss):
            weight.requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the one number that is minimised, and each loss that has a weight in it."""
        reading = self.student.read(
            batch.stem_BGS, batch.sensor_BCT, batch.lesson.present_B2, self.stage
        )
        with in_float32(batch.stem_BGS):
            losses = losses_of(float32_reading(reading), batch.lesson, self.loss)
            # Those of weight 0 too: DDP waits for a gradient, be it 0, of all that they reach.
            total = weighted_sum(losses, self.loss)
        return total, {name: loss for name, loss in losses.items() if getattr(self.loss, name)}

    def learning(self) -> Iterator[nn.Parameter]:
        """Yield the weights that learn."""
        return (weight for weight in self.parameters() if weight.requires_grad)


def float32_reading(reading: Reading) -> Reading:
    """Return a reading that losses are taken of."""
    return Reading(
        class_logits_BK=reading.class_logits_BK.float(),
        score_logit_B=reading.score_logit_B.float(),
        map_logits_Bhw=reading.map_logits_Bhw.float(),
        embedding_BD=reading.embedding_BD.float(),
        features=tuple(own_BGF.float() for own_BGF in reading.features),
        summaries=tuple(own_BF.float() for own_BF in reading.summaries),
        window_BF=None if reading.window_BF is None else reading.window_BF.float(),
    )


def _untaught(student: Student, stage: int, loss: LossRecipe) -> Iterator[nn.Parameter]:
    """Yield what no loss of the stage reaches: DDP would wait for its gradient for ever."""
    heads = student.teacher_heads[stage]
    assert isinstance(heads, TeacherHeads)
    if heads.window is not None and not loss.window:
        yield from heads.window.parameters()
    if student.sensor_tokens is None:
        yield student.sensor_summary
        yield from student.sensor_norm.parameters()
