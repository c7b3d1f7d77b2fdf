"""Every example runs, and shows what it says."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_penalty_on_the_explanation_moves_it_away_from_the_leak():
    example = load("right_for_the_right_reasons")
    share, accuracy = example.experiment(0.0)
    penalized_share, penalized_accuracy = example.experiment(1.0)
    assert penalized_share < share / 4
    assert penalized_accuracy > accuracy + 0.05
