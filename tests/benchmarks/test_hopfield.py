"""The Hopfield experiment: its network, its batches, its criterion, its table, and the command from end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")

from benchmarks.paper.hopfield.cells import key_of, results, run_cells, succeeded
from benchmarks.paper.hopfield.digits import Digits, erase_half
from benchmarks.paper.hopfield.methods import BPTT, METHODS, UPDATES, run_method
from benchmarks.paper.hopfield.network import drive, first_couplings, losses, settled, symmetrized, update
from benchmarks.paper.hopfield.settings import Plan, Setting
from benchmarks.paper.hopfield.table import rows, strict_successes, table
from benchmarks.paper.hopfield.trials import Trials
from benchmarks.paper.records import Records

SMALL = Setting(data="digits", hidden=7, scale=0.1, rate=5e-3, images_per_step=5, epochs=3)
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def digits() -> Digits:
    rng = np.random.default_rng(0)
    return Digits("random 4x4", rng.random((10, 4, 4)) < 0.4)


def trained(digits: Digits, method: str, numbers: list[int], setting: Setting = SMALL) -> Trials:
    trials = Trials(setting, method, 6, numbers, digits, "cpu")
    while not trials.done:
        trials.advance()
    return trials


def whole_network(pixels: int, hidden: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``W (n, n)`` of the paper's whole state in float64, and the two blocks of ``V`` that it gives."""
    size = 2 * pixels + hidden
    weight = 0.1 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    full = (weight + weight.T).fill_diagonal_(0)
    return weight, full[None, pixels:, pixels:].clone(), full[None, :pixels, pixels:].clone()


def test_training_the_couplings_of_the_free_units_is_training_the_paper_s_whole_network(digits):
    """Adam on W of all units, differentiated through 50 updates by autograd, against Adam on the two blocks of V."""
    pixels, hidden = 16, 7
    weight, inner, clamped = whole_network(pixels, hidden, seed=3)
    for tensor in (weight, inner, clamped):
        tensor.requires_grad_()
    theirs = torch.optim.Adam([weight], lr=1e-3)
    ours = torch.optim.Adam([inner, clamped], lr=2e-3)
    images = torch.from_numpy(digits.flat).double()
    mask = (torch.arange(2 * pixels + hidden) >= pixels).double()
    for image in images[:4]:
        theirs.zero_grad()
        shown = torch.nn.functional.pad(image, (0, hidden + pixels))
        coupling = (weight + weight.T) * (1 - torch.eye(len(weight)))
        state = shown
        for _ in range(UPDATES):
            state = mask * (coupling @ torch.sigmoid(0.5 * state)) + shown
        expected = (state[-pixels:] - image).abs().mean()
        expected.backward()
        theirs.step()

        ours.zero_grad()
        batch = image[None, None]
        this = run_method(BPTT, 1, inner, drive(batch, clamped), torch.rand)
        met = losses(this.state, batch).sum()
        met.backward()
        symmetrized(inner.grad)
        ours.step()
        assert met.item() == pytest.approx(expected.item(), rel=1e-12)
    coupling = (weight + weight.T).detach().fill_diagonal_(0)
    moved = (coupling - whole_network(pixels, hidden, seed=3)[0]).abs().max()
    assert moved > 1e-3
    # Entries whose gradient is rounding alone move by Adam's rate either way: none here, the L1 loss sees to that.
    torch.testing.assert_close(inner[0].detach(), coupling[pixels:, pixels:], rtol=0, atol=1e-9)
    torch.testing.assert_close(clamped[0].detach(), coupling[:pixels, pixels:], rtol=0, atol=1e-9)


def test_an_update_that_changes_no_bit_ends_the_iteration_at_the_state_of_fifty():
    inner, clamped = first_couplings(16, 7, 0.02, [0, 1, 2])
    sent = drive((torch.rand(3, 5, 16, generator=torch.Generator().manual_seed(0)) < 0.5).float(), clamped)
    state = torch.zeros_like(sent)
    for _ in range(UPDATES):
        state = update(state, inner, sent)
    early, made = settled(inner, sent, UPDATES)
    assert made < UPDATES
    assert torch.equal(early, state)


def test_an_iteration_that_does_not_arrive_makes_every_update():
    inner = torch.tensor([[[0.0, -12.0], [-12.0, 0.0]]])  # expands: the state jumps between two
    sent = torch.tensor([[[5.0, 5.0]]])
    state = torch.zeros_like(sent)
    for _ in range(7):
        state = update(state, inner, sent)
    following, made = settled(inner, sent, 7)
    assert made == 7
    assert torch.equal(following, state)


@pytest.mark.parametrize("method", [BPTT, *METHODS])
def test_a_batch_of_trials_gives_what_the_trials_give_one_by_one(digits, method):
    together = results(trained(digits, method, [0, 1, 2]))
    for number, among in enumerate(together):
        (alone,) = results(trained(digits, method, [number]))
        for name in ("untrained", "first", "final", "trained"):
            # Matrix products of another batch may be summed in another order; three epochs amplify that by little.
            assert among[name] == pytest.approx(alone[name], rel=1e3 * EPS), name
        assert among["forward"] == alone["forward"]
        assert among["backward"].keys() == alone["backward"].keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_that_is_lost_touches_no_other_and_fails(digits, method):
    kept = Trials(SMALL, method, 6, [0, 1, 2], digits, "cpu")
    with torch.no_grad():
        kept.inner[1].fill_(math.nan)
    whole = Trials(SMALL, method, 6, [0, 1, 2], digits, "cpu")
    for trials in (kept, whole):
        while not trials.done:
            trials.advance()
    broken, sound = results(kept), results(whole)
    for number in (0, 2):
        assert broken[number]["final"] == pytest.approx(sound[number]["final"], rel=1e3 * EPS)
        assert broken[number]["backward"].keys() == sound[number]["backward"].keys()
    assert math.isnan(broken[1]["final"])
    assert not succeeded(broken[1], "first")
    assert not succeeded(broken[1], "untrained")
    if method != "TBPTT":
        # The backward solve of a lost trial is of no account: torch's sign of NaN is 0, so it is given g = 0 to solve.
        assert broken[1]["forward"].keys() == {"NONFINITE_INPUT"}


def gradient_of(method: str, truncate: int, seed: int = 0) -> torch.Tensor:
    inner, clamped = (block.double().requires_grad_() for block in first_couplings(16, 7, 0.3, [seed]))
    images = (torch.rand(1, 3, 16, generator=torch.Generator().manual_seed(seed)) < 0.5).double()
    this = run_method(method, truncate, inner, drive(images, clamped), lambda shape: torch.rand(shape).double())
    losses(this.state, images).sum().backward()
    return inner.grad


def test_rbp_from_zero_is_neumann_with_one_product_fewer():
    """Proposition 3, on this network."""
    torch.testing.assert_close(gradient_of("RBP from zero", 9), gradient_of("Neumann-RBP", 8), rtol=1e-12, atol=1e-15)
    assert not torch.allclose(gradient_of("RBP from zero", 3), gradient_of("Neumann-RBP", 3), rtol=1e-6, atol=0)


def test_rbp_from_uniform_numbers_is_off_by_what_the_jacobian_leaves_of_them():
    """``z_K = sum_{t<K} (J^T)^t g + (J^T)^K z_0``: the second term is there, and does not know how small ``g`` is."""
    inner, clamped = (block.double() for block in first_couplings(16, 7, 0.3, [0]))
    image = (torch.rand(1, 1, 16, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    sent = drive(image, clamped)
    start = torch.rand(1, 1, 23, generator=torch.Generator().manual_seed(1)).double()
    gradients = {}
    for method in ("RBP", "RBP from zero"):
        inner = inner.detach().requires_grad_()
        this = run_method(method, 4, inner, sent, lambda shape: start.reshape(shape))
        losses(this.state, image).sum().backward()
        gradients[method] = inner.grad[0].numpy()
    state = this.state.detach().numpy().ravel()
    on = 1 / (1 + np.exp(-state / 2))
    jacobian = inner.detach().numpy()[0].T * (0.5 * on * (1 - on))
    error = np.linalg.matrix_power(jacobian.T, 4) @ start.numpy().ravel()
    np.testing.assert_allclose(
        gradients["RBP"] - gradients["RBP from zero"], np.outer(on, error), rtol=0, atol=1e-12 * np.abs(error).max()
    )
    assert np.abs(error).max() > 1e-3


@pytest.mark.parametrize("method", ["TBPTT", "CG-RBP", "Neumann-RBP", "GMRES"])
def test_the_other_methods_agree_with_bptt_at_a_long_truncation(method):
    exact = gradient_of("BPTT", 50)
    error = (gradient_of(method, 45) - exact).norm() / exact.norm()
    # CG's shift of 1e-5 biases it by about that, GMRES stops at its default residual of sqrt(eps) / 4.
    assert error < (1e-4 if method == "CG-RBP" else 1e-7)


def test_a_method_of_another_name_is_refused():
    with pytest.raises(ValueError, match="got the method 'RPB', expected one of"):
        gradient_of("RPB", 3)


def test_a_cosine_takes_the_rate_to_zero_and_a_constant_leaves_it(digits):
    for schedule, rates in (("constant", [5e-3] * 7), ("cosine", 2.5e-3 * (1 + np.cos(np.pi * np.arange(7) / 6)))):
        trials = Trials(replace(SMALL, schedule=schedule), "TBPTT", 6, [0], digits, "cpu")
        met = [trials.rate()]
        while not trials.done:
            trials.step(trials.images[None, :5])
            met.append(trials.rate())
            if len(met) == 7:
                break
        np.testing.assert_allclose(met, rates, rtol=0, atol=1e-15)
        assert trials.optimizer.param_groups[0]["lr"] == 2 * met[-2]


def test_the_gradient_is_made_symmetric_tile_by_tile():
    gradient = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0))  # more than one tile
    expected = gradient + gradient.mT
    expected.diagonal(dim1=-2, dim2=-1).zero_()
    assert torch.equal(symmetrized(gradient.clone()), expected)


def test_half_of_the_ink_is_erased_and_none_is_added(digits):
    erased = erase_half(digits.flat, seed=1)
    assert (erased <= digits.flat).all()
    np.testing.assert_array_equal(erased.sum(axis=1), digits.flat.sum(axis=1) - digits.flat.sum(axis=1) // 2)


def test_the_criterion_is_half_of_the_initial_loss_and_a_lost_number_is_no_success():
    assert succeeded({"first": 1.0, "final": 0.4999}, "first")
    assert not succeeded({"first": 1.0, "final": 0.5}, "first")
    assert not succeeded({"first": 1.0, "final": math.nan}, "first")
    assert not succeeded({"first": 1.0, "final": None}, "first")  # as a record holds it
    assert not succeeded({"first": None, "final": 0.1}, "first")
    assert not succeeded({"first": math.inf, "final": math.inf}, "first")
    assert not succeeded({"first": math.nan, "final": 0.1}, "first")


def test_a_checkpoint_goes_on_where_it_was_left(digits, tmp_path):
    path = tmp_path / "trials.pt"
    half = Trials(SMALL, "RBP", 6, [0, 1], digits, "cpu")
    half.advance()
    half.save(path)
    again = Trials(SMALL, "RBP", 6, [0, 1], digits, "cpu")
    again.load(path)
    for trials in (half, again):
        while not trials.done:
            trials.advance()
    assert again.curve == half.curve
    assert torch.equal(again.inner, half.inner)
    assert again.backward == half.backward
    with pytest.raises(ValueError, match="got a checkpoint of"):
        Trials(SMALL, "RBP", 7, [0, 1], digits, "cpu").load(path)


PLAN = Plan(SMALL, ("TBPTT", "RBP"), (2, 4), trials=3, at_once=2, parts=("table",), figure_truncation=2)


def test_an_interrupted_run_continues_and_repeats_nothing(digits, tmp_path, monkeypatch):
    records = Records(tmp_path / "hopfield.jsonl")
    calls = []
    monkeypatch.setattr(Trials, "advance", lambda self: calls.append(self.numbers) or _interrupt_after(calls, 7, self))
    with pytest.raises(KeyboardInterrupt):
        run_cells(PLAN, digits, records)
    done = len(records.lines())
    assert 0 < done < 12
    monkeypatch.undo()
    run_cells(PLAN, digits, records)
    lines = records.lines()
    assert len(lines) == 12
    assert len({json.dumps(line["key"], sort_keys=True) for line in lines}) == 12
    before = records.path.read_text()
    run_cells(PLAN, digits, records)
    assert records.path.read_text() == before


_ADVANCE = Trials.advance


def _interrupt_after(calls: list, count: int, trials: Trials) -> None:
    if len(calls) > count:
        raise KeyboardInterrupt
    _ADVANCE(trials)


def test_the_table_sets_our_share_beside_the_paper_s(tmp_path):
    records = Records(tmp_path / "hopfield.jsonl")
    shared = {"untrained": 1.0, "first": 2.0, "forward": {}, "backward": {"TRUNCATED": 3}, "updates": 50, "products": 2}
    for trial, final in enumerate([0.4, 1.6, math.nan, 0.9]):
        records.add(key_of(SMALL, "RBP", 10, trial), {**shared, "final": final}, 1.0)
    plan = Plan(SMALL, (BPTT, "RBP", "GMRES"), (10,), 4, 1, ("table",), 10)
    ((method, truncate, paper, ours, interval, gap, first, untrained, *_, solves),) = rows(plan, records)
    assert (method, truncate, paper) == ("RBP", "10", "1")
    assert ours == "50 (2/4)"
    assert interval == "15 to 85"  # Wilson's, for 2 of 4
    assert gap.startswith("+49 +- ")
    assert (first, untrained, solves) == ("0.62", "1.25", "TRUNCATED 100%")  # medians, the lost trial the worst
    assert strict_successes(plan, records) == (1, 4)
    text, markdown = table(plan, records), table(plan, records, markdown=True)
    assert "50 (2/4)" in text
    assert markdown.splitlines()[2].startswith("| RBP")


def test_the_curves_end_at_their_names_and_a_lost_trial_ends_where_its_numbers_do(tmp_path, monkeypatch):
    """What is drawn, read back from the axes: red where it failed, every name at a height of its own."""
    figure = pytest.importorskip("matplotlib.figure")
    from benchmarks.paper.hopfield import curves

    drawn = []
    monkeypatch.setattr(curves, "Figure", lambda **kw: drawn.append(figure.Figure(**kw)) or drawn[-1])
    good = {"untrained": 0.2, "first": 1.0, "final": 0.3, "curve": [[0, 1.0], [9, 0.3]]}
    lost = {"untrained": 0.2, "first": 1.0, "final": None, "curve": [[0, 1.0], [4, 7.0], [9, None]]}
    path = tmp_path / "losses.png"
    curves.draw_curves(path, {("GMRES", 10): [good], ("Neumann-RBP", 10): [good], ("RBP", 10): [lost]}, "toy")
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    lines = {tuple(line.get_xdata()): line.get_color() for line in axes.lines if len(line.get_xdata()) == 2}
    assert lines[0, 9] == curves.INK
    assert lines[0, 4] == curves.ALARM
    bounds = [line.get_ydata()[0] for line in axes.lines[-2:]]
    assert bounds == pytest.approx([0.5, 0.1])  # half of either initial loss
    names = {text.get_text(): text.get_position()[1] for text in axes.texts if "K = 10" in text.get_text()}
    heights = sorted(names.values())
    assert len(heights) == 3
    assert np.diff(heights).min() >= 0.99 * curves._APART  # both of the good ones end at 0.3
    to_axes = axes.transData + axes.transAxes.inverted()
    assert np.mean(heights[:2]) == pytest.approx(to_axes.transform((0, 0.3))[1])
    assert names["RBP, K = 10"] == pytest.approx(to_axes.transform((0, 7.0))[1])


def test_quick_runs_from_end_to_end(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from benchmarks.paper.__main__ import main

    assert main(["hopfield", "--quick", "--epochs", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in METHODS)
    assert (tmp_path / "quick-hopfield-loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "quick-hopfield.png").read_bytes().startswith(b"\x89PNG")
    methods = {line["key"]["method"] for line in Records(tmp_path / "quick-hopfield.jsonl").lines()}
    assert methods == {BPTT, *METHODS}
    assert not list(Path(tmp_path).rglob("*.pt"))


def test_a_mistyped_method_ends_with_a_message(tmp_path, capsys):
    from benchmarks.paper.__main__ import main

    with pytest.raises(SystemExit):
        main(["hopfield", "--quick", "--only", "Neuman", "--out", str(tmp_path)])
    assert "got ['Neuman'], expected some of" in capsys.readouterr().err
