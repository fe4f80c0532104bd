"""The demo: its data, its network, its gradients and its table piece by piece, and a quick run of the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def demo():
    """The demo's modules, imported as a script imports them: from its own folder."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import associative_memory
        import hopfield
        import hopfield_gradients
        import method_table

        yield type(
            "Demo", (), {"main": associative_memory, "net": hopfield, "ways": hopfield_gradients, "table": method_table}
        )
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def digits(demo):
    return demo.net.load_digits("digits", None, seed=0)


@pytest.fixture
def net(demo):
    """Weights of a spectral radius near one half, so that 50 updates reach the fixed point."""
    return demo.net.Hopfield(64, 32, scale=0.15, seed=3)


def save_images(folder: Path, **arrays: np.ndarray) -> None:
    np.savez(folder / "mnist-train-19690.npz", **arrays)


def test_the_digits_are_ten_binary_images(digits):
    assert digits.clean.shape == digits.corrupted.shape == (10, 64)
    assert set(digits.clean.unique().tolist()) == {0.0, 1.0}
    assert digits.side == 8


def test_half_of_the_on_pixels_are_erased_and_no_others(digits):
    on, left = digits.clean.sum(dim=1), digits.corrupted.sum(dim=1)
    assert torch.equal(left, on - on.div(2, rounding_mode="floor"))
    assert (digits.corrupted <= digits.clean).all()


def test_the_seed_decides_what_is_erased(demo, digits):
    again, other = (demo.net.load_digits("digits", None, seed=seed).corrupted for seed in (0, 1))
    assert torch.equal(again, digits.corrupted)
    assert not torch.equal(other, digits.corrupted)


def test_mnist_is_read_from_the_folder_that_is_named(demo, tmp_path):
    images = np.zeros((12, 28, 28), dtype=np.uint8)
    images[:, 3, :4] = np.arange(1, 13)[:, None]
    save_images(tmp_path, images=images, labels=np.array([1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1], dtype=np.uint8))
    digits = demo.net.load_digits("mnist", tmp_path, seed=0)
    assert digits.clean.shape == (10, 784)
    assert digits.clean.sum(dim=1).tolist() == [4.0] * 10


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": np.zeros((3, 28, 28))}, "labels"),
        ({"images": np.zeros((3, 784)), "labels": np.zeros(3)}, "expected \\(count, side, side\\)"),
        ({"images": np.zeros((3, 28, 28)), "labels": np.arange(3)}, "got no image of the digits"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_words(demo, tmp_path, arrays, sentence):
    save_images(tmp_path, **arrays)
    with pytest.raises(demo.net.DataError, match=sentence):
        demo.net.load_digits("mnist", tmp_path, seed=0)


def test_a_missing_file_and_a_missing_folder_are_named(demo, tmp_path, capsys):
    assert demo.main.main(["--dataset", "mnist", "--data-dir", str(tmp_path)]) == 2
    assert f"found no file {tmp_path}" in capsys.readouterr().err
    assert demo.main.main(["--dataset", "mnist"]) == 2
    assert "--data-dir DIR" in capsys.readouterr().err


def test_a_file_that_is_no_archive_is_refused_in_words(demo, tmp_path):
    (tmp_path / "mnist-train-19690.npz").write_text("hello")
    with pytest.raises(demo.net.DataError, match="cannot be read"):
        demo.net.load_digits("mnist", tmp_path, seed=0)


def test_the_coupling_is_symmetric_with_a_zero_diagonal(net):
    coupling = net.coupling()
    assert torch.equal(coupling, coupling.T)
    assert not coupling.diagonal().any()


def test_the_visible_units_stay_clamped(net, digits):
    shown = net.clamp(digits.clean)
    state = net.run(shown, net.coupling(), shown, 5)
    assert torch.equal(state[:, :64], digits.clean)


def test_bptt_gmres_and_a_long_neumann_series_agree_with_the_dense_solve(demo, net, digits):
    exact = demo.ways.reference_gradient(net, digits.clean)
    for method in demo.ways.all_methods(truncate=200, seed=0):
        assert demo.ways.gradient_error(method, net, digits.clean, exact) < 1e-3, method.name


def test_truncated_bptt_is_the_truncated_neumann_series(demo, net, digits):
    """K + 1 unrolled updates are K products (proposition 1), at the boundary too."""
    import implicitgrad as ig

    for terms in (0, 1, 3):
        unrolled = demo.ways.Unrolled("TBPTT", tracked=terms + 1).gradient(net, digits.clean)
        series = demo.ways.Implicit("Neumann", ig.Neumann(max_iters=terms, rtol=0.0)).gradient(net, digits.clean)
        assert unrolled.vjps == series.vjps == terms
        assert (unrolled.gradient - series.gradient).norm() < 1e-4 * series.gradient.norm()
        assert set(series.statuses) == {"TRUNCATED"}


def test_rbp_from_random_numbers_is_wrong_after_few_steps_and_says_so(demo, net, digits):
    exact = demo.ways.reference_gradient(net, digits.clean)
    rbp = demo.ways.all_methods(truncate=3, seed=0)[2]
    assert rbp.name == "RBP"
    assert set(rbp.gradient(net, digits.clean).statuses) == {"MAX_ITERS"}
    assert demo.ways.gradient_error(rbp, net, digits.clean, exact) > 0.5


def test_peak_memory_counts_what_is_held_at_once(demo):
    def in_turn():
        for _ in range(4):
            torch.zeros(1000, dtype=torch.float32)

    def together():
        return [torch.zeros(1000, dtype=torch.float32) for _ in range(4)]

    assert 4000 <= demo.ways.peak_memory(in_turn) < 8000
    assert 16000 <= demo.ways.peak_memory(together) < 20000


def test_the_outcomes_are_given_as_shares(demo):
    assert demo.table.status_shares(Counter()) == "not checked"
    assert demo.table.status_shares(Counter(CONVERGED=1, MAX_ITERS=999)) == "MAX_ITERS 100%, CONVERGED <1%"


def test_the_verdict_is_made_of_the_numbers(demo, net):
    runs = [
        demo.table.Run(method, net, first_loss=1.0, last_loss=0.1, products=10.0 + i, errors=(0.0, 10.0 ** (i - 9)))
        for i, method in enumerate(demo.ways.all_methods(truncate=2, seed=0))
    ]
    runs[2].last_loss, runs[2].errors, runs[2].statuses = 3.0, (0.0, 4.0), Counter(MAX_ITERS=5)
    text = demo.table.verdict(runs)
    assert "RBP did not learn: its loss came to 300% of the first. Its gradient was off by 400%" in text
    assert "and its solves said so: MAX_ITERS 100%." in text
    assert "BPTT had the most exact gradient (1.0e-09) and GMRES the worst (1.0e-04, with nothing to tell it)" in text
    runs[-1].statuses = Counter(CONVERGED=5)
    assert "GMRES the worst (1.0e-04)" in demo.table.verdict(runs)
    assert "BPTT took the fewest products" in text
    assert len(demo.table.table(runs).splitlines()) == 3 + len(runs)


def test_a_run_that_was_too_short_makes_no_claims(demo, net):
    runs = [demo.table.Run(demo.ways.Unrolled("BPTT"), net, first_loss=1.0, last_loss=0.9, errors=(0.0, 0.1))]
    assert demo.table.verdict(runs) == "No method came below 50% of its first loss yet: give it more epochs."


@pytest.mark.timeout(600)
def test_a_quick_run_prints_its_table_and_writes_its_picture(tmp_path):
    """As a user runs it, from another folder; the same numbers come out twice."""
    command = [sys.executable, str(EXAMPLES / "associative_memory.py"), "--quick", "--epochs", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert (tmp_path / "outputs" / "associative_memory.png").read_bytes().startswith(b"\x89PNG")
    assert max(map(len, outputs[0].splitlines())) <= 100
    rows = [{line.split()[0]: line.split()[1:6] for line in text.splitlines() if " MB " in line} for text in outputs]
    assert list(rows[0]) == ["BPTT", "TBPTT", "RBP", "CG-RBP", "Neumann-RBP", "GMRES"]
    assert rows[0] == rows[1]
