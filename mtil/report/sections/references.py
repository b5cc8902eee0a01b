"""Published figures with their protocols."""

from mtil.report.elements import Table

PUBLISHED = Table(
    name="published",
    title="Published figures on BUSI, with their protocols",
    columns=("method", "Dice", "classification", "protocol"),
    rows=(
        ("Zheng et al. 2025 (doi:10.1088/1361-6560/adae4d)", "0.8195", "F1 0.8213", "not stated"),
        ("MTL-OCA", "0.8375 pooled", "accuracy 0.9167", "folds of single images, with normals"),
        ("MTL-OCA, trained again", "0.612", "three-class score 0.720", "whole groups, 70/15/15"),
        (
            "EfficientNet-B4 with task interaction (arXiv:2603.01295)",
            "0.8525 pooled",
            "AUC 0.9766",
            "one split of single images",
        ),
        (
            "U-Net on EfficientNet-B4, five seeds",
            "0.760",
            "macro F1 0.875",
            "whole groups, one split, 98 test images",
        ),
    ),
    note="With folds of single images, near-copies of test images are trained on. Only rows with "
    "whole groups compare with grouped folds.",
)


def lists_collection(names: list[str]) -> bool:
    """Return whether published figures of a data set's collections are known."""
    return "BUSI" in names
