"""Implementation and output of the commands of `mtil-tune`."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import yaml

from mtil import presets
from mtil.cli.console import CommandOutput, ProgressBar
from mtil.cli.flags import read_targets
from mtil.cli.views.tracking import update_trackers
from mtil.config import apply_overrides, config_from_dict, config_to_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import parse_folds
from mtil.data.dataset.shards import HOLDOUT
from mtil.documents import Document, format_value
from mtil.errors import ConfigError, DataError, NotFoundError
from mtil.run import names
from mtil.storage import Store, open_store, split_uri
from mtil.tracking.background import follow_in_background
from tune import study as studies
from tune.comparison import COMPARED_FIGURES
from tune.record import Search, SearchRequest, StoppingRule, TrialBudget, make_study_name
from tune.space import KeyValue, format_override, to_overrides
from tune.study import TrialRecord


def run_tune_command(options: argparse.Namespace, output: CommandOutput) -> None:
    """Run the command named in the options."""
    {
        "run": _run,
        "status": _status,
        "show": _show,
        "export": _export,
        "report": _report,
        "track": _track,
        "confirm": _confirm,
    }[options.command](options, output)


def _run(options: argparse.Namespace, output: CommandOutput) -> None:
    for name in ("num_trials", "max_concurrent"):
        value = getattr(options, name)
        if value is not None and value < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"`--{flag}` must be at least 1, but got {value}.")
    targets = read_targets(options.trackers)
    search = Search.plan(options.run, _read_request(options))
    if options.storage is not None:
        studies.open_storage(search.storage)
    # Before Ray starts, which takes seconds: a damaged study is an error.
    studies.find_study(search)

    from mtil.distributed.runtime import cluster
    from tune import search as searches

    searches.check_objective_figures(search, search.manifest())
    with (
        follow_in_background("tune.tracking", options.run, targets, output.line),
        cluster.connect_ray(verbose=options.verbose),
        output.progress() as bar,
    ):
        # Raises if the cluster is too small. Only then is anything written: a wrong command leaves
        # no folder.
        searches.plan_concurrency(cluster.list_nodes(), search.space.base, 1)
        search.keep()
        searches.run_search(
            search,
            options.num_trials,
            lambda line: _print_progress(line, search, bar, output),
            max_concurrent=options.max_concurrent,
            keep_models=options.keep_models,
        )
    study = studies.load_study(search)
    _print_best(search, studies.select_best(study, 1), output)
    output.line(f"Search in {options.run}; next: mtil-tune show --run {options.run}")
    output.result({"run": options.run, **_summary(search)})


def _read_request(options: argparse.Namespace) -> SearchRequest:
    """Return the request given by the options."""
    store = open_store(options.data)
    manifest = _load_manifest(options, store)
    folds = parse_folds(options.fold, manifest.num_folds)
    if folds == [HOLDOUT]:
        raise DataError("The holdout is for a final test and cannot be searched on. Name a fold.")
    budget = TrialBudget(
        folds=folds,
        num_epochs=options.trial_epochs,
        image_size=options.trial_image_size,
        num_workers=options.trial_workers,
        circle=options.circle,
    )
    rule = (
        StoppingRule()
        if options.stop_early == "none"
        else StoppingRule(
            kind=options.stop_early, first=options.first_check, factor=options.check_factor
        )
    )
    config = apply_overrides(presets.load_config(options.config), options.overrides)
    uri = open_store(options.run).uri
    return SearchRequest(
        data=store.uri,
        fingerprint=manifest.fingerprint,
        config=config_to_dict(config),
        budget=vars(budget),
        space=[name.strip() for name in options.space.split(",")],
        narrowing=_read_narrowing(options.narrow),
        objective=options.objective,
        sampler=options.sampler,
        seed=options.search_seed,
        rule=vars(rule),
        storage=None if options.storage is None else studies.resolve_storage(options.storage),
        study=make_study_name(uri),
    )


def _load_manifest(options: argparse.Namespace, data: Store) -> Manifest:
    """Return the manifest to search on: the named version, the search's version or the newest.

    If the data set lacks the search's version, `Search.plan` raises for the newest.
    """
    if options.data_version is not None:
        return manifests.load_version(data, options.data_version)
    try:
        fingerprint = Search.open(options.run).asked.fingerprint
    except DataError:
        return manifests.load_manifest(data)
    return manifests.find_manifest(data, fingerprint) or manifests.load_manifest(data)


def _read_narrowing(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    folder, file_name = split_uri(name)
    document = Document(f"The file {name} of --narrow", "correct it", ConfigError)
    try:
        values = document.yaml(document.read(open_store(folder), file_name))
    except NotFoundError:
        raise ConfigError(f"The file {name} of --narrow does not exist.") from None
    if not isinstance(values, dict):
        document.refuse(f"must be a mapping of keys, but is {format_value(values)}")
    return values


def _print_progress(
    line: dict[str, Any], search: Search, bar: ProgressBar, output: CommandOutput
) -> None:
    if line["kind"] == "begun":
        resumed = line["taken_up"]
        suffix = f"; resuming trials {', '.join(map(str, resumed))}" if resumed else ""
        output.line(
            f"{line['ended']} of {line['asked']} trials have ended{suffix}; up to "
            f"{line['concurrent']} run at a time."
        )
    else:
        output.line(_describe_end(line["trial"], search))
    bar.show("trials", line["ended"], line["asked"])


def _describe_end(trial: TrialRecord, search: Search) -> str:
    if trial.cause is not None:
        return f"trial {trial.number} failed: {trial.cause}"
    duration = "" if trial.seconds is None else f", {trial.seconds:.0f} s"
    if trial.values is None:
        return f"trial {trial.number} stopped early, after {trial.stopped_after} epochs{duration}"
    return f"trial {trial.number}: {_format_values(trial, search)}{duration}"


def _format_values(trial: TrialRecord, search: Search) -> str:
    values = trial.values or []
    value_by_goal = zip(search.objective.names, values, strict=True)
    return ", ".join(f"{name} {value:.4f}" for name, value in value_by_goal)


def _summary(search: Search) -> dict[str, Any]:
    study = studies.load_study(search)
    counts = studies.count_trials(study)
    best = studies.select_best(study)
    best_trials = [_trial_summary(trial) for trial in best]
    summary: dict[str, Any] = {
        "ended": studies.count_ended(counts),
        "completed": counts["completed"],
        "stopped_early": counts["stopped early"],
        "failed": counts["failed"],
        "best": best_trials[0],
    }
    return summary | ({"front": best_trials} if len(search.objective.goals) == 2 else {})


def _trial_summary(trial: TrialRecord) -> dict[str, Any]:
    values = trial.values or []
    return {
        "trial": trial.number,
        "value": values[0] if len(values) == 1 else values,
        "overrides": trial.point,
        "figures": trial.figures,
    }


def _print_best(search: Search, trials: list[TrialRecord], output: CommandOutput) -> None:
    default = search.space.default() or {}
    output.table(
        ["trial", *search.objective.names],
        [
            [str(trial.number), *_value_cells(trial, len(search.objective.goals))]
            for trial in trials
        ],
    )
    for trial in trials:
        difference = _describe_difference(trial.point, default)
        output.line(f"trial {trial.number} differs from the default in {difference}.")


def _describe_difference(point: Mapping[str, KeyValue], default: Mapping[str, KeyValue]) -> str:
    changes = [
        f"{key} {_format_value(value)}" for key, value in point.items() if default.get(key) != value
    ]
    return ", ".join(changes) or "nothing"


def _format_value(value: KeyValue) -> str:
    return f"{value:.3g}" if isinstance(value, float) else format_override(value)


def _status(options: argparse.Namespace, output: CommandOutput) -> None:
    search = Search.open(options.run)
    study = studies.load_study(search)
    trials = studies.list_trials(study)
    output.table(
        ["trial", "state", *search.objective.names, "epochs", "seconds"],
        [
            [
                str(trial.number),
                trial.state,
                *_value_cells(trial, len(search.objective.goals)),
                str(_count_epochs(search, trial)),
                "" if trial.seconds is None else f"{trial.seconds:.0f}",
            ]
            for trial in trials
        ],
    )
    for trial in trials:
        if trial.cause is not None:
            output.line(f"trial {trial.number} failed: {trial.cause}")
    counts = studies.count_trials(study)
    states = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    output.line(f"{states or 'no trial yet'}; study {search.asked.study} in {search.storage}")
    output.result(
        {
            "run": options.run,
            "ended": studies.count_ended(counts),
            "counts": counts,
            "study": search.asked.study,
            "storage": search.storage,
            "trials": [_trial_row(trial) for trial in trials],
        }
    )


def _trial_row(trial: TrialRecord) -> dict[str, Any]:
    shown = ("number", "state", "values", "cause", "stopped_after", "figures", "seconds")
    return {name: getattr(trial, name) for name in shown} | {"overrides": trial.point}


def _value_cells(trial: TrialRecord, goals: int) -> list[str]:
    return [f"{value:.4f}" for value in trial.values or []] or [""] * goals


def _count_epochs(search: Search, trial: TrialRecord) -> int:
    """Return the number of epochs of all trainings of a trial."""
    store = open_store(search.trial_uri(trial.number))
    histories = [name for name in store.names(names.TRAININGS) if names.is_history(name)]
    return sum(len(store.read(name).splitlines()) for name in histories)


def _show(options: argparse.Namespace, output: CommandOutput) -> None:
    search = Search.open(options.run)
    study = studies.load_study(search)
    front = len(search.objective.goals) == 2
    best = studies.select_best(study, None if front else options.top)
    if front:
        output.line(
            "Pareto front: no trial is better in one goal without being worse in the other."
        )
    _print_best(search, best, output)
    shares = studies.compute_importances(study, search.objective.names)
    for name, by_key in shares.items():
        output.line("")
        output.table(
            [f"importance for {name}", "share"],
            [[key, f"{share:.1%}"] for key, share in by_key.items()],
        )
    if shares:
        output.line("Shares are rough for keys with few trials.")
    output.result(
        {
            "run": options.run,
            "best": [_trial_summary(trial) for trial in best],
            "importances": shares,
        }
    )


def _export(options: argparse.Namespace, output: CommandOutput) -> None:
    search = Search.open(options.run)
    study = studies.load_study(search)
    if options.trial is None:
        trial = studies.select_best(study, 1)[0]
    else:
        matches = [known for known in studies.list_trials(study) if known.number == options.trial]
        if not matches or matches[0].values is None:
            raise DataError(
                f"Only a completed trial can be exported, but trial {options.trial} is "
                f"{matches[0].state if matches else 'missing'}. Run `mtil-tune status`."
            )
        trial = matches[0]
    config = search.full_config(trial.point)
    header = (
        f"# Trial {trial.number} of {options.run}: {_format_values(trial, search)} "
        "(inner validation).\n"
        f"# {' '.join(f'--{key} {value}' for key, value in to_overrides(trial.point).items())}\n"
    )
    folder, file_name = split_uri(options.to)
    text = header + yaml.safe_dump(config_to_dict(config), sort_keys=False)
    open_store(folder).write(file_name, text.encode())
    output.line(f"Trial {trial.number} in {options.to}; next: mtil train --config {options.to}")
    output.result({"run": options.run, "to": options.to, **_trial_summary(trial)})


def _report(options: argparse.Namespace, output: CommandOutput) -> None:
    from mtil.report.page import render_page
    from tune.report import build_report

    search = Search.open(options.run)
    target = options.to or f"{options.run.rstrip('/')}/report.html"
    folder, file_name = split_uri(target)
    report = build_report(search, studies.load_study(search))
    open_store(folder).write(file_name, render_page(report).encode())
    output.line(f"Report in {target}")
    output.result({"run": options.run, "to": target})


def _track(options: argparse.Namespace, output: CommandOutput) -> None:
    from tune.tracking import SearchFollower

    Search.open(options.run)
    update_trackers(SearchFollower(options.run).read, options, output)


def _confirm(options: argparse.Namespace, output: CommandOutput) -> None:
    search = Search.open(options.run)
    for name in ("top", "seeds"):
        if getattr(options, name) < 1:
            raise ConfigError(f"`--{name}` must be at least 1, but got {getattr(options, name)}.")
    base = (
        config_from_dict(search.asked.config)
        if options.config is None
        else presets.load_config(options.config)
    )
    base = apply_overrides(base, options.overrides)
    folds = search.budget.folds
    if options.fold is not None:
        folds = parse_folds(options.fold, search.manifest().num_folds)
    best = studies.select_best(studies.load_study(search), options.top)

    from mtil.distributed.runtime import cluster
    from tune.confirm import confirm_winners

    with cluster.connect_ray(verbose=options.verbose), output.progress() as bar:
        report = confirm_winners(
            search, best, base, folds, options.seeds, lambda line: _show_training(line, bar, output)
        )
    text = json.dumps(report, indent=1) + "\n"
    search.store.write("confirm.json", text.encode())
    _print_confirmed(search, report, output)
    output.result({"run": options.run, **report})


def _print_confirmed(search: Search, report: Mapping[str, Any], output: CommandOutput) -> None:
    if search.space.fixed:
        fixed = ", ".join(f"{key} {value}" for key, value in search.space.fixed.items())
        output.line(f"The default also has the keys fixed by --narrow: {fixed}.")
    for number in report["same_as_default"]:
        output.line(f"Trial {number} equals the default. Compare more trials with --top.")
    folds = report["folds"]
    where = "the holdout" if HOLDOUT in folds else f"folds: {', '.join(map(str, folds))}"
    for contender in report["contenders"]:
        output.line("")
        output.line(
            f"{contender['name']} minus the default; seeds: {report['seeds']}; test rows of {where}"
        )
        output.table(
            ["figure", "default", "trial", "difference", "low", "high", "by seed"],
            [
                [name, *_figure_cells(name, report["default"], contender)]
                for name in COMPARED_FIGURES
            ],
        )
        output.line(contender["verdict"])
    if report.get("rows", {}).get("left_out"):
        output.line(
            f"{report['rows']['left_out']} test rows are left out, since other folds of the search "
            f"were validated on them. {report['rows']['compared']} test rows are compared."
        )


def _figure_cells(name: str, default: Mapping[str, Any], contender: Mapping[str, Any]) -> list[str]:
    difference = contender["difference"][name]
    numbers = [default["metrics"][name]["value"], contender["metrics"][name]["value"]]
    numbers += [difference[key] for key in ("value", "low", "high")]
    cells = ["n/a" if number is None else f"{number:.4f}" for number in numbers]
    seed_differences = contender["difference_by_seed"][name]
    return [
        *cells,
        " ".join("n/a" if value is None else f"{value:+.3f}" for value in seed_differences),
    ]


def _show_training(line: dict[str, Any], bar: ProgressBar, output: CommandOutput) -> None:
    if line["kind"] == "training":
        output.line(f"{line['name']}, seed {line['seed']}")
        bar.show(line["name"], line["number"], line["of"])
