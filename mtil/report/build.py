"""Put a report together from runs."""

from collections.abc import Callable, Sequence

from mtil.report.elements import Report, Section
from mtil.report.gallery.cards import Card, make_anchor, make_cards
from mtil.report.scored import ScoredRun
from mtil.report.sections.circle import make_circle_section
from mtil.report.sections.comparison import make_comparison_section
from mtil.report.sections.figures import (
    describe_headline,
    draw_headline,
    list_warnings,
    make_figures_section,
)
from mtil.report.sections.tasks import make_classification_section, make_outlines_section
from mtil.report.sections.training import make_curves_section, make_provenance_section


def build_report(
    scored: ScoredRun,
    others: Sequence[ScoredRun] = (),
    listen: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Return the report of a run, compared with other runs.

    Args:
        scored: the run.
        others: further runs. Each is compared with the run on the images scored by both.
        listen: called with the numbers of finished and of all cards of the gallery.
    """
    name = scored.name if scored.manifest is None else f"{scored.name} on {scored.manifest.name}"
    if scored.last_round is None:
        return Report(
            title=f"Report of {name}",
            summary="No test image is scored yet.",
            warnings=(
                "This run has no scores of test images. `mtil evaluate` scores the folds that are "
                "trained.",
            ),
            headline=None,
            sections=_existing(make_curves_section(scored), make_provenance_section(scored)),
        )
    cards = make_cards(scored, listen)
    anchors = {card.sample_id for card in cards}

    def link(sample_id: str) -> str | None:
        return f"#{make_anchor(sample_id)}" if sample_id in anchors else None

    warnings = list_warnings(scored)
    if not cards:
        warnings.append(
            "The images have no pictures: these scores are of an earlier version. `mtil evaluate` "
            "makes them."
        )
    elif len(cards) < scored.figures["num_images"]:
        warnings.append(
            f"The gallery shows {len(cards)} of {scored.figures['num_images']} images, chosen by "
            "their ids alone."
        )
    return Report(
        title=f"Report of {name}",
        summary=describe_headline(scored),
        warnings=tuple(warnings),
        headline=draw_headline(scored),
        sections=_existing(
            make_figures_section(scored),
            make_comparison_section(scored, others, link),
            make_circle_section(scored),
            make_classification_section(scored),
            make_outlines_section(scored, link),
            make_curves_section(scored),
            make_provenance_section(scored),
        ),
        cards=cards,
        layers=_name_layers(cards),
    )


def _name_layers(cards: Sequence[Card]) -> tuple[tuple[str, str], ...]:
    """Return key and name of all layers of the gallery, the outlines of the last pass first."""
    keys = sorted({key for card in cards for key in card.layers})
    passes = sorted({int(key.split("-")[1]) for key in keys if "-" in key}, reverse=True)
    named = [
        (f"{kind}-{number}", f"{text} of pass {number}")
        for kind, text in (("outlines", "outlines"), ("map", "lesion map"))
        for number in passes
    ]
    return (*named, ("evidence", "contributions to the class")) if keys else ()


def _existing(*sections: Section | None) -> tuple[Section, ...]:
    return tuple(section for section in sections if section is not None)
