"""Tests, in the layers that docs/design.md describes."""
