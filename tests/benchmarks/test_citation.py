"""The citation experiment: its fast update, its resumable runs, its counts, and the claims that its tables rest on."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
sparse = pytest.importorskip("scipy.sparse")

import implicitgrad as ig
import implicitgrad.torch as igt
from benchmarks.paper.__main__ import main
from benchmarks.paper.citation import tables
from benchmarks.paper.citation.cell import Update, initial_cell
from benchmarks.paper.citation.equilibrium import EquilibriumNetwork, normalized_adjacency
from benchmarks.paper.citation.graph import (
    Graph,
    Propagate,
    adjacency_matrix,
    simple_matrix,
    sparse_tensor,
    split_nodes,
)
from benchmarks.paper.citation.methods import METHODS
from benchmarks.paper.citation.runs import claimed, plan, run_all, run_key
from benchmarks.paper.citation.statistics import count
from benchmarks.paper.citation.training import Setting, Training
from benchmarks.paper.citation.why import Network, Variant, ask
from benchmarks.paper.data import Citation, load_citation
from benchmarks.paper.records import Records

RECURRENT = [name for name, method in METHODS.items() if method.last_state is not None]
SETTING = Setting(steps=6, truncate=3, every=2)


def random_edges(n: int, seed: int = 0) -> np.ndarray:
    """A ring, so that no node is alone, with chords; both directions of each."""
    rng = np.random.default_rng(seed)
    one_way = np.concatenate([np.stack([np.arange(n), (np.arange(n) + 1) % n], 1), rng.integers(0, n, (n, 2))])
    one_way = one_way[one_way[:, 0] != one_way[:, 1]]
    return np.concatenate([one_way, one_way[:, ::-1]])


def small_graph(n: int = 30, size: int = 4, classes: int = 3) -> Graph:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, size, generator=generator)
    labels = torch.arange(n) % classes
    return Graph("ring", features, labels, sparse_tensor(adjacency_matrix(random_edges(n), n)), 0.2)


@pytest.fixture
def graph() -> Graph:
    return small_graph()


# -- the update ---


def test_update_without_gradients_is_torchs_gru_cell_to_rounding(graph):
    """Also after the parameters were changed in place, as an optimizer does, and without a trace in its argument."""
    update, cell = Update(graph.adjacency), initial_cell(4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for bias in cell[2:]:
            bias.normal_(generator=torch.Generator().manual_seed(2))
        for _ in range(2):
            h = graph.features.clone()
            fast = update(h, *cell)
            # Absolute: the state is in (-1, 1) but for the first one, and the products sum some 8 terms of size 10.
            torch.testing.assert_close(fast, torch.gru_cell(graph.adjacency @ h, h, *cell), rtol=1e-5, atol=5e-6)
            assert torch.equal(h, graph.features)
            for p in cell:
                p.mul_(0.5)


def test_update_without_gradients_hands_out_a_state_that_the_next_call_leaves_alone(graph):
    update, cell = Update(graph.adjacency), initial_cell(4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = update(graph.features, *cell)
        kept = first.clone()
        update(first, *cell)
    assert torch.equal(first, kept)


def test_propagation_has_its_first_and_second_derivative():
    adjacency = sparse_tensor(adjacency_matrix(random_edges(5), 5)).double()
    h = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    f = lambda h: torch.tanh(Propagate.apply(h, adjacency))
    assert torch.autograd.gradcheck(f, h)
    assert torch.autograd.gradgradcheck(f, h)


def test_edges_in_one_direction_are_refused():
    with pytest.raises(ValueError, match="one direction only"):
        adjacency_matrix(np.array([[0, 1]]), 2)


def test_an_edge_that_is_listed_twice_counts_twice_in_the_sum_and_once_in_the_mean():
    edges = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [1, 2], [2, 1]])
    summing = adjacency_matrix(edges, 3)
    assert summing.toarray().tolist() == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]
    S = normalized_adjacency(simple_matrix(sparse_tensor(summing))).to_dense()
    degrees = np.array([2.0, 3.0, 2.0])  # with the loop
    expected = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]]) / np.sqrt(np.outer(degrees, degrees))
    np.testing.assert_allclose(S.numpy(), expected, rtol=1e-6)
    eigenvalues = np.linalg.eigvalsh(S.numpy())
    assert eigenvalues[0] > -1
    assert eigenvalues[-1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_is_a_partition_of_the_papers_sizes(seed):
    split = split_nodes(2708, seed)
    assert (len(split.train), len(split.validation), len(split.test)) == (27, 1326, 1355)
    assert torch.equal(torch.cat([split.train, split.validation, split.test]).sort().values, torch.arange(2708))
    assert not torch.equal(split.train, split_nodes(2708, seed + 1).train)


# -- the methods ---


def gradients(graph: Graph, method: str, **setting) -> list[torch.Tensor]:
    training = Training(graph, method, 0, Setting(**{**asdict(SETTING), **setting}))
    training.advance()
    return [p.grad for p in training.cell]


def test_every_method_reads_the_same_state(graph):
    """They differ in the gradient alone, so the first look is the same for all."""
    losses = []
    for method in RECURRENT:
        training = Training(graph, method, 0, SETTING)
        training.advance()
        losses.append(training.curves.loss[0])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_truncation_over_all_steps_is_bptt(graph):
    for ours, full in zip(gradients(graph, "tbptt", truncate=SETTING.steps), gradients(graph, "bptt"), strict=True):
        torch.testing.assert_close(ours, full, rtol=1e-4, atol=1e-5)


def test_rbp_from_a_random_start_differs_from_neumann_by_the_power_of_the_jacobian_on_it(graph):
    """P3 from the other side: ``z_K`` is Neumann's sum of ``K`` terms plus ``(J^T)^K z_0``."""
    cell, start = initial_cell(4, torch.Generator().manual_seed(1)), torch.rand(30, 4)
    g = torch.randn(30, 4)
    update = Update(graph.adjacency)
    J = igt.vjp_operator(update, graph.features, *cell)
    z = ig.adjoint_solve(
        J, g.ravel(), solver=ig.Richardson(rtol=0.0, max_iters=3), x0=start.ravel(), on_failure="return"
    ).x
    neumann = ig.adjoint_solve(J, g.ravel(), solver=ig.Neumann(rtol=0.0, max_iters=2), on_failure="return").x
    rest = start.ravel()
    for _ in range(3):
        rest = J.rmatvec(rest)
    torch.testing.assert_close(z, neumann + rest, rtol=1e-4, atol=1e-4 * float(rest.norm()))


# -- runs that are interrupted ---


def run_to(training: Training, epochs: int) -> Training:
    while not training.done(epochs):
        training.advance()
    return training


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_that_was_interrupted_ends_in_the_numbers_of_one_that_was_not(graph, method, tmp_path):
    whole = run_to(Training(graph, method, 3, SETTING), 9)
    first = run_to(Training(graph, method, 3, SETTING), 5)
    first.save(tmp_path / "run.pt")
    second = Training(graph, method, 3, SETTING)
    second.load(tmp_path / "run.pt")
    run_to(second, 9)
    for a, b in zip([*whole.cell, *whole.readout], [*second.cell, *second.readout], strict=True):
        assert torch.equal(a, b)
    assert whole.result() == second.result()
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]  # nothing half-written is left


def test_a_run_stands_alone_whatever_was_run_before_it(graph):
    alone = run_to(Training(graph, "rbp", 0, SETTING), 4).result()
    run_to(Training(graph, "artbp-uniform", 1, SETTING), 3)
    assert run_to(Training(graph, "rbp", 0, SETTING), 4).result() == alone


def test_parameters_that_are_not_finite_end_the_run_and_are_judged(graph):
    training = Training(graph, "tbptt", 0, SETTING)
    run_to(training, 2)
    with torch.no_grad():
        training.readout[0][0, 0] = float("nan")
    run_to(training, 100)
    assert training.curves.lost_at == training.epoch == 3
    share = 100 * float((graph.labels[training.split.validation] == 0).double().mean())
    assert training.result()["validation"] >= share
    assert training.curves.validation[-1] == pytest.approx(share)


def test_runs_go_on_from_milestone_to_milestone_and_are_not_repeated(graph, tmp_path, monkeypatch):
    records = Records(tmp_path / "runs.jsonl")
    run_all(graph, plan(["tbptt"], range(2), (2, 4)), SETTING, records)
    assert [(line["key"]["epochs"], line["key"]["seed"]) for line in records.lines()] == [
        (2, 0),
        (2, 1),
        (4, 0),
        (4, 1),
    ]
    straight = run_to(Training(graph, "tbptt", 1, SETTING), 4).result()
    assert records.find(**run_key("ring", "tbptt", 1, 4, SETTING))["result"]["loss"] == straight["loss"]
    monkeypatch.setattr(Training, "advance", lambda self: pytest.fail("a run was repeated"))
    run_all(graph, plan(["tbptt"], range(2), (2, 4)), SETTING, records)


def test_a_checkpoint_beyond_the_milestone_is_not_taken_for_it(graph, tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    run_all(graph, plan(["tbptt"], range(1), (6,)), SETTING, records)
    run_all(graph, plan(["tbptt"], range(1), (2,)), SETTING, records)
    assert records.find(**run_key("ring", "tbptt", 0, 2, SETTING))["result"]["epochs"] == [1, 2]


def test_a_run_that_another_process_is_at_is_passed_over(graph, tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    with claimed(tmp_path / "runs" / "ring-tbptt-0.lock") as mine:
        assert mine
        run_all(graph, plan(["tbptt"], range(2), (2,)), SETTING, records, reverse=True)
    assert [line["key"]["seed"] for line in records.lines()] == [1]
    run_all(graph, plan(["tbptt"], range(2), (2,)), SETTING, records)
    assert [line["key"]["seed"] for line in records.lines()] == [1, 0]


def test_three_seeds_come_equally_far_before_any_goes_further():
    batches = plan(["a", "b"], range(4), (1, 2))
    assert batches[0] == [(1, s, m) for s in range(3) for m in "ab"]
    assert batches[1] == [(2, s, m) for s in range(3) for m in "ab"]
    assert batches[2] == [(1, 3, m) for m in "ab"]


# -- why, and the network that does better ---


def answers(graph: Graph, propagation: str, weights: float, enters: bool) -> dict:
    S = normalized_adjacency(simple_matrix(graph.adjacency))
    variant = Variant(propagation, weights, enters)
    matrix = graph.adjacency if propagation == "sum" else S
    network = Network(matrix, graph.features.shape[1], variant, torch.Generator().manual_seed(0))
    return ask(network, graph, 100, range(1))


def test_a_network_that_contracts_forgets_features_that_are_its_initial_state_alone(graph):
    answer = answers(graph, "mean", 0.25, False)
    assert answer["radius"] < 1
    assert max(answer["size"], answer["growth"], answer["start"], answer["features"]) < 1e-5


def test_a_network_that_contracts_remembers_features_that_enter_the_map(graph):
    answer = answers(graph, "mean", 0.25, True)
    assert answer["radius"] < 1
    assert answer["update"] < 1e-5
    assert answer["start"] < 1e-5 < 0.1 < answer["features"]


def test_the_papers_network_with_no_input_is_the_cell_of_the_runs(graph):
    network = Network(graph.adjacency, 4, Variant("sum", 1.0, False), torch.Generator().manual_seed(0))
    cell = [network.W, network.U, network.b, network.c]
    with torch.no_grad():
        theirs = Update(graph.adjacency)(graph.features, *cell)
        torch.testing.assert_close(network(graph.features, network.input(graph.features)), theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def equilibrium(graph) -> EquilibriumNetwork:
    S = normalized_adjacency(simple_matrix(graph.adjacency))
    return EquilibriumNetwork(S, 4, 3, 3, drop=0.0, generator=torch.Generator().manual_seed(0))


def test_the_equilibrium_network_begins_as_a_contraction_and_is_solved(graph, equilibrium):
    x = equilibrium.encode(graph.features)
    h = equilibrium.equilibrium(x)
    for point in (torch.zeros_like(h), h.detach()):  # at 0, where tanh is steepest, too
        J = igt.vjp_operator(equilibrium.update, point, x.detach())
        dense = np.stack([J.rmatvec(e).numpy() for e in torch.eye(h.numel())])
        assert np.linalg.norm(dense, 2) < 1
    h.sum().backward()
    assert equilibrium.report.forward.status is ig.Status.CONVERGED
    assert equilibrium.report.backward.status is ig.Status.CONVERGED


def test_at_an_equilibrium_the_update_gate_says_nothing(graph, equilibrium):
    """``h = q + z (h - q)`` holds where ``h = q``, whatever ``z`` is: its bias has no gradient."""
    loss = equilibrium.equilibrium(equilibrium.encode(graph.features)).square().sum()
    loss.backward()
    reset, update = equilibrium.b_gates.grad.chunk(2)
    assert float(update.abs().max()) < 1e-2 * float(reset.abs().max())  # of the size of the tolerances, 1e-4 and 1e-3


def test_the_equilibrium_networks_gradient_is_that_of_many_unrolled_updates(graph, equilibrium):
    x = equilibrium.encode(graph.features)
    weights = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    (equilibrium.equilibrium(x) * weights).sum().backward()
    implicit = {name: p.grad.clone() for name, p in equilibrium.named_parameters() if p.grad is not None}
    equilibrium.zero_grad()
    unrolled = igt.bptt(equilibrium.update, torch.zeros(30, 3), equilibrium.encode(graph.features), steps=400)
    (unrolled * weights).sum().backward()
    for name in ("V_q", "V_gates", "b_q", "W", "U"):
        exact = dict(equilibrium.named_parameters())[name].grad
        scale = max(float(exact.norm()), 1e-2 * float(dict(equilibrium.named_parameters())["b_q"].grad.norm()))
        assert float((implicit[name] - exact).norm()) < 2e-2 * scale  # residual 1e-3, magnified by up to 1/sigma_min


# -- counts and tables ---


def test_links_edges_repetitions_and_loops_are_told_apart():
    edges = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [1, 2], [2, 1], [2, 2], [2, 2]])
    features = sparse.csr_matrix(np.ones((4, 5), np.float32))
    nodes = np.array([0])
    counts = count(Citation("cora", features, np.array([0, 1, 1, -1]), edges, nodes, nodes))
    assert (counts.links, counts.edges, counts.repeated, counts.loops) == (4, 2, 1, 1)
    assert (counts.nodes, counts.isolated, counts.unlabelled, counts.classes, counts.features) == (4, 1, 1, 2, 5)


def test_cora_is_the_papers_and_151_of_its_links_are_repetitions():
    folder = Path(os.environ.get("IMPLICITGRAD_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "cora.npz").exists():
        pytest.skip("cora.npz is not at hand: set IMPLICITGRAD_DATA_DIR")
    counts = count(load_citation("cora", folder))
    assert (counts.nodes, counts.links, counts.classes, counts.features) == (2708, 5429, 7, 1433)
    assert (counts.edges, counts.repeated, counts.loops) == (5278, 151, 0)


def test_table_a3_compares_where_every_method_has_three_runs(graph, tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    run_all(graph, plan(["baseline", "tbptt"], range(3), (2, 4)), SETTING, records)
    assert "further" not in tables.recurrent(records)  # a column of nothing
    run_all(graph, plan(["baseline"], range(3), (6,)), SETTING, records)
    table = tables.recurrent(records)
    assert "ours, 4 epochs (runs)" in table
    (baseline,) = (line for line in table.splitlines() if line.startswith("Baseline"))
    further = [run_to(Training(graph, "baseline", s, SETTING), 6).result()["validation"] for s in range(3)]
    assert f"6: {np.mean(further):.1f} +- {np.std(further, ddof=1):.1f} (3)" in baseline
    accuracies = [run_to(Training(graph, "baseline", s, SETTING), 4).result()["validation"] for s in range(3)]
    assert f"{np.mean(accuracies):.1f} +- {np.std(accuracies, ddof=1):.1f} (3)" in baseline
    common = np.sqrt((9 * 3.4**2 + 2 * np.var(accuracies, ddof=1)) / 11)  # the paper's 39.96 +- 3.4 has ten runs
    assert f" {np.mean(accuracies) - 39.96:+.1f} +- {common * np.sqrt(1 / 3 + 1 / 10):.1f} " in baseline


def test_a_row_of_ours_that_has_not_come_as_far_says_so_and_does_not_hold_the_papers_back(graph, tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    run_all(graph, plan(["baseline", "gmres"], range(3), (2,)), SETTING, records)
    run_all(graph, plan(["baseline"], range(3), (4,)) + plan(["gmres"], range(2), (4,)), SETTING, records)
    table = tables.recurrent(records)
    assert "ours, 4 epochs (runs)" in table
    (gmres,) = (line for line in table.splitlines() if line.startswith("GMRES"))
    assert "(3) after 2 " in gmres
    assert " 4: " in gmres
    assert gmres.index(" 4: ") < gmres.index("(2)")
    assert gmres.split()[-2:] == ["6", "MAX_ITERS"]  # three runs of two solves, like the other columns


def test_a_quick_run_prints_all_tables_from_nothing(tmp_path, capsys):
    """The digits stand in for the data: no file, no network."""
    assert main(["citation", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "Table A2",
        "Table A3",
        "TPoisson-ARTBP",
        "mean, weights x 0.25",
        "equilibrium network",
        "minus GCN",
    ):
        assert expected in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quick-citation", "quick-citation.jsonl"]


def test_a_name_that_nothing_has_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="got --only bptp, expected one of"):
        main(["citation", "--quick", "--only", "bptp", "--out", str(tmp_path)])
