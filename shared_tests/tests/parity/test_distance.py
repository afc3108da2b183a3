"""The relative distances that all tests and reports judge by."""

import math

import numpy as np
import pytest

from steptape.shared_tests.oracles.distance import distance, euclidean, largest


def test_by_hand():
    assert largest([3.0, 4.0], [3.0, 5.0]) == 0.2
    assert euclidean([3.0, 4.5], [3.0, 4.0]) == 0.1
    assert euclidean([[3.0], [4.5]], [[3.0], [4.0]]) == 0.1
    assert distance([[1.0], [3.0, 4.0]], [[1.0], [3.0, 5.0]]) == 0.2
    assert largest([0.0], [1e-4], floor=1e-3) == pytest.approx(0.1)
    assert largest(np.array([3 + 4j]), np.array([0.5 + 0j])) == pytest.approx(abs(2.5 + 4j) / 0.5)


@pytest.mark.parametrize("one", [largest, euclidean])
def test_of_zero_it_is_the_gap_itself(one):
    assert one([0.0], [0.0]) == one([], []) == 0
    assert one([0.5], [0.0]) == 0.5


@pytest.mark.parametrize("place", range(3))
def test_what_is_not_a_number_is_not_lost_behind_another_part(place):
    found = [[1.0], [1.0], [1.0]]
    found[place] = [math.nan]
    assert math.isnan(distance(found, [[1.0], [1.5], [1.0]]))


def test_another_shape_or_another_number_of_parts_is_refused():
    with pytest.raises(ValueError, match="of 1 and of 2 numbers"):
        largest([1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="zip"):
        distance([[1.0]], [[1.0], [1.0]])


def test_tensors_of_any_kind():
    torch = pytest.importorskip("torch")
    x = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert largest(x, [1.0, 2.0]) == euclidean([x, x], [1.0, 2.0, 1.0, 2.0]) == 0
    z = torch.tensor([1.0 + 2.0j])
    assert largest(z.conj(), [np.array([1.0 - 2.0j])]) == 0
