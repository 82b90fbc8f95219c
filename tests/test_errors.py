from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import pytest

from airflow_provider_stem import errors
from airflow_provider_stem.errors import (
    StemApiError,
    StemAuthError,
    StemCertificateError,
    StemConfigError,
    StemDataError,
    StemError,
    StemIncompleteError,
    StemNotFoundError,
    StemRateLimitError,
    StemRequestError,
    StemServerError,
    StemTransportError,
    StemUnavailableError,
)

PARENTS: dict[type[Exception], tuple[type[Exception], ...]] = {
    StemError: (Exception,),
    StemConfigError: (StemError, ValueError),
    StemTransportError: (StemError,),
    StemCertificateError: (StemConfigError, StemTransportError),
    StemApiError: (StemError,),
    StemAuthError: (StemApiError,),
    StemNotFoundError: (StemApiError,),
    StemRequestError: (StemApiError,),
    StemUnavailableError: (StemRequestError,),
    StemRateLimitError: (StemApiError,),
    StemServerError: (StemApiError,),
    StemDataError: (StemError,),
    StemIncompleteError: (StemError,),
}
API_ERRORS = [
    StemApiError,
    StemAuthError,
    StemNotFoundError,
    StemRequestError,
    StemUnavailableError,
    StemRateLimitError,
    StemServerError,
]
URL = "https://app.stem.com/api/v1/sites/white_house"
ROUND_TRIPS: list[Callable[[StemError], StemError]] = [
    copy.copy,
    copy.deepcopy,
    *(
        lambda error, p=protocol: pickle.loads(pickle.dumps(error, p))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


@pytest.mark.parametrize(("error", "parents"), PARENTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_class_has_the_base_classes_of_the_tree(
    error: type[Exception], parents: tuple[type[Exception], ...]
) -> None:
    assert error.__bases__ == parents


def test_the_module_exports_the_tree_and_nothing_else() -> None:
    assert sorted(errors.__all__) == sorted(error.__name__ for error in PARENTS)
    public = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert public == set(errors.__all__)


def test_the_docstring_shows_every_class() -> None:
    assert errors.__doc__
    assert [name for name in errors.__all__ if f" {name} " not in errors.__doc__] == []


@pytest.mark.parametrize("error", PARENTS)
def test_none_is_an_airflow_exception(error: type[Exception]) -> None:
    from airflow.providers.common.compat.sdk import AirflowException

    assert not issubclass(error, AirflowException)


@pytest.mark.parametrize("error", API_ERRORS)
def test_an_api_error_shows_status_message_and_url(error: type[StemApiError]) -> None:
    raised = error(429, "Slow down.", URL, 7.5)
    assert (raised.status, raised.message) == (429, "Slow down.")
    assert (raised.request_url_without_secrets, raised.retry_after) == (URL, 7.5)
    assert re.fullmatch(rf"HTTP 429: Slow down \(retry after 7.5 s\)\.( [A-Z].*\.)? \[GET {URL}\]", str(raised))


@pytest.mark.parametrize("error", API_ERRORS)
def test_an_api_error_can_be_created_with_keyword_arguments(error: type[StemApiError]) -> None:
    raised = error(status=404, message="No such site.", request_url_without_secrets=URL, retry_after=None)
    assert raised.retry_after is None
    assert raised.describe("Try another.") == f"HTTP 404: No such site. Try another. [GET {URL}]"
    assert str(raised).startswith("HTTP 404: No such site. ")


def test_the_remedy_comes_before_text_that_may_be_long() -> None:
    raised = StemApiError(400, "x" * 500, URL)
    assert raised.describe("Mend it.") == f"HTTP 400: {'x' * 199}…. Mend it. [GET {URL}]"
    assert raised.message == "x" * 500


@pytest.mark.parametrize("error", [error for error in API_ERRORS if error is not StemApiError])
def test_every_error_of_a_status_has_a_remedy_before_the_url(error: type[StemApiError]) -> None:
    assert re.fullmatch(rf"HTTP 400: No\. [A-Z].*\. \[GET {URL}\]", str(error(400, "No.", URL)))


def test_the_types_that_a_site_lacks_are_named() -> None:
    assert StemUnavailableError(400, "unavailable", URL).stream_types == ()
    raised = StemUnavailableError(400, "unavailable", URL, None, ["CONVERTER", "MONITOR"])
    assert raised.stream_types == ("CONVERTER", "MONITOR")


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
@pytest.mark.parametrize(
    "error",
    [
        *(error(503, "Kaputt, später", URL, 1.5) for error in API_ERRORS),
        StemUnavailableError(400, "unavailable", URL, None, ["CONVERTER"]),
        *(
            error("what went wrong")
            for error in (StemConfigError, StemTransportError, StemCertificateError, StemDataError)
        ),
        StemIncompleteError("what went wrong"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_copies_and_pickles_keep_everything(error: StemError, round_trip: Callable[[StemError], StemError]) -> None:
    twin = round_trip(error)
    assert type(twin) is type(error)
    assert twin is not error
    assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
