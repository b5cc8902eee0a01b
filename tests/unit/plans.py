"""Circle plans for tests: three named plans and random plans."""

import random
from itertools import product

from hypothesis import strategies as st

from mtil.config import CircleConfig, config_from_dict
from mtil.run.plan import CirclePlan


def a_plan(*folds: int, **circle: object) -> CirclePlan:
    return CirclePlan(circle=config_from_dict({"circle": circle}).circle, folds=folds)


IN_SAMPLE = a_plan(0, 1, num_rounds=3)
CROSS_FIT = a_plan(0, 1, num_rounds=3, maps="cross_fit", num_parts=3)
RECYCLE = a_plan(0, 1, num_rounds=3, maps="recycle")

UNSTORED = [("recycle", "passes"), ("corrupted", "passes")]
plans = st.builds(
    CirclePlan,
    circle=st.builds(
        lambda kind, **values: CircleConfig(maps=kind[0], test=kind[1], **values),
        st.sampled_from([*product(["in_sample", "cross_fit"], ["passes", "chain"]), *UNSTORED]),
        num_rounds=st.integers(1, 4),
        num_parts=st.integers(2, 4),
        warm_start=st.booleans(),
        max_attempts=st.integers(1, 3),
    ),
    folds=st.sets(st.integers(0, 9), min_size=1, max_size=3).map(
        lambda folds: tuple(sorted(folds))
    ),
)
randoms = st.integers(0, 2**32).map(random.Random)
