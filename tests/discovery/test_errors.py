"""The tree of errors: what each is, and that it survives a trip to another process."""

from __future__ import annotations

import copy
import pickle

import pytest

from discovery.errors import (
    AccessDenied,
    Attempt,
    ConfigurationError,
    DiscoveryError,
    InvalidName,
    LookupFailed,
    NoHealthyInstances,
    RegistryError,
    RegistryOverloaded,
    RegistryTimeout,
    RegistryUnavailable,
    RequestRejected,
    ServiceNotFound,
    UnknownResource,
)

TRIED = (Attempt("http://127.0.0.1:8500", 0.15, "connection refused"),)
ERRORS = [
    DiscoveryError("it failed"),
    ConfigurationError("it failed"),
    InvalidName("it failed"),
    RegistryError("it failed", status=418, body="teapot"),
    AccessDenied("it failed", status=403),
    RequestRejected("it failed", status=400),
    UnknownResource("it failed", status=404),
    RegistryOverloaded("it failed", status=429),
    RegistryUnavailable("it failed", attempts=TRIED),
    RegistryTimeout("it failed", attempts=TRIED),
    LookupFailed("it failed"),
    ServiceNotFound("it failed", close=["web"], attempts=TRIED),
    NoHealthyInstances("it failed", failing=["web-1 fails"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_an_error_can_be_copied_and_pickled(error, again):
    twin = again(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert str(twin) == str(error) == "it failed"
    assert vars(twin) == vars(error)


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (ConfigurationError, ValueError),
        (InvalidName, ValueError),
        (AccessDenied, PermissionError),
        (RegistryUnavailable, ConnectionError),
        (RegistryTimeout, TimeoutError),
        (ServiceNotFound, LookupError),
        (NoHealthyInstances, LookupError),
    ],
)
def test_an_error_is_also_the_standard_one_that_people_catch(kind, standard):
    assert issubclass(kind, DiscoveryError)
    assert issubclass(kind, standard)


def test_an_attempt_reads_as_a_sentence():
    assert str(TRIED[0]) == "http://127.0.0.1:8500: connection refused (after 0.15 s)"
