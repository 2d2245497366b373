"""MixGRPO on the rectified-flow miniature: the settings that its two experiments share."""

from __future__ import annotations

ACTING = ("sampling.kernel=gddim", "sampling.noise=constant")
WINDOW = ("sampling.steps=16", "sampling.window.size=2", "sampling.window.every=2")
BATCH = ("sizes.prompts=8", "sizes.group=16")
