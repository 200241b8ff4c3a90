"""Two processes learn what one learns; a pause of both changes no bit."""

import os
import subprocess
import sys
import textwrap
from multiprocessing import get_context

import pytest
import torch
import torch.distributed as dist

import patchclamp as pc
import tiny
from patchclamp import dictionaries, store
from patchclamp.dictionaries import BatchTopK, Gated, GroupMax, JumpReLU, Matryoshka, PAnneal, ReLU, TopK, Trainer
from patchclamp.dictionaries.parallel import ALONE, Processes, together
from patchclamp.organisms import planted

PARTS = [TopK(k=3), BatchTopK(k=3), ReLU(l0=3), JumpReLU(l0=3), Gated(l0=3)]
OTHERS = [GroupMax(k=4), PAnneal(l0=3), ReLU(l1=0.3), Matryoshka(BatchTopK(k=3), (16, 64))]


SLOWLY = 1e-3
"""A learning rate. At the default for so few steps a code that rounding lifts over zero moves its latent by 2e-4, also
in one process that is given the same rows in another order."""


@pytest.fixture(scope="module")
def x():
    return planted.superposition(features=64, width=32, active=3).sample(1000).activations


def distance(a, b):
    """The largest relative difference of two dictionaries' tensors."""
    pairs = [(a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict()]
    return max(float((p.float() - q.float()).norm() / q.float().norm().clamp_min(1e-3)) for p, q in pairs)


def member(rank, address, function, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        results.put((rank, function(Processes(torch.device("cpu")))))
    except Exception as error:
        results.put((rank, error))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture
def both(tmp_path):
    """What a function of the processes returns in each of two."""
    if sys.platform == "win32":
        pytest.skip("needs fork")

    def run(function):
        context = get_context("fork")
        results = context.SimpleQueue()
        members = [
            context.Process(target=member, args=(rank, tmp_path / function.__name__, function, results), daemon=True)
            for rank in range(2)
        ]
        for process in members:
            process.start()
        found = dict(results.get() for _ in members)
        for process in members:
            process.join()
        for result in found.values():
            if isinstance(result, Exception):
                raise result
        return [found[0], found[1]]

    return run


def test_sums_ratios_and_squares_have_the_gradient_of_the_whole(both):
    weight, rows = torch.tensor([1.0, 2.0]), torch.randn(7, 2, generator=torch.Generator().manual_seed(0))

    def loss(w, processes):
        mine = processes.share(rows) @ w
        part = len(mine) / len(rows)
        ratio = processes.total((mine**2).sum()) / processes.total(mine.abs().sum())
        return ratio + processes.mean(mine.mean(), part) ** 2

    def gradient(processes):
        w = weight.clone().requires_grad_()
        value = loss(w, processes)
        value.backward()
        processes.add_up([w.grad])
        return value.item(), w.grad.tolist()

    expected = gradient(ALONE)
    for value, slope in both(gradient):
        assert value == pytest.approx(expected[0], rel=1e-5) and slope == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("case", ["even", "one row takes all", "ties", "fewer rows than processes"])
def test_the_cut_of_batch_topk_is_that_of_the_whole_batch(both, case):
    pre = torch.rand(9, 64, generator=torch.Generator().manual_seed(0))
    if case == "one row takes all":
        pre[7] += 10
    if case == "ties":
        pre = (pre * 4).round()
    if case == "fewer rows than processes":
        pre = pre[:1]

    def kept(processes):
        active, values = BatchTopK(k=2).select(processes.share(pre), processes)
        return active.row.tolist(), active.latents.tolist(), values.tolist()

    rows, latents, values = kept(ALONE)
    (a_rows, a_latents, a_values), (b_rows, b_latents, b_values) = both(kept)
    first = -(-len(pre) // 2)
    assert a_rows + [row + first for row in b_rows] == rows
    assert a_latents + b_latents == latents and a_values + b_values == values


def test_two_processes_learn_what_one_learns(both, x):
    """Also with dead latents, an odd number of rows, and a last batch of a single row."""
    batches = [x[i : i + 101] for i in range(0, 1000, 101)] * 3 + [x[:1]]

    def learned(processes):
        said = []
        for part in PARTS + OTHERS:
            trainer = Trainer(part, d_in=32, width=64, steps=40, learning_rate=SLOWLY, processes=processes)
            for number, batch in enumerate(batches):
                if number == 5:
                    trainer.silent[::3], trainer.dead = 1e9, None
                told = trainer.step(batch)
            said.append((trainer.state()["tensors"], {name: float(value) for name, value in told.items()}))
        return [({name: t.detach().numpy() for name, t in tensors.items()}, told) for tensors, told in said]

    alone = learned(ALONE)
    a, b = both(learned)
    for part, (expected, told), (first, said), (second, _) in zip(PARTS + OTHERS, alone, a, b, strict=True):
        for name, tensor in expected.items():
            assert (first[name] == second[name]).all(), (part, name)
            whole = torch.tensor(tensor)
            away = (torch.tensor(first[name]) - whole).norm() / whole.norm().clamp_min(1e-2)
            assert float(away) < 1e-4, (part, name)
        assert said["dead"] == told["dead"] and said["l0"] == pytest.approx(told["l0"], rel=1e-4), part


def test_what_the_first_process_finds_or_refuses_all_do(both):
    def asked(processes):
        found = [processes.lead(lambda: processes.rank + 7)]
        for do in (lambda: processes.lead(lambda: 1 / 0), lambda: processes.agree({"seed": processes.rank})):
            try:
                do()
            except (ZeroDivisionError, ValueError) as error:
                found.append(str(error))
        return found

    for answer, failed, refused in both(asked):
        assert answer == 7 and "division by zero" in failed
        assert "process 1 trains something else: seed=1 (in process 0 0)" in refused


def test_one_process_is_alone():
    processes, device = together("cpu")
    assert processes is ALONE and device.type == "cpu"


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
HEAD = """
    import sys
    from pathlib import Path
    import torch
    from patchclamp import dictionaries
    from patchclamp.dictionaries import BatchTopK, Gated, JumpReLU, ReLU, TopK
    torch.set_num_threads(1)
    OUT = Path(sys.argv[1])
    x = torch.load(OUT / "x.pt")
    PARTS = [TopK(k=3), BatchTopK(k=3), ReLU(l0=3), JumpReLU(l0=3), Gated(l0=3)]
    SETTINGS = {"width": 64, "tokens": 4000, "batch": 101, "every": 5, "learning_rate": 1e-3}
"""


def launched(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *TORCHRUN, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_trains_the_same_dictionaries_and_goes_on_where_it_stopped(x, tmp_path):
    torch.save(x, tmp_path / "x.pt")
    script = tmp_path / "script.py"
    body = """
    whole = dictionaries.train(PARTS, x, out=OUT / "whole", **SETTINGS)
    real, calls = dictionaries.Trainer.step, []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 118:
            raise KeyboardInterrupt
        return real(self, batch)

    dictionaries.Trainer.step = interrupted
    try:
        dictionaries.train(PARTS, x, out=OUT / "parts", **SETTINGS)
    except KeyboardInterrupt:
        print("STOPPED")
    dictionaries.Trainer.step = real
    parts = dictionaries.train(PARTS, x, out=OUT / "parts", **SETTINGS)
    for a, b in zip(whole, parts, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    try:
        dictionaries.train(PARTS, x, out=OUT / "parts", **SETTINGS | {"tokens": 5000})
    except ValueError as refused:
        print("REFUSED", refused)
    """
    script.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
    said = launched(str(script), str(tmp_path))
    assert said.count("STOPPED") == 2 and said.count("another run: tokens=4000 (now 5000)") == 2
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1] and len(metrics[0].splitlines()) == 8 * len(PARTS)
    alone = dictionaries.train(PARTS, x, width=64, tokens=4000, batch=101, learning_rate=SLOWLY, progress=False)
    for number, (part, one) in enumerate(zip(PARTS, alone, strict=True)):
        assert distance(dictionaries.load(tmp_path / "whole" / str(number)), one) < 1e-4, part


@pytest.mark.slow
def test_torchrun_trains_from_the_command_line(tmp_path):
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(3, 99, (40,), generator=generator).tolist() for _ in range(100)]
    model = pc.wrap(tiny.build("llama"), name="tiny")
    store.record(model, documents, "resid_post.1", tmp_path / "acts", dtype="float32", quiet=True)
    settings = ["--site", "resid_post.1", "--part", "TopK", "--k", "4", "--width", "64", "--tokens", "30000"]
    command = ["-m", "patchclamp", "train", str(tmp_path / "acts"), *settings, "--out"]
    launched(*command, str(tmp_path / "two"))
    subprocess.run([sys.executable, *command, str(tmp_path / "one")], check=True, capture_output=True)
    two, one = (dictionaries.load(tmp_path / name) for name in ("two", "one"))
    assert two.metadata["steps"] == one.metadata["steps"] == 15
    assert distance(two, one) < 1e-4
