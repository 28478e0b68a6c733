"""What concerns the run as a whole: the labs start first and are waited for last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.labs import Labs, Suite


def _suite(item: pytest.Item) -> Suite | None:
    call = getattr(item, "callspec", None)
    suite = None if call is None else call.params.get("suite")
    return suite if isinstance(suite, Suite) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _suite(item) is not None)


@pytest.fixture(scope="session", autouse=True)
def labs(request: pytest.FixtureRequest) -> Iterator[Labs]:
    """The labs of the selected tests."""
    running = Labs(suite for item in request.session.items if (suite := _suite(item)) is not None)
    yield running
    running.close()
