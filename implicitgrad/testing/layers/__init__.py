"""Checks of torch layers: imported by a call of ``assert_implicit_gradient``, or by name, where torch is there."""
