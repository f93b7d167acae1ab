"""Recipes of augmentation in which everything is left alone, but for what a test names."""

import msgspec

from distill.recipe import AugmentRecipe, load_recipe

TINY = load_recipe("tiny").augment
NOTHING = msgspec.structs.replace(
    TINY,
    **{
        name: type(getattr(TINY, name))(0)
        for name in AugmentRecipe.__struct_fields__
        if name != "defect_area"
    },
)

# One amount for each key, large enough to show.
MOVES = {
    "rotate_degrees": 12.0,
    "scale": 0.2,
    "shift": 0.1,
    "perspective": 0.1,
    "elastic": 0.03,
    "flip_horizontal": True,
    "flip_vertical": True,
}
SIGHTS = {
    "light_gradient": 0.4,
    "shadow": 0.5,
    "defocus": 0.04,
    "motion_blur": 0.08,
    "brightness": 0.2,
    "contrast": 0.4,
    "gamma": 0.5,
    "colour": 0.3,
    "pixel_noise": 0.1,
    "jpeg_loss": 60.0,
}
DEFECTS = dict.fromkeys(("defect_patch", "defect_scar", "defect_perlin", "defect_blob"), 1.0)
READINGS = {
    "sensor_gain": 0.3,
    "sensor_channel_gain": 0.3,
    "sensor_shift": 0.3,
    "sensor_warp": 0.2,
    "sensor_noise": 0.3,
    "sensor_mask": 0.4,
    "sensor_gap": 0.4,
    "sensor_drop": 1.0,
}
FAULTS = {"sensor_fault": 1.0}


def only(**changes: object) -> AugmentRecipe:
    """Return a recipe that leaves everything alone but this."""
    return msgspec.structs.replace(NOTHING, **changes)
