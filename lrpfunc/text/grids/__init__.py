"""Pages with a script: tokens through layers, and answers by prompts, to look through without a network."""

from lrpfunc.text.grids.pages import check_numbers, floats, matrix_part, page, whole_numbers

__all__ = ["check_numbers", "floats", "matrix_part", "page", "whole_numbers"]
