"""Whether a search has found something: its winners against the default, trained again."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mtil.circle.begin import request_circle, request_trainings
from mtil.config import Config, digest, from_dict
from mtil.data.dataset.shards import HOLDOUT
from mtil.distributed.circle import driver
from mtil.distributed.prediction import scoring
from mtil.distributed.training import trainer
from mtil.errors import RunError
from mtil.metrics import Results, summarise
from mtil.prediction.evaluation import to_results
from mtil.run import scores
from mtil.run.folder import Run
from mtil.run.relay import Guarded
from tune.comparison import compared, pooled
from tune.record import Search
from tune.study import Told

Listener = Callable[[dict[str, Any]], None]


def confirm(
    search: Search,
    winners: Sequence[Told],
    base: Config,
    folds: Sequence[int],
    num_seeds: int,
    listen: Listener,
) -> dict[str, Any]:
    """Train the winners and the default with other seeds and compare them on the test rows.

    Test rows that the search has validated on in another fold are left out. What is trained
    already is not trained again. The seeds follow the one of the search.

    Args:
        search: the search.
        winners: completed trials of it.
        base: the configuration that the trials are laid over, on the full schedule.
        folds: whose models are trained, and whose test rows compared; with the holdout, it is the
            searched folds' models that judge it together.
        num_seeds: how many seeds.
        listen: told `{"kind": "training", …}` before each training.

    Returns:
        How many rows are compared and left out; the figures of the default; of each winner its
        figures, the paired difference with its 95 % interval over groups, the difference of each
        seed, and a verdict in words. Winners that are the default itself are named; if there are
        no others, nothing is trained.

    Raises:
        UserError: if the data set or the resources are not as they must be, or no rows are left.
        RunError: if a training failed.
    """
    default = search.whole_config_of({}, base)
    configs = {winner.number: search.whole_config_of(winner.point, base) for winner in winners}
    found: dict[str, Any] = {
        "folds": list(folds),
        "seeds": num_seeds,
        "same_as_default": [number for number, config in configs.items() if config == default],
        "contenders": [],
    }
    contenders = {"default": default} | {
        f"trial {number}": config for number, config in configs.items() if config != default
    }
    if len(contenders) == 1:
        return found
    rows, left_out = search.fresh_rows(folds)
    seeds = [base.seed + 1 + index for index in range(num_seeds)]
    todo = [(name, seed) for name in contenders for seed in seeds]
    listen = Guarded(listen)
    results: dict[str, list[Results]] = {name: [] for name in contenders}
    for number, (name, seed) in enumerate(todo):
        listen({"kind": "training", "name": name, "seed": seed, "number": number, "of": len(todo)})
        config = from_dict({"seed": seed}, contenders[name])
        tested = _tested(search, name, config, folds)
        kept = pa.compute.is_in(tested["sample_id"], value_set=pa.array(sorted(rows)))
        results[name].append(to_results(tested.filter(kept)))
    of_default = results.pop("default")
    return found | {
        "rows": {"compared": len(rows), "left_out": left_out},
        "default": {"metrics": summarise(pooled(of_default))},
        "contenders": [
            compared(name, of_winner, of_default) for name, of_winner in results.items()
        ],
    }


def _tested(search: Search, name: str, config: Config, folds: Sequence[int]) -> pa.Table:
    """Train a configuration, unless that is done, and return its predictions of the test rows."""
    folder = f"{name.replace(' ', '-')}-{digest(config)[:8]}"
    trained = folds
    if HOLDOUT in folds:  # all models of a run judge it, so that it must have those of the search
        folder, trained = f"{folder}-holdout", search.budget.folds
    uri = f"{search.uri}/confirm/{folder}"
    data = search.asked.data
    run = Run.create(uri, config, data, search.asked.fingerprint)
    number = config.circle.num_rounds - 1 if search.budget.circle else 0
    if search.budget.circle:
        state = driver.follow(
            driver.begin(request_circle(data, uri, config, trained)), lambda _: None
        )
        if state.failed_folds:
            raise RunError(f"The circle in {uri} failed: {next(iter(state.failed_folds.values()))}")
    else:
        trainer.train(request_trainings(data, uri, config, trained), lambda _: None)
    names = [run.predictions_name(number, fold) for fold in folds]
    if not all(run.store.exists(one) for one in names):
        scoring.predict_folds(
            run,
            folds,
            number=number,
            gpus_per_worker=config.train.gpus_per_worker,
            listen=lambda _: None,
        )
    tables = [scores.read(run.store, one) for one in names]
    predictions = pa.concat_tables(tables)
    last = pa.compute.max(predictions["pass"])
    return predictions.filter(pa.compute.equal(predictions["pass"], last))
