"""Transforms of a stream's captions: each a configuration, what it builds, and one name here."""

from __future__ import annotations

from trainer.transforms.code_switch import CodeSwitch

# A union, with `kind` to tell its members apart, once there are several.
Transform = CodeSwitch
