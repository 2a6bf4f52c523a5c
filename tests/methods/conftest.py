"""Formulas of papers are compared in float64."""

import jax
import pytest


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield
