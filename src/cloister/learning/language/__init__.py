"""Language models of a plan, as far as they need no torch: how texts are read, and how parameters lie."""

from cloister.learning.language.layout import Tensor, Window, check_layout, width_of, window_of

__all__ = ["Tensor", "Window", "check_layout", "width_of", "window_of"]
