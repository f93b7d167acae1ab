"""What a model takes and gives: the keystone that recipe, checkpoint, bundle and engine share."""

from __future__ import annotations

import msgspec

from edge.sample import Channel
from edge.verdict import DecisionRule


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size in pixels."""

    height: int
    width: int


class SensorInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The window the model takes: these channels in this order, `samples` readings of each."""

    channels: tuple[Channel, ...]
    samples: int


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output tensor: its name, numpy dtype name and static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model's contract.

    It starts in the recipe and the recording, is frozen into the checkpoint, copied to the
    bundle's manifest, and compared with the engine's own tensors when a plan or an ONNX file is
    loaded. `classes[0]` is the normal class. `rule` is None only while a student is in training.

    `image` is the size that the student looks at. A bundle's model may take whole frames, all of
    the size `frame`, and bring them to `image` by itself (`export.resize`); without `frame` the
    host does that, for frames of any size (`edge.prepare`).
    """

    name: str
    image: ImageInput
    sensor: SensorInput | None
    classes: tuple[str, ...]
    map_height: int
    map_width: int
    embedding_size: int
    rule: DecisionRule | None = None
    batch: int = 1
    frame: ImageInput | None = None

    @property
    def takes(self) -> ImageInput:
        """The size of the image tensor."""
        return self.frame or self.image

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors in order.

        `image` uint8 [B, H, W, 3] RGB; `sensor` float32 [B, C, T] in physical units; `present`
        float32 [B, 2], 1 where (image, sensor) were measured and 0 where one is withheld. A model
        without a sensor has only `image`.
        """
        image = TensorSpec("image", "uint8", (self.batch, self.takes.height, self.takes.width, 3))
        if self.sensor is None:
            return (image,)
        channels = len(self.sensor.channels)
        return (
            image,
            TensorSpec("sensor", "float32", (self.batch, channels, self.sensor.samples)),
            TensorSpec("present", "float32", (self.batch, 2)),
        )

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors in order, all float32.

        `class_scores` [B, K] softmax over `classes`; `anomaly_score` [B] in 0..1, the one number
        that the rule judges; `anomaly_map` [B, h, w] in 0..1; `embedding` [B, D].
        """
        return (
            TensorSpec("class_scores", "float32", (self.batch, len(self.classes))),
            TensorSpec("anomaly_score", "float32", (self.batch,)),
            TensorSpec("anomaly_map", "float32", (self.batch, self.map_height, self.map_width)),
            TensorSpec("embedding", "float32", (self.batch, self.embedding_size)),
        )
