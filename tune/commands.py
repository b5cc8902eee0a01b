"""What the commands of `mtil-tune` do and print."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import yaml

from mtil import presets
from mtil.cli.console import Bar, Output
from mtil.config import from_dict, to_dict, with_overrides
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import parse_folds
from mtil.data.dataset.shards import HOLDOUT
from mtil.documents import Document, shown
from mtil.errors import ConfigError, DataError, NotFoundError
from mtil.run import names
from mtil.storage import Store, open_store, split_uri
from tune import study as studies
from tune.comparison import SHOWN
from tune.record import Asked, Budget, Rule, Search, study_name
from tune.space import Value, as_text, overrides
from tune.study import Told


def run(options: argparse.Namespace, output: Output) -> None:
    """Run the command that the options name."""
    {
        "run": _run,
        "status": _status,
        "show": _show,
        "export": _export,
        "report": _report,
        "confirm": _confirm,
    }[options.command](options, output)


def _run(options: argparse.Namespace, output: Output) -> None:
    for name in ("num_trials", "max_concurrent"):
        number = getattr(options, name)
        if number is not None and number < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"`--{flag}` must be at least 1, but got {number}.")
    search = Search.plan(options.run, _asked(options))
    if options.storage is not None:
        studies.open_storage(search.storage)
    studies.find(search)  # a damaged one is told of before Ray starts

    from mtil.distributed.runtime import cluster
    from tune import search as searches

    searches.check_figures(search, search.manifest())
    with cluster.connected(verbose=options.verbose), output.progress() as bar:
        searches.room(cluster.nodes(), search.space.base, 1)
        search.keep()  # now that nothing is wrong with it
        searches.run(
            search,
            options.num_trials,
            lambda line: _tell(line, search, bar, output),
            max_concurrent=options.max_concurrent,
            keep_models=options.keep_models,
        )
    study = studies.load(search)
    _best(search, studies.best(study, 1), output)
    output.line(f"Search in {options.run}; next: mtil-tune show --run {options.run}")
    output.result({"run": options.run, **_summary(search)})


def _asked(options: argparse.Namespace) -> Asked:
    """Return what the options ask for."""
    store = open_store(options.data)
    manifest = _manifest(options, store)
    folds = parse_folds(options.fold, manifest.num_folds)
    if folds == [HOLDOUT]:
        raise DataError("A holdout is for a final test, not to be searched on; name a fold.")
    budget = Budget(
        folds=folds,
        num_epochs=options.trial_epochs,
        image_size=options.trial_image_size,
        num_workers=options.trial_workers,
        circle=options.circle,
    )
    rule = (
        Rule()
        if options.stop_early == "none"
        else Rule(kind=options.stop_early, first=options.first_check, factor=options.check_factor)
    )
    config = with_overrides(presets.load_config(options.config), options.overrides)
    uri = open_store(options.run).uri
    return Asked(
        data=store.uri,
        fingerprint=manifest.fingerprint,
        config=to_dict(config),
        budget=vars(budget),
        space=[name.strip() for name in options.space.split(",")],
        narrowing=_narrowing(options.narrow),
        objective=options.objective,
        sampler=options.sampler,
        seed=options.search_seed,
        rule=vars(rule),
        storage=None if options.storage is None else studies.storage_of(options.storage),
        study=study_name(uri),
    )


def _manifest(options: argparse.Namespace, data: Store) -> Manifest:
    """Return the version of the data set to search on: what is named, the search's or the newest.

    Where the data set has no version that is the search's, `Search.plan` says so.
    """
    if options.data_version is not None:
        return manifests.load_version(data, options.data_version)
    try:
        fingerprint = Search.open(options.run).asked.fingerprint
    except DataError:
        return manifests.load(data)
    return manifests.find(data, fingerprint) or manifests.load(data)


def _narrowing(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    folder, file = split_uri(name)
    document = Document(f"The file {name} of --narrow", "correct it", ConfigError)
    try:
        values = document.yaml(document.read(open_store(folder), file))
    except NotFoundError:
        raise ConfigError(f"The file {name} of --narrow does not exist.") from None
    if not isinstance(values, dict):
        document.refuse(f"must be a mapping of keys, but is {shown(values)}")
    return values


def _tell(line: dict[str, Any], search: Search, bar: Bar, output: Output) -> None:
    if line["kind"] == "begun":
        taken = line["taken_up"]
        again = f"; trials {', '.join(map(str, taken))} go on" if taken else ""
        output.line(
            f"{line['ended']} of {line['asked']} trials have ended{again}; {line['concurrent']} at "
            "a time."
        )
    else:
        output.line(_ended(line["trial"], search))
    bar.show("trials", line["ended"], line["asked"])


def _ended(trial: Told, search: Search) -> str:
    if trial.cause is not None:
        return f"trial {trial.number} failed: {trial.cause}"
    after = "" if trial.seconds is None else f", {trial.seconds:.0f} s"
    if trial.values is None:
        return f"trial {trial.number} stopped early, after {trial.stopped_after} epochs{after}"
    return f"trial {trial.number}: {_figures(trial, search)}{after}"


def _figures(trial: Told, search: Search) -> str:
    values = trial.values or []
    named = zip(search.objective.names, values, strict=True)
    return ", ".join(f"{name} {value:.4f}" for name, value in named)


def _summary(search: Search) -> dict[str, Any]:
    study = studies.load(search)
    counts = studies.counts(study)
    best = studies.best(study)
    told = [_described(trial) for trial in best]
    summary: dict[str, Any] = {
        "ended": studies.ended(counts),
        "completed": counts["completed"],
        "stopped_early": counts["stopped early"],
        "failed": counts["failed"],
        "best": told[0],
    }
    return summary | ({"front": told} if len(search.objective.goals) == 2 else {})


def _described(trial: Told) -> dict[str, Any]:
    values = trial.values or []
    return {
        "trial": trial.number,
        "value": values[0] if len(values) == 1 else values,
        "overrides": trial.point,
        "figures": trial.figures,
    }


def _best(search: Search, trials: list[Told], output: Output) -> None:
    default = search.space.default() or {}
    output.table(
        ["trial", *search.objective.names],
        [[str(trial.number), *_numbers(trial, len(search.objective.goals))] for trial in trials],
    )
    for trial in trials:
        differs = _differs(trial.point, default)
        output.line(f"trial {trial.number} differs from the default in {differs}.")


def _differs(point: Mapping[str, Value], default: Mapping[str, Value]) -> str:
    found = [f"{key} {_short(value)}" for key, value in point.items() if default.get(key) != value]
    return ", ".join(found) or "nothing"


def _short(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_text(value)


def _status(options: argparse.Namespace, output: Output) -> None:
    search = Search.open(options.run)
    study = studies.load(search)
    trials = studies.trials(study)
    output.table(
        ["trial", "state", *search.objective.names, "epochs", "seconds"],
        [
            [
                str(trial.number),
                trial.state,
                *_numbers(trial, len(search.objective.goals)),
                str(_epochs(search, trial)),
                "" if trial.seconds is None else f"{trial.seconds:.0f}",
            ]
            for trial in trials
        ],
    )
    for trial in trials:
        if trial.cause is not None:
            output.line(f"trial {trial.number} failed: {trial.cause}")
    counts = studies.counts(study)
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    output.line(f"{told or 'no trial yet'}; study {search.asked.study} in {search.storage}")
    output.result(
        {
            "run": options.run,
            "ended": studies.ended(counts),
            "counts": counts,
            "study": search.asked.study,
            "storage": search.storage,
            "trials": [_plain(trial) for trial in trials],
        }
    )


def _plain(trial: Told) -> dict[str, Any]:
    shown = ("number", "state", "values", "cause", "stopped_after", "figures", "seconds")
    return {name: getattr(trial, name) for name in shown} | {"overrides": trial.point}


def _numbers(trial: Told, goals: int) -> list[str]:
    return [f"{value:.4f}" for value in trial.values or []] or [""] * goals


def _epochs(search: Search, trial: Told) -> int:
    """Return how many epochs a trial's trainings have had."""
    store = open_store(search.trial_uri(trial.number))
    histories = [name for name in store.names(names.TRAININGS) if names.is_history(name)]
    return sum(len(store.read(name).splitlines()) for name in histories)


def _show(options: argparse.Namespace, output: Output) -> None:
    search = Search.open(options.run)
    study = studies.load(search)
    front = len(search.objective.goals) == 2
    best = studies.best(study, None if front else options.top)
    if front:
        output.line("No other trial is better in one goal and not worse in the other than these:")
    _best(search, best, output)
    shares = studies.importances(study, search.objective.names)
    for name, by_key in shares.items():
        output.line("")
        output.table(
            [f"has mattered for {name}", "share"],
            [[key, f"{share:.1%}"] for key, share in by_key.items()],
        )
    if shares:
        output.line("Shares are rough where few trials have a key.")
    output.result(
        {
            "run": options.run,
            "best": [_described(trial) for trial in best],
            "importances": shares,
        }
    )


def _export(options: argparse.Namespace, output: Output) -> None:
    search = Search.open(options.run)
    study = studies.load(search)
    if options.trial is None:
        trial = studies.best(study, 1)[0]
    else:
        found = [one for one in studies.trials(study) if one.number == options.trial]
        if not found or found[0].values is None:
            raise DataError(
                f"A trial must be completed to be exported, but trial {options.trial} is "
                f"{found[0].state if found else 'not there'}."
            )
        trial = found[0]
    config = search.whole_config_of(trial.point)
    head = (
        f"# Trial {trial.number} of {options.run}: {_figures(trial, search)} (inner validation).\n"
        f"# {' '.join(f'--{key} {value}' for key, value in overrides(trial.point).items())}\n"
    )
    folder, file = split_uri(options.to)
    text = head + yaml.safe_dump(to_dict(config), sort_keys=False)
    open_store(folder).write(file, text.encode())
    output.line(f"Trial {trial.number} in {options.to}; next: mtil train --config {options.to}")
    output.result({"run": options.run, "to": options.to, **_described(trial)})


def _report(options: argparse.Namespace, output: Output) -> None:
    from tune.report import page

    search = Search.open(options.run)
    to = options.to or f"{options.run.rstrip('/')}/report.html"
    folder, file = split_uri(to)
    open_store(folder).write(file, page(search, studies.load(search)).encode())
    output.line(f"Report in {to}")
    output.result({"run": options.run, "to": to})


def _confirm(options: argparse.Namespace, output: Output) -> None:
    search = Search.open(options.run)
    for name in ("top", "seeds"):
        if getattr(options, name) < 1:
            raise ConfigError(f"`--{name}` must be at least 1, but got {getattr(options, name)}.")
    base = (
        from_dict(search.asked.config)
        if options.config is None
        else presets.load_config(options.config)
    )
    base = with_overrides(base, options.overrides)
    folds = search.budget.folds
    if options.fold is not None:
        folds = parse_folds(options.fold, search.manifest().num_folds)
    best = studies.best(studies.load(search), options.top)

    from mtil.distributed.runtime import cluster
    from tune.confirm import confirm

    with cluster.connected(verbose=options.verbose), output.progress() as bar:
        found = confirm(
            search, best, base, folds, options.seeds, lambda line: _hear(line, bar, output)
        )
    text = json.dumps(found, indent=1) + "\n"
    search.store.write("confirm.json", text.encode())
    _print_confirmed(search, found, output)
    output.result({"run": options.run, **found})


def _print_confirmed(search: Search, found: Mapping[str, Any], output: Output) -> None:
    if search.space.fixed:
        fixed = ", ".join(f"{key} {value}" for key, value in search.space.fixed.items())
        output.line(f"The default has what --narrow fixes as well: {fixed}.")
    for number in found["same_as_default"]:
        output.line(f"Trial {number} is the default itself; --top takes more trials.")
    folds = found["folds"]
    where = "the holdout" if HOLDOUT in folds else f"folds: {', '.join(map(str, folds))}"
    for contender in found["contenders"]:
        output.line("")
        output.line(
            f"{contender['name']} minus the default; seeds: {found['seeds']}; test rows of {where}"
        )
        output.table(
            ["figure", "default", "trial", "difference", "low", "high", "by seed"],
            [[name, *_row(name, found["default"], contender)] for name in SHOWN],
        )
        output.line(contender["verdict"])
    if found.get("rows", {}).get("left_out"):
        output.line(
            f"Of the test rows {found['rows']['left_out']} are left out, as other folds of the "
            f"search were judged by them; {found['rows']['compared']} are compared."
        )


def _row(name: str, default: Mapping[str, Any], contender: Mapping[str, Any]) -> list[str]:
    difference = contender["difference"][name]
    numbers = [default["metrics"][name]["value"], contender["metrics"][name]["value"]]
    numbers += [difference[key] for key in ("value", "low", "high")]
    shown = ["n/a" if number is None else f"{number:.4f}" for number in numbers]
    seeds = contender["difference_by_seed"][name]
    return [*shown, " ".join("n/a" if one is None else f"{one:+.3f}" for one in seeds)]


def _hear(line: dict[str, Any], bar: Bar, output: Output) -> None:
    if line["kind"] == "training":
        output.line(f"{line['name']}, seed {line['seed']}")
        bar.show(line["name"], line["number"], line["of"])
