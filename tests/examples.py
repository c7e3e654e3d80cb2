"""Laws held to many examples that hypothesis finds: a few in ``make test``, a thousand in all."""

import pytest
from hypothesis import HealthCheck, given, settings

FEW_AND_MANY = pytest.mark.parametrize(
    "num_examples", [30, pytest.param(1000, marks=pytest.mark.slow)]
)


def hold(law, num_examples, **strategies):
    """Holds a law to examples, the same at each run and without a clock."""
    bounded = settings(
        max_examples=num_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    bounded(given(**strategies)(law))()
