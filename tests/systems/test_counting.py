"""The metrics of scenes: one posterior sample gives the bound, the counts and the boxes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from guides import AIRGuide
from guides.systems.air import SYSTEM as AIR_SYSTEM
from guides.systems.air_pictures import worst_pictures
from pplmodels import AIR, inspect, plotting
from pplmodels.data import Images, SceneSet
from pplmodels.metrics import detection_metrics, elbo_terms, log_probs, object_boxes, scene_iou
from pplmodels.metrics.bounds import IWBound
from pplmodels.systems.counting import scene_metrics, weighted_metrics

SIZES = {"canvas": (1, 16, 16), "num_steps": 2, "what_dim": 3, "window": 4}
NONE = [torch.nan] * 4
LEFT, RIGHT = [0.0, 4.0, 8.0, 12.0], [8.0, 4.0, 16.0, 12.0]  # the windows below, and a pixel of blur on each side
WINDOWS = {"left": [6 / 16, -0.5, 0.0], "right": [6 / 16, 0.5, 0.0]}  # side as a fraction, and center
WHITE, BLACK = [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]


@pytest.fixture
def pair():
    """A model that draws z_what of WHITE and BLACK as such, and a guide."""
    model, guide = AIR(**SIZES, hidden_dims=()), AIRGuide(**SIZES, embed_dim=8, hidden_dim=8, predict_dim=8)
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].weight[:, 0] = 30.0
        model.decoder[-1].bias.zero_()
    return model.eval(), guide.eval()


def fixed_sample(*scenes):
    """Log-probabilities with a certain sample: the windows and appearances of each scene, two per scene at most."""
    padded = [[*scene, None, None][:2] for scene in scenes]
    latents = {}
    for t in (0, 1):
        steps = [scene[t] or ("left", WHITE) for scene in padded]  # what is not present would be a white object
        where = torch.tensor([WINDOWS[window] for window, _ in steps])
        where[:, 0].log_()
        latents[f"z_where_{t + 1}"] = where
        latents[f"z_what_{t + 1}"] = torch.tensor([what for _, what in steps])
        latents[f"z_pres_{t + 1}"] = torch.tensor([float(scene[t] is not None) for scene in padded])
    begun = 0

    def sampled(x):
        nonlocal begun
        rows = {name: values[begun : begun + len(x)] for name, values in latents.items()}
        begun += len(x)
        return {"x": torch.zeros(len(x))}, {}, rows

    return sampled


SCENES = [  # inferred objects, and true boxes
    ([("right", WHITE), ("left", WHITE)], [LEFT, RIGHT]),
    ([("left", WHITE), ("right", BLACK)], [LEFT, NONE]),
    ([("right", WHITE)], [LEFT, NONE]),
    ([], [NONE, NONE]),
]


def made(copies=1):
    boxes = torch.tensor([boxes for _, boxes in SCENES]).repeat(copies, 1, 1)
    pixels = torch.zeros(len(boxes), 1, 16, 16, dtype=torch.uint8)
    return Images(pixels, boxes.isfinite().all(-1).sum(1), boxes=boxes)


def test_counts_boxes_and_dark_objects_are_those_of_the_sample(pair):
    model, guide = pair
    metrics = scene_metrics(fixed_sample(*(found for found, _ in SCENES)), model, guide, made())
    expected = {
        "count_accuracy": 3 / 4,
        "count_accuracy/0": 1,
        "count_accuracy/1": 1 / 2,
        "count_accuracy/2": 1,
        "count_accuracy_without_dark": 1,
        "dark_objects": 1 / 5,
        "mean_iou": 1,
        "f1_50": 2 * 3 / (4 + 5),
        "all_parts_right": 2 / 4,
        "all_parts_right/0": 1,
        "all_parts_right/1": 0,
        "all_parts_right/2": 1,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert sum(metrics["reliability/share"]) == pytest.approx(1)


def test_batches_and_parts_of_them_do_not_matter(pair, monkeypatch):
    """300 scenes: evaluation takes them in batches, and the boxes of a batch in parts of three scenes."""
    model, guide = pair
    found = [found for found, _ in SCENES] * 150
    torch.manual_seed(0)
    whole = scene_metrics(fixed_sample(*found), model, guide, made(150))
    monkeypatch.setattr("pplmodels.inspect.air.CHANGES", 3 * 2 * 16 * 16 + 5)
    sizes = []
    monkeypatch.setattr("pplmodels.inspect.air.object_boxes", lambda x: sizes.append(len(x)) or object_boxes(x))
    torch.manual_seed(0)
    assert scene_metrics(fixed_sample(*found), model, guide, made(150)) == whole
    assert max(sizes) == 3 and sum(sizes) == 600
    assert whole["all_parts_right"] == 1 / 2


def test_the_sample_is_the_one_that_the_bound_is_computed_from(pair):
    model, guide = pair
    scenes = replace(made(10), pixels=torch.randint(256, (40, 1, 16, 16), dtype=torch.uint8))
    runs = []

    def recorded(x):
        runs.append(log_probs(model, guide, x))
        return runs[-1]

    metrics = scene_metrics(recorded, model, guide, scenes)
    ((_, _, latents),) = runs
    assert metrics["elbo"] == pytest.approx(elbo_terms(lambda _: runs[0], [scenes[:]])[0]["elbo"])
    z_pres = torch.stack([latents["z_pres_1"], latents["z_pres_2"]], -1)
    boxes = object_boxes(model.scene_changes(latents).detach())
    expected = detection_metrics(boxes, z_pres, scenes.counts, scenes.boxes)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    counts = z_pres.sum(1).long()
    assert metrics["count_accuracy"] == float((counts == scenes.counts).double().mean())


def test_scenes_without_counts_or_boxes_lack_those_metrics(pair):
    model, guide = pair
    scenes = made()
    sample = partial(fixed_sample, *(found for found, _ in SCENES))
    of_boxes = {"all_parts_right", "mean_iou", "f1_50"}
    of_counts = {"count_accuracy", "count_accuracy_without_dark", "expected_calibration_error", "confusion"}
    counted = scene_metrics(sample(), model, guide, replace(scenes, boxes=None))
    assert of_counts | {"dark_objects"} <= counted.keys() and not of_boxes & counted.keys()
    unknown = scene_metrics(sample(), model, guide, replace(scenes, boxes=None, counts=None))
    assert "dark_objects" in unknown and not (of_boxes | of_counts) & unknown.keys()


def test_changes_are_what_is_rendered(pair):
    model, guide = pair
    _, _, latents = log_probs(model, guide, torch.rand(5, 1, 16, 16))
    z_pres, z_where, z_what = (
        torch.stack(inspect.steps(latents, f"z_{name}"), 1) for name in ("pres", "where", "what")
    )
    changes = model.scene_changes(latents)
    assert changes.shape == (5, 2, 1, 16, 16)
    torch.testing.assert_close(model.render(z_pres, z_where, z_what), (z_pres[..., None, None, None] * changes).sum(1))


def test_an_inferred_scene_has_its_bound_and_boxes(pair):
    model, guide = pair
    x = torch.rand(6, 1, 16, 16)
    torch.manual_seed(0)
    log_p, log_q, latents = log_probs(model, guide, x)
    torch.manual_seed(0)
    view = inspect.infer_scenes(model, guide, x)
    torch.testing.assert_close(view.elbo, sum(log_p.values()) - sum(log_q.values()))
    torch.testing.assert_close(view.boxes, object_boxes(model.scene_changes(latents)), equal_nan=True)


def test_unseen_counts_have_all_parts_right_too(pair):
    model, guide = pair
    scenes = made()
    data = SceneSet(scenes, scenes, 8.0, unseen=scenes)
    metrics = AIR_SYSTEM.held_out_metrics(fixed_sample(*[found for found, _ in SCENES] * 2), model, guide, data)
    assert metrics["unseen_all_parts_right"] == metrics["all_parts_right"] == 1 / 2


def test_the_effective_sample_size_without_empty_scenes(pair):
    bound = IWBound(torch.zeros(4), torch.tensor([3.0, 5.0, 10.0, 100.0]))
    assert weighted_metrics(made(), bound) == {"effective_sample_size/with_objects": 6}
    assert weighted_metrics(replace(made(), counts=None), bound) == {}
    assert weighted_metrics(made().part(torch.tensor([3])), bound) == {}


def test_the_worst_scenes_are_shown_with_the_sample_that_they_were_found_by(pair, monkeypatch, tmp_path):
    """40 scenes in batches of 7; what is shown has the ten lowest scores of all that were computed."""
    model, guide = pair
    scenes = replace(made(10), pixels=torch.randint(256, (40, 1, 16, 16), dtype=torch.uint8))
    views, shown = [], []
    infer, draw = inspect.infer_scenes, plotting.scenes_with_windows
    monkeypatch.setattr(Images, "at_once", lambda self, most: 7)
    monkeypatch.setattr(inspect, "infer_scenes", lambda *given: views.append(infer(*given)) or views[-1])
    monkeypatch.setattr(plotting, "scenes_with_windows", lambda *given: shown.append(given) or draw(*given))
    worst_pictures(model, guide, scenes, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"worst-bound.png", "worst-iou.png"}
    assert len(views) == 6
    all_ = inspect.InferredScenes.cat(views)
    for score, given in zip((all_.elbo, scene_iou(scenes.boxes, all_.boxes, all_.z_pres)), shown, strict=True):
        order = score.argsort(stable=True)[:10]
        seen, _, z_pres, z_where, counts, boxes, notes = given
        assert (seen == scenes[order].numpy()).all() and (counts == scenes.counts[order].numpy()).all()
        assert (z_where == all_.z_where[order].numpy()).all() and (z_pres == all_.z_pres[order].numpy()).all()
        assert torch.equal(torch.tensor(boxes).nan_to_num(-1), scenes.boxes[order].nan_to_num(-1))
        assert notes == [f"{value:.4g}" for value in score[order].tolist()]
    worst_pictures(model, guide, replace(scenes.head(3), boxes=None), tmp_path)
    assert len(shown) == 3 and len(shown[-1][0]) == 3
