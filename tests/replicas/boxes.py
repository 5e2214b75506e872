"""Detections and their overlaps, one box at a time."""

from __future__ import annotations

import math
from typing import Any

from networks.detectors import KEYS, WHAT

# ---- the replica: lists of numbers, one detection at a time ----


def listed(output: Any, sigmoid: bool = False) -> list[list[dict[str, Any]]]:
    """For each picture its detections: the box by its corners, and the score of each class."""
    if isinstance(output, list):
        return [
            [
                {"box": box, "label": label, "scores": {label: score}}
                for box, label, score in zip(*(each[key].tolist() for key in KEYS), strict=True)
            ]
            for each in output
        ]
    pictures = []
    for boxes, logits in zip(output["pred_boxes"].tolist(), output["logits"].tolist(), strict=True):
        pictures.append([])
        for (x, y, w, h), row in zip(boxes, logits, strict=True):
            if sigmoid:
                scores = {c: 1 / (1 + math.exp(-z)) for c, z in enumerate(row)}
            else:
                total = sum(math.exp(z) for z in row)
                scores = {c: math.exp(z) / total for c, z in enumerate(row[:-1])}
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            pictures[-1].append({"box": box, "label": max(scores, key=scores.__getitem__), "scores": scores})
    return pictures


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def ranked(picture: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(picture, key=lambda each: -each["scores"][each["label"]])


def found_again(clean: dict[str, Any], picture: list[dict[str, Any]], what: str, least: float) -> float:
    label, sure = clean["label"], clean["scores"][clean["label"]]
    best, answer = 0.0, 0.0 if what == "score" else clean["box"][WHAT.index(what) - 1]
    for each in picture:
        if label not in each["scores"]:
            continue
        near = iou(each["box"], clean["box"])
        weight = near * min(each["scores"][label], sure)
        if near >= least and weight > best:
            best = weight
            answer = each["scores"][label] if what == "score" else each["box"][WHAT.index(what) - 1]
    return answer
