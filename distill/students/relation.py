"""What shows only in the two together: a window that does not belong to what the image shows.

Neither modality is odd alone, and the parts that show it are few: a student that may bend all its
weights learns those parts by heart. So the relation is fitted once, on normal parts, with a few
numbers: what the image shows predicts what the sensor should say, and what is left over is the
disagreement. (Predicting one modality from another to find anomalies, from normal parts alone:
Costanzino et al., "Multimodal Industrial Anomaly Detection by Crossmodal Feature Mapping", CVPR
2024. There a network maps features of each pixel; here a ridge regression maps those of a part.)

Shapes: B batch, N parts, S stem features, E sensor features, P components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMPONENTS = 8
_RIDGE = 0.02  # of the number of parts
LEAST_PARTS = 3 * COMPONENTS  # fewer cannot tell a relation from chance
_LIMIT = 0.99  # quantile of normal parts' strongest disagreement that counts as the limit
_BROKEN_BY_NORMAL = 0.25  # share of normal parts beyond the limit from which it is another line's
_LEAST_DEVIATION = 0.1  # of a component's own: a perfect fit on few parts is no perfect fit


class Relation(nn.Module):
    """Disagreement of the sensor with what the image lets expect; 0 until `fit`, then frozen."""

    image_mean_S: Tensor
    image_basis_SP: Tensor
    sensor_mean_E: Tensor
    sensor_basis_EP: Tensor
    expected_PP: Tensor
    precision_P: Tensor
    limit: Tensor

    def __init__(self, stem_size: int, sensor_size: int) -> None:
        super().__init__()
        self.register_buffer("image_mean_S", torch.zeros(stem_size))
        self.register_buffer("image_basis_SP", torch.zeros(stem_size, COMPONENTS))
        self.register_buffer("sensor_mean_E", torch.zeros(sensor_size))
        self.register_buffer("sensor_basis_EP", torch.zeros(sensor_size, COMPONENTS))
        self.register_buffer("expected_PP", torch.zeros(COMPONENTS, COMPONENTS))
        self.register_buffer("precision_P", torch.zeros(COMPONENTS))
        self.register_buffer("limit", torch.zeros(()))

    @torch.no_grad()
    def fit(self, image_NS: Tensor, sensor_NE: Tensor) -> None:
        """Learn from normal parts what the image lets expect of the sensor.

        With too few parts the relation stays as it is: it then never disagrees.
        """
        if len(image_NS) < LEAST_PARTS:
            return
        self.image_mean_S.copy_(image_NS.mean(0))
        self.image_basis_SP.copy_(_whitening_basis(image_NS))
        self.sensor_mean_E.copy_(sensor_NE.mean(0))
        self.sensor_basis_EP.copy_(_whitening_basis(sensor_NE))
        x_NP = (image_NS - self.image_mean_S) @ self.image_basis_SP
        y_NP = (sensor_NE - self.sensor_mean_E) @ self.sensor_basis_EP
        ridge_PP = _RIDGE * len(x_NP) * torch.eye(COMPONENTS)
        self.expected_PP.copy_(torch.linalg.solve(x_NP.T @ x_NP + ridge_PP, x_NP.T @ y_NP))
        left_over_NP = y_NP - x_NP @ self.expected_PP
        self.precision_P.copy_(1.0 / left_over_NP.std(0).clamp_min(_LEAST_DEVIATION))
        self.limit.copy_(self(image_NS, sensor_NE).amax(1).quantile(_LIMIT))

    @torch.no_grad()
    def silence_if_foreign(self, image_NS: Tensor, sensor_NE: Tensor) -> None:
        """Let it never disagree again where normal parts break it far more often than they should.

        For a relation that was fitted on another line, and parts too few to fit one on this.
        """
        broken_N1 = self.beyond_limit(self(image_NS, sensor_NE)) > 0.0
        if broken_N1.float().mean() > _BROKEN_BY_NORMAL:
            for buffer in self.buffers():
                buffer.zero_()

    def forward(self, image_BS: Tensor, sensor_BE: Tensor) -> Tensor:
        """Return log(1 + z^2) [B, P] of mean stem features and mean spectra of a part."""
        x_BP = (image_BS - self.image_mean_S) @ self.image_basis_SP
        y_BP = (sensor_BE - self.sensor_mean_E) @ self.sensor_basis_EP
        z_BP = (y_BP - x_BP @ self.expected_PP) * self.precision_P
        return torch.log(1.0 + z_BP * z_BP)

    def beyond_limit(self, disagreement_BP: Tensor) -> Tensor:
        """Return [B, 1]: the strongest disagreement, less what normal parts reach."""
        return disagreement_BP.amax(1, keepdim=True) - self.limit


def _whitening_basis(points_ND: Tensor) -> Tensor:
    """Return the leading principal components [D, P], scaled to give variance 1."""
    centred_ND = points_ND - points_ND.mean(0)
    _, deviations, directions_PD = torch.linalg.svd(centred_ND, full_matrices=False)
    kept = deviations[:COMPONENTS] / (len(points_ND) - 1) ** 0.5
    usable = kept > 1e-3 * kept[0].clamp_min(1e-12)
    scale = torch.where(usable, 1.0 / kept.clamp_min(1e-12), torch.zeros_like(kept))
    basis_DP = directions_PD[: len(kept)].T * scale
    return torch.nn.functional.pad(basis_DP, (0, COMPONENTS - len(kept)))
