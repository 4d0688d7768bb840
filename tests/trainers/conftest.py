"""One training for all the tests that only look at its result."""

from collections.abc import Iterator

import pytest

from tests.contract import Training, train


@pytest.fixture(scope="class")
def training(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Training]:
    """A training of two epochs; the contract says of which recipe on which task."""
    recipe, task = request.param
    with train(recipe, task, tmp_path_factory.mktemp("world")) as finished:
        yield finished
