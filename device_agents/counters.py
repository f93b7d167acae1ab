"""Every counter that the agents keep, and what it means. Health sends them, metrics explain them.

Counters grow within one `station_epoch` and start at 0 with a new one. An agent that counts
something new adds its line here; a test holds this table against the code. What is counted need
not be logged each time: `is_worth_a_line` says when.
"""

from __future__ import annotations

# What was decided. Together they are `inspected`.
DECISIONS = {
    "pass": "parts whose score lay below the threshold",
    "fail": "parts whose score reached the threshold",
    "invalid": "parts that could not be judged; each has its reason in the inspection",
}

# What the plant does not get: a part without an inspection, or an inspection that never arrives.
LOSSES = {
    "lost_behind": "triggered parts without even an answer, because the loop was far behind",
    "dropped_free_running": "free-running frames not inspected, because the loop was behind",
    "lost_disk": "records that the disk did not take",
    "dropped_pass": "records of passed parts dropped from a full outbox",
    "dropped_defect": "records of failed or invalid parts dropped from a full outbox",
    "lost_outbox": "records not sent yet, at most, in an outbox that broke or was deleted",
    "outbox_set_aside": "times that a new outbox and epoch replaced a broken or lost one",
    "quarantined": "records that the broker refuses for good, put beside the outbox",
    "damaged": "records that the outbox has and that no one can read",
}

# Why no sensor window was paired with a frame: the part is judged by the image alone where the
# model has a threshold for that, and is invalid where it has none.
UNPAIRED = {
    "no_window": "no sensor window",
    "window_unreadable": "the sensor window could not be read",
    "window_gap": "sensor readings are missing inside the window (a dropout)",
    "window_gone": "the window's readings were overwritten, or taken before the start",
    "stale_window": "the sensor window was too far from the frame in time",
    "short_window": "the sensor window was shorter than the model's",
    "slow_window": "the sensor's rate was too low to show what the model listens to",
    "not_finite_window": "a reading was NaN or infinite",
    "repeated_window": "a channel gave exactly the readings of the part before",
    "stuck_window": "a channel stood still",
    "clipped_window": "a channel's readings piled up at an extreme",
}

# Why a part was `invalid`.
INVALID = {
    "invalid_frame_unreadable": "the frame could not be read",
    **{f"invalid_{kind}": why for kind, why in UNPAIRED.items()},
    "invalid_unfit": "frame or window do not fit the model's inputs",
    "invalid_score": "the model gave a score that is not finite",
    "invalid_behind": "the loop was behind, and the part gave way to newer ones",
    "invalid_engine": "the engine failed",
}

# What happened otherwise.
EVENTS = {
    "inspected": "parts that came out of the loop with a decision",
    "image_only": "parts judged by the image alone, by the threshold for that",
    **{f"image_only_{kind}": f"of these: {why}" for kind, why in UNPAIRED.items()},
    "frames_resized": "frames of another size than the bundle's, brought to it on the CPU first",
    "frames_lost": "frames that a camera or its pipeline lost before they came here",
    "sensor_gaps": "dropouts of a live sensor: times that readings were lost before they came here",
    "late_frames": "frames that came more than a part period after their time",
    "over_budget": "parts whose record was durable only after loop.budget_ms",
    "source_failures": "times that a source of frames failed; it is tried again",
    "dropped_at_stop": "frames not inspected, because the loop had ended",
    "status_not_written": "times that the inspector could not write its status",
    "pictures_skipped": "pictures not kept: too many waited to be written",
    "published": "records that the broker acknowledged",
    "no_subscribers": "records that the broker took while nobody was subscribed",
    "refused": "records that the broker refused for now; they were sent again",
    "sent_again": "acknowledged records sent once more, for the broker may have lost them",
    "connections_lost": "connections to the broker that ended without our asking",
    "commands_answered": "commands whose pictures, or their absence, were made ready to send",
    "commands_refused": "payloads on the command topic that are no command, or one too many",
    "pictures_published": "picture messages that the broker acknowledged",
    "pictures_refused": "picture messages that the broker refused, or that a cut link lost",
    "pictures_dropped": "pictures by rule pushed out by newer ones: too many waited",
    "pictures_missing": "pictures by rule that the inspector had not kept",
    "pictures_failed": "kept pictures that could not be read or encoded",
    "health_too_large": "Health messages above the broker's packet size, not sent",
    "pictures_kept": "parts whose pictures were kept beside the outbox",
    "pictures_evicted": "kept parts that made way for others: the quota was full, or the disk",
    "pictures_no_room": "parts whose pictures were not kept: what is there is worth more",
    "pictures_lost": "parts whose pictures the disk did not take",
    "cursor_not_saved": "times that the publisher could not save how far it got",
}

# The highest value seen in this epoch, in milliseconds: not counts.
PEAKS_MS = {
    "late_max_ms": "how long after its time the latest frame came",
    "append_max_ms": "how long the slowest write to the outbox took",
}

COUNTERS = {**DECISIONS, **LOSSES, **INVALID, **EVENTS, **PEAKS_MS}


def is_worth_a_line(count: int) -> bool:
    """Tell whether the n-th event of a kind is logged: the first ten, then every hundredth."""
    return count <= 10 or count % 100 == 0
