"""Confirm a search: train winners and default again, and compare the test figures."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mtil.circle.request import request_circle, request_trainings
from mtil.config import Config, compute_config_digest, config_from_dict
from mtil.data.dataset.shards import HOLDOUT
from mtil.distributed.circle import driver
from mtil.distributed.prediction import scoring
from mtil.distributed.training.folds import run_trainings
from mtil.errors import RunError
from mtil.metrics import Results, summarise
from mtil.prediction.evaluation import to_metric_results
from mtil.run import scores
from mtil.run.folder import Run
from mtil.run.relay import GuardedListener
from tune.comparison import compare_with_default, pool_seeds
from tune.record import Search
from tune.study import TrialRecord

ConfirmListener = Callable[[dict[str, Any]], None]


def confirm_winners(
    search: Search,
    winners: Sequence[TrialRecord],
    base: Config,
    folds: Sequence[int],
    num_seeds: int,
    listen: ConfirmListener,
) -> dict[str, Any]:
    """Train the winners and the default with new seeds and compare both on test rows.

    Test rows on which the search validated in another fold are left out. Finished trainings are
    reused. The seeds follow the seed of the base configuration.

    Args:
        search: the search.
        winners: completed trials of the search.
        base: configuration under the trials' overrides, on the full schedule.
        folds: folds to train and to compare on. For the holdout, the models of the searched folds
            predict as an ensemble.
        num_seeds: number of seeds.
        listen: function called with `{"kind": "training", …}` before each training.

    Returns:
        number of rows compared and left out; figures of the default; per winner the figures, the
        paired differences with 95 % intervals over groups, the differences by seed, and a verdict
        in words. Winners equal to the default are only listed. If all winners equal the default,
        nothing is trained.

    Raises:
        UserError: if the data set or the resources do not suit the search, or no rows are left.
        RunError: if a training failed.
    """
    default = search.full_config({}, base)
    configs = {winner.number: search.full_config(winner.point, base) for winner in winners}
    report: dict[str, Any] = {
        "folds": list(folds),
        "seeds": num_seeds,
        "same_as_default": [number for number, config in configs.items() if config == default],
        "contenders": [],
    }
    contenders = {"default": default} | {
        f"trial {number}": config for number, config in configs.items() if config != default
    }
    if len(contenders) == 1:
        return report
    rows, left_out = search.find_fresh_rows(folds)
    seeds = [base.seed + 1 + index for index in range(num_seeds)]
    trainings = [(name, seed) for name in contenders for seed in seeds]
    listen = GuardedListener(listen)
    results: dict[str, list[Results]] = {name: [] for name in contenders}
    for number, (name, seed) in enumerate(trainings):
        listen(
            {"kind": "training", "name": name, "seed": seed, "number": number, "of": len(trainings)}
        )
        config = config_from_dict({"seed": seed}, contenders[name])
        tested = _predict_test_rows(search, name, config, folds)
        kept = pa.compute.is_in(tested["sample_id"], value_set=pa.array(sorted(rows)))
        results[name].append(to_metric_results(tested.filter(kept)))
    default_results = results.pop("default")
    return report | {
        "rows": {"compared": len(rows), "left_out": left_out},
        "default": {"metrics": summarise(pool_seeds(default_results))},
        "contenders": [
            compare_with_default(name, winner_results, default_results)
            for name, winner_results in results.items()
        ],
    }


def _predict_test_rows(search: Search, name: str, config: Config, folds: Sequence[int]) -> pa.Table:
    """Train a configuration, unless finished, and return predictions of the test rows."""
    folder = f"{name.replace(' ', '-')}-{compute_config_digest(config)[:8]}"
    train_folds = folds
    # All models of a run predict the holdout, so a separate run has the searched folds' models.
    if HOLDOUT in folds:
        folder, train_folds = f"{folder}-holdout", search.budget.folds
    uri = f"{search.uri}/confirm/{folder}"
    data = search.asked.data
    run = Run.create(uri, config, data, search.asked.fingerprint)
    round_index = config.circle.num_rounds - 1 if search.budget.circle else 0
    if search.budget.circle:
        state = driver.follow_circle(
            driver.begin_circle(request_circle(data, uri, config, train_folds)), lambda _: None
        )
        if state.failed_folds:
            raise RunError(f"The circle in {uri} failed: {next(iter(state.failed_folds.values()))}")
    else:
        run_trainings(request_trainings(data, uri, config, train_folds), lambda _: None)
    table_names = [run.predictions_name(round_index, fold) for fold in folds]
    if not all(run.store.exists(table_name) for table_name in table_names):
        scoring.predict_folds(
            run,
            folds,
            number=round_index,
            gpus_per_worker=config.train.gpus_per_worker,
            listen=lambda _: None,
        )
    tables = [scores.read_scores(run.store, table_name) for table_name in table_names]
    predictions = pa.concat_tables(tables)
    last_pass = pa.compute.max(predictions["pass"])
    return predictions.filter(pa.compute.equal(predictions["pass"], last_pass))
