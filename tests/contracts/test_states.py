"""What a host that joins others does by TLS."""

import pytest

from contracts.states import TlsState, tls_beside

NONE, READY, SECURED = TlsState.NONE, TlsState.READY, TlsState.SECURED


@pytest.mark.parametrize(
    ("others", "tls", "only_secured"),
    [
        ((), NONE, SECURED),
        ((NONE,), NONE, READY),
        ((NONE, READY), READY, READY),
        ((NONE, SECURED), READY, READY),
        ((READY,), READY, SECURED),
        ((READY, SECURED), READY, SECURED),
        ((SECURED, SECURED), SECURED, SECURED),
    ],
)
def test_it_cuts_nobody_off(
    others: tuple[TlsState, ...], tls: TlsState, only_secured: TlsState
) -> None:
    assert tls_beside(others, only_secured=False) is tls
    assert tls_beside(others, only_secured=True) is only_secured
