"""Errors for packages that only some uses need."""

from __future__ import annotations

from upslope.extras import missing_package


def test_several_missing_packages_are_told_in_the_plural() -> None:
    """It said "the package onnx and onnxscript ... but it is not installed"."""
    said = str(missing_package("onnx and onnxscript", "to write ONNX", "onnx"))
    assert said == (
        "Expected the packages onnx and onnxscript to write ONNX but they are not installed: "
        "pip install '.[onnx]' in the clone."
    )
    assert "the package ray for the engine but it is" in str(
        missing_package("ray", "for the engine")
    )
